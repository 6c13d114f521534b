// Backward passes of what lies between matrix products: gated units, RMSNorm and attention. All arithmetic is
// float32, whatever the rows' type, with one rounding at the end; with bf16 rows on AVX-512 and AMX,
// weights of attention and gradients of scores are rounded to bf16 as well before they are multiplied.
//
// Order of arithmetic: a sum runs over rows or keys in ascending order, in blocks whose size is fixed, then over the
// heads that share keys. It depends on the pack and the instruction set, never on the threads.
#pragma once

#include <cstdint>

#include "isa.h"
#include "linear.h"
#include "rows.h"

namespace hearth {

// Of GluCall: grad_gate = grad * up * activation'(gate), grad_up = grad * activation(gate). Contiguous rows.
struct GluGradCall {
    const void *gate, *up, *grad;
    void *grad_gate, *grad_up;
    std::int64_t num_rows, size;
    Number number;
    Activation activation;
};

// Of RmsNormCall, with h = x or the sum, n = h / sqrt(mean(h^2) + eps) and d = grad * weight:
// grad_h = grad_sum + (d - n mean(d n)) / sqrt(mean(h^2) + eps), grad_weight = sum over rows of grad * n.
struct RmsNormGradCall {
    const void *h, *weight, *grad;                // contiguous rows
    const void* grad_sum;                         // of h itself, or null
    void* grad_h;                                 // contiguous rows
    float* grad_weight;                           // size numbers, or null
    std::int64_t num_rows, size;
    float eps;
    Number number;                                // of h, grad_sum and grad_h
    Number out_number;                            // of weight and grad
};

// Of attention within a pack, without a cache, window, cap or sinks, through the rotation of q and k. With p the
// weights, o the outputs and g their gradients: grad_v = p' g, s = p * (g v' - rowsum(g * o)), grad_q = scale s k,
// grad_k = scale s' q (arXiv 2205.14135, appendix B.2). A sequence with a parent sees the parent's keys before its
// own; parents have none themselves.
struct AttentionGradCall {
    const void *q, *k, *v, *grad;
    std::int64_t q_stride, k_stride, v_stride, grad_stride;
    void *grad_q, *grad_k, *grad_v;               // contiguous rows
    const float *cos, *sin;                       // as in RopeCall
    const std::int64_t* positions;
    std::int64_t rotary_dim;
    const std::int64_t* query_starts;             // num_sequences + 1
    const std::int64_t* parents;                  // per sequence, -1 for none
    std::int64_t num_sequences, num_heads, num_kv_heads, head_dim;
    float scale;
    Number number;
};

// A sequence that others may continue, the ones that do, and one head of queries.
struct AttentionFamily {
    const std::int64_t* members;                  // sequences, the parent first
    std::int64_t num_members, head;
    float *grad_k, *grad_v;                       // what the head adds: head_dim numbers per row of the pack
};

constexpr std::int64_t kGradQueries = 64;         // at once

constexpr std::int64_t kGradRows = 32;            // what the rows of each member are padded to

static inline std::int64_t padded_rows(std::int64_t count) { return (count + kGradRows - 1) / kGradRows * kGradRows; }

// float32 numbers of scratch memory for a family of num_rows padded rows; 64-byte aligned.
static inline std::int64_t attention_grad_scratch(std::int64_t head_dim, std::int64_t num_rows) {
    const std::int64_t width = (head_dim + 31) / 32 * 32, length = num_rows + 64;
    return 5 * length * width + 4 * kGradQueries * length + 4 * kGradQueries * width;
}

void glu_grad_avx2(const GluGradCall& call, std::int64_t row, std::int64_t row_end);
void glu_grad_avx512(const GluGradCall& call, std::int64_t row, std::int64_t row_end);
// sums: size numbers that grad * n of these rows is added to, or null.
void rms_norm_grad_avx2(const RmsNormGradCall& call, std::int64_t row, std::int64_t row_end, float* sums);
void rms_norm_grad_avx512(const RmsNormGradCall& call, std::int64_t row, std::int64_t row_end, float* sums);
void attention_grad_avx2(const AttentionGradCall& call, const AttentionFamily& family, float* scratch);
void attention_grad_avx512(const AttentionGradCall& call, const AttentionFamily& family, float* scratch);
void attention_grad_amx(const AttentionGradCall& call, const AttentionFamily& family, float* scratch);
// Rows of grad_k and grad_v from what all heads add, num_rows * head_dim numbers each.
void attention_grad_sum_avx2(const AttentionGradCall& call, const float* grad_k, const float* grad_v, std::int64_t row,
                             std::int64_t row_end);
void attention_grad_sum_avx512(const AttentionGradCall& call, const float* grad_k, const float* grad_v, std::int64_t row,
                               std::int64_t row_end);

// The whole call on the pool. The instruction set must not be missing.
void glu_grad(Isa isa, const GluGradCall& call);
void rms_norm_grad(Isa isa, const RmsNormGradCall& call);
void attention_grad(Isa isa, const AttentionGradCall& call);

}  // namespace hearth
