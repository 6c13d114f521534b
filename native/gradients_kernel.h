// Bodies of the backward kernels, compiled once per instruction set.
#pragma once

#include "gradients.h"
#include "rows_kernel.h"
#include "simd.h"

namespace hearth {
namespace {

struct Gate {
    Vec value, slope;
};

inline Gate silu_gate(Vec x) {
    const Vec s = sigmoid(x), value = mul(x, s);
    return {value, fma(sub(all(1.0f), s), value, s)};
}

inline Gate gelu_gate(Vec x) {
    const Vec square = mul(x, x), w = mul(fma(mul(square, all(0.044715f)), x, x), all(1.59576912f));
    const Vec s = sigmoid(w), value = mul(x, s);
    const Vec w_slope = mul(fma(square, all(3 * 0.044715f), all(1.0f)), all(1.59576912f));
    return {value, fma(mul(value, sub(all(1.0f), s)), w_slope, s)};
}

template <typename X, Gate (*gate_of)(Vec)>
void glu_grad_row(const GluGradCall& call, std::int64_t row) {
    const std::int64_t at = row * call.size;
    const X *const gate = static_cast<const X*>(call.gate) + at, *const up = static_cast<const X*>(call.up) + at;
    const X* const grad = static_cast<const X*>(call.grad) + at;
    X *const grad_gate = static_cast<X*>(call.grad_gate) + at, *const grad_up = static_cast<X*>(call.grad_up) + at;
    for_each_vector(call.size, [&](std::int64_t i, std::int64_t count) {
        const Gate passed = gate_of(load_some(gate + i, count));
        const Vec g = load_some(grad + i, count);
        store_some(grad_gate + i, mul(mul(g, load_some(up + i, count)), passed.slope), count);
        store_some(grad_up + i, mul(g, rounded(passed.value, X{})), count);
    });
}

inline void glu_grad_rows(const GluGradCall& call, std::int64_t row, std::int64_t row_end) {
    const bool is_gelu = call.activation == Activation::gelu;
    auto one = is_gelu ? glu_grad_row<float, gelu_gate> : glu_grad_row<float, silu_gate>;
    if (call.number == Number::bf16) {
        one = is_gelu ? glu_grad_row<std::uint16_t, gelu_gate> : glu_grad_row<std::uint16_t, silu_gate>;
    }
    for (; row < row_end; ++row) one(call, row);
}

// X: type of h and its gradients. W: type of weight and grad.
template <typename X, typename W>
void rms_norm_grad_row(const RmsNormGradCall& call, std::int64_t row, float* sums) {
    const std::int64_t at = row * call.size;
    const X *const h = static_cast<const X*>(call.h) + at;
    const X* const grad_sum = call.grad_sum == nullptr ? nullptr : static_cast<const X*>(call.grad_sum) + at;
    const W *const grad = static_cast<const W*>(call.grad) + at, *const weight = static_cast<const W*>(call.weight);
    X* const grad_h = static_cast<X*>(call.grad_h) + at;
    Vec squares = zeros(), products = zeros();
    for_each_vector(call.size, [&](std::int64_t i, std::int64_t count) {
        const Vec x = load_some(h + i, count);
        squares = fma(x, x, squares);
        products = fma(mul(load_some(grad + i, count), load_some(weight + i, count)), x, products);
    });
    const float size = float(call.size), mean = sum_lanes(squares) / size + call.eps;
    const float scale = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean)));
    const Vec factor = all(scale), pull = all(-(sum_lanes(products) / size) / mean);
    for_each_vector(call.size, [&](std::int64_t i, std::int64_t count) {
        const Vec x = load_some(h + i, count), g = load_some(grad + i, count);
        const Vec d = mul(g, load_some(weight + i, count));
        Vec found = mul(fma(x, pull, d), factor);
        if (grad_sum != nullptr) found = add(found, load_some(grad_sum + i, count));
        store_some(grad_h + i, found, count);
        if (sums != nullptr) store_some(sums + i, fma(g, mul(x, factor), load_some(sums + i, count)), count);
    });
}

inline void rms_norm_grad_rows(const RmsNormGradCall& call, std::int64_t row, std::int64_t row_end, float* sums) {
    auto one = rms_norm_grad_row<std::uint16_t, std::uint16_t>;
    if (call.number == Number::f32) {
        one = call.out_number == Number::f32 ? rms_norm_grad_row<float, float> : rms_norm_grad_row<float, std::uint16_t>;
    }
    for (; row < row_end; ++row) one(call, row, sums);
}

// A matrix whose element (m, k) lies at m * rows + k * columns.
struct Factor {
    const float* at;
    std::int64_t rows, columns;
};

