// Attention's backward pass for bf16 rows, in products of bf16 numbers: as gradients_kernel.h, with weights and the
// gradients of scores rounded to bf16 before they are multiplied; sums are float32. A sequence's rows and a block's
// queries are padded to whole tiles with zeros. Denormal numbers count as 0. The instruction set's multiply_tiles comes
// before it.
#pragma once

#include "gradients_kernel.h"

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

// Rows of weights and of gradients of scores, two by two, as bf16: `count` numbers, a multiple of 16.
inline void round_rows(const Room& room, std::int64_t row, std::int64_t count) {
    const float *const p = room.p + row * room.length, *const s = room.s + row * room.length;
    const std::int64_t length = room.length;
    for (std::int64_t i = 0; i < count; i += kWidth) {
        const auto bits = [&](const float* at) { return (__m256i)_mm512_cvtneps_pbh(load(at + i)); };
        const auto side_by_side = [](__m256i first, __m256i second) {
            return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
        };
        const __m256i s_first = bits(s), s_second = bits(s + length);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(room.s_rows + row * length + i), s_first);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(room.s_rows + (row + 1) * length + i), s_second);
        _mm512_storeu_si512(room.s_pairs + row * length + 2 * i, side_by_side(s_first, s_second));
        _mm512_storeu_si512(room.p_pairs + row * length + 2 * i, side_by_side(bits(p), bits(p + length)));
    }
}

// A head's number e of row `inside` where pairs of numbers lie side by side.
inline Half& pair_of_numbers(Half* matrix, std::int64_t length, std::int64_t inside, std::int64_t e) {
    return matrix[e / 2 * 2 * length + 2 * inside + e % 2];
}

void attention_grad_tiles(const AttentionGradCall& call, const AttentionFamily& family, float* scratch) {
    const std::int64_t* const starts = call.query_starts;
    const std::int64_t head_dim = call.head_dim, kv_width = call.num_kv_heads * head_dim, q_width = call.num_heads * head_dim;
    const auto rows_of = [&](std::int64_t i) { return starts[family.members[i] + 1] - starts[family.members[i]]; };
    std::int64_t num_rows = 0;
    for (std::int64_t i = 0; i < family.num_members; ++i) num_rows += padded_rows(rows_of(i));
    const Room room(head_dim, num_rows, scratch);
    const std::int64_t width = room.width, length = room.length, kv_at = family.kv_head * head_dim;
    for (Half* matrix : {room.k_turned, room.v_turned, room.k_pairs}) __builtin_memset(matrix, 0, std::size_t(length * width) * 2);
    for (float* matrix : {room.grad_k, room.grad_v}) clear(matrix, length * width);
    const auto for_each_row = [&](const auto& body) {
        std::int64_t own = 0;
        for (std::int64_t i = 0; i < family.num_members; ++i) {
            for (std::int64_t j = 0; j < rows_of(i); ++j) body(starts[family.members[i]] + j, own + j);
            own += padded_rows(rows_of(i));
        }
    };
    for_each_row([&](std::int64_t row, std::int64_t inside) {
        Half k[kMaxHeadDim];
        turn_at(call, static_cast<const Half*>(call.k) + row * call.k_stride + kv_at, row, k);
        const Half* const v = static_cast<const Half*>(call.v) + row * call.v_stride + kv_at;
        for (std::int64_t e = 0; e < head_dim; ++e) {
            pair_of_numbers(room.k_turned, length, inside, e) = k[e];
            pair_of_numbers(room.v_turned, length, inside, e) = v[e];
            room.k_pairs[inside / 2 * 2 * width + 2 * e + inside % 2] = k[e];
        }
    });
    const std::int64_t group = call.num_heads / call.num_kv_heads, parent_rows = rows_of(0);
    std::int64_t own = 0;  // where the member's rows begin
    for (std::int64_t i = 0; i < family.num_members; ++i) {
        const std::int64_t first = starts[family.members[i]], count = rows_of(i);
        const std::int64_t seen_before = i == 0 ? 0 : parent_rows, shared = padded_rows(seen_before);
        for (std::int64_t start = 0; start < count; start += kGradQueries) {
            const std::int64_t here = start + kGradQueries < count ? kGradQueries : count - start, queries = padded_rows(here);
            const std::int64_t seen = padded_rows(start + here), columns = shared + seen;
            for (std::int64_t head = family.kv_head * group; head < (family.kv_head + 1) * group; ++head) {
                for (Half* matrix : {room.q, room.grad, room.q_turned, room.grad_turned}) {
                    __builtin_memset(matrix, 0, std::size_t(kGradQueries * width) * 2);
                }
                for (std::int64_t j = 0; j < here; ++j) {
                    const std::int64_t row = first + start + j;
                    Half *const q = room.q + j * width, *const grad = room.grad + j * width;
                    turn_at(call, static_cast<const Half*>(call.q) + row * call.q_stride + head * head_dim, row, q);
                    __builtin_memcpy(grad, static_cast<const Half*>(call.grad) + row * call.grad_stride + head * head_dim,
                                     std::size_t(head_dim) * 2);
                    for (std::int64_t e = 0; e < head_dim; ++e) {
                        room.q_turned[e * kGradQueries + j] = q[e];
                        room.grad_turned[e * kGradQueries + j] = grad[e];
                    }
                }
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
        }
        own += padded_rows(count);
    }
    for_each_row([&](std::int64_t row, std::int64_t inside) {
        float numbers[kMaxHeadDim];
        for (std::int64_t e = 0; e < head_dim; ++e) numbers[e] = room.grad_k[e * length + inside];
        turn_back(call, numbers, row, call.scale, static_cast<Half*>(call.grad_k) + row * kv_width + kv_at);
        for (std::int64_t e = 0; e < head_dim; ++e) numbers[e] = room.grad_v[e * length + inside];
        copy_numbers(numbers, static_cast<Half*>(call.grad_v) + row * kv_width + kv_at, head_dim);
    });
}

}  // namespace
}  // namespace hearth
