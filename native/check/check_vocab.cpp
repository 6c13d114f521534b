// Runs draws, log-probabilities and their gradient on every instruction set this CPU has, with buffers that end
// (or start) at a page that may not be touched, and compares with sums in double. tests/native/ runs it.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "guarded.h"
#include "isa.h"
#include "pool.h"
#include "vocab.h"

using namespace hearth;

namespace {

int num_failures = 0;

void expect(bool holds, const char* what, std::int64_t rows, std::int64_t size) {
    if (holds) return;
    ++num_failures;
    std::printf("FAILED %s, rows %ld, size %ld\n", what, long(rows), long(size));
}

template <typename T>
struct Array : Guarded {
    Array(std::int64_t count, bool is_at_end) : Guarded(std::size_t(count) * sizeof(T), is_at_end) {}
    T& operator[](std::int64_t i) const { return as<T>()[i]; }
    T* begin() const { return as<T>(); }
};

// Rows of every kind of setting; which one depends on the row.
struct Settings {
    Array<std::int64_t> ids, counts;
    Array<float> biases;
    Array<std::uint8_t> mask;

    Settings(std::int64_t num_tokens, bool is_at_end)
        : ids(1, is_at_end), counts(1, is_at_end), biases(1, is_at_end), mask(num_tokens, is_at_end) {
        ids[0] = num_tokens - 1;
        counts[0] = 2;
        biases[0] = 1.5f;
        for (std::int64_t i = 0; i < num_tokens; ++i) mask[i] = i % 3 != 1;
    }

