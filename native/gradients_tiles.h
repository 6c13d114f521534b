// Attention's backward pass for bf16 rows, in products of bf16 numbers: as gradients_kernel.h, with weights and the
// gradients of scores rounded to bf16 before they are multiplied; sums are float32. A sequence's rows and a block's
// queries are padded to whole tiles with zeros. Denormal numbers count as 0. The instruction set's multiply_tiles comes
// before it.
#pragma once

#include "gradients_kernel.h"
#include "linear.h"
#include "transpose.h"

namespace hearth {
namespace {

using Half = std::uint16_t;  // bf16

// A power of two between the rows of a tile would put them all into a few sets of the first-level cache.
constexpr std::int64_t kSkew = 32;

// Working memory of one family: E numbers of a head, L rows of the family, N queries, all padded.
struct Room {
    std::int64_t width, length;
    Half *k_turned, *v_turned, *k_pairs;                // [E / 2, L, 2] twice, [L / 2, E, 2]
    float *grad_k, *grad_v;                             // [E, L]
    float *p, *s, *grad_q;                              // [N, L] twice, [N, E]
    Half *s_rows, *s_pairs, *p_pairs;                   // [N, L], [N / 2, L, 2] twice
    Half *q, *grad, *q_turned, *grad_turned;            // [N, E] twice, [E, N] twice

    Room(std::int64_t head_dim, std::int64_t num_rows, float* at) : width(padded_rows(head_dim)), length(num_rows + kSkew) {
        const auto floats = [&at](std::int64_t count) {
            float* const here = at;
            at += count;
            return here;
        };
        const auto halves = [&floats](std::int64_t count) { return reinterpret_cast<Half*>(floats(count / 2)); };
        for (Half** matrix : {&k_turned, &v_turned, &k_pairs}) *matrix = halves(length * width);
        for (float** matrix : {&grad_k, &grad_v}) *matrix = floats(length * width);
        for (float** matrix : {&p, &s}) *matrix = floats(kGradQueries * length);
        grad_q = floats(kGradQueries * width);
        for (Half** matrix : {&s_rows, &s_pairs, &p_pairs}) *matrix = halves(kGradQueries * length);
        for (Half** matrix : {&q, &grad, &q_turned, &grad_turned}) *matrix = halves(kGradQueries * width);
    }
};

inline __m512i side_by_side(__m256i first, __m256i second) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

// Rows of weights and of gradients of scores, two by two, as bf16: `count` numbers, a multiple of 16.
inline void round_rows(const Room& room, std::int64_t row, std::int64_t count) {
    const float *const p = room.p + row * room.length, *const s = room.s + row * room.length;
    const std::int64_t length = room.length;
    for (std::int64_t i = 0; i < count; i += kWidth) {
        const auto bits = [&](const float* at) { return (__m256i)_mm512_cvtneps_pbh(load(at + i)); };
        const __m256i s_first = bits(s), s_second = bits(s + length);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(room.s_rows + row * length + i), s_first);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(room.s_rows + (row + 1) * length + i), s_second);
        _mm512_storeu_si512(room.s_pairs + row * length + 2 * i, side_by_side(s_first, s_second));
        _mm512_storeu_si512(room.p_pairs + row * length + 2 * i, side_by_side(bits(p), bits(p + length)));
    }
}

inline __m256i sixteen(const Half* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }

// Sixteen rows of `width` numbers, a multiple of 32, as pairs of numbers with their rows side by side.
inline void turn_pairs(const Half* rows, std::int64_t width, Half* to, std::int64_t length) {
    for (std::int64_t e = 0; e < width; e += 32) {
        __m512i x[16];
        for (int i = 0; i < 16; ++i) x[i] = _mm512_loadu_si512(rows + i * width + e);
        transpose(x);
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (e / 2 + i) * 2 * length, x[i]);
    }
}

// Columns of `count` rows of `width` numbers as rows.
inline void turn_rows(const Half* rows, std::int64_t width, std::int64_t count, Half* to) {
    for (std::int64_t e = 0; e < width; e += 32) {
        columns_to_rows_avx512(rows + e, width, count, 32, to + e * kGradQueries, kGradQueries);
    }
}

// Sixteen columns of numbers, `size` in each, as up to 16 rows, times a factor.
inline void write_columns(const float* columns, std::int64_t length, float factor, float* rows, std::int64_t size, std::int64_t count) {
    for (std::int64_t e = 0; e < size; e += kWidth) {
        Vec x[16];
        for (int i = 0; i < 16; ++i) x[i] = load(columns + (e + i) * length);
        transpose(x);
        const std::int64_t part = size - e < kWidth ? size - e : kWidth;
        for (std::int64_t i = 0; i < count; ++i) store(rows + i * size + e, mul(x[i], all(factor)), part);
    }
}

