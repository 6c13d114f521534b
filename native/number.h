// float16 and bf16 as numbers, for files compiled for the oldest CPU. (IEEE 754-2019, 3.4)
#pragma once

#include <cstdint>
#include <cstring>

namespace hearth {

inline float float_of_bits(std::uint32_t bits) {
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline std::uint32_t bits_of(float number) {
    std::uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return bits;
}

inline float float_of_half(std::uint16_t half) {
    const std::uint32_t sign = std::uint32_t(half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x0400u) return float_of_bits(sign | (rest << 13) + (112u << 23));
    const float small = float(rest) * float_of_bits(103u << 23);  // a multiple of 2^-24
    return sign != 0 ? -small : small;
}

// Nearest, ties to even; beyond 65504 infinity, NaN stays NaN.
inline std::uint16_t half_of_float(float number) {
    const std::uint32_t bits = bits_of(number), rest = bits & 0x7fffffffu;
    const std::uint16_t sign = std::uint16_t(bits >> 16 & 0x8000u);
    if (rest > 0x7f800000u) return std::uint16_t(sign | 0x7e00u);
    if (rest >= 0x47800000u) return std::uint16_t(sign | 0x7c00u);
    if (rest < 0x38800000u) {  // below 2^-14: adding 2^-1 leaves the multiple of 2^-24, rounded, in the last bits
        return std::uint16_t(sign | (bits_of(float_of_bits(rest) + 0.5f) - 0x3f000000u));
    }
    return std::uint16_t(sign | (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u)) >> 13);
}

inline float float_of_bf16(std::uint16_t number) { return float_of_bits(std::uint32_t(number) << 16); }

// Nearest, ties to even; NaN stays NaN.
inline std::uint16_t bf16_of_float(float number) {
    const std::uint32_t bits = bits_of(number);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return std::uint16_t((bits >> 16) | 0x40u);
    return std::uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace hearth
