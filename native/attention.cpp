// How attention is cut into chunks for the pool: blocks of query rows of one sequence and kv head, and where
// rows are few and keys many, spans of keys (AMX).
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "pool.h"

namespace hearth {
namespace {

using Kernel = void (*)(const AttentionCall&, const QueryBlock&, float*);

constexpr std::int64_t kSplitRows = 64;  // most rows whose keys are split into spans

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

bool uses_amx(Isa isa, const AttentionCall& call) {
#if defined(HEARTH_HAS_AMX)
    return isa == Isa::amx && call.number == Number::bf16 && call.cache != Cache::f32;
#else
    (void)isa;
    (void)call;
    return false;
#endif
}

struct Choice {
    Kernel kernel;
    std::int64_t max_rows, scratch_size;
};

Choice choice_of(Isa isa, const AttentionCall& call) {
#if defined(HEARTH_HAS_AMX)
    if (uses_amx(isa, call)) return {attention_amx, kMaxAmxRows, attention_scratch_amx(call.head_dim)};
#endif
#if defined(HEARTH_HAS_AVX512)
    if (isa != Isa::avx2) {
        const std::int64_t rows = attention_rows_avx512();
        return {attention_avx512, rows, attention_scratch(call.head_dim, rows)};
    }
#endif
    (void)isa;
#if defined(HEARTH_X86)
    return {attention_avx2, attention_rows_avx2(), attention_scratch(call.head_dim, attention_rows_avx2())};
#else
    return {nullptr, 1, 0};
#endif
}

// Memory that starts at a cache line and is kept between calls; what it held is lost when it grows.
class Room {
public:
    float* take(std::int64_t count) {
        if (count > count_) {
            memory_.reset(static_cast<float*>(std::aligned_alloc(64, std::size_t(divide_up(count, 16) * 64))));
            if (memory_ == nullptr) throw std::bad_alloc();
            count_ = count;
        }
        return memory_.get();
    }

private:
    struct Free {
        void operator()(float* memory) const { std::free(memory); }
    };
    std::unique_ptr<float, Free> memory_;
    std::int64_t count_ = 0;
};

// A sequence's share of the chunks: blocks of rows x kv heads x spans.
struct Part {
    std::int64_t end;                       // of its chunks
    std::int64_t num_rows, num_blocks;
    std::int64_t first_span, num_spans;     // 1: keys are not split
    std::int64_t first_group;               // of its blocks whose keys are split, one per kv head
};

std::int64_t rows_of(const AttentionCall& call, std::int64_t sequence) {
    return (call.query_starts[sequence + 1] - call.query_starts[sequence]) * (call.num_heads / call.num_kv_heads);
}

// Rows of one chunk: as many as the kernel takes, unless that would leave threads without work.
std::int64_t rows_per_chunk(const AttentionCall& call, std::int64_t max_rows) {
    std::int64_t total = 0;
    for (std::int64_t s = 0; s < call.num_sequences; ++s) total += rows_of(call, s);
    const std::int64_t fair = total * call.num_kv_heads / (4 * num_threads());
    while (max_rows > 2 * kTileRows && max_rows > fair) max_rows /= 2;
    return max_rows;
}

}  // namespace

void attention(Isa isa, const AttentionCall& call) {
    const Choice choice = choice_of(isa, call);
    const bool is_amx = uses_amx(isa, call);
    const std::int64_t height = rows_per_chunk(call, choice.max_rows);
    std::int64_t num_chunks = 0, num_groups = 0, partial_size = 0;
    std::vector<Part> parts(std::size_t(call.num_sequences));
    for (std::int64_t s = 0; s < call.num_sequences; ++s) {
        Part part{0, rows_of(call, s), 0, 0, 1, num_groups};
        part.num_blocks = divide_up(part.num_rows, height);
        if (is_amx && part.num_blocks == 1 && part.num_rows <= kSplitRows) {
            const KeyRange range = keys_of(call, QueryBlock{s, 0, 0, part.num_rows, 0, nullptr});
            part.first_span = range.first / kSpan;
            part.num_spans = divide_up(range.end, kSpan) - part.first_span;
            if (part.num_spans > 1) {
                num_groups += call.num_kv_heads;
                partial_size += call.num_kv_heads * part.num_spans * attention_tiles_amx(part.num_rows);
            }
        }
        num_chunks += part.num_blocks * call.num_kv_heads * part.num_spans;
        part.end = num_chunks;
        parts[std::size_t(s)] = part;
    }
    static thread_local Room partial_room;
    float* partials = nullptr;
    std::unique_ptr<std::atomic<std::int64_t>[]> num_left;  // spans to come, of each group
    std::vector<float*> partial_of;
#if defined(HEARTH_HAS_AMX)
    if (num_groups != 0) {
        const std::int64_t one = attention_partial_amx(call.head_dim);
        partials = partial_room.take(partial_size * one);
        num_left.reset(new std::atomic<std::int64_t>[std::size_t(num_groups)]);
        for (const Part& part : parts) {
            if (part.num_spans == 1) continue;
            for (std::int64_t head = 0; head < call.num_kv_heads; ++head) {
                num_left[std::size_t(part.first_group + head)] = part.num_spans;
                partial_of.push_back(partials);
                partials += one * part.num_spans * attention_tiles_amx(part.num_rows);
            }
        }
    }
#endif
    for_each_chunk(num_chunks, [&](std::int64_t reversed) {
        // The last rows of a sequence see most keys: whoever begins with them ends in time.
        const std::int64_t chunk = num_chunks - 1 - reversed;
        const auto found = std::upper_bound(parts.begin(), parts.end(), chunk,
                                            [](std::int64_t at, const Part& part) { return at < part.end; });
        const Part& part = *found;
        const std::int64_t s = found - parts.begin();
        const std::int64_t inside = chunk - (part.end - part.num_blocks * call.num_kv_heads * part.num_spans);
        const std::int64_t span = inside % part.num_spans, head = inside / part.num_spans % call.num_kv_heads;
        const std::int64_t row = inside / part.num_spans / call.num_kv_heads * height;
        QueryBlock block{s, head, row, std::min(height, part.num_rows - row), part.first_span + span, nullptr};
        static thread_local Room room;
        float* const scratch = room.take(choice.scratch_size);
#if defined(HEARTH_HAS_AMX)
        if (part.num_spans > 1) {
            const std::size_t group = std::size_t(part.first_group + head);
            const std::int64_t one = attention_partial_amx(call.head_dim) * attention_tiles_amx(part.num_rows);
            block.partial = partial_of[group] + span * one;
            attention_amx(call, block, scratch);
            if (--num_left[group] == 0) {
                block.partial = partial_of[group];
                attention_finish_amx(call, block, part.num_spans);
            }
            return;
        }
#endif
        choice.kernel(call, block, scratch);
    });
}

}  // namespace hearth
