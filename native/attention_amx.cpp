// Attention with AMX, for bf16 rows over a bf16 or int8 cache. Includes no C++ library header, for the reason
// given in linear_avx2.cpp.
//
// Lanes are query rows, as in attention_kernel.h: tiles hold S^T = K Q^T and O^T = V^T P^T, so that maximum
// and sum over keys need no shuffles and keys are read as they lie; Q is transposed once per block of rows,
// V once per block of rows and keys.
//
// Order of arithmetic of a row: spans of kSpan keys counted from position 0; in each, from nothing, blocks of
// kKeyBlock keys. A score is a chain of tile steps of 32 numbers. Exponents are base 2, scores x scale x
// log2(e); what a weight's exponent is taken from is the largest score so far, but only follows it when it has
// grown by more than kSlack (a weight is then at most 2^kSlack): most blocks need no rescaling. Weights are
// added in four sums by key mod 4 in float32, then rounded to bf16; an output number is a chain of tile steps
// of 32 keys. Sums of spans are added up in ascending order. Keys that a row may not see, and those that pad
// a block, weigh exactly 0, and adding them changes no sum.
//
// Error beside exact arithmetic on the same bf16 numbers: a weight is off by 2^-9 (its rounding) + 2^-18 (the
// exponential), relatively, a score by the tile unit's float32 sums. Denormal numbers count as 0.
#include <immintrin.h>

#include "amx.h"
#include "attention.h"
#include "simd.h"
#include "transpose.h"

namespace hearth {
namespace {

constexpr float kSlack = 8.0f;
constexpr float kLog2E = 1.44269504f;
constexpr std::int64_t kTileFloats = 256;
constexpr int kStepKeys = 32;     // keys of one tile step
constexpr int kNumSteps = int(kKeyBlock) / kStepKeys;

// Sums of one tile of rows: out_tiles tiles of 16 numbers x 16 rows, then maximum and sum per row.
struct State {
    float* out;
    std::int64_t num_out;         // tiles
    float* top() const { return out + num_out * kTileFloats; }
    float* total() const { return top() + kTileRows; }
    std::int64_t size() const { return num_out * kTileFloats + 2 * kTileRows; }
    State at(std::int64_t tile) const { return {out + tile * size(), num_out}; }