    DrawRow row(std::int64_t place, std::int64_t num_tops, std::int64_t first_top) const {
        DrawRow row{};
        row.temperature = place % 4 == 0 ? 0.0 : 0.5 + 0.25 * double(place % 5);
        row.top_p = place % 3 == 1 ? 0.9 : place % 7 == 2 ? 0.9999 : 1.0;
        row.min_p = place % 5 == 3 ? 0.05 : 0.0;
        row.top_k = place % 6 == 5 ? 20 : 0;
        row.repetition_penalty = place % 2 == 0 ? 1.0 : 1.3;
        row.frequency_penalty = 0.25;
        row.seed = 77;
        row.draw = place;
        if (place % 2 == 1) {
            row.num_counted = row.num_biased = 1;
            row.counted_ids = row.biased_ids = ids.begin();
            row.counts = counts.begin();
            row.biases = biases.begin();
        }
        row.mask = place % 3 == 2 ? mask.begin() : nullptr;
        row.num_tops = num_tops;
        row.first_top = first_top;
        return row;
    }
};

void check_draw(Isa isa, std::int64_t num_rows, std::int64_t num_tokens, bool is_at_end) {
    const Settings settings(num_tokens, is_at_end);
    Array<float> logits(num_rows * num_tokens, is_at_end), logprobs(num_rows, is_at_end);
    for (std::int64_t i = 0; i < num_rows * num_tokens; ++i) logits[i] = 6 * draw();
    Array<std::int64_t> token_ids(num_rows, is_at_end), top_ids(num_rows * 3, is_at_end);
    Array<float> top_logprobs(num_rows * 3, is_at_end), least(num_rows, is_at_end);
    std::vector<DrawRow> rows;
    for (std::int64_t r = 0; r < num_rows; ++r) rows.push_back(settings.row(r, 3, 3 * r));
    draw_tokens(isa, DrawCall{logits.begin(), num_tokens, num_rows, num_tokens, rows.data(), token_ids.begin(),
                              logprobs.begin(), top_ids.begin(), top_logprobs.begin(), least.begin()});
    for (std::int64_t r = 0; r < num_rows; ++r) {
        const float* const x = logits.begin() + r * num_tokens;  // adjusted by the call
        const std::int64_t token_id = token_ids[r], best = top_ids[3 * r];
        expect(token_id >= 0 && token_id < num_tokens && best >= 0, "token", num_rows, num_tokens);
        if (num_failures != 0) return;
        expect(rows[std::size_t(r)].temperature > 0 || token_id == best, "greedy", num_rows, num_tokens);
        expect(x[token_id] >= least[r], "least", num_rows, num_tokens);
        for (std::int64_t i = 0; i < num_tokens; ++i) {
            expect(x[i] < x[best] || (x[i] == x[best] && i >= best), "best", num_rows, num_tokens);
        }
        const double temperature = rows[std::size_t(r)].temperature > 0 ? rows[std::size_t(r)].temperature : 1.0;
        double total = 0;
        for (std::int64_t i = 0; i < num_tokens; ++i) total += std::exp((double(x[i]) - x[best]) / temperature);
        // What truncation leaves out makes the others likelier.
        const double whole = (double(x[token_id]) - x[best]) / temperature - std::log(total);
        const DrawRow& row = rows[std::size_t(r)];
        const bool is_whole = row.temperature == 0 || (row.top_p == 1 && row.min_p == 0 && row.top_k == 0);
        expect(logprobs[r] >= whole - 1e-5 && logprobs[r] <= 1e-6, "logprob", num_rows, num_tokens);
        expect(!is_whole || std::fabs(logprobs[r] - whole) < 1e-5, "logprob of the whole", num_rows, num_tokens);
    }
}

void check_logprobs(Isa isa, std::int64_t num_rows, std::int64_t num_tokens, bool is_at_end) {
    Array<float> logits(num_rows * num_tokens, is_at_end), logprobs(num_rows, is_at_end), entropies(num_rows, is_at_end);
    Array<float> grads(num_rows, is_at_end);
    Array<std::int64_t> targets(num_rows, is_at_end);
    for (std::int64_t i = 0; i < num_rows * num_tokens; ++i) logits[i] = 6 * draw();
    for (std::int64_t r = 0; r < num_rows; ++r) {
        targets[r] = (r * 37) % num_tokens;
        grads[r] = draw();
    }
    const std::vector<float> before(logits.begin(), logits.begin() + num_rows * num_tokens);
    token_logprobs(isa, LogprobCall{logits.begin(), num_tokens, num_rows, num_tokens, targets.begin(), 0.8,
                                    logprobs.begin(), entropies.begin()});
    token_logprobs_grad(isa, LogprobGradCall{logits.begin(), num_tokens, num_rows, num_tokens, targets.begin(),
                                             grads.begin(), 0.8});
    for (std::int64_t r = 0; r < num_rows; ++r) {
        const float* const x = before.data() + r * num_tokens;
        double total = 0, entropy = 0;
        for (std::int64_t i = 0; i < num_tokens; ++i) total += std::exp(double(x[i]) / 0.8);
        for (std::int64_t i = 0; i < num_tokens; ++i) {
            const double logprob = double(x[i]) / 0.8 - std::log(total), share = std::exp(logprob);
            entropy -= share * logprob;
            const double grad = ((i == targets[r] ? 1.0 : 0.0) - share) * double(grads[r]) / 0.8;
            expect(std::fabs(logits[r * num_tokens + i] - grad) < 1e-6, "gradient", num_rows, num_tokens);
            if (i == targets[r]) expect(std::fabs(logprobs[r] - logprob) < 1e-5, "target", num_rows, num_tokens);
        }
        expect(std::fabs(entropies[r] - entropy) < 1e-4, "entropy", num_rows, num_tokens);
    }
}

void check(Isa isa) {
    for (bool is_at_end : {false, true}) {
        for (std::int64_t size : {1, 15, 16, 31, 257, 4095, 4096, 4097, 9001}) {
            for (std::int64_t rows : {0, 1, 3, 30}) {
                check_draw(isa, rows, size, is_at_end);
                check_logprobs(isa, rows, size, is_at_end);
            }
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
        std::printf("%s: vocabulary checked\n", one.name);
    }
    set_num_threads(1);
    std::printf(num_failures == 0 ? "all good\n" : "%d failed\n", num_failures);
    return num_failures == 0 ? 0 : 1;
}