// c[M, N] = (is_sum: c +) a b, for M rows and vectors of N, all of which may be read and written.
template <int M, int N, bool is_sum>
inline void multiply_block(float* c, std::int64_t c_stride, Factor a, const float* b, std::int64_t b_stride, std::int64_t depth) {
    Vec sums[M][N];
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) sums[m][n] = is_sum ? load(c + m * c_stride + n * kWidth) : zeros();
    }
    for (std::int64_t k = 0; k < depth; ++k) {
        Vec line[N];
        for (int n = 0; n < N; ++n) line[n] = load(b + k * b_stride + n * kWidth);
        for (int m = 0; m < M; ++m) {
            const Vec x = all(a.at[m * a.rows + k * a.columns]);
            for (int n = 0; n < N; ++n) sums[m][n] = fma(x, line[n], sums[m][n]);
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) store(c + m * c_stride + n * kWidth, sums[m][n]);
    }
}

template <int N, bool is_sum>
inline void multiply_columns(float* c, std::int64_t c_stride, Factor a, const float* b, std::int64_t b_stride,
                             std::int64_t num_rows, std::int64_t depth) {
    constexpr int kRows = kWidth == 16 ? 6 : 4;
    std::int64_t m = 0;
    for (; m + kRows <= num_rows; m += kRows) {
        multiply_block<kRows, N, is_sum>(c + m * c_stride, c_stride, {a.at + m * a.rows, a.rows, a.columns}, b, b_stride, depth);
    }
    for (; m < num_rows; ++m) {
        multiply_block<1, N, is_sum>(c + m * c_stride, c_stride, {a.at + m * a.rows, a.rows, a.columns}, b, b_stride, depth);
    }
}

// c[num_rows, width] = (is_sum: c +) a b; columns up to the next multiple of kWidth are touched.
template <bool is_sum>
inline void multiply(float* c, std::int64_t c_stride, Factor a, const float* b, std::int64_t b_stride,
                     std::int64_t num_rows, std::int64_t width, std::int64_t depth) {
    constexpr int kColumns = kWidth == 16 ? 4 : 2;
    std::int64_t n = 0;
    for (; n + (kColumns - 1) * kWidth < width; n += kColumns * kWidth) {
        multiply_columns<kColumns, is_sum>(c + n, c_stride, a, b + n, b_stride, num_rows, depth);
    }
    for (; n < width; n += kWidth) multiply_columns<1, is_sum>(c + n, c_stride, a, b + n, b_stride, num_rows, depth);
}

// Working memory of one family. Lengths count rows of the family, widths numbers of a head, both padded.
struct Memory {
    std::int64_t width, length;
    float *k, *k_turned, *v_turned, *grad_k, *grad_v;   // [length, width], the second and third [width, length]
    float *p, *s;                                       // [kGradQueries, length]
    float *q, *grad, *grad_q;                           // [kGradQueries, width]

    Memory(std::int64_t head_dim, std::int64_t num_rows, float* at)
        : width((head_dim + 15) / 16 * 16), length((num_rows + 15) / 16 * 16 + 32) {
        const auto room = [&at](std::int64_t count) {
            float* const here = at;
            at += count;
            return here;
        };
        for (float** matrix : {&k, &k_turned, &v_turned, &grad_k, &grad_v}) *matrix = room(length * width);
        p = room(kGradQueries * length);
        s = room(kGradQueries * length);
        for (float** rows : {&q, &grad, &grad_q}) *rows = room(kGradQueries * width);
    }
};

inline void clear(float* at, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) at[i] = 0.0f;
}

struct Angles {
    const float *cos, *sin;
};

inline Angles angles_of(const AttentionGradCall& call, std::int64_t row) {
    const std::int64_t at = (call.positions != nullptr ? call.positions[row] : row) * call.rotary_dim;
    return {call.cos + at, call.sin + at};
}

// A head as the forward pass has it, turned and rounded.
template <typename X>
inline void turn_at(const AttentionGradCall& call, const X* from, std::int64_t row, X* to) {
    RopeCall turning{};
    turning.rotary_dim = call.rotary_dim;
    turning.head_dim = call.head_dim;
    const Angles angles = angles_of(call, row);
    turn_head(from, to, angles.cos, angles.sin, turning);
}

// The same times a factor, padded with zeros.
template <typename X>
inline void take_turned(const AttentionGradCall& call, const X* from, std::int64_t row, float factor, float* to, std::int64_t width) {
    X turned[kMaxHeadDim];
    turn_at(call, from, row, turned);
    clear(to, width);
    for_each_vector(call.head_dim, [&](std::int64_t i, std::int64_t count) {
        store_some(to + i, mul(load_some(turned + i, count), all(factor)), count);
    });
}

