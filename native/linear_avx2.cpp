// Linear layers with AVX2 and FMA. Includes no C++ library header: inline functions compiled here with
// these flags must not be what the linker picks for the rest of the program.
#include <immintrin.h>

#include "linear.h"
#include "linear_store_avx2.h"

namespace hearth {
namespace {

constexpr int kMaxRows = 3;             // 3 rows x 4 registers of sums leave room for weights and x
constexpr std::int64_t kAhead = 2048;   // bytes fetched ahead; about a memory latency of streaming
constexpr int kVectors = 4;             // registers of 8 float32 in a panel

inline float to_float(std::uint16_t number) {
    const std::uint32_t bits = std::uint32_t(number) << 16;
    float out;
    __builtin_memcpy(&out, &bits, sizeof out);
    return out;
}

inline float x_at(const float* row, std::int64_t k) { return row[k]; }
inline float x_at(const std::uint16_t* row, std::int64_t k) { return to_float(row[k]); }

template <int rows, typename X>
struct Sums {
    __m256 sum[rows][kVectors];

    void add(const X* const* x, std::int64_t k, int vector, __m256 weight) {
        for (int r = 0; r < rows; ++r) {
            sum[r][vector] = _mm256_fmadd_ps(_mm256_set1_ps(x_at(x[r], k)), weight, sum[r][vector]);
        }
    }
};

// Sums in float64.
template <int rows>
struct Totals {
    __m256d sum[rows][2 * kVectors];

    void close_chain(Sums<rows, float>& chain) {
        for (int r = 0; r < rows; ++r) {
            for (int v = 0; v < kVectors; ++v) {
                const __m256 other = chain.sum[r][v];
                __m256d &low = sum[r][2 * v], &high = sum[r][2 * v + 1];
                low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(other)));
                high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(other, 1)));
                chain.sum[r][v] = _mm256_setzero_ps();
            }
        }
    }

    __m256 rounded(int r, int v) const {
        return _mm256_set_m128(_mm256_cvtpd_ps(sum[r][2 * v + 1]), _mm256_cvtpd_ps(sum[r][2 * v]));
    }
};

template <int rows>
inline void accumulate(Sums<rows, float>& sums, const float* const* x, const char* panel, std::int64_t num_inputs) {
    Totals<rows> total = {};  // the chains that are finished
    for (std::int64_t k = 0; k < num_inputs; ++k, panel += kLineBytes) {
        _mm_prefetch(panel + kAhead, _MM_HINT_T0);
        _mm_prefetch(panel + kAhead + 64, _MM_HINT_T0);
        for (int v = 0; v < kVectors; ++v) {
            sums.add(x, k, v, _mm256_loadu_ps(reinterpret_cast<const float*>(panel) + 8 * v));
        }
        if ((k + 1) % kChain == 0) total.close_chain(sums);
    }
    total.close_chain(sums);
    for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < kVectors; ++v) sums.sum[r][v] = total.rounded(r, v);
    }
}

template <int rows>
inline void accumulate(Sums<rows, std::uint16_t>& sums, const std::uint16_t* const* x, const char* panel,
                       std::int64_t num_inputs) {
    const __m256i odd = _mm256_set1_epi32(int(0xffff0000u));
    for (std::int64_t k = 0; k < num_inputs; k += 2, panel += kLineBytes) {
        _mm_prefetch(panel + kAhead, _MM_HINT_T0);
        _mm_prefetch(panel + kAhead + 64, _MM_HINT_T0);
        const bool is_pair = k + 1 < num_inputs;
        for (int v = 0; v < kVectors; ++v) {
            const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel) + v);
            sums.add(x, k, v, _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)));
            if (is_pair) sums.add(x, k + 1, v, _mm256_castsi256_ps(_mm256_and_si256(pairs, odd)));
        }
    }
}

template <int rows, typename X>
void compute(const LinearCall& call, std::int64_t row, std::int64_t panel) {
    const X* x[rows];
    for (int r = 0; r < rows; ++r) x[r] = static_cast<const X*>(call.x) + (row + r) * call.x_stride;
    Sums<rows, X> sums;
    for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < kVectors; ++v) sums.sum[r][v] = _mm256_setzero_ps();
    }
    const std::int64_t bytes = panel_bytes(call.num_inputs, call.format);
    accumulate(sums, x, static_cast<const char*>(call.weight) + panel * bytes, call.num_inputs);
    for (int r = 0; r < rows; ++r) {
        alignas(32) float result[kPanel];
        for (int v = 0; v < kVectors; ++v) _mm256_store_ps(result + 8 * v, sums.sum[r][v]);
        store_panel_row(call, row + r, panel, result);
    }
}

template <typename X>
void compute_block(const LinearCall& call, const Block& block) {
    for (std::int64_t panel = block.panel; panel < block.panel_end; ++panel) {
        std::int64_t row = block.row;
        for (; row + kMaxRows <= block.row_end; row += kMaxRows) compute<kMaxRows, X>(call, row, panel);
        if (block.row_end - row == 2) compute<2, X>(call, row, panel);
        if (block.row_end - row == 1) compute<1, X>(call, row, panel);
    }
}

}  // namespace

void linear_avx2(const LinearCall& call, const Block& block) {
    if (call.format == Format::bf16) {
        compute_block<std::uint16_t>(call, block);
    } else {
        compute_block<float>(call, block);
    }
}

}  // namespace hearth
