// How 32 finished sums of one row leave the AVX2 kernels. Included by those files only.
#pragma once

#include <immintrin.h>

#include "linear.h"

namespace hearth {
namespace {

// Nearest, ties to even; NaN stays NaN.
inline std::uint16_t to_bf16(float number) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &number, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return std::uint16_t((bits >> 16) | 0x40u);
    return std::uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float held_number(const LinearCall& call, std::int64_t at) {
    if (call.out_number == Number::f32) return static_cast<const float*>(call.out)[at];
    const std::uint32_t bits = std::uint32_t(static_cast<const std::uint16_t*>(call.out)[at]) << 16;
    float number;
    __builtin_memcpy(&number, &bits, sizeof number);
    return number;
}

// Adds the bias, rounds to the output's type and writes what lies inside N; adding as in linear_store.h. sums: 32-byte aligned.
inline void store_panel_row(const LinearCall& call, std::int64_t row, std::int64_t panel, float* sums) {
    const std::int64_t column = panel * kPanel, left = call.num_outputs - column, width = left < kPanel ? left : kPanel;
    if (call.bias != nullptr) {
        for (int i = 0; i < kPanel; i += 8) {
            _mm256_store_ps(sums + i, _mm256_add_ps(_mm256_load_ps(sums + i), _mm256_loadu_ps(call.bias + column + i)));
        }
    }
    const std::int64_t at = row * call.out_stride + column;
    if (call.adds) {
        for (std::int64_t i = 0; i < width; ++i) sums[i] = held_number(call, at + i) + sums[i] * call.scale;
    }
    if (call.out_number == Number::f32) {
        __builtin_memcpy(static_cast<float*>(call.out) + at, sums, std::size_t(width) * sizeof(float));
    } else {
        std::uint16_t* const out = static_cast<std::uint16_t*>(call.out) + at;
        for (std::int64_t i = 0; i < width; ++i) out[i] = to_bf16(sums[i]);
    }
}

}  // namespace
}  // namespace hearth
