// Bodies of the vocabulary kernels, compiled once per instruction set.
#pragma once

#include "simd.h"
#include "vocab.h"

namespace hearth {
namespace {

constexpr float kNothing = -__builtin_inff();
constexpr int kGroupVecs = int(kGroups) / kWidth;
constexpr int kSums = 32 / kWidth;  // 8 additions per chain of a part

#if defined(__AVX512F__)
inline Vec load_or_nothing(const float* at, std::int64_t count) {
    return _mm512_mask_loadu_ps(all(kNothing), first(count), at);
}
inline Lanes at_least(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Lanes not_less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }  // NaN too
inline unsigned bits(Lanes lanes) { return lanes; }
// a * 2^whole, 0 in lanes that are not kept.
inline Vec scaled(Lanes kept, Vec a, Vec whole) { return _mm512_maskz_scalef_ps(kept, a, whole); }
#else
inline Vec load_or_nothing(const float* at, std::int64_t count) {
    return choose(_mm256_castsi256_ps(first(count)), load(at, count), all(kNothing));
}
inline Lanes at_least(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
inline Lanes not_less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_NLT_UQ); }  // NaN too
inline Vec scaled(Lanes kept, Vec a, Vec whole) { return _mm256_and_ps(kept, mul(a, power_of_two(whole))); }
inline unsigned bits(Lanes lanes) { return unsigned(_mm256_movemask_ps(lanes)); }
#endif

// e^x for x <= 0; 0 below -87.3, where float32 has no normal number left; NaN stays NaN; 1 at 0. Half the
// instructions of exp_of_negative: rounding by a large number, ln 2 in one part (its error adds 0.05 u of the
// size of x) and a polynomial of degree 6 fitted to e^r - 1 for |r| <= ln 2 / 2 by reweighted least squares
// (Lawson), 1.2 u off with its roundings.
inline Vec exp_below(Vec x) {
    const Vec large = all(12582912.0f);  // 1.5 * 2^23: what is added to it becomes whole
    const Vec whole = sub(fma(x, all(1.44269504f), large), large);
    const Vec r = fma(whole, all(-0.693147181f), x);
    Vec sum = all(0.00138436072f);
    const float factors[] = {0.00837419555f, 0.0416680053f, 0.166664302f, 0.49999994f, 1.0f, 1.0f};
    for (float factor : factors) sum = fma(sum, r, all(factor));
    return scaled(not_less(x, all(-87.3f)), sum, whole);
}

inline Vec load_whole(const float* at, std::int64_t count) {
    return count == kWidth ? load(at) : load_or_nothing(at, count);
}

inline float most_of(const Vec* groups) {
    Vec most = groups[0];
    for (int i = 1; i < kGroupVecs; ++i) most = max_or_second(groups[i], most);
    float lanes[kWidth], found = kNothing;
    store(lanes, most);
    for (float lane : lanes) found = lane > found ? lane : found;
    return found;
}

// Sums of one part; what a row's end cuts off counts as -inf, hence as 0.
template <bool is_masked, bool has_slope>
inline void sum_part(const float* x, std::int64_t count, float most, float scale, float least, float* sum,
                     float* slope) {
    Vec sums[kSums], slopes[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = slopes[i] = zeros();
    const auto add_vector = [&](int place, Vec number) {
        const Vec argument = mul(sub(number, all(most)), all(scale));
        Vec weight = exp_below(argument);
        // NaN stays: at_least is false for it, less too.
        if (is_masked) weight = choose(less(number, all(least)), zeros(), weight);
        sums[place] = add(sums[place], weight);
        // No smaller than where weights vanish, for 0 times -inf is NaN.
        if (has_slope) slopes[place] = fma(weight, max_or_second(all(-88.0f), argument), slopes[place]);
    };
    std::int64_t i = 0;
    for (; i + kSums * kWidth <= count; i += kSums * kWidth) {
        for (int j = 0; j < kSums; ++j) add_vector(j, load(x + i + j * kWidth));
    }
    for (int j = 0; i < count; i += kWidth, ++j) add_vector(j, load_whole(x + i, count - i < kWidth ? count - i : kWidth));
    for (int step = kSums / 2; step > 0; step /= 2) {
        for (int j = 0; j < step; ++j) {
            sums[j] = add(sums[j], sums[j + step]);
            slopes[j] = add(slopes[j], slopes[j + step]);
        }
    }
    *sum = sum_lanes(sums[0]);
    if (has_slope) *slope = sum_lanes(slopes[0]);
}

void summarize(const float* x, std::int64_t count, float scale, bool has_slopes, BlockSummary* summary) {
    Vec groups[kGroupVecs];
    for (Vec& group : groups) group = all(kNothing);
    std::int64_t i = 0;
    for (; i + kGroups <= count; i += kGroups) {
        for (int j = 0; j < kGroupVecs; ++j) groups[j] = max_or_second(load(x + i + j * kWidth), groups[j]);
    }
    for (int j = 0; i < count; i += kWidth, ++j) {
        groups[j] = max_or_second(load_whole(x + i, count - i < kWidth ? count - i : kWidth), groups[j]);
    }
    for (int j = 0; j < kGroupVecs; ++j) store(summary->groups + j * kWidth, groups[j]);
    summary->most = most_of(groups);
    const float most = summary->most == kNothing ? 0.0f : summary->most;  // -inf less -inf would be NaN
    for (std::int64_t part = 0; part < kParts; ++part) {
        const std::int64_t start = part * kPart, left = count - start < kPart ? count - start : kPart;
        summary->sums[part] = summary->slopes[part] = 0.0f;
        if (left <= 0) continue;
        if (has_slopes) {
            sum_part<false, true>(x + start, left, most, scale, 0, summary->sums + part, summary->slopes + part);
        } else {
            sum_part<false, false>(x + start, left, most, scale, 0, summary->sums + part, nullptr);
        }
    }
}

float sum_kept(const float* x, std::int64_t count, float most, float scale, float least) {
    float sum;
    sum_part<true, false>(x, count, most, scale, least, &sum, nullptr);
    return sum;
}

void weigh(const float* x, std::int64_t count, float most, float scale, float factor, float* out) {
    for_each_vector(count, [&](std::int64_t i, std::int64_t left) {
        const Vec weight = exp_below(mul(sub(load_whole(x + i, left), all(most)), all(scale)));
        store_some(out + i, mul(weight, all(factor)), left);
    });
}

std::int64_t gather(const float* x, std::int64_t count, float least, float* values, std::int32_t* places) {
    std::int64_t found = 0;
    for_each_vector(count, [&](std::int64_t i, std::int64_t left) {
        const Vec numbers = load_whole(x + i, left);
        const Lanes kept = at_least(numbers, all(least));
#if defined(__AVX512F__)
        if (kept == 0) return;
        const __m512i place = _mm512_add_epi32(_mm512_set1_epi32(int(i)), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                                                                            10, 11, 12, 13, 14, 15));
        store(values + found, _mm512_maskz_compress_ps(kept, numbers));
        _mm512_storeu_si512(places + found, _mm512_maskz_compress_epi32(kept, place));
        found += __builtin_popcount(kept);
#else
        for (unsigned rest = bits(kept); rest != 0; rest &= rest - 1) {
            const int lane = __builtin_ctz(rest);
            values[found] = x[i + lane];
            places[found] = std::int32_t(i + lane);
            ++found;
        }
#endif
    });
    return found;
}

std::int64_t find(const float* x, std::int64_t count, float value) {
    std::int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) {
        const unsigned same = bits(equal(load(x + i), all(value)));
        if (same != 0) return i + __builtin_ctz(same);
    }
    while (i < count && x[i] != value) ++i;
    return i;
}

}  // namespace
}  // namespace hearth
