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
    Vec num_seen[vectors];                        // keys that each row may see
    std::int64_t least_seen;                      // the smallest of them
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

// Scores become weights; returns in `scale` what earlier sums are worth beside them.
template <int vectors>
void weigh(Running<vectors>& rows, const Keys& block, Vec (&scale)[vectors]) {
    constexpr int width = vectors * kWidth;
    const Vec lowest = all(-__builtin_inff());
    for (int v = 0; v < vectors; ++v) {
        float* const weights = rows.weights + v * kWidth;
        Vec top = rows.top[v];
        for (int j = 0; j < block.count; ++j) {
            Vec s = load(weights + j * width);
            if (block.start + j >= rows.least_seen) {
                s = choose(less(all(float(block.start + j)), rows.num_seen[v]), s, lowest);
                store(weights + j * width, s);
            }
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
    const std::int64_t seen_by_all = rows.least_seen - block.start;
    int key = 0;
    for (; key < block.count && key < seen_by_all; ++key) {
        for (int v = 0; v < vectors; ++v) {
            const Vec weight = load(rows.weights + key * width + v * kWidth);
            for (int n = 0; n < numbers; ++n) sum[n][v] = fma(weight, all(block.v[key][e + n]), sum[n][v]);
        }
    }
    for (; key < block.count; ++key) {  // rows that may not see a key must not meet its NaN either
        for (int v = 0; v < vectors; ++v) {
            const Vec weight = load(rows.weights + key * width + v * kWidth);
            const Lanes sees = less(all(float(block.start + key)), rows.num_seen[v]);
            for (int n = 0; n < numbers; ++n) {
                sum[n][v] = choose(sees, fma(weight, all(block.v[key][e + n]), sum[n][v]), sum[n][v]);
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

inline const float* as_float(const float* at, float*, std::int64_t) { return at; }
inline const float* as_float(const std::uint16_t* at, float* to, std::int64_t size) {
    for_each_vector(size, [&](std::int64_t i, std::int64_t count) { store_some(to + i, load_some(at + i, count), count); });
    return to;
}

// Finds the keys from `start` on; bf16 ones are widened into room, 2 * kKeyBlock * head_dim numbers.
template <typename X>
void find_keys(const AttentionCall& call, const QueryBlock& block, std::int64_t start, std::int64_t end, float* room,
               Keys& keys) {
    keys.start = start;
    keys.count = int(end - start < kKeyBlock ? end - start : kKeyBlock);
    for (int j = 0; j < keys.count; ++j, room += 2 * call.head_dim) {
        const std::int64_t position = start + j;
        std::int64_t row = call.query_starts[block.sequence] + position;
        if (call.page_table != nullptr) {
            const std::int64_t* const pages = call.page_table + block.sequence * call.pages_per_sequence;
            row = pages[position / call.page_size] * call.page_size + position % call.page_size;
        }
        const std::int64_t at = (row * call.num_kv_heads + block.kv_head) * call.head_dim;
        keys.k[j] = as_float(static_cast<const X*>(call.k) + at, room, call.head_dim);
        keys.v[j] = as_float(static_cast<const X*>(call.v) + at, room + call.head_dim, call.head_dim);
    }
}

template <typename X, int vectors>
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
    float num_seen[width];
    for (int r = 0; r < width; ++r) {
        // Lanes beyond the rows repeat the last one; nothing of theirs is written.
        const std::int64_t row = block.row + (r < block.num_rows ? r : block.num_rows - 1);
        const X* const q = static_cast<const X*>(call.q) + (first_query + row / group) * call.q_stride +
                           (block.kv_head * group + row % group) * head_dim;
        for (std::int64_t e = 0; e < head_dim; ++e) rows.q[e * width + r] = to_float(q[e]) * call.scale;
        num_seen[r] = float(num_cached + row / group + 1);
    }
    rows.least_seen = num_cached + block.row / group + 1;
    for (int v = 0; v < vectors; ++v) {
        rows.top[v] = all(-__builtin_inff());
        rows.total[v] = zeros();
        rows.num_seen[v] = load(num_seen + v * kWidth);
    }
    for (std::int64_t i = 0; i < head_dim * width; i += kWidth) store(rows.out + i, zeros());
    const std::int64_t end = num_cached + (block.row + block.num_rows - 1) / group + 1;
    Keys keys;
    for (std::int64_t start = 0; start < end; start += kKeyBlock) {
        find_keys<X>(call, block, start, end, room, keys);
        Vec scale[vectors];
        score_all(rows, keys, head_dim);
        weigh(rows, keys, scale);
        gather_all(rows, keys, scale, head_dim);
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

template <typename X>
void attend_block(const AttentionCall& call, const QueryBlock& block, float* scratch) {
    if (block.num_rows <= kWidth) {
        attend<X, 1>(call, block, scratch);
    } else {
        attend<X, kMaxVectors>(call, block, scratch);
    }
}

}  // namespace
}  // namespace hearth
