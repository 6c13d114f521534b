// Body of the attention kernel, compiled once per instruction set. Lanes of a vector are query rows.
#pragma once

#include "attention.h"
#include "simd.h"

namespace hearth {
namespace {

constexpr int kMaxVectors = 2;                    // vectors of query rows computed at once
constexpr int kMaxRows = kMaxVectors * kWidth;
constexpr int kOutTile = 8;                       // output numbers whose chains run side by side

// What one block of query rows holds between blocks of keys. Arrays [.., rows] of `vectors` vectors.
template <int vectors>
struct Running {
    float *q, *out, *weights;                     // [head_dim, rows], [head_dim, rows], [kKeyBlock, rows]
    Vec top[vectors], total[vectors];
    Vec first[vectors], end[vectors];             // each row sees the keys from first on before end
    std::int64_t most_first, least_end;           // all rows see those between
};

// One block of keys. k, v: where each key's numbers of this kv head lie, as float32.
struct Keys {
    const float *k[kKeyBlock], *v[kKeyBlock];
    std::int64_t start;                           // position of the first
    int count;
};

template <int vectors, int keys>
inline void score(const Running<vectors>& rows, const Keys& block, int key, std::int64_t head_dim) {
    constexpr int width = vectors * kWidth;
    Vec sum[keys][vectors];
    for (int j = 0; j < keys; ++j) {
        for (int v = 0; v < vectors; ++v) sum[j][v] = zeros();
    }
    for (std::int64_t e = 0; e < head_dim; ++e) {
        Vec q[vectors];
        for (int v = 0; v < vectors; ++v) q[v] = load(rows.q + e * width + v * kWidth);
        for (int j = 0; j < keys; ++j) {
            const Vec k = all(block.k[key + j][e]);
            for (int v = 0; v < vectors; ++v) sum[j][v] = fma(k, q[v], sum[j][v]);
        }
    }
    for (int j = 0; j < keys; ++j) {
        for (int v = 0; v < vectors; ++v) store(rows.weights + (key + j) * width + v * kWidth, sum[j][v]);
    }
}

template <int vectors>
void score_all(const Running<vectors>& rows, const Keys& block, std::int64_t head_dim) {
    constexpr int tile = kNumSums / vectors;
    int key = 0;
    for (; key + tile <= block.count; key += tile) score<vectors, tile>(rows, block, key, head_dim);
    for (; key < block.count; ++key) score<vectors, 1>(rows, block, key, head_dim);
}

// yes in the lanes that see a key, no in the others.
template <int vectors>
inline Vec where_seen(const Running<vectors>& rows, int v, std::int64_t key, Vec yes, Vec no) {
    const Vec at = all(float(key));
    return choose(less(at, rows.end[v]), choose(less(at, rows.first[v]), no, yes), no);
}

// cap * tanh(s / cap)
inline Vec capped(Vec s, float cap) {
    const Vec x = div(s, all(cap)), z = exp_of_negative(mul(negative_size(x), all(2.0f)));
    const Vec size = div(sub(all(1.0f), z), add(all(1.0f), z));
    return mul(choose(less(x, zeros()), sub(zeros(), size), size), all(cap));
}

// Scores become weights; returns in `scale` what earlier sums are worth beside them.
template <int vectors>
void weigh(Running<vectors>& rows, const Keys& block, float soft_cap, Vec (&scale)[vectors]) {
    constexpr int width = vectors * kWidth;
    const Vec lowest = all(-__builtin_inff());
    for (int v = 0; v < vectors; ++v) {
        float* const weights = rows.weights + v * kWidth;
        Vec top = rows.top[v];
        for (int j = 0; j < block.count; ++j) {
            const std::int64_t key = block.start + j;
            Vec s = load(weights + j * width);
            if (soft_cap != 0) s = capped(s, soft_cap);
            if (key >= rows.least_end || key < rows.most_first) s = where_seen(rows, v, key, s, lowest);
            store(weights + j * width, s);
            top = max_or_second(s, top);
        }
        const Vec shift = choose(equal(top, lowest), zeros(), top);
        scale[v] = exp_of_negative(sub(rows.top[v], shift));
        Vec sums[4] = {zeros(), zeros(), zeros(), zeros()};
        for (int j = 0; j < block.count; ++j) {
            const Vec weight = exp_of_negative(sub(load(weights + j * width), shift));
            store(weights + j * width, weight);
            sums[j % 4] = add(sums[j % 4], weight);
        }
        rows.total[v] = fma(rows.total[v], scale[v], add(add(sums[0], sums[1]), add(sums[2], sums[3])));
        rows.top[v] = top;
    }
}

template <int vectors, int numbers>
inline void gather(const Running<vectors>& rows, const Keys& block, const Vec (&scale)[vectors], std::int64_t e) {
    constexpr int width = vectors * kWidth;
    Vec sum[numbers][vectors];
    for (int n = 0; n < numbers; ++n) {
        for (int v = 0; v < vectors; ++v) sum[n][v] = mul(load(rows.out + (e + n) * width + v * kWidth), scale[v]);
    }
    for (int key = 0; key < block.count; ++key) {
        const std::int64_t position = block.start + key;
        if (position < rows.least_end && position >= rows.most_first) {
            for (int v = 0; v < vectors; ++v) {
                const Vec weight = load(rows.weights + key * width + v * kWidth);
                for (int n = 0; n < numbers; ++n) sum[n][v] = fma(weight, all(block.v[key][e + n]), sum[n][v]);
            }
        } else {  // rows that may not see a key must not meet its NaN either
            for (int v = 0; v < vectors; ++v) {
                const Vec weight = load(rows.weights + key * width + v * kWidth);
                for (int n = 0; n < numbers; ++n) {
                    sum[n][v] = where_seen(rows, v, position, fma(weight, all(block.v[key][e + n]), sum[n][v]), sum[n][v]);
                }
            }
        }
    }
    for (int n = 0; n < numbers; ++n) {
        for (int v = 0; v < vectors; ++v) store(rows.out + (e + n) * width + v * kWidth, sum[n][v]);
    }
}

template <int vectors>
void gather_all(const Running<vectors>& rows, const Keys& block, const Vec (&scale)[vectors], std::int64_t head_dim) {
    constexpr int tile = kNumSums / vectors < kOutTile ? kNumSums / vectors : kOutTile;
    std::int64_t e = 0;
    for (; e + tile <= head_dim; e += tile) gather<vectors, tile>(rows, block, scale, e);
    for (; e < head_dim; ++e) gather<vectors, 1>(rows, block, scale, e);
}

// A part of keys or values as float32, widened into room where it is not. C names the cache: float, bf16 or bytes.
inline const float* widened(const char* part, float*, std::int64_t, float) {
    return reinterpret_cast<const float*>(part);
}
inline const float* widened(const char* part, float* room, std::int64_t size, std::uint16_t) {
    const std::uint16_t* const at = reinterpret_cast<const std::uint16_t*>(part);
    for_each_vector(size, [&](std::int64_t i, std::int64_t count) { store_some(room + i, load_some(at + i, count), count); });
    return room;
}
inline const float* widened(const char* part, float* room, std::int64_t size, std::int8_t) {
    for (std::int64_t i = 0; i < size; i += kScaleGroup) {
        std::uint16_t bits;
        __builtin_memcpy(&bits, part + size + i / kScaleGroup * 2, 2);
        const float scale = to_float(bits);
        const std::int64_t end = i + kScaleGroup < size ? i + kScaleGroup : size;
        for (std::int64_t e = i; e < end; ++e) room[e] = float(static_cast<signed char>(part[e])) * scale;
    }
    return room;
}

// Finds the keys from `start` on; those that are not float32 are widened into room, 2 * kKeyBlock * head_dim numbers.
template <typename C>
void find_keys(const AttentionCall& call, const QueryBlock& block, std::int64_t start, std::int64_t end, float* room,
               Keys& keys) {
    keys.start = start;
    keys.count = int(end - start < kKeyBlock ? end - start : kKeyBlock);
    const std::int64_t size = part_bytes(call.head_dim, call.cache);
    const std::int64_t* page = nullptr;
    std::int64_t inside = 0;
    if (call.page_table != nullptr) {
        page = call.page_table + block.sequence * call.pages_per_sequence + start / call.page_size;
        inside = start % call.page_size;
    }
    for (int j = 0; j < keys.count; ++j, room += 2 * call.head_dim) {
        std::int64_t row = call.query_starts[block.sequence] + start + j;
        if (page != nullptr) {
            row = *page * call.page_size + inside;
            if (++inside == call.page_size) {
                inside = 0;
                ++page;
            }
        }
        const std::int64_t at = (row * call.num_kv_heads + block.kv_head) * size;
        keys.k[j] = widened(static_cast<const char*>(call.k) + at, room, call.head_dim, C{});
        keys.v[j] = widened(static_cast<const char*>(call.v) + at, room + call.head_dim, call.head_dim, C{});
    }
}

template <typename X, typename C, int vectors>
void attend(const AttentionCall& call, const QueryBlock& block, float* scratch) {
    constexpr int width = vectors * kWidth;
    const std::int64_t head_dim = call.head_dim, group = call.num_heads / call.num_kv_heads;
    const std::int64_t first_query = call.query_starts[block.sequence];
    const std::int64_t num_queries = call.query_starts[block.sequence + 1] - first_query;
    const std::int64_t num_cached = call.context_lens[block.sequence] - num_queries;
    Running<vectors> rows;
    rows.q = scratch;
    rows.out = rows.q + head_dim * width;
    rows.weights = rows.out + head_dim * width;
    float* const room = rows.weights + kKeyBlock * width;
    float first[width], end_of[width], sinks[width];
    for (int r = 0; r < width; ++r) {
        // Lanes beyond the rows repeat the last one; nothing of theirs is written.
        const std::int64_t row = block.row + (r < block.num_rows ? r : block.num_rows - 1);
        const X* const q = static_cast<const X*>(call.q) + (first_query + row / group) * call.q_stride +
                           (block.kv_head * group + row % group) * head_dim;
        for (std::int64_t e = 0; e < head_dim; ++e) rows.q[e * width + r] = to_float(q[e]) * call.scale;
        const std::int64_t end = num_cached + row / group + 1;
        end_of[r] = float(end);
        first[r] = float(call.window != 0 && end > call.window ? end - call.window : 0);
        sinks[r] = call.sinks != nullptr ? call.sinks[block.kv_head * group + row % group] : 0.0f;
    }
    const KeyRange range = keys_of(call, block);
    rows.least_end = num_cached + block.row / group + 1;
    rows.most_first = call.window != 0 && range.end > call.window ? range.end - call.window : 0;
    for (int v = 0; v < vectors; ++v) {
        rows.top[v] = all(-__builtin_inff());
        rows.total[v] = zeros();
        rows.first[v] = load(first + v * kWidth);
        rows.end[v] = load(end_of + v * kWidth);
    }
    for (std::int64_t i = 0; i < head_dim * width; i += kWidth) store(rows.out + i, zeros());
    Keys keys;
    for (std::int64_t start = range.first / kKeyBlock * kKeyBlock; start < range.end; start += kKeyBlock) {
        find_keys<C>(call, block, start, range.end, room, keys);
        Vec scale[vectors];
        score_all(rows, keys, head_dim);
        weigh(rows, keys, call.soft_cap, scale);
        gather_all(rows, keys, scale, head_dim);
    }
    if (call.sinks != nullptr) {
        Vec share[vectors];
        for (int v = 0; v < vectors; ++v) {
            const Vec sink = load(sinks + v * kWidth), top = max_or_second(rows.top[v], sink);
            share[v] = exp_of_negative(sub(rows.top[v], top));
            rows.total[v] = fma(rows.total[v], share[v], exp_of_negative(sub(sink, top)));
        }
        for (std::int64_t i = 0; i < head_dim * width; i += kWidth) {
            store(rows.out + i, mul(load(rows.out + i), share[i / kWidth % vectors]));
        }
    }
    float total[width];
    for (int v = 0; v < vectors; ++v) store(total + v * kWidth, rows.total[v]);
    for (std::int64_t r = 0; r < block.num_rows; ++r) {
        const std::int64_t row = block.row + r;
        X* const out = static_cast<X*>(call.out) + (first_query + row / group) * call.num_heads * head_dim +
                       (block.kv_head * group + row % group) * head_dim;
        for_each_vector(head_dim, [&](std::int64_t e, std::int64_t count) {
            float part[kWidth];
            for (std::int64_t i = 0; i < count; ++i) part[i] = rows.out[(e + i) * width + r];
            store_some(out + e, div(load_some(part, count), all(total[r])), count);
        });
    }
}

template <typename X, typename C>
void attend_some(const AttentionCall& call, const QueryBlock& block, float* scratch) {
    if (block.num_rows <= kWidth) {
        attend<X, C, 1>(call, block, scratch);
    } else {
        attend<X, C, kMaxVectors>(call, block, scratch);
    }
}

template <typename X>
void attend_rows(const AttentionCall& call, const QueryBlock& block, float* scratch) {
    if (call.cache == Cache::f32) {
        attend_some<X, float>(call, block, scratch);
    } else if (call.cache == Cache::bf16) {
        attend_some<X, std::uint16_t>(call, block, scratch);
    } else {
        attend_some<X, std::int8_t>(call, block, scratch);
    }
}

inline void attend_block(const AttentionCall& call, const QueryBlock& block, float* scratch) {
    if (call.number == Number::bf16) {
        attend_rows<std::uint16_t>(call, block, scratch);
    } else {
        attend_rows<float>(call, block, scratch);
    }
}

}  // namespace
}  // namespace hearth
