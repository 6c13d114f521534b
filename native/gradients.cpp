// How the backward passes are cut into chunks for the pool.
#include "gradients.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "pool.h"

namespace hearth {
namespace {

constexpr std::int64_t kNumbersPerChunk = 16 << 10;
constexpr std::int64_t kRowsPerSum = 64;  // fixed: sums of the rows of a chunk are added up in ascending order

struct Free {
    void operator()(float* memory) const { std::free(memory); }
};
using Room = std::unique_ptr<float, Free>;

Room take(std::int64_t count) {
    Room room(static_cast<float*>(std::aligned_alloc(64, std::size_t((count + 15) / 16 * 64))));
    if (room == nullptr) throw std::bad_alloc();
    return room;
}

// Memory that a thread keeps from call to call.
class Kept {
public:
    float* at_least(std::int64_t count) {
        if (count > count_) {
            room_.reset();
            room_ = take(count);
            count_ = count;
        }
        return room_.get();
    }

private:
    Room room_;
    std::int64_t count_ = 0;
};

}  // namespace

#if defined(HEARTH_X86)

#if defined(HEARTH_HAS_AVX512)
#define HEARTH_PICK(isa, name) (isa == Isa::avx2 ? name##_avx2 : name##_avx512)
#else
#define HEARTH_PICK(isa, name) ((void)isa, name##_avx2)
#endif

void glu_grad(Isa isa, const GluGradCall& call) {
    const auto rows = HEARTH_PICK(isa, glu_grad);
    const std::int64_t height = std::max<std::int64_t>(1, kNumbersPerChunk / std::max<std::int64_t>(1, call.size));
    for_each_chunk((call.num_rows + height - 1) / height, [&](std::int64_t chunk) {
        rows(call, chunk * height, std::min((chunk + 1) * height, call.num_rows));
    });
}

void rms_norm_grad(Isa isa, const RmsNormGradCall& call) {
    const auto rows = HEARTH_PICK(isa, rms_norm_grad);
    const std::int64_t num_chunks = (call.num_rows + kRowsPerSum - 1) / kRowsPerSum;
    Room sums;
    if (call.grad_weight != nullptr) {
        sums = take(num_chunks * call.size);
        std::fill_n(sums.get(), num_chunks * call.size, 0.0f);
    }
    for_each_chunk(num_chunks, [&](std::int64_t chunk) {
        rows(call, chunk * kRowsPerSum, std::min((chunk + 1) * kRowsPerSum, call.num_rows),
             sums == nullptr ? nullptr : sums.get() + chunk * call.size);
    });
    if (call.grad_weight == nullptr) return;
    std::fill_n(call.grad_weight, call.size, 0.0f);
    for (std::int64_t chunk = 0; chunk < num_chunks; ++chunk) {
        const float* const part = sums.get() + chunk * call.size;
        for (std::int64_t i = 0; i < call.size; ++i) call.grad_weight[i] += part[i];
    }
}

void attention_grad(Isa isa, const AttentionGradCall& call) {
    auto one = HEARTH_PICK(isa, attention_grad);
#if defined(HEARTH_HAS_AMX)
    if (isa == Isa::amx) one = attention_grad_amx;
#endif
    const auto rows_of = [&](std::int64_t sequence) { return call.query_starts[sequence + 1] - call.query_starts[sequence]; };
    std::vector<std::vector<std::int64_t>> members(std::size_t(call.num_sequences));
    for (std::int64_t s = 0; s < call.num_sequences; ++s) {
        const std::int64_t parent = call.parents == nullptr ? -1 : call.parents[s];
        if (parent < 0) members[std::size_t(s)].insert(members[std::size_t(s)].begin(), s);
        if (parent >= 0) members[std::size_t(parent)].push_back(s);
    }
    const std::int64_t num_rows = call.query_starts[call.num_sequences], head_numbers = num_rows * call.head_dim;
    static thread_local Kept kept_sums;
    float* const sums = kept_sums.at_least(2 * call.num_heads * head_numbers);
    struct Task {
        AttentionFamily family;
        std::int64_t num_rows;
    };
    std::vector<Task> tasks;
    for (const std::vector<std::int64_t>& family : members) {
        if (family.empty()) continue;
        std::int64_t family_rows = 0;
        for (const std::int64_t s : family) family_rows += padded_rows(rows_of(s));
        if (family_rows == 0) continue;
        for (std::int64_t head = 0; head < call.num_heads; ++head) {
            float* const grad_k = sums + head * head_numbers;
            tasks.push_back({{family.data(), std::int64_t(family.size()), head, grad_k, grad_k + call.num_heads * head_numbers},
                             family_rows});
        }
    }
    std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.num_rows > b.num_rows; });
    for_each_chunk(std::int64_t(tasks.size()), [&](std::int64_t chunk) {
        const Task& task = tasks[std::size_t(chunk)];
        static thread_local Kept kept;
        one(call, task.family, kept.at_least(attention_grad_scratch(call.head_dim, task.num_rows)));
    });
    const auto sum = HEARTH_PICK(isa, attention_grad_sum);
    for_each_chunk((num_rows + kRowsPerSum - 1) / kRowsPerSum, [&](std::int64_t chunk) {
        sum(call, sums, sums + call.num_heads * head_numbers, chunk * kRowsPerSum,
            std::min((chunk + 1) * kRowsPerSum, num_rows));
    });
}

#else  // every instruction set is missing here, so these are never called
void glu_grad(Isa, const GluGradCall&) {}
void rms_norm_grad(Isa, const RmsNormGradCall&) {}
void attention_grad(Isa, const AttentionGradCall&) {}
#endif

}  // namespace hearth