// The gradient of a head from that of the turned one, times a factor.
template <typename X>
inline void turn_back(const AttentionGradCall& call, const float* from, std::int64_t row, float factor, X* to) {
    const Angles angles = angles_of(call, row);
    const std::int64_t half = call.rotary_dim / 2, done = call.rotary_dim;
    for_each_vector(half, [&](std::int64_t i, std::int64_t count) {
        const Vec low = mul(load_some(from + i, count), all(factor)), high = mul(load_some(from + half + i, count), all(factor));
        const Vec found_low = fma(high, load_some(angles.sin + half + i, count), mul(low, load_some(angles.cos + i, count)));
        const Vec found_high = fma(low, load_some(angles.sin + i, count), mul(high, load_some(angles.cos + half + i, count)));
        store_some(to + i, found_low, count);
        store_some(to + half + i, found_high, count);
    });
    for_each_vector(call.head_dim - done, [&](std::int64_t i, std::int64_t count) {
        store_some(to + done + i, mul(load_some(from + done + i, count), all(factor)), count);
    });
}

// Scores of a row's first `count` keys, times scale, become weights, the rest zero; gradients of weights become those
// of scores.
inline void weigh_row(float* p, float* s, std::int64_t count, std::int64_t length, float scale) {
    Vec tops = all(-__builtin_inff()), sums = zeros(), products = zeros();
    float lanes[kWidth], top = -__builtin_inff();
    for_each_vector(count, [&](std::int64_t i, std::int64_t part) {
        if (part == kWidth) {
            tops = max_or_second(load(p + i), tops);
        } else {
            for (std::int64_t j = i; j < count; ++j) top = p[j] > top ? p[j] : top;
        }
    });
    store(lanes, tops);
    for (const float lane : lanes) top = lane > top ? lane : top;
    for_each_vector(count, [&](std::int64_t i, std::int64_t part) {
        store_some(p + i, exp_of_negative(mul(sub(load_some(p + i, part), all(top)), all(scale))), part);
    });
    clear(p + count, length - count);
    clear(s + count, length - count);
    for (std::int64_t i = 0; i < count; i += kWidth) {
        const Vec weight = load(p + i);
        sums = add(sums, weight);
        products = fma(weight, load(s + i), products);
    }
    const float total = sum_lanes(sums);
    const Vec share = all(1.0f / total), pull = all(sum_lanes(products) / total);
    for (std::int64_t i = 0; i < count; i += kWidth) {
        const Vec weight = mul(load(p + i), share);
        store(p + i, weight);
        store(s + i, mul(weight, sub(load(s + i), pull)));
    }
}

