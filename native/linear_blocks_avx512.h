// Quants as bf16 and scales as float32, for the AVX-512 and AMX kernels. Included by those files only; includes
// no C++ library header, for the reason given in linear_avx2.cpp.
#pragma once

#include <immintrin.h>

#include "linear_blocks.h"

namespace hearth {
namespace {

// bf16 of a whole number below 256: its highest bit gives the exponent, the bits after it are the fraction.
constexpr std::uint16_t bf16_of_whole(int number) {
    if (number == 0) return 0;
    int exponent = 0;
    while (number >> (exponent + 1) != 0) ++exponent;
    return std::uint16_t((127 + exponent) << 7 | ((number << (7 - exponent)) & 0x7f));
}

// What VPERMW looks up; twice, as its index has five bits and the fifth is the next nibble's.
struct alignas(64) NibbleTable {
    std::uint16_t words[32];
    constexpr explicit NibbleTable(bool is_signed) : words() {
        for (int i = 0; i < 32; ++i) {
            const int code = i % 16;
            words[i] = is_signed && code >= 8 ? std::uint16_t(0x8000 | bf16_of_whole(16 - code)) : bf16_of_whole(code);
        }
    }
};
constexpr NibbleTable kSignedNibbles(true), kPlainNibbles(false);

template <Format format>
inline __m512i nibble_table() {
    return _mm512_load_si512(format == Format::q4_0 ? kSignedNibbles.words : kPlainNibbles.words);
}

#if defined(__AVX512VBMI__)

// The low and high bytes of bf16 of 0 to 127.
struct alignas(64) ByteTable {
    std::uint8_t low[128], high[128];
    constexpr ByteTable() : low(), high() {
        for (int i = 0; i < 128; ++i) {
            low[i] = std::uint8_t(bf16_of_whole(i) & 0xff);
            high[i] = std::uint8_t(bf16_of_whole(i) >> 8);
        }
    }
};
constexpr ByteTable kBytes;

// 64 signed bytes as two half lines: the size is looked up, the sign added; -128 has no size in the table.
inline void widen(__m512i q, __m512i& first, __m512i& second) {
    const __m512i size = _mm512_abs_epi8(q), sign = _mm512_set1_epi8(char(0x80));
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kBytes.low), size, _mm512_load_si512(kBytes.low + 64));
    __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kBytes.high), size, _mm512_load_si512(kBytes.high + 64));
    high = _mm512_ternarylogic_epi32(high, q, sign, 0xf8);  // high | (q & sign)
    high = _mm512_mask_mov_epi8(high, _mm512_cmpeq_epi8_mask(q, sign), _mm512_set1_epi8(char(0xc3)));
    first = _mm512_unpacklo_epi8(low, high);
    second = _mm512_unpackhi_epi8(low, high);
}

#else

// 32 words with a signed byte in their upper half: by way of float32, whose upper half is bf16.
inline __m512i widen_words(__m512i q) {
    const __m512i even = (__m512i)_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(q, 16), 24));
    const __m512i odd = (__m512i)_mm512_cvtepi32_ps(_mm512_srai_epi32(q, 24));
    return _mm512_mask_mov_epi16(_mm512_srli_epi32(even, 16), 0xaaaaaaaau, odd);
}

inline void widen(__m512i q, __m512i& first, __m512i& second) {
    first = widen_words(_mm512_unpacklo_epi8(_mm512_setzero_si512(), q));
    second = widen_words(_mm512_unpackhi_epi8(_mm512_setzero_si512(), q));
}

#endif

// The four half lines of two neighbouring lines of a group; pair: 0 to 7.
template <Format format>
inline void expand_lines(const char* quants, int pair, __m512i table, __m512i (&lines)[4]) {
    if (format == Format::q8_0) {
        widen(_mm512_loadu_si512(quants + pair * 128), lines[0], lines[1]);
        widen(_mm512_loadu_si512(quants + pair * 128 + 64), lines[2], lines[3]);
    } else {
        const __m512i q = _mm512_loadu_si512(quants + pair * 64);
        lines[0] = _mm512_permutexvar_epi16(q, table);
        lines[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(q, 4), table);
        lines[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(q, 8), table);
        lines[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(q, 12), table);
    }
}

// A whole group to 16 lines of 128 bytes, 64-byte aligned.
template <Format format>
inline void expand_group(const char* quants, char* lines) {
    const __m512i table = nibble_table<format>();
    for (int pair = 0; pair < 8; ++pair, lines += 256) {
        __m512i four[4];
        expand_lines<format>(quants, pair, table, four);
        for (int i = 0; i < 4; ++i) _mm512_store_si512(lines + 64 * i, four[i]);
    }
}

// One number for each of the panel's 32 columns.
struct Columns {
    __m512 low, high;
};

inline Columns halves(const char* at) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))),
            _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32)))};
}

inline Columns bytes(const char* at) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)))),
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16))))};
}

inline Columns product(Columns a, Columns b) { return {_mm512_mul_ps(a.low, b.low), _mm512_mul_ps(a.high, b.high)}; }

template <Format format>
inline Columns scales_of(const char* panel, std::int64_t group) {
    const Columns scale = format == Format::q4_k ? bytes(panel + group_offset(format, group))
                                                 : halves(panel + group_offset(format, group));
    return format == Format::q4_k ? product(halves(panel + super_offset(group)), scale) : scale;
}

template <Format format>
inline Columns minima_of(const char* panel, std::int64_t group) {
    if (format == Format::q4_1) return halves(panel + group_offset(format, group) + 64);
    const Columns minimum = product(halves(panel + super_offset(group) + 64), bytes(panel + group_offset(format, group) + 32));
    const __m512 sign = _mm512_set1_ps(-0.0f);
    return {_mm512_xor_ps(minimum.low, sign), _mm512_xor_ps(minimum.high, sign)};
}

inline void fetch_group(const char* at, Format format) {
    for (std::int64_t byte = 0; byte < group_bytes(format); byte += 64) _mm_prefetch(at + byte, _MM_HINT_T0);
}

}  // namespace
}  // namespace hearth
