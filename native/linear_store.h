// How 32 finished sums of one row leave the AVX-512 and AMX kernels. Included by those files only.
#pragma once

#include <immintrin.h>

#include "linear.h"

namespace hearth {
namespace {

// Adds the bias, rounds to the output's type (nearest, ties to even) and writes what lies inside N. Where the call adds,
// the product with the scale is rounded as well: torch, which computes the same in places, does so.
inline void store_panel_row(const LinearCall& call, std::int64_t row, std::int64_t panel, __m512 low, __m512 high) {
    const std::int64_t column = panel * kPanel, left = call.num_outputs - column;
    const std::uint32_t inside = left >= kPanel ? ~std::uint32_t(0) : (std::uint32_t(1) << left) - 1;
    if (call.bias != nullptr) {
        low = _mm512_add_ps(low, _mm512_loadu_ps(call.bias + column));
        high = _mm512_add_ps(high, _mm512_loadu_ps(call.bias + column + 16));
    }
    const std::int64_t at = row * call.out_stride + column;
    if (call.adds) {
        __m512 held_low, held_high;
        if (call.out_number == Number::f32) {
            const float* const held = static_cast<const float*>(call.out) + at;
            held_low = _mm512_maskz_loadu_ps(__mmask16(inside), held);
            held_high = _mm512_maskz_loadu_ps(__mmask16(inside >> 16), held + 16);
        } else {
            const __m512i held = _mm512_maskz_loadu_epi16(inside, static_cast<const std::uint16_t*>(call.out) + at);
            held_low = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(held)), 16));
            held_high = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(held, 1)), 16));
        }
        const __m512 scale = _mm512_set1_ps(call.scale);
        low = _mm512_add_ps(held_low, _mm512_mul_ps(low, scale));
        high = _mm512_add_ps(held_high, _mm512_mul_ps(high, scale));
    }
    if (call.out_number == Number::f32) {
        float* const out = static_cast<float*>(call.out) + at;
        _mm512_mask_storeu_ps(out, __mmask16(inside), low);
        _mm512_mask_storeu_ps(out + 16, __mmask16(inside >> 16), high);
    } else {
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        _mm512_mask_storeu_epi16(static_cast<std::uint16_t*>(call.out) + at, __mmask32(inside), both);
    }
}

}  // namespace
}  // namespace hearth
