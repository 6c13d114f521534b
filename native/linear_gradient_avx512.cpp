// Columns of bf16 numbers to rows with AVX-512. Includes no C++ library header, for the reason given in
// linear_avx2.cpp.
#include <immintrin.h>

#include "linear.h"
#include "transpose.h"

namespace hearth {

void columns_to_rows_avx512(const std::uint16_t* rows, std::int64_t stride, std::int64_t num_rows, std::int64_t num_columns,
                            std::uint16_t* out, std::int64_t out_stride) {
    const __mmask32 inside = mask32(num_columns);
    for (std::int64_t row = 0; row < num_rows; row += 16) {
        __m512i pairs[16];  // of columns side by side
        for (int i = 0; i < 16; ++i) {
            pairs[i] = row + i < num_rows ? _mm512_maskz_loadu_epi16(inside, rows + (row + i) * stride) : _mm512_setzero_si512();
        }
        transpose(pairs);
        for (int i = 0; 2 * i < num_columns; ++i) {
            std::uint16_t* const to = out + 2 * i * out_stride + row;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(pairs[i]));
            if (2 * i + 1 == num_columns) break;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + out_stride),
                                _mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs[i], 16)));
        }
    }
}

}  // namespace hearth