    void clear() const {
        for (std::int64_t i = 0; i < size(); i += kWidth) store(out + i, zeros());
        store(top(), all(-__builtin_inff()));
    }
};

// One block of query rows and its working memory.
struct Work {
    const AttentionCall& call;
    const QueryBlock& block;
    std::int64_t padded, dim_steps, num_tiles;
    char *q, *keys, *values, *weights;
    float* scores;
    State span, sum;
    std::int32_t *first, *end;    // keys that each row sees
    float log2_scale;
};

std::int64_t pad(std::int64_t head_dim) { return (head_dim + 31) / 32 * 32; }
State state_of(std::int64_t head_dim, float* at) { return {at, pad(head_dim) / 16}; }

// 2^x for x <= kSlack or so; relative error below 2^-18, of the polynomial on [0, 1).
inline Vec exp2_of(Vec x) {
    const Vec f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vec sum = fma(all(0.0134266848f), f, all(0.0522424728f));
    sum = fma(sum, f, all(0.241280198f));
    sum = fma(sum, f, all(0.693044841f));
    return _mm512_scalef_ps(fma(sum, f, all(1.0f)), x);
}

// 0 where a row has seen no key yet: then everything it is taken from is -infinity and gives the weight 0.
inline Vec shift_of(Vec top) { return choose(equal(top, all(-__builtin_inff())), zeros(), top); }

void take_rows(Work& work) {
    const AttentionCall& call = work.call;
    const std::int64_t group = call.num_heads / call.num_kv_heads, s = work.block.sequence;
    const std::int64_t first_query = call.query_starts[s];
    const std::int64_t num_cached = call.context_lens[s] - (call.query_starts[s + 1] - first_query);
    for (std::int64_t tile = 0; tile < work.num_tiles; ++tile) {
        const std::uint16_t* rows[kTileRows];
        for (int r = 0; r < kTileRows; ++r) {
            const std::int64_t inside = tile * kTileRows + r;
            const std::int64_t row = work.block.row + (inside < work.block.num_rows ? inside : work.block.num_rows - 1);
            rows[r] = static_cast<const std::uint16_t*>(call.q) + (first_query + row / group) * call.q_stride +
                      (work.block.kv_head * group + row % group) * call.head_dim;
            const std::int64_t end = num_cached + row / group + 1;
            work.end[inside] = std::int32_t(end);
            work.first[inside] = std::int32_t(call.window != 0 && end > call.window ? end - call.window : 0);
        }
        for (std::int64_t e = 0; e < work.padded; e += 32) {
            const __mmask32 here = mask32(call.head_dim - e);
            __m512i x[16];
            for (int r = 0; r < kTileRows; ++r) x[r] = _mm512_maskz_loadu_epi16(here, rows[r] + e);
            transpose(x);
            char* const to = work.q + (tile * work.dim_steps + e / 32) * 1024;
            for (int r = 0; r < 16; ++r) _mm512_store_si512(to + r * 64, x[r]);
        }
    }
}

// 32 numbers of a part from e on as bf16, `here` of them.
inline __m512i numbers(const char* part, std::int64_t e, std::int64_t, __mmask32 here, std::uint16_t) {
    return _mm512_maskz_loadu_epi16(here, part + e * 2);
}
inline __m512i numbers(const char* part, std::int64_t e, std::int64_t head_dim, __mmask32 here, std::int8_t) {
    std::uint16_t bits;
    __builtin_memcpy(&bits, part + head_dim + e / kScaleGroup * 2, 2);
    const __m512 scale = all(to_float(bits));
    const __m256i bytes = _mm256_maskz_loadu_epi8(here, part + e);
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
    const __m512i pair = (__m512i)_mm512_cvtne2ps_pbh(mul(high, scale), mul(low, scale));
    return _mm512_maskz_mov_epi16(here, pair);  // a scale of NaN must not reach the padding
}

// Where the parts of a block's keys and values begin.
struct Parts {
    std::int64_t offset[kKeyBlock];  // bytes
    int count, padded_count;         // rounded up to tile steps
};

void find_parts(const Work& work, std::int64_t start, std::int64_t end, std::int64_t size, Parts& parts) {
    const AttentionCall& call = work.call;
    const std::int64_t row_bytes = size * call.num_kv_heads;
    const std::int64_t left = end - start;
    parts.count = int(left < kKeyBlock ? left : kKeyBlock);
    parts.padded_count = (parts.count + kStepKeys - 1) / kStepKeys * kStepKeys;
    if (call.page_table == nullptr) {
        const std::int64_t first = call.query_starts[work.block.sequence] + start;
        for (int j = 0; j < parts.count; ++j) parts.offset[j] = (first + j) * row_bytes + work.block.kv_head * size;
        return;
    }
    const std::int64_t* page = call.page_table + work.block.sequence * call.pages_per_sequence + start / call.page_size;
    std::int64_t inside = start % call.page_size;
    for (int j = 0; j < parts.count; ++j) {
        parts.offset[j] = (*page * call.page_size + inside) * row_bytes + work.block.kv_head * size;
        if (++inside == call.page_size) {
            inside = 0;
            ++page;
        }
    }
}

// Keys as rows of bf16, padded with zeros.
template <typename C>
void take_keys(const Work& work, const Parts& parts) {
    const std::int64_t head_dim = work.call.head_dim;
    const char* const k = static_cast<const char*>(work.call.k);
    for (std::int64_t e = 0; e < work.padded; e += 32) {
        const __mmask32 here = mask32(head_dim - e);
        char* to = work.keys + e * 2;
        for (int j = 0; j < parts.padded_count; ++j, to += work.padded * 2) {
            const __m512i x = j < parts.count ? numbers(k + parts.offset[j], e, head_dim, here, C{}) : _mm512_setzero_si512();
            _mm512_store_si512(to, x);
        }
    }
}

// Values as tiles of 16 numbers x 32 keys. Returns whether all of them are finite.
template <typename C>
bool take_values(const Work& work, const Parts& parts) {
    const std::int64_t head_dim = work.call.head_dim;
    const char* const v = static_cast<const char*>(work.call.v);
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    __mmask32 strange = 0;
    for (int step = 0; step * kStepKeys < parts.padded_count; ++step) {
        for (std::int64_t e = 0; e < work.padded; e += 32) {
            const __mmask32 here = mask32(head_dim - e);
            __m512i low[16], high[16];
            for (int pair = 0; pair < 16; ++pair) {
                __m512i x[2];
                for (int i = 0; i < 2; ++i) {
                    const int j = step * kStepKeys + 2 * pair + i;
                    x[i] = j < parts.count ? numbers(v + parts.offset[j], e, head_dim, here, C{}) : _mm512_setzero_si512();
                    strange |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(x[i], exponent), exponent);
                }
                low[pair] = _mm512_unpacklo_epi16(x[0], x[1]);
                high[pair] = _mm512_unpackhi_epi16(x[0], x[1]);
            }
            transpose(low);
            transpose(high);
            // Unpacking took numbers 8 i + 0 .. 3 low and 8 i + 4 .. 7 high, for i = 0 .. 3.
            char* const to = work.values + (e / 16 * kNumSteps + step) * 1024;
            for (int n = 0; n < 16; ++n) {
                const int number = n / 4 * 8 + n % 4;
                char* const tile = to + number / 16 * kNumSteps * 1024;
                _mm512_store_si512(tile + number % 16 * 64, low[n]);
                _mm512_store_si512(tile + (number % 16 + 4) * 64, high[n]);
            }
        }
    }
    return strange == 0;
}

// Scores of 32 keys with one or two tiles of rows.
template <bool is_two>
inline void score(const Work& work, std::int64_t tile, int key) {
    const std::int64_t stride = work.padded * 2;
    const char* const k = work.keys + key * stride;
    const char* const q = work.q + tile * work.dim_steps * 1024;
    _tile_zero(0);
    _tile_zero(1);
    if (is_two) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (std::int64_t step = 0; step < work.dim_steps; ++step) {
        _tile_loadd(4, k + step * 64, stride);
        _tile_loadd(6, q + step * 1024, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, k + 16 * stride + step * 64, stride);
        _tile_dpbf16ps(1, 5, 6);
        if (is_two) {
            _tile_loadd(7, q + (work.dim_steps + step) * 1024, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    float* const to = work.scores + key * kWidth;
    _tile_stored(0, to, 64);
    _tile_stored(1, to + kTileFloats, 64);
    if (is_two) {
        _tile_stored(2, to + kKeyBlock * kWidth, 64);
        _tile_stored(3, to + kKeyBlock * kWidth + kTileFloats, 64);
    }
}

// cap * tanh(score * scale / cap), times log2(e).
inline Vec capped(Vec s, float scale, float cap) {
    const Vec x = mul(s, all(scale / cap)), z = exp_of_negative(mul(negative_size(x), all(2.0f)));
    const Vec size = div(sub(all(1.0f), z), add(all(1.0f), z));
    return mul(choose(less(x, zeros()), sub(zeros(), size), size), all(cap * kLog2E));
}

// Caps scores, and hides keys [start, start + count) from the rows that may not see them.
void prepare(const Work& work, float* scores, std::int64_t tile, std::int64_t start, int count, bool is_edge) {
    const __m512i first = _mm512_loadu_si512(work.first + tile * kTileRows);
    const __m512i end = _mm512_loadu_si512(work.end + tile * kTileRows);
    for (int j = 0; j < count; ++j) {
        Vec s = load(scores + j * kWidth);
        if (work.call.soft_cap != 0) s = capped(s, work.call.scale, work.call.soft_cap);
        if (is_edge) {
            const __m512i key = _mm512_set1_epi32(int(start) + j);
            const Lanes sees = _mm512_cmpgt_epi32_mask(end, key) & _mm512_cmple_epi32_mask(first, key);
            s = choose(sees, s, all(-__builtin_inff()));
        }
        store(scores + j * kWidth, s);
    }
}

// Scores become bf16 weights, two keys side by side.
void weigh(const Work& work, const float* scores, const State& state, int count, char* weights) {
    const Vec scale = all(work.log2_scale);
    Vec tops[4];
    for (int i = 0; i < 4; ++i) tops[i] = load(scores + i * kWidth);
    for (int j = 4; j < count; j += 4) {
        for (int i = 0; i < 4; ++i) tops[i] = max_or_second(load(scores + (j + i) * kWidth), tops[i]);
    }
    const Vec lowest = all(-__builtin_inff());
    Vec top = lowest;
    for (int i = 0; i < 4; ++i) top = max_or_second(tops[i], top);
    top = mul(top, scale);
    const Vec old = load(state.top());
    const Lanes grows = less(add(old, all(kSlack)), top);
    if (grows != 0) {
        top = choose(grows, top, old);
        const Vec factor = exp2_of(sub(old, shift_of(top)));
        store(state.top(), top);
        store(state.total(), mul(load(state.total()), factor));
        for (std::int64_t i = 0; i < state.num_out * kTileFloats; i += kWidth) {
            store(state.out + i, mul(load(state.out + i), factor));
        }
    }
    const Vec shift = sub(zeros(), shift_of(load(state.top())));
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    Vec sums[4] = {zeros(), zeros(), zeros(), zeros()};
    for (int j = 0; j < count; j += 4) {
        Vec w[4];
        for (int i = 0; i < 4; ++i) {
            w[i] = exp2_of(fma(load(scores + (j + i) * kWidth), scale, shift));
            sums[i] = add(sums[i], w[i]);
        }
        for (int i = 0; i < 4; i += 2) {
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(w[i + 1], w[i]);
            _mm512_store_si512(weights + (j + i) * 32, _mm512_permutexvar_epi16(pairs, both));
        }
    }
    store(state.total(), add(load(state.total()), add(add(sums[0], sums[1]), add(sums[2], sums[3]))));
}

// Adds weights x values to two tiles of numbers of one or two tiles of rows.
template <bool is_two>
inline void gather(const char* values, const char* weights, float* out, std::int64_t other, int num_steps) {
    _tile_loadd(0, out, 64);
    _tile_loadd(1, out + kTileFloats, 64);
    if (is_two) {
        _tile_loadd(2, out + other, 64);
        _tile_loadd(3, out + other + kTileFloats, 64);
    }
    for (int step = 0; step < num_steps; ++step) {
        _tile_loadd(4, values + step * 1024, 64);
        _tile_loadd(6, weights + step * 1024, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, values + (kNumSteps + step) * 1024, 64);
        _tile_dpbf16ps(1, 5, 6);
        if (is_two) {
            _tile_loadd(7, weights + (kNumSteps + step) * 1024, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out, 64);
    _tile_stored(1, out + kTileFloats, 64);
    if (is_two) {
        _tile_stored(2, out + other, 64);
        _tile_stored(3, out + other + kTileFloats, 64);
    }
}

// As gather for one tile of rows, where a row's weight 0 may meet a NaN or infinity that the row must not see:
// every row has values of its own, zero where it sees no key.
void gather_apart(const Work& work, std::int64_t tile, std::int64_t start, const char* weights, int num_steps) {
    const State state = work.span.at(tile);
    alignas(64) char seen[2 * kNumSteps * 1024];
    alignas(64) float found[2 * kTileFloats];
    for (std::int64_t n = 0; n < state.num_out; n += 2) {
        for (int r = 0; r < kTileRows; ++r) {
            const std::int64_t first = work.first[tile * kTileRows + r] - start, end = work.end[tile * kTileRows + r] - start;
            for (int line = 0; line < 2 * kNumSteps * 16; ++line) {
                const int key = line / 16 % kNumSteps * kStepKeys;
                const __mmask32 sees = mask32(end - key) & ~mask32(first - key);
                const char* const from = work.values + n * kNumSteps * 1024 + line * 64;
                _mm512_store_si512(seen + line * 64, _mm512_maskz_loadu_epi16(sees, from));
            }
            __builtin_memcpy(found, state.out + n * kTileFloats, sizeof found);
            finish_stores();
            gather<false>(seen, weights, found, 0, num_steps);
            finish_stores();
            for (int i = 0; i < 2 * kTileRows; ++i) {
                state.out[n * kTileFloats + i * kWidth + r] = found[i * kWidth + r];
            }
        }
    }
}

template <bool is_two>
void attend_tiles(const Work& work, std::int64_t tile, std::int64_t start, int count, bool has_strange) {
    constexpr int num_tiles = is_two ? 2 : 1;
    for (int key = 0; key < count; key += kStepKeys) score<is_two>(work, tile, key);
    finish_stores();
    bool is_edge[2] = {false, false};
    for (int i = 0; i < num_tiles; ++i) {
        const std::int64_t row = (tile + i) * kTileRows;
        float* const scores = work.scores + i * kKeyBlock * kWidth;
        is_edge[i] = start + count > work.end[row] || start < work.first[row + kTileRows - 1];
        if (is_edge[i] || work.call.soft_cap != 0) prepare(work, scores, tile + i, start, count, is_edge[i]);
        weigh(work, scores, work.span.at(tile + i), count, work.weights + i * kNumSteps * 1024);
    }
    finish_stores();
    const int num_steps = count / kStepKeys;
    if (has_strange && (is_edge[0] || is_edge[1])) {
        for (int i = 0; i < num_tiles; ++i) {
            gather_apart(work, tile + i, start, work.weights + i * kNumSteps * 1024, num_steps);
        }
        return;
    }
    const State state = work.span.at(tile);
    for (std::int64_t n = 0; n < state.num_out; n += 2) {
        gather<is_two>(work.values + n * kNumSteps * 1024, work.weights, state.out + n * kTileFloats, state.size(),
                       num_steps);
    }
    finish_stores();
}

// Adds the sums of one more span to those before it.
void add_span(const State& sum, const State& span) {
    const Vec old = load(sum.top()), other = load(span.top());
    const Vec top = max_or_second(old, other), shift = shift_of(top);
    const Vec old_share = exp2_of(sub(old, shift)), share = exp2_of(sub(other, shift));
    store(sum.top(), top);
    store(sum.total(), fma(load(span.total()), share, mul(load(sum.total()), old_share)));
    for (std::int64_t i = 0; i < sum.num_out * kTileFloats; i += kWidth) {
        store(sum.out + i, fma(load(span.out + i), share, mul(load(sum.out + i), old_share)));
    }
}

// Divides a tile's sums and writes its rows.
void write_rows(const AttentionCall& call, const QueryBlock& block, std::int64_t tile, const State& sum) {
    const std::int64_t group = call.num_heads / call.num_kv_heads, row = block.row + tile * kTileRows;
    const std::int64_t left = block.row + block.num_rows - row;
    std::uint16_t* rows[kTileRows];
    float sinks[kTileRows];
    for (int r = 0; r < kTileRows; ++r) {
        const std::int64_t here = row + (r < left ? r : left - 1), head = block.kv_head * group + here % group;
        rows[r] = static_cast<std::uint16_t*>(call.out) +
                  ((call.query_starts[block.sequence] + here / group) * call.num_heads + head) * call.head_dim;
        sinks[r] = call.sinks != nullptr ? call.sinks[head] * kLog2E : 0.0f;
    }
    Vec share = all(1.0f), total = load(sum.total());
    if (call.sinks != nullptr) {
        const Vec sink = load(sinks), old = load(sum.top()), shift = shift_of(max_or_second(old, sink));
        share = exp2_of(sub(old, shift));
        total = fma(total, share, exp2_of(sub(sink, shift)));
    }
    share = div(share, total);
    for (std::int64_t n = 0; n < sum.num_out; ++n) {
        const Lanes here = Lanes(mask32(call.head_dim - n * 16));
        __m512i x[16];
        for (int i = 0; i < 16; ++i) {
            // + 0: a zero has no sign that padding could have changed
            x[i] = _mm512_castps_si512(fma(load(sum.out + n * kTileFloats + i * kWidth), share, zeros()));
        }
        transpose(x);
        for (int r = 0; r < kTileRows && r < left; ++r) {
            _mm256_mask_storeu_epi16(rows[r] + n * 16, here, (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(x[r])));
        }
    }
}

template <typename C>
__attribute__((noinline)) void attend(Work& work, std::int64_t part_size) {
    const AttentionCall& call = work.call;
    const KeyRange range = keys_of(call, work.block);
    const bool is_partial = work.block.partial != nullptr;
    const std::int64_t least_end = work.end[0], greatest_first = work.first[work.num_tiles * kTileRows - 1];
    std::int64_t span = is_partial ? work.block.span * kSpan : range.first / kSpan * kSpan;
    const std::int64_t last = is_partial && span + kSpan < range.end ? span + kSpan : range.end;
    for (std::int64_t tile = 0; tile < work.num_tiles; ++tile) work.sum.at(tile).clear();
    for (; span < last; span += kSpan) {
        for (std::int64_t tile = 0; tile < work.num_tiles; ++tile) work.span.at(tile).clear();
        const std::int64_t span_end = span + kSpan < last ? span + kSpan : last;
        std::int64_t start = range.first / kKeyBlock * kKeyBlock;
        for (start = start > span ? start : span; start < span_end; start += kKeyBlock) {
            Parts parts;
            find_parts(work, start, range.end, part_size, parts);
            take_keys<C>(work, parts);
            const bool is_finite = take_values<C>(work, parts);
            finish_stores();
            const bool has_strange = !is_finite && (start + kKeyBlock > least_end || start < greatest_first);
            for (std::int64_t tile = 0; tile < work.num_tiles;) {
                const std::int64_t row = tile * kTileRows;
                const bool is_two = tile + 1 < work.num_tiles;
                const std::int64_t last_row = row + (is_two ? 2 : 1) * kTileRows - 1;
                const std::int64_t seen = work.end[last_row] - start;
                if (seen > 0 && work.first[row] < start + kKeyBlock) {
                    const std::int64_t steps = (seen + kStepKeys - 1) / kStepKeys * kStepKeys;
                    const int count = int(steps < parts.padded_count ? steps : parts.padded_count);
                    if (is_two) {
                        attend_tiles<true>(work, tile, start, count, has_strange);
                    } else {
                        attend_tiles<false>(work, tile, start, count, has_strange);
                    }
                }
                tile += is_two ? 2 : 1;
            }
        }
        if (is_partial) return;
        for (std::int64_t tile = 0; tile < work.num_tiles; ++tile) add_span(work.sum.at(tile), work.span.at(tile));
    }
    for (std::int64_t tile = 0; tile < work.num_tiles; ++tile) write_rows(call, work.block, tile, work.sum.at(tile));
}

}  // namespace

std::int64_t attention_partial_amx(std::int64_t head_dim) { return state_of(head_dim, nullptr).size(); }

std::int64_t attention_scratch_amx(std::int64_t head_dim) {
    const std::int64_t padded = pad(head_dim), num_tiles = kMaxAmxRows / kTileRows;
    return num_tiles * padded * 8 + kKeyBlock * padded + 2 * num_tiles * attention_partial_amx(head_dim) +
           2 * kKeyBlock * kWidth + kNumSteps * 512 + 2 * kMaxAmxRows;
}

void attention_amx(const AttentionCall& call, const QueryBlock& block, float* scratch) {
    const TileSession tiles;
    const std::int64_t padded = pad(call.head_dim), num_tiles = (block.num_rows + kTileRows - 1) / kTileRows;
    Work work{call, block, padded, padded / 32, num_tiles, nullptr, nullptr, nullptr, nullptr, nullptr, {}, {}, nullptr,
              nullptr, call.soft_cap != 0 ? 1.0f : call.scale * kLog2E};
    float* at = scratch;
    const auto take = [&at](std::int64_t floats) {
        float* const here = at;
        at += floats;
        return here;
    };
    work.q = reinterpret_cast<char*>(take(num_tiles * padded * 8));
    work.keys = reinterpret_cast<char*>(take(kKeyBlock * padded / 2));
    work.values = reinterpret_cast<char*>(take(kKeyBlock * padded / 2));
    work.weights = reinterpret_cast<char*>(take(kNumSteps * 512));
    work.scores = take(2 * kKeyBlock * kWidth);
    work.first = reinterpret_cast<std::int32_t*>(take(num_tiles * kTileRows));
    work.end = reinterpret_cast<std::int32_t*>(take(num_tiles * kTileRows));
    work.sum = state_of(call.head_dim, take(num_tiles * attention_partial_amx(call.head_dim)));
    const auto span = block.partial != nullptr ? block.partial : take(num_tiles * attention_partial_amx(call.head_dim));
    work.span = state_of(call.head_dim, span);
    take_rows(work);
    const std::int64_t part_size = part_bytes(call.head_dim, call.cache);
    if (call.cache == Cache::int8) {
        attend<std::int8_t>(work, part_size);
    } else {
        attend<std::uint16_t>(work, part_size);
    }
}

void attention_finish_amx(const AttentionCall& call, const QueryBlock& block, std::int64_t num_spans) {
    const FlushDenormals flush;
    const State first = state_of(call.head_dim, block.partial);
    const std::int64_t num_tiles = (block.num_rows + kTileRows - 1) / kTileRows;
    for (std::int64_t tile = 0; tile < num_tiles; ++tile) {
        for (std::int64_t span = 1; span < num_spans; ++span) {
            add_span(first.at(tile), first.at(span * num_tiles + tile));
        }
        write_rows(call, block, tile, first.at(tile));
    }
}

}  // namespace hearth
