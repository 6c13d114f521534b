// Bodies of the row kernels, compiled once per instruction set.
#pragma once

#include "rows.h"
#include "simd.h"

namespace hearth {
namespace {

// X: type of x, delta and sum. W: type of weight and out.
template <typename X, typename W>
void rms_norm_row(const RmsNormCall& call, std::int64_t row) {
    const X* x = static_cast<const X*>(call.x) + row * call.x_stride;
    if (call.delta != nullptr) {
        const X* const delta = static_cast<const X*>(call.delta) + row * call.delta_stride;
        X* const sum = static_cast<X*>(call.sum) + row * call.size;
        for_each_vector(call.size, [&](std::int64_t i, std::int64_t count) {
            store_some(sum + i, add(load_some(x + i, count), load_some(delta + i, count)), count);
        });
        x = sum;
    }
    constexpr int num_sums = 4;
    Vec squares[num_sums] = {zeros(), zeros(), zeros(), zeros()};
    for_each_vector(call.size, [&](std::int64_t i, std::int64_t count) {
        const Vec part = load_some(x + i, count);
        Vec& sum = squares[i / kWidth % num_sums];
        sum = fma(part, part, sum);
    });
    const float total = sum_lanes(add(add(squares[0], squares[1]), add(squares[2], squares[3])));
    const float mean = total / float(call.size);
    const Vec scale = all(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + call.eps))));
    const W* const weight = static_cast<const W*>(call.weight);
    W* const out = static_cast<W*>(call.out) + row * call.size;
    for_each_vector(call.size, [&](std::int64_t i, std::int64_t count) {
        const Vec scaled = mul(load_some(x + i, count), scale);
        store_some(out + i, mul(scaled, load_some(weight + i, count)), count);
    });
}

// 1 / (1 + e^-x), with an exponential that cannot overflow.
inline Vec sigmoid(Vec x) {
    const Vec z = exp_of_negative(negative_size(x)), one = all(1.0f);
    return div(choose(less(x, zeros()), z, one), add(one, z));
}

inline Vec silu(Vec x) { return mul(x, sigmoid(x)); }

// x (1 + tanh(w / 2)) / 2 = x sigmoid(w), with w = 2 sqrt(2 / pi) (x + 0.044715 x^3) (arXiv 1606.08415, section 2).
inline Vec gelu(Vec x) {
    const Vec cubic = fma(mul(mul(x, x), all(0.044715f)), x, x);
    return mul(x, sigmoid(mul(cubic, all(1.59576912f))));
}

template <typename X, Vec (*activation)(Vec)>
void glu_row(const GluCall& call, std::int64_t row) {
    const X* const gate = static_cast<const X*>(call.gate) + row * call.gate_stride;
    const X* const up = static_cast<const X*>(call.up) + row * call.up_stride;
    X* const out = static_cast<X*>(call.out) + row * call.size;
    for_each_vector(call.size, [&](std::int64_t i, std::int64_t count) {
        const Vec gated = rounded(activation(load_some(gate + i, count)), X{});
        store_some(out + i, mul(gated, load_some(up + i, count)), count);
    });
}

template <typename X>
void turn_heads(const X* from, X* to, const float* cos, const float* sin, std::int64_t num_heads,
                std::int64_t head_dim) {
    const std::int64_t half = head_dim / 2;
    for (std::int64_t head = 0; head < num_heads; ++head, from += head_dim, to += head_dim) {
        for_each_vector(half, [&](std::int64_t i, std::int64_t count) {
            const Vec low = load_some(from + i, count), high = load_some(from + half + i, count);
            const Vec turned_low = fma(high, load_some(sin + i, count), mul(low, load_some(cos + i, count)));
            const Vec turned_high =
                fma(low, load_some(sin + half + i, count), mul(high, load_some(cos + half + i, count)));
            store_some(to + i, turned_low, count);
            store_some(to + half + i, turned_high, count);
        });
    }
}

template <typename X>
void rope_row(const RopeCall& call, std::int64_t row) {
    const float *const cos = call.cos + row * call.head_dim, *const sin = call.sin + row * call.head_dim;
    const std::int64_t q_size = call.num_heads * call.head_dim, k_size = call.num_kv_heads * call.head_dim;
    const std::int64_t slot = call.slots != nullptr ? call.slots[row] : row;
    turn_heads(static_cast<const X*>(call.q) + row * call.q_stride, static_cast<X*>(call.q_out) + row * q_size, cos,
               sin, call.num_heads, call.head_dim);
    turn_heads(static_cast<const X*>(call.k) + row * call.k_stride, static_cast<X*>(call.k_out) + slot * k_size, cos,
               sin, call.num_kv_heads, call.head_dim);
    __builtin_memcpy(static_cast<X*>(call.v_out) + slot * k_size, static_cast<const X*>(call.v) + row * call.v_stride,
                     std::size_t(k_size) * sizeof(X));
}

inline void rms_norm_rows(const RmsNormCall& call, std::int64_t row, std::int64_t row_end) {
    auto one = rms_norm_row<std::uint16_t, std::uint16_t>;
    if (call.number == Number::f32) {
        one = call.out_number == Number::f32 ? rms_norm_row<float, float> : rms_norm_row<float, std::uint16_t>;
    }
    for (; row < row_end; ++row) one(call, row);
}

template <typename X>
void add_scaled_row(const AddScaledCall& call, std::int64_t row) {
    X* const y = static_cast<X*>(call.y) + row * call.size;
    const float* const delta = call.delta + row * call.size;
    for_each_vector(call.size, [&](std::int64_t i, std::int64_t count) {
        // Not fused: torch, which computes the same for training, rounds the product too.
        store_some(y + i, add(load_some(y + i, count), mul(load_some(delta + i, count), all(call.scale))), count);
    });
}

template <typename X, typename Y>
void embed_row(const EmbedCall& call, std::int64_t row) {
    const X* const from = static_cast<const X*>(call.table) + call.token_ids[row] * call.size;
    Y* const to = static_cast<Y*>(call.out) + row * call.size;
    for_each_vector(call.size, [&](std::int64_t i, std::int64_t count) {
        store_some(to + i, load_some(from + i, count), count);
    });
}

inline void embed_rows(const EmbedCall& call, std::int64_t row, std::int64_t row_end) {
    auto one = embed_row<float, float>;
    if (call.number == Number::bf16) {
        one = call.out_number == Number::f32 ? embed_row<std::uint16_t, float> : embed_row<std::uint16_t, std::uint16_t>;
    }
    for (; row < row_end; ++row) one(call, row);
}

inline void glu_rows(const GluCall& call, std::int64_t row, std::int64_t row_end) {
    const bool is_gelu = call.activation == Activation::gelu;
    auto one = is_gelu ? glu_row<float, gelu> : glu_row<float, silu>;
    if (call.number == Number::bf16) one = is_gelu ? glu_row<std::uint16_t, gelu> : glu_row<std::uint16_t, silu>;
    for (; row < row_end; ++row) one(call, row);
}

template <typename Call>
inline void for_rows(const Call& call, std::int64_t row, std::int64_t row_end, void (*bf16)(const Call&, std::int64_t),
                     void (*f32)(const Call&, std::int64_t)) {
    const auto one = call.number == Number::bf16 ? bf16 : f32;
    for (; row < row_end; ++row) one(call, row);
}

}  // namespace
}  // namespace hearth
