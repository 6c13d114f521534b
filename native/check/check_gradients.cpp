// Runs the backward kernels on every instruction set this CPU has, with buffers that end (or start) at a page that may
// not be touched, and compares with differences of the forward pass in double. tests/native/ runs it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <vector>

#include "gradients.h"
#include "guarded.h"
#include "isa.h"
#include "pool.h"

using namespace hearth;

namespace {

int num_failures = 0;

void expect(bool holds, const char* what, double found, double wanted) {
    if (holds) return;
    if (++num_failures < 20) std::printf("FAILED %s: %g instead of %g\n", what, found, wanted);
}

struct Drawn : Numbers {
    Drawn(std::int64_t count, Number number, bool is_at_end) : Numbers(count, number, is_at_end), count(count) {
        for (std::int64_t i = 0; i < count; ++i) set(i, draw());
    }
    void* address() const { return memory.as<char>(); }
    std::vector<double> numbers() const {
        std::vector<double> all;
        for (std::int64_t i = 0; i < count; ++i) all.push_back(get(i));
        return all;
    }
    std::int64_t count;
};

// Compares some numbers of a gradient with central differences of a function of x.
void compare(const char* what, const Drawn& found, std::vector<double> x, const std::function<double(const std::vector<double>&)>& value) {
    const std::int64_t step = std::max<std::int64_t>(1, found.count / 12);
    for (std::int64_t i = 0; i < found.count; i += step) {
        const double before = x[std::size_t(i)], width = 1e-5;
        x[std::size_t(i)] = before + width;
        const double above = value(x);
        x[std::size_t(i)] = before - width;
        const double wanted = (above - value(x)) / (2 * width);
        x[std::size_t(i)] = before;
        const double relative = found.number == Number::bf16 ? 0x1p-7 : 1e-4;
        expect(std::fabs(found.get(i) - wanted) <= relative * (std::fabs(wanted) + 0.5), what, found.get(i), wanted);
    }
}

// Compares a gradient with that of other kernels: each number, and all together.
void near(const char* what, const Drawn& found, const Drawn& wanted) {
    double errors = 0, squares = 0, largest = 0;
    for (std::int64_t i = 0; i < wanted.count; ++i) largest = std::max(largest, std::fabs(double(wanted.get(i))));
    for (std::int64_t i = 0; i < wanted.count; ++i) {
        const double error = found.get(i) - wanted.get(i);
        errors += error * error, squares += wanted.get(i) * wanted.get(i);
        expect(std::fabs(error) <= 0x1p-5 * largest, what, found.get(i), wanted.get(i));
    }
    expect(errors <= 0x1p-14 * squares, what, errors, squares);
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

double gate_of(double x, Activation activation) {
    const double inner = activation == Activation::silu ? x : 1.5957691216057308 * (x + 0.044715 * x * x * x);
    return x / (1 + std::exp(-inner));
}

void check_gate(Isa isa, std::int64_t rows, std::int64_t size, Number number, Activation activation, bool is_at_end) {
    const std::int64_t count = rows * size;
    Drawn gate(count, number, is_at_end), up(count, number, is_at_end), grad(count, number, is_at_end);
    Drawn grad_gate(count, number, is_at_end), grad_up(count, number, is_at_end);
    glu_grad(isa, GluGradCall{gate.address(), up.address(), grad.address(), grad_gate.address(), grad_up.address(), rows,
                              size, number, activation});
    const std::vector<double> gates = gate.numbers(), ups = up.numbers(), grads = grad.numbers();
    const auto value = [&](const std::vector<double>& g, const std::vector<double>& u) {
        double sum = 0;
        for (std::size_t i = 0; i < g.size(); ++i) sum += gate_of(g[i], activation) * u[i] * grads[i];
        return sum;
    };
    compare("gate", grad_gate, gates, [&](const auto& x) { return value(x, ups); });
    compare("up", grad_up, ups, [&](const auto& x) { return value(gates, x); });
}

void check_norm(Isa isa, std::int64_t rows, std::int64_t size, Number number, Number out_number, bool has_sum, bool is_at_end) {
    const std::int64_t count = rows * size;
    Drawn h(count, number, is_at_end), weight(size, out_number, is_at_end), grad(count, out_number, is_at_end);
    Drawn grad_sum(count, number, is_at_end), grad_h(count, number, is_at_end), grad_weight(size, Number::f32, is_at_end);
    rms_norm_grad(isa, RmsNormGradCall{h.address(), weight.address(), grad.address(), has_sum ? grad_sum.address() : nullptr,
                                       grad_h.address(), grad_weight.memory.as<float>(), rows, size, 1e-5f, number,
                                       out_number});
    const std::vector<double> hs = h.numbers(), weights = weight.numbers(), grads = grad.numbers(), sums = grad_sum.numbers();
    const auto value = [&](const std::vector<double>& x, const std::vector<double>& w) {
        double sum = has_sum ? dot(x, sums) : 0;
        for (std::int64_t t = 0; t < rows; ++t) {
            double squares = 0;
            for (std::int64_t i = 0; i < size; ++i) squares += x[std::size_t(t * size + i)] * x[std::size_t(t * size + i)];
            const double scale = 1 / std::sqrt(squares / double(size) + 1e-5f);
            for (std::int64_t i = 0; i < size; ++i) {
                const std::size_t at = std::size_t(t * size + i);
                sum += x[at] * scale * w[std::size_t(i)] * grads[at];
            }
        }
        return sum;
    };
    compare("norm", grad_h, hs, [&](const auto& x) { return value(x, weights); });
    compare("weight", grad_weight, weights, [&](const auto& x) { return value(hs, x); });
}

struct Heads {
    std::int64_t num_heads, num_kv_heads, head_dim, rotary_dim;
};

void check_attention(Isa isa, Heads heads, const std::vector<std::int64_t>& lengths, const std::vector<std::int64_t>& parents,
                     Number number, bool is_at_end) {
    std::vector<std::int64_t> starts{0};
    for (std::int64_t length : lengths) starts.push_back(starts.back() + length);
    const std::int64_t rows = starts.back(), q_size = heads.num_heads * heads.head_dim, k_size = heads.num_kv_heads * heads.head_dim;
    Drawn q(rows * q_size, number, is_at_end), k(rows * k_size, number, is_at_end), v(rows * k_size, number, is_at_end);
    Drawn grad(rows * q_size, number, is_at_end), grad_q(rows * q_size, number, is_at_end);
    Drawn grad_k(rows * k_size, number, is_at_end), grad_v(rows * k_size, number, is_at_end);
    const std::int64_t half = heads.rotary_dim / 2;
    Numbers cos(rows * heads.rotary_dim, Number::f32, is_at_end), sin(rows * heads.rotary_dim, Number::f32, is_at_end);
    for (std::int64_t t = 0; t < rows; ++t) {
        for (std::int64_t i = 0; i < heads.rotary_dim; ++i) {
            const float angle = float(t) * 0.1f / float(i % half + 1);
            cos.set(t * heads.rotary_dim + i, std::cos(angle));
            sin.set(t * heads.rotary_dim + i, i < half ? -std::sin(angle) : std::sin(angle));
        }
    }
    const double scale = 0.7;
    AttentionGradCall call{q.address(), k.address(), v.address(), grad.address(), q_size, k_size, k_size, q_size,
                           grad_q.address(), grad_k.address(), grad_v.address(), cos.memory.as<float>(),
                           sin.memory.as<float>(), nullptr, heads.rotary_dim, starts.data(), parents.data(),
                           std::int64_t(lengths.size()), heads.num_heads, heads.num_kv_heads, heads.head_dim,
                           float(scale), number};
    attention_grad(isa, call);
    if (number == Number::bf16) {  // differences would see the rounding of turned heads
        Drawn wanted_q(grad_q.count, number, is_at_end), wanted_k(grad_k.count, number, is_at_end), wanted_v(grad_v.count, number, is_at_end);
        call.grad_q = wanted_q.address(), call.grad_k = wanted_k.address(), call.grad_v = wanted_v.address();
        attention_grad(Isa::avx2, call);
        near("attention q", grad_q, wanted_q);
        near("attention k", grad_k, wanted_k);
        near("attention v", grad_v, wanted_v);
        return;
    }
    const std::vector<double> qs = q.numbers(), ks = k.numbers(), vs = v.numbers(), grads = grad.numbers();
    const auto turned = [&](const std::vector<double>& x, std::int64_t width, std::int64_t t, std::int64_t head, std::int64_t e) {
        const std::size_t at = std::size_t(t * width + head * heads.head_dim);
        if (e >= heads.rotary_dim) return x[at + std::size_t(e)];
        const std::size_t other = std::size_t(e < half ? e + half : e - half);
        const std::int64_t angle = t * heads.rotary_dim + e;
        return x[at + std::size_t(e)] * cos.get(angle) + x[at + other] * sin.get(angle);
    };
    const auto value = [&](const std::vector<double>& x, const std::vector<double>& y, const std::vector<double>& z) {
        double sum = 0;
        for (std::size_t s = 0; s < lengths.size(); ++s) {
            for (std::int64_t t = starts[s]; t < starts[s + 1]; ++t) {
                std::vector<std::int64_t> keys;
                if (parents[s] >= 0) {
                    const std::size_t parent = std::size_t(parents[s]);
                    for (std::int64_t j = starts[parent]; j < starts[parent + 1]; ++j) keys.push_back(j);
                }
                for (std::int64_t j = starts[s]; j <= t; ++j) keys.push_back(j);
                for (std::int64_t head = 0; head < heads.num_heads; ++head) {
                    const std::int64_t kv_head = head / (heads.num_heads / heads.num_kv_heads);
                    double total = 0, along = 0;
                    for (std::int64_t j : keys) {
                        double score = 0, gained = 0;
                        for (std::int64_t e = 0; e < heads.head_dim; ++e) {
                            score += turned(x, q_size, t, head, e) * turned(y, k_size, j, kv_head, e);
                            gained += z[std::size_t(j * k_size + kv_head * heads.head_dim + e)] *
                                      grads[std::size_t(t * q_size + head * heads.head_dim + e)];
                        }
                        total += std::exp(score * scale);
                        along += std::exp(score * scale) * gained;
                    }
                    sum += along / total;
                }
            }
        }
        return sum;
    };
    compare("attention q", grad_q, qs, [&](const auto& x) { return value(x, ks, vs); });
    compare("attention k", grad_k, ks, [&](const auto& x) { return value(qs, x, vs); });
    compare("attention v", grad_v, vs, [&](const auto& x) { return value(qs, ks, x); });
}

void check(Isa isa) {
    for (int variant = 0; variant < 4; ++variant) {
        const Number number = variant & 1 ? Number::bf16 : Number::f32;
        const bool is_at_end = (variant & 2) != 0;
        for (std::int64_t size : {1, 9, 33, 100}) {
            for (std::int64_t rows : {0, 1, 3, 130}) {
                for (Activation activation : {Activation::silu, Activation::gelu}) {
                    check_gate(isa, rows, size, number, activation, is_at_end);
                }
                check_norm(isa, rows, size, number, number, rows != 3, is_at_end);
                check_norm(isa, rows, size, Number::f32, number, rows == 3, is_at_end);
            }
        }
        if (number == Number::bf16 && isa == Isa::avx2) continue;  // what the others are compared with
        for (const Heads& heads : {Heads{4, 4, 16, 16}, Heads{4, 2, 34, 20}, Heads{3, 1, 2, 2}}) {
            check_attention(isa, heads, {5, 1, 0, 9}, {-1, -1, -1, -1}, number, is_at_end);
            check_attention(isa, heads, {3, 7, 4, 2, 5}, {-1, 3, 0, -1, 0}, number, is_at_end);
        }
        check_attention(isa, {2, 1, 8, 8}, {70}, {-1}, number, is_at_end);
        if (number == Number::bf16) check_attention(isa, {6, 2, 64, 64}, {40, 130, 31}, {-1, 0, 0}, number, is_at_end);
    }
}

}  // namespace

int main() {
    const struct {
        Isa isa;
        const char* name;
    } all[] = {{Isa::avx2, "avx2"}, {Isa::avx512, "avx512"}, {Isa::amx, "amx"}};
    set_num_threads(3);
    for (const auto& one : all) {
        if (!missing(one.isa).empty()) {
            std::printf("%s: not checked, %s\n", one.name, missing(one.isa).c_str());
            continue;
        }
        check(one.isa);
        std::printf("%s: gradients checked\n", one.name);
    }
    set_num_threads(1);
    std::printf(num_failures == 0 ? "all good\n" : "%d failed\n", num_failures);
    return num_failures == 0 ? 0 : 1;
}