void attention_grad_tiles(const AttentionGradCall& call, const AttentionFamily& family, float* scratch) {
    const std::int64_t* const starts = call.query_starts;
    const std::int64_t head_dim = call.head_dim, q_width = call.num_heads * head_dim;
    const auto rows_of = [&](std::int64_t i) { return starts[family.members[i] + 1] - starts[family.members[i]]; };
    std::int64_t num_rows = 0;
    for (std::int64_t i = 0; i < family.num_members; ++i) num_rows += padded_rows(rows_of(i));
    const Room room(head_dim, num_rows, scratch);
    const std::int64_t width = room.width, length = room.length;
    const std::int64_t head = family.head, kv_at = head / (call.num_heads / call.num_kv_heads) * head_dim;
    for (float* matrix : {room.grad_k, room.grad_v}) clear(matrix, length * width);
    // Sixteen rows of a member at a time: the first of them in the pack and in the family, and how many there are.
    const auto for_each_block = [&](const auto& body) {
        std::int64_t own = 0;
        for (std::int64_t i = 0; i < family.num_members; ++i) {
            const std::int64_t first = starts[family.members[i]], count = rows_of(i);
            for (std::int64_t j = 0; j < padded_rows(count); j += 16) {
                body(first + j, own + j, count - j < 0 ? 0 : count - j < 16 ? count - j : 16);
            }
            own += padded_rows(count);
        }
    };
    for_each_block([&](std::int64_t first, std::int64_t inside, std::int64_t count) {
        Half k[16 * kMaxHeadDim], v[16 * kMaxHeadDim];
        for (Half* rows : {k, v}) __builtin_memset(rows, 0, std::size_t(16 * width) * 2);
        for (std::int64_t j = 0; j < count; ++j) {
            turn_at(call, static_cast<const Half*>(call.k) + (first + j) * call.k_stride + kv_at, first + j, k + j * width);
            __builtin_memcpy(v + j * width, static_cast<const Half*>(call.v) + (first + j) * call.v_stride + kv_at,
                             std::size_t(head_dim) * 2);
        }
        turn_pairs(k, width, room.k_turned + 2 * inside, length);
        turn_pairs(v, width, room.v_turned + 2 * inside, length);
        for (std::int64_t j = 0; j < 16; j += 2) {
            for (std::int64_t e = 0; e < width; e += 16) {
                _mm512_storeu_si512(room.k_pairs + (inside + j) * width + 2 * e,
                                    side_by_side(sixteen(k + j * width + e), sixteen(k + (j + 1) * width + e)));
            }
        }
    });
    const std::int64_t parent_rows = rows_of(0);
    std::int64_t own = 0;  // where the member's rows begin
    for (std::int64_t i = 0; i < family.num_members; ++i) {
        const std::int64_t first = starts[family.members[i]], count = rows_of(i);
        const std::int64_t seen_before = i == 0 ? 0 : parent_rows, shared = padded_rows(seen_before);
        for (std::int64_t start = 0; start < count; start += kGradQueries) {
            const std::int64_t here = start + kGradQueries < count ? kGradQueries : count - start, queries = padded_rows(here);
            const std::int64_t seen = padded_rows(start + here), columns = shared + seen;
            for (Half* matrix : {room.q, room.grad}) __builtin_memset(matrix, 0, std::size_t(kGradQueries * width) * 2);
            for (std::int64_t j = 0; j < here; ++j) {
                const std::int64_t row = first + start + j;
                Half *const q = room.q + j * width, *const grad = room.grad + j * width;
                turn_at(call, static_cast<const Half*>(call.q) + row * call.q_stride + head * head_dim, row, q);
                __builtin_memcpy(grad, static_cast<const Half*>(call.grad) + row * call.grad_stride + head * head_dim,
                                 std::size_t(head_dim) * 2);
            }
            turn_rows(room.q, width, queries, room.q_turned);
            turn_rows(room.grad, width, queries, room.grad_turned);
            // Keys of the parent, then the member's own: where they lie in the family, and in a row of weights.
            const struct { std::int64_t at, column, count; } parts[] = {{0, 0, shared}, {own, shared, seen}};
            for (const auto& part : parts) {
                multiply_tiles<false>(room.p + part.column, length, room.q, width, room.k_turned + 2 * part.at, length,
                                      queries, part.count, width);
                multiply_tiles<false>(room.s + part.column, length, room.grad, width, room.v_turned + 2 * part.at, length,
                                      queries, part.count, width);
            }
            for (std::int64_t j = 0; j < queries; ++j) {
                float *const p = room.p + j * length, *const s = room.s + j * length;
                for (std::int64_t key = seen_before; key < shared; ++key) p[key] = -__builtin_inff();
                if (j < here) {
                    weigh_row(p, s, shared + start + j + 1, columns, call.scale);
                } else {
                    clear(p, columns);
                    clear(s, columns);
                }
                if (j % 2 != 0) round_rows(room, j - 1, columns);
            }
            for (const auto& part : parts) {
                if (part.count == 0) continue;
                const auto to_queries = part.column == 0 ? multiply_tiles<false> : multiply_tiles<true>;
                to_queries(room.grad_q, width, room.s_rows + part.column, length, room.k_pairs + part.at * width, width,
                           queries, width, part.count);
                multiply_tiles<true>(room.grad_k + part.at, length, room.q_turned, kGradQueries,
                                     room.s_pairs + 2 * part.column, length, width, part.count, queries);
                multiply_tiles<true>(room.grad_v + part.at, length, room.grad_turned, kGradQueries,
                                     room.p_pairs + 2 * part.column, length, width, part.count, queries);
            }
            for (std::int64_t j = 0; j < here; ++j) {
                const std::int64_t row = first + start + j;
                turn_back(call, room.grad_q + j * width, row, call.scale,
                          static_cast<Half*>(call.grad_q) + row * q_width + head * head_dim);
            }
        }
        own += padded_rows(count);
    }
    for_each_block([&](std::int64_t row, std::int64_t inside, std::int64_t count) {
        write_columns(room.grad_k + inside, length, call.scale, family.grad_k + row * head_dim, head_dim, count);
        write_columns(room.grad_v + inside, length, 1.0f, family.grad_v + row * head_dim, head_dim, count);
    });
}

}  // namespace
}  // namespace hearth
