#include "gradients_kernel.h"

namespace hearth {

void glu_grad_avx2(const GluGradCall& call, std::int64_t row, std::int64_t row_end) { glu_grad_rows(call, row, row_end); }

void rms_norm_grad_avx2(const RmsNormGradCall& call, std::int64_t row, std::int64_t row_end, float* sums) {
    rms_norm_grad_rows(call, row, row_end, sums);
}

void attention_grad_avx2(const AttentionGradCall& call, const AttentionFamily& family, float* scratch) {
    const auto one = call.number == Number::bf16 ? attention_grad_family<std::uint16_t> : attention_grad_family<float>;
    one(call, family, scratch);
}

void attention_grad_sum_avx2(const AttentionGradCall& call, const float* grad_k, const float* grad_v, std::int64_t row,
                             std::int64_t row_end) {
    attention_grad_sum(call, grad_k, grad_v, row, row_end);
}

}  // namespace hearth
