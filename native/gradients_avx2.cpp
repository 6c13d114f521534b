#include "gradients_kernel.h"

namespace hearth {

void glu_grad_avx2(const GluGradCall& call, std::int64_t row, std::int64_t row_end) { glu_grad_rows(call, row, row_end); }

void rms_norm_grad_avx2(const RmsNormGradCall& call, std::int64_t row, std::int64_t row_end, float* sums) {
    rms_norm_grad_rows(call, row, row_end, sums);
}

void attention_grad_avx2(const AttentionGradCall& call, const AttentionFamily& family, float* scratch) {
    attention_grad_one(call, family, scratch);
}

}  // namespace hearth
