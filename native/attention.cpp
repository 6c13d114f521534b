// How attention is cut into chunks for the pool: blocks of query rows of one sequence and kv head.
#include "attention.h"

#include <algorithm>
#include <vector>

#include "pool.h"

namespace hearth {
namespace {

using Kernel = void (*)(const AttentionCall&, const QueryBlock&, float*);

struct Choice {
    Kernel kernel;
    std::int64_t max_rows;
};

Choice choice_of(Isa isa) {
#if defined(HEARTH_HAS_AVX512)
    if (isa != Isa::avx2) return {attention_avx512, attention_rows_avx512()};
#endif
    (void)isa;
#if defined(HEARTH_X86)
    return {attention_avx2, attention_rows_avx2()};
#else
    return {nullptr, 1};
#endif
}

// A thread's own memory, kept between calls.
float* scratch_of_thread(std::int64_t count) {
    static thread_local std::vector<float> memory;
    if (std::int64_t(memory.size()) < count) memory.resize(std::size_t(count));
    return memory.data();
}

}  // namespace

void attention(Isa isa, const AttentionCall& call) {
    const Choice choice = choice_of(isa);
    const std::int64_t group = call.num_heads / call.num_kv_heads;
    std::vector<std::int64_t> ends;  // of each sequence's chunks
    ends.reserve(std::size_t(call.num_sequences));
    std::int64_t num_chunks = 0;
    for (std::int64_t s = 0; s < call.num_sequences; ++s) {
        const std::int64_t rows = (call.query_starts[s + 1] - call.query_starts[s]) * group;
        num_chunks += (rows + choice.max_rows - 1) / choice.max_rows * call.num_kv_heads;
        ends.push_back(num_chunks);
    }
    const std::int64_t scratch_size = attention_scratch(call.head_dim, choice.max_rows);
    for_each_chunk(num_chunks, [&](std::int64_t reversed) {
        // The last rows of a sequence see most keys: whoever begins with them ends in time.
        const std::int64_t chunk = num_chunks - 1 - reversed;
        const std::int64_t s = std::upper_bound(ends.begin(), ends.end(), chunk) - ends.begin();
        const std::int64_t inside = chunk - (s == 0 ? 0 : ends[std::size_t(s - 1)]);
        const std::int64_t row = inside / call.num_kv_heads * choice.max_rows;
        const std::int64_t rows = (call.query_starts[s + 1] - call.query_starts[s]) * group;
        choice.kernel(call, QueryBlock{s, inside % call.num_kv_heads, row, std::min(choice.max_rows, rows - row)},
                      scratch_of_thread(scratch_size));
    });
}

}  // namespace hearth