template <typename X>
void attention_grad_family(const AttentionGradCall& call, const AttentionFamily& family, float* scratch) {
    const std::int64_t* const starts = call.query_starts;
    const std::int64_t head_dim = call.head_dim, q_width = call.num_heads * head_dim;
    std::int64_t num_rows = 0;
    for (std::int64_t i = 0; i < family.num_members; ++i) num_rows += starts[family.members[i] + 1] - starts[family.members[i]];
    const Memory memory(head_dim, num_rows, scratch);
    const std::int64_t width = memory.width, length = memory.length;
    const std::int64_t head = family.head, kv_at = head / (call.num_heads / call.num_kv_heads) * head_dim;
    for (float* matrix : {memory.k, memory.k_turned, memory.v_turned, memory.grad_k, memory.grad_v}) clear(matrix, length * width);
    const auto for_each_row = [&](const auto& body) {
        std::int64_t inside = 0;
        for (std::int64_t i = 0; i < family.num_members; ++i) {
            for (std::int64_t row = starts[family.members[i]]; row < starts[family.members[i] + 1]; ++row) body(row, inside++);
        }
    };
    for_each_row([&](std::int64_t row, std::int64_t inside) {
        take_turned(call, static_cast<const X*>(call.k) + row * call.k_stride + kv_at, row, 1.0f, memory.k + inside * width, width);
        const X* const v = static_cast<const X*>(call.v) + row * call.v_stride + kv_at;
        for (std::int64_t e = 0; e < head_dim; ++e) {
            memory.k_turned[e * length + inside] = memory.k[inside * width + e];
            memory.v_turned[e * length + inside] = to_float(v[e]);
        }
    });
    const std::int64_t parent_rows = starts[family.members[0] + 1] - starts[family.members[0]];
    std::int64_t own = 0;  // where the member's rows begin
    for (std::int64_t i = 0; i < family.num_members; ++i) {
        const std::int64_t first = starts[family.members[i]], count = starts[family.members[i] + 1] - first;
        const std::int64_t shared = i == 0 ? 0 : parent_rows;
        for (std::int64_t start = 0; start < count; start += kGradQueries) {
            const std::int64_t here = start + kGradQueries < count ? kGradQueries : count - start, seen = start + here;
            for (std::int64_t j = 0; j < here; ++j) {
                const std::int64_t row = first + start + j;
                const X* const grad = static_cast<const X*>(call.grad) + row * call.grad_stride + head * head_dim;
                take_turned(call, static_cast<const X*>(call.q) + row * call.q_stride + head * head_dim, row, call.scale,
                            memory.q + j * width, width);
                for (std::int64_t e = 0; e < width; ++e) memory.grad[j * width + e] = e < head_dim ? to_float(grad[e]) : 0.0f;
            }
            // Shared keys first: what is written beyond them is overwritten by the member's own.
            multiply<false>(memory.p, length, {memory.q, width, 1}, memory.k_turned, length, here, shared, head_dim);
            multiply<false>(memory.p + shared, length, {memory.q, width, 1}, memory.k_turned + own, length, here, seen, head_dim);
            multiply<false>(memory.s, length, {memory.grad, width, 1}, memory.v_turned, length, here, shared, head_dim);
            multiply<false>(memory.s + shared, length, {memory.grad, width, 1}, memory.v_turned + own, length, here, seen, head_dim);
            for (std::int64_t j = 0; j < here; ++j) {
                weigh_row(memory.p + j * length, memory.s + j * length, shared + start + j + 1, length, 1.0f);
            }
            multiply<false>(memory.grad_q, width, {memory.s, length, 1}, memory.k, width, here, width, shared);
            multiply<true>(memory.grad_q, width, {memory.s + shared, length, 1}, memory.k + own * width, width, here, width, seen);
            for (std::int64_t part = 0; part < 2; ++part) {
                const std::int64_t keys = part == 0 ? shared : seen, column = part == 0 ? 0 : shared, at = part == 0 ? 0 : own * width;
                multiply<true>(memory.grad_k + at, width, {memory.s + column, 1, length}, memory.q, width, keys, width, here);
                multiply<true>(memory.grad_v + at, width, {memory.p + column, 1, length}, memory.grad, width, keys, width, here);
            }
            for (std::int64_t j = 0; j < here; ++j) {
                const std::int64_t row = first + start + j;
                turn_back(call, memory.grad_q + j * width, row, call.scale,
                          static_cast<X*>(call.grad_q) + row * q_width + head * head_dim);
            }
        }
        own += count;
    }
    for_each_row([&](std::int64_t row, std::int64_t inside) {
        copy_numbers(memory.grad_k + inside * width, family.grad_k + row * head_dim, head_dim);
        copy_numbers(memory.grad_v + inside * width, family.grad_v + row * head_dim, head_dim);
    });
}

// Adds up `count` rows that lie `distance` numbers apart.
inline void sum_rows(const float* from, std::int64_t count, std::int64_t distance, float* to, std::int64_t size) {
    for_each_vector(size, [&](std::int64_t i, std::int64_t part) {
        Vec sum = load_some(from + i, part);
        for (std::int64_t n = 1; n < count; ++n) sum = add(sum, load_some(from + n * distance + i, part));
        store_some(to + i, sum, part);
    });
}

template <typename X>
void sum_heads(const AttentionGradCall& call, const float* grad_k, const float* grad_v, std::int64_t row, std::int64_t row_end) {
    const std::int64_t head_dim = call.head_dim, group = call.num_heads / call.num_kv_heads;
    const std::int64_t distance = call.query_starts[call.num_sequences] * head_dim, kv_width = call.num_kv_heads * head_dim;
    float numbers[kMaxHeadDim];
    for (; row < row_end; ++row) {
        for (std::int64_t head = 0; head < call.num_kv_heads; ++head) {
            const std::int64_t from = head * group * distance + row * head_dim, to = row * kv_width + head * head_dim;
            sum_rows(grad_k + from, group, distance, numbers, head_dim);
            turn_back(call, numbers, row, 1.0f, static_cast<X*>(call.grad_k) + to);
            sum_rows(grad_v + from, group, distance, numbers, head_dim);
            copy_numbers(numbers, static_cast<X*>(call.grad_v) + to, head_dim);
        }
    }
}

inline void attention_grad_sum(const AttentionGradCall& call, const float* grad_k, const float* grad_v, std::int64_t row,
                               std::int64_t row_end) {
    const auto sum = call.number == Number::bf16 ? sum_heads<std::uint16_t> : sum_heads<float>;
    sum(call, grad_k, grad_v, row, row_end);
}

}  // namespace
}  // namespace hearth
