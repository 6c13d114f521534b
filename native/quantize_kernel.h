// Groups of 32 numbers to the blocks of a GGUF file, for AVX-512 or AVX2: one group per lane, so that sums and
// divisions are those of many groups at once. No lane's arithmetic depends on its neighbours or on the width, so
// that both give the same bits.
#pragma once

#include <cstring>
#include <limits>

#include "linear.h"
#include "simd.h"
#include "transpose.h"

namespace hearth {
namespace {

constexpr float kShrink[] = {1.0f, 0.97f, 0.94f, 0.91f, 0.88f, 0.84f, 0.8f, 0.75f};  // of the range, tried in turn

#if defined(__AVX512F__)

using Halves = __m256i;
inline Halves to_halves(Vec a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec from_halves(Halves a) { return _mm512_cvtph_ps(a); }
inline void store_whole(std::int32_t* at, Vec a) { _mm512_storeu_si512(at, _mm512_cvtps_epi32(a)); }

#else

using Halves = __m128i;
inline Halves to_halves(Vec a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec from_halves(Halves a) { return _mm256_cvtph_ps(a); }
inline void store_whole(std::int32_t* at, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_cvtps_epi32(a));
}

#endif

// Number i of every group in x[i]; groups beyond count are zero.
template <typename X>
inline void load_groups(const X* from, std::int64_t count, Vec (&x)[kGroup]) {
    for (int part = 0; part < kGroup; part += kWidth) {
        Vec square[kWidth];
        for (int g = 0; g < kWidth; ++g) square[g] = g < count ? load(from + g * kGroup + part) : zeros();
        transpose(square);
        for (int i = 0; i < kWidth; ++i) x[part + i] = square[i];
    }
}

inline Vec inverse_of(Vec scale) { return choose(less(zeros(), scale), div(all(1.0f), scale), zeros()); }

inline Vec code(Vec scaled, float lowest, float highest) {
    return min_or_second(max_or_second(round_whole(scaled), all(lowest)), all(highest));
}

// d = largest size / 127 in float16, q = round(x / d): closer than with the d before its rounding, which
// `quantize_row_q8_0_ref` of ggml-quants.c divides by.
inline void quantize_q8_0(const Vec (&x)[kGroup], std::int64_t count, char* blocks) {
    Vec least = zeros();  // of -|x|
    for (const Vec& number : x) least = min_or_second(negative_size(number), least);
    const Halves halves = to_halves(div(least, all(-127.0f)));
    const Vec inverse = inverse_of(from_halves(halves));
    std::uint16_t scales[kWidth];
    std::memcpy(scales, &halves, sizeof scales);
    std::int32_t codes[kGroup][kWidth];
    for (int i = 0; i < kGroup; ++i) store_whole(codes[i], code(mul(x[i], inverse), -127.0f, 127.0f));
    for (std::int64_t g = 0; g < count; ++g, blocks += 34) {
        std::memcpy(blocks, &scales[g], 2);
        for (int i = 0; i < kGroup; ++i) blocks[2 + i] = char(codes[i][g]);
    }
}

struct Line {
    Vec scale, minimum;
};

inline Line stored(Line line) { return {from_halves(to_halves(line.scale)), from_halves(to_halves(line.minimum))}; }

inline Vec code_on(Line line, Vec inverse, Vec x) { return code(mul(sub(x, line.minimum), inverse), 0.0f, 15.0f); }

// The range of a group, and shrunk ones that trade the outermost numbers for finer steps, each followed by a least
// squares fit of its codes; the stored line of least squared error wins, the plain range where all are equal. The
// winner is fitted once more.
class LineSearch {
public:
    explicit LineSearch(const Vec (&x)[kGroup]) : x(x) {
        Vec low = x[0], high = x[0];
        for (const Vec& number : x) {
            low = min_or_second(number, low);
            high = max_or_second(number, high);
        }
        middle = mul(all(0.5f), add(low, high));
        reach = mul(all(0.5f), sub(high, low));
        sum = zeros();
        for (const Vec& number : x) sum = add(sum, sub(number, middle));
        best = stored({div(sub(high, low), all(15.0f)), low});
        best_error = error_of(best);
    }

    Line run() {
        for (float shrink : kShrink) {
            const Vec part = mul(reach, all(shrink));
            consider({div(mul(all(2.0f), part), all(15.0f)), sub(middle, part)});
        }
        consider(best);
        return best;
    }

private:
    Vec error_of(Line line) const {
        const Vec inverse = inverse_of(line.scale);
        Vec total = zeros();
        for (const Vec& number : x) {
            const Vec error = sub(number, add(mul(line.scale, code_on(line, inverse, number)), line.minimum));
            total = add(total, mul(error, error));
        }
        return total;
    }

    // Takes the least squares fit of x over its codes on a line where that is better; sums are over x - middle,
    // which is small. Nothing can be fitted where all codes are equal.
    void consider(Line line) {
        const Vec inverse = inverse_of(line.scale), size = all(float(kGroup));
        Vec q_sum = zeros(), q2_sum = zeros(), qx_sum = zeros();
        for (const Vec& number : x) {
            const Vec q = code_on(line, inverse, number);
            q_sum = add(q_sum, q);
            q2_sum = add(q2_sum, mul(q, q));
            qx_sum = add(qx_sum, mul(q, sub(number, middle)));
        }
        const Vec spread = sub(mul(size, q2_sum), mul(q_sum, q_sum));  // whole, below 2^24
        const Vec scale = div(sub(mul(size, qx_sum), mul(q_sum, sum)), choose(less(zeros(), spread), spread, all(1.0f)));
        const Vec minimum = add(div(sub(sum, mul(scale, q_sum)), size), middle);
        const Line fitted = stored({scale, minimum});
        Vec error = choose(less(zeros(), spread), error_of(fitted), all(std::numeric_limits<float>::infinity()));
        error = choose(less(zeros(), scale), error, all(std::numeric_limits<float>::infinity()));
        const Lanes is_better = less(error, best_error);
        best.scale = choose(is_better, fitted.scale, best.scale);
        best.minimum = choose(is_better, fitted.minimum, best.minimum);
        best_error = choose(is_better, error, best_error);
    }

    const Vec (&x)[kGroup];
    Vec middle, reach, sum, best_error;
    Line best;
};

inline void quantize_q4_1(const Vec (&x)[kGroup], std::int64_t count, char* blocks) {
    const Line line = LineSearch(x).run();
    const Vec inverse = inverse_of(line.scale);
    const Halves halves[2] = {to_halves(line.scale), to_halves(line.minimum)};
    std::uint16_t lines[2][kWidth];
    std::memcpy(lines, halves, sizeof lines);
    std::int32_t codes[kGroup / 2][kWidth];
    for (int i = 0; i < kGroup / 2; ++i) {
        const Vec high = mul(all(16.0f), code_on(line, inverse, x[i + kGroup / 2]));
        store_whole(codes[i], add(high, code_on(line, inverse, x[i])));
    }
    for (std::int64_t g = 0; g < count; ++g, blocks += 20) {
        std::memcpy(blocks, &lines[0][g], 2);
        std::memcpy(blocks + 2, &lines[1][g], 2);
        for (int i = 0; i < kGroup / 2; ++i) blocks[4 + i] = char(codes[i][g]);
    }
}

template <typename X>
inline void quantize_groups(const X* from, Format format, std::int64_t num_groups, char* blocks) {
    const std::int64_t block_bytes = format == Format::q8_0 ? 34 : 20;
    for (std::int64_t start = 0; start < num_groups; start += kWidth) {
        const std::int64_t count = num_groups - start < kWidth ? num_groups - start : std::int64_t(kWidth);
        Vec x[kGroup];
        load_groups(from + start * kGroup, count, x);
        if (format == Format::q8_0) {
            quantize_q8_0(x, count, blocks + start * block_bytes);
        } else {
            quantize_q4_1(x, count, blocks + start * block_bytes);
        }
    }
}

}  // namespace
}  // namespace hearth
