// Linear layers with AVX-512: VDPBF16PS for bf16, FMA for float32. Includes no C++ library header, for
// the reason given in linear_avx2.cpp.
#include <immintrin.h>

#include "linear.h"
#include "linear_store.h"

namespace hearth {
namespace {

constexpr int kMaxRows = 6;            // 6 rows x 2 panels x 2 registers of sums
constexpr std::int64_t kAhead = 2048;  // bytes fetched ahead; about a memory latency of streaming

inline __m512 add_product(__m512 sum, __m512i x, __m512i weight, std::uint16_t) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)weight);
}

inline __m512 add_product(__m512 sum, __m512i x, __m512i weight, float) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(weight), sum);
}

// One step of the chain for `rows` rows and `panels` panels. x32: what every lane of x holds, 4 bytes.
template <int rows, int panels, typename X>
inline void step(__m512 (&sum)[rows][2 * panels], const int* x32, const char* const* weight, std::int64_t line) {
    __m512i w[2 * panels];
    for (int p = 0; p < panels; ++p) {
        const char* const at = weight[p] + line * kLineBytes;
        if (rows == 1) {
            _mm_prefetch(at + kAhead, _MM_HINT_T0);
            _mm_prefetch(at + kAhead + 64, _MM_HINT_T0);
        }
        w[2 * p] = _mm512_loadu_si512(at);
        w[2 * p + 1] = _mm512_loadu_si512(at + 64);
    }
    for (int r = 0; r < rows; ++r) {
        const __m512i x = _mm512_set1_epi32(x32[r]);
        for (int v = 0; v < 2 * panels; ++v) sum[r][v] = add_product(sum[r][v], x, w[v], X{});
    }
}

// Sums in float64: columns 0 to 7, 8 to 15.
struct Total {
    __m512d low, high;
};

template <int rows, int vectors>
inline void close_chain(Total (&total)[rows][vectors], __m512 (&sum)[rows][vectors]) {
    for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < vectors; ++v) {
            Total& t = total[r][v];
            t.low = _mm512_add_pd(t.low, _mm512_cvtps_pd(_mm512_castps512_ps256(sum[r][v])));
            t.high = _mm512_add_pd(t.high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(sum[r][v], 1)));
            sum[r][v] = _mm512_setzero_ps();
        }
    }
}

inline __m512 rounded(const Total& total) {
    const __m512 low = _mm512_castps256_ps512(_mm512_cvtpd_ps(total.low));
    return _mm512_insertf32x8(low, _mm512_cvtpd_ps(total.high), 1);
}

template <int rows, int panels, typename X>
void compute(const LinearCall& call, std::int64_t row, std::int64_t panel) {
    constexpr std::int64_t group = sizeof(int) / sizeof(X);  // inputs in 4 bytes
    const X* x[rows];
    for (int r = 0; r < rows; ++r) x[r] = static_cast<const X*>(call.x) + (row + r) * call.x_stride;
    const std::int64_t bytes = panel_bytes(call.num_inputs, call.format);
    const char* weight[panels];
    for (int p = 0; p < panels; ++p) weight[p] = static_cast<const char*>(call.weight) + (panel + p) * bytes;
    __m512 sum[rows][2 * panels];
    for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < 2 * panels; ++v) sum[r][v] = _mm512_setzero_ps();
    }
    Total total[rows][2 * panels] = {};  // float32 weights: the chains that are finished
    int x32[rows];
    const std::int64_t num_whole = call.num_inputs / group;
    for (std::int64_t line = 0; line < num_whole; ++line) {
        for (int r = 0; r < rows; ++r) __builtin_memcpy(&x32[r], x[r] + line * group, sizeof(int));
        step<rows, panels, X>(sum, x32, weight, line);
        if (group == 1 && (line + 1) % kChain == 0) close_chain(total, sum);
    }
    if (group == 1) {
        close_chain(total, sum);
        for (int r = 0; r < rows; ++r) {
            for (int v = 0; v < 2 * panels; ++v) sum[r][v] = rounded(total[r][v]);
        }
    }
    if (num_whole * group < call.num_inputs) {  // an odd number of bf16 inputs: the pair's other half is 0
        for (int r = 0; r < rows; ++r) {
            x32[r] = 0;
            __builtin_memcpy(&x32[r], x[r] + num_whole * group, sizeof(X));
        }
        step<rows, panels, X>(sum, x32, weight, num_whole);
    }
    for (int r = 0; r < rows; ++r) {
        for (int p = 0; p < panels; ++p) store_panel_row(call, row + r, panel + p, sum[r][2 * p], sum[r][2 * p + 1]);
    }
}

template <int panels, typename X>
void compute_rows(const LinearCall& call, const Block& block, std::int64_t panel) {
    std::int64_t row = block.row;
    for (; row + kMaxRows <= block.row_end; row += kMaxRows) compute<kMaxRows, panels, X>(call, row, panel);
    switch (block.row_end - row) {
        case 5: return compute<5, panels, X>(call, row, panel);
        case 4: return compute<4, panels, X>(call, row, panel);
        case 3: return compute<3, panels, X>(call, row, panel);
        case 2: return compute<2, panels, X>(call, row, panel);
        case 1: return compute<1, panels, X>(call, row, panel);
        default: return;
    }
}

template <typename X>
void compute_block(const LinearCall& call, const Block& block) {
    std::int64_t panel = block.panel;
    for (; panel + 2 <= block.panel_end; panel += 2) compute_rows<2, X>(call, block, panel);
    if (panel < block.panel_end) compute_rows<1, X>(call, block, panel);
}

}  // namespace

void linear_avx512(const LinearCall& call, const Block& block) {
    if (call.format == Format::bf16) {
        compute_block<std::uint16_t>(call, block);
    } else {
        compute_block<float>(call, block);
    }
}

}  // namespace hearth
