// Causal attention of a pack of tokens over paged keys and values, or over those of the pack itself.
//
// A query row is one head of one token. Order of arithmetic of a row, whatever the pack, the chunking, the
// block of rows it is computed in, or the threads: keys in blocks of kKeyBlock counted from position 0. The
// query is scaled first; a score is one chain of fused products over the head's numbers; a block's maximum
// joins the running one; weights are exp(score - maximum), added in four sums by key mod 4; each output
// number is rescaled and continues its chain over the block's keys; at the end it is divided by the sum of
// weights. All in float32, the output rounded to its type. AVX2 and AVX-512 follow the same order.
//
// Sources: online softmax, arXiv 1805.02867; its use over blocks of keys, arXiv 2205.14135.
#pragma once

#include <cstdint>

#include "isa.h"
#include "linear.h"

namespace hearth {

constexpr std::int64_t kKeyBlock = 64;

struct AttentionCall {
    const void* q;                       // rows of num_heads * head_dim numbers
    std::int64_t q_stride;
    const void *k, *v;                   // contiguous rows of num_kv_heads * head_dim numbers
    void* out;                           // contiguous rows like those of q
    const std::int64_t* page_table;      // pages_per_sequence per sequence; null: keys are the pack's own rows
    std::int64_t pages_per_sequence, page_size;
    const std::int64_t* query_starts;    // num_sequences + 1
    const std::int64_t* context_lens;    // keys of each sequence, its queries being the last of them
    std::int64_t num_sequences, num_heads, num_kv_heads, head_dim;
    float scale;
    Number number;
};

// Rows [row, row + num_rows) of the queries x (heads per kv head) of one sequence, for one kv head.
struct QueryBlock {
    std::int64_t sequence, kv_head, row, num_rows;
};

// Query rows that a kernel takes at once, and float32 numbers of scratch memory that it needs.
std::int64_t attention_rows_avx2();
std::int64_t attention_rows_avx512();
static inline std::int64_t attention_scratch(std::int64_t head_dim, std::int64_t max_rows) {
    return 2 * head_dim * max_rows + 2 * kKeyBlock * head_dim + kKeyBlock * max_rows;
}

void attention_avx2(const AttentionCall& call, const QueryBlock& block, float* scratch);
void attention_avx512(const AttentionCall& call, const QueryBlock& block, float* scratch);

// Computes the whole call on the pool. The instruction set must not be missing.
void attention(Isa isa, const AttentionCall& call);

}  // namespace hearth
