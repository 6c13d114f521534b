// The backward passes with AVX-512; attention's of bf16 rows by VDPBF16PS.
#include "gradients_kernel.h"

namespace hearth {
namespace {

constexpr int kRows = 8;  // x 2 registers of sums: enough chains to hide a product's latency

// c[rows, columns] = (is_sum: c +) a b, all multiples of kGradRows. b: pairs of its rows side by side, pair by pair.
template <bool is_sum>
inline void multiply_tiles(float* c, std::int64_t c_stride, const std::uint16_t* a, std::int64_t a_stride, const std::uint16_t* b,
                           std::int64_t b_stride, std::int64_t rows, std::int64_t columns, std::int64_t depth) {
    for (std::int64_t column = 0; column < columns; column += kGradRows) {
        for (std::int64_t row = 0; row < rows; row += kRows) {
            float* const to = c + row * c_stride + column;
            Vec sums[kRows][2];
            for (int r = 0; r < kRows; ++r) {
                for (int v = 0; v < 2; ++v) sums[r][v] = is_sum ? load(to + r * c_stride + v * kWidth) : zeros();
            }
            const std::uint16_t *left = a + row * a_stride, *right = b + 2 * column;
            for (std::int64_t k = 0; k < depth; k += 2, left += 2, right += 2 * b_stride) {
                const __m512i first = _mm512_loadu_si512(right), second = _mm512_loadu_si512(right + 2 * kWidth);
                for (int r = 0; r < kRows; ++r) {
                    int pair;
                    __builtin_memcpy(&pair, left + r * a_stride, sizeof pair);
                    const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
                    sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, (__m512bh)first);
                    sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, (__m512bh)second);
                }
            }
            for (int r = 0; r < kRows; ++r) {
                for (int v = 0; v < 2; ++v) store(to + r * c_stride + v * kWidth, sums[r][v]);
            }
        }
    }
}

}  // namespace
}  // namespace hearth

#include "gradients_tiles.h"

namespace hearth {

void glu_grad_avx512(const GluGradCall& call, std::int64_t row, std::int64_t row_end) { glu_grad_rows(call, row, row_end); }

void rms_norm_grad_avx512(const RmsNormGradCall& call, std::int64_t row, std::int64_t row_end, float* sums) {
    rms_norm_grad_rows(call, row, row_end, sums);
}

void attention_grad_avx512(const AttentionGradCall& call, const AttentionFamily& family, float* scratch) {
    if (call.number == Number::bf16) return attention_grad_tiles(call, family, scratch);
    attention_grad_family<float>(call, family, scratch);
}

void attention_grad_sum_avx512(const AttentionGradCall& call, const float* grad_k, const float* grad_v, std::int64_t row,
                               std::int64_t row_end) {
    attention_grad_sum(call, grad_k, grad_v, row, row_end);
}

}  // namespace hearth
