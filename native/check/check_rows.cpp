// Runs RMSNorm, gated units, embedding, rope and attention on every instruction set this CPU has, with buffers that end (or
// start) at a page that may not be touched, and compares with sums in double. Built and run by check/run.sh.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "attention.h"
#include "guarded.h"
#include "isa.h"
#include "pool.h"
#include "rows.h"

using namespace hearth;

namespace {

int num_failures = 0;

void expect(bool holds, const char* what, std::int64_t rows, std::int64_t size) {
    if (holds) return;
    ++num_failures;
    std::printf("FAILED %s, rows %ld, size %ld\n", what, long(rows), long(size));
}

bool is_near(double found, double wanted, double size, Number number) {
    const double relative = number == Number::bf16 ? std::ldexp(1.0, -7) : 1e-5;
    return std::fabs(found - wanted) <= relative * (std::fabs(wanted) + size);
}

struct Drawn : Numbers {
    Drawn(std::int64_t count, Number number, bool is_at_end) : Numbers(count, number, is_at_end) {
        for (std::int64_t i = 0; i < count; ++i) set(i, draw());
    }
    void* address() const { return memory.as<char>(); }
};

void check_norm(Isa isa, std::int64_t rows, std::int64_t size, Number number, Number out_number, bool is_at_end) {
    Drawn x(rows * size, number, is_at_end), delta(rows * size, number, is_at_end), weight(size, out_number, is_at_end);
    Drawn sum(rows * size, number, is_at_end), out(rows * size, out_number, is_at_end);
    rms_norm(isa, RmsNormCall{x.address(), delta.address(), weight.address(), sum.address(), out.address(), size,
                              size, rows, size, 1e-5f, number, out_number});
    for (std::int64_t t = 0; t < rows; ++t) {
        double squares = 0;
        for (std::int64_t i = 0; i < size; ++i) squares += double(sum.get(t * size + i)) * sum.get(t * size + i);
        for (std::int64_t i = 0; i < size; ++i) {
            const std::int64_t at = t * size + i;
            expect(is_near(sum.get(at), double(x.get(at)) + delta.get(at), 0.01, number), "sum", rows, size);
            const double wanted = sum.get(at) / std::sqrt(squares / double(size) + 1e-5) * weight.get(i);
            expect(is_near(out.get(at), wanted, 0.01, out_number), "norm", rows, size);
        }
    }
}

void check_embed(Isa isa, std::int64_t rows, std::int64_t size, Number number, Number out_number, bool is_at_end) {
    Drawn table(rows * size, number, is_at_end), out(rows * size, out_number, is_at_end);
    std::vector<std::int64_t> token_ids;
    for (std::int64_t t = 0; t < rows; ++t) token_ids.push_back(rows - 1 - t);
    embed(isa, EmbedCall{table.address(), token_ids.data(), out.address(), rows, size, number, out_number});
    for (std::int64_t at = 0; at < rows * size; ++at) {
        expect(out.get(at) == table.get((rows - 1 - at / size) * size + at % size), "embedding", rows, size);
    }
}

void check_gate(Isa isa, std::int64_t rows, std::int64_t size, Number number, bool is_at_end) {
    Drawn x(rows * size, number, is_at_end), delta(rows * size, number, is_at_end), out(rows * size, number, is_at_end);
    for (Activation activation : {Activation::silu, Activation::gelu}) {
        glu(isa, GluCall{x.address(), delta.address(), out.address(), size, size, rows, size, number, activation});
        for (std::int64_t at = 0; at < rows * size; ++at) {
            const double gate = x.get(at);
            const double inner = activation == Activation::silu ? gate : 1.5957691216 * (gate + 0.044715 * gate * gate * gate);
            expect(is_near(out.get(at), gate / (1 + std::exp(-inner)) * delta.get(at), 0.01, number), "gate", rows, size);
        }
    }
}

struct Layout {
    std::int64_t num_heads, num_kv_heads, head_dim;
};

// Sequences of (cached, new) tokens on pages of 5 rows, last page first; then the same without a cache.
void check_attention(Isa isa, const Layout& layout, bool has_cache, Number number, bool is_at_end) {
    const std::int64_t lens[][2] = {{0, 67}, {64, 1}, {3, 40}, {130, 2}, {0, 1}};
    constexpr std::int64_t num_sequences = 5, page_size = 5, pages_each = 28;
    const std::int64_t q_size = layout.num_heads * layout.head_dim, k_size = layout.num_kv_heads * layout.head_dim;
    std::vector<std::int64_t> starts = {0}, contexts, table, slots;
    for (std::int64_t s = 0; s < num_sequences; ++s) {
        const std::int64_t cached = has_cache ? lens[s][0] : 0;
        starts.push_back(starts.back() + lens[s][1]);
        contexts.push_back(cached + lens[s][1]);
        for (std::int64_t p = 0; p < pages_each; ++p) table.push_back((s + 1) * pages_each - 1 - p);
        for (std::int64_t i = cached; i < contexts.back(); ++i) {
            slots.push_back(table[std::size_t(s * pages_each + i / page_size)] * page_size + i % page_size);
        }
    }
    const std::int64_t rows = starts.back(), kept = has_cache ? num_sequences * pages_each * page_size : rows;
    Drawn q(rows * q_size, number, is_at_end), k(rows * k_size, number, is_at_end), v(rows * k_size, number, is_at_end);
    Drawn keys(kept * k_size, number, is_at_end), values(kept * k_size, number, is_at_end);
    Drawn turned(rows * q_size, number, is_at_end), out(rows * q_size, number, is_at_end);
    Drawn cos(rows * layout.head_dim, Number::f32, is_at_end), sin(rows * layout.head_dim, Number::f32, is_at_end);
    rope(isa, RopeCall{q.address(), k.address(), v.address(), q_size, k_size, k_size, cos.memory.as<float>(),
                       sin.memory.as<float>(), has_cache ? slots.data() : nullptr, turned.address(), keys.address(),
                       values.address(), rows, layout.num_heads, layout.num_kv_heads, layout.head_dim, number});
    const std::int64_t half = layout.head_dim / 2;
    for (std::int64_t t = 0; t < rows; ++t) {
        for (std::int64_t i = 0; i < q_size; ++i) {
            const std::int64_t e = i % layout.head_dim, other = e < half ? i + half : i - half;
            const double wanted = double(q.get(t * q_size + i)) * cos.get(t * layout.head_dim + e) +
                                  double(q.get(t * q_size + other)) * sin.get(t * layout.head_dim + e);
            expect(is_near(turned.get(t * q_size + i), wanted, 0.01, number), "turned", rows, layout.head_dim);
        }
    }
    const float scale = 1.0f / std::sqrt(float(layout.head_dim));
    attention(isa, AttentionCall{turned.address(), q_size, keys.address(), values.address(), out.address(),
                                 has_cache ? table.data() : nullptr, pages_each, page_size, starts.data(),
                                 contexts.data(), num_sequences, layout.num_heads, layout.num_kv_heads,
                                 layout.head_dim, scale, number});
    for (std::int64_t s = 0; s < num_sequences; ++s) {
        for (std::int64_t t = starts[std::size_t(s)]; t < starts[std::size_t(s + 1)]; ++t) {
            const std::int64_t num_keys = contexts[std::size_t(s)] - (starts[std::size_t(s + 1)] - 1 - t);
            for (std::int64_t head = 0; head < layout.num_heads; ++head) {
                const std::int64_t kv_head = head / (layout.num_heads / layout.num_kv_heads);
                std::vector<double> wanted(std::size_t(layout.head_dim), 0.0);
                double total = 0;
                for (std::int64_t j = 0; j < num_keys; ++j) {
                    const std::int64_t row = has_cache ? table[std::size_t(s * pages_each + j / page_size)] * page_size +
                                                             j % page_size
                                                       : starts[std::size_t(s)] + j;
                    const std::int64_t at = row * k_size + kv_head * layout.head_dim;
                    double score = 0;
                    for (std::int64_t e = 0; e < layout.head_dim; ++e) {
                        score += double(turned.get(t * q_size + head * layout.head_dim + e)) * keys.get(at + e);
                    }
                    const double weight = std::exp(score * scale);
                    total += weight;
                    for (std::int64_t e = 0; e < layout.head_dim; ++e) {
                        wanted[std::size_t(e)] += weight * values.get(at + e);
                    }
                }
                for (std::int64_t e = 0; e < layout.head_dim; ++e) {
                    expect(is_near(out.get(t * q_size + head * layout.head_dim + e), wanted[std::size_t(e)] / total,
                                   0.1, number),
                           "attention", rows, layout.head_dim);
                }
            }
        }
    }
}

void check(Isa isa) {
    for (int variant = 0; variant < 4; ++variant) {
        const Number number = variant & 1 ? Number::bf16 : Number::f32;
        const bool is_at_end = (variant & 2) != 0;
        for (std::int64_t size : {1, 7, 8, 9, 16, 31, 33, 100, 576}) {
            for (std::int64_t rows : {0, 1, 3, 60}) {
                check_gate(isa, rows, size, number, is_at_end);
                check_norm(isa, rows, size, number, number, is_at_end);
                check_norm(isa, rows, size, Number::f32, number, is_at_end);
                check_embed(isa, rows, size, number, number, is_at_end);
                check_embed(isa, rows, size, number, Number::f32, is_at_end);
            }
        }
        const Layout layouts[] = {{4, 4, 16}, {6, 2, 64}, {5, 1, 34}, {40, 1, 2}};
        for (const Layout& layout : layouts) {
            for (bool has_cache : {false, true}) check_attention(isa, layout, has_cache, number, is_at_end);
        }
    }
}

}  // namespace

int main() {
    const struct {
        Isa isa;
        const char* name;
    } all[] = {{Isa::avx2, "avx2"}, {Isa::avx512, "avx512"}};
    set_num_threads(3);
    for (const auto& one : all) {
        if (!missing(one.isa).empty()) {
            std::printf("%s: not checked, %s\n", one.name, missing(one.isa).c_str());
            continue;
        }
        check(one.isa);
        std::printf("%s: rows and attention checked\n", one.name);
    }
    set_num_threads(1);
    std::printf(num_failures == 0 ? "all good\n" : "%d failed\n", num_failures);
    return num_failures == 0 ? 0 : 1;
}
