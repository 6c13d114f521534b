// How rows of logits are cut into chunks for the pool, and what follows from the summaries of their blocks:
// log-probabilities, truncation, the draw and the likeliest tokens.
#include "vocab.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "pool.h"

namespace hearth {
namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();  // all but NaN and -inf are at least this
constexpr std::int64_t kBlocksPerChunk = 2;  // a few microseconds: below that one thread is faster
constexpr std::int64_t kManyRows = 8;        // from here on whole rows are chunks
constexpr std::size_t kSmall = 32;           // sorted at once

const VocabKernels& kernels_of(Isa isa) {
#if defined(HEARTH_HAS_AVX512)
    return isa == Isa::avx2 ? vocab_avx2 : vocab_avx512;
#elif defined(HEARTH_X86)
    (void)isa;
    return vocab_avx2;
#else  // every instruction set is missing here, so this is never called
    (void)isa;
    static const VocabKernels none{};
    return none;
#endif
}

std::int64_t num_blocks(std::int64_t num_tokens) { return (num_tokens + kBlock - 1) / kBlock; }
std::int64_t num_parts(std::int64_t num_tokens) { return (num_tokens + kPart - 1) / kPart; }

float scale_of(double temperature) { return float(1.0 / temperature); }

// One row of logits, its summaries and what they come to.
struct RowView {
    const VocabKernels& kernels;
    const float* x;
    std::int64_t num_tokens;
    double temperature;
    const BlockSummary* blocks;
    float most;
    double total, log_total;

    RowView(const VocabKernels& kernels, const float* x, std::int64_t num_tokens, double temperature,
            const BlockSummary* blocks)
        : kernels(kernels), x(x), num_tokens(num_tokens), temperature(temperature), blocks(blocks),
          most(-std::numeric_limits<float>::infinity()), total(0) {
        for (std::int64_t b = 0; b < num_blocks(num_tokens); ++b) most = std::max(most, blocks[b].most);
        add_up([&](std::int64_t part) { return blocks[part / kParts].sums[part % kParts]; });
    }

    bool is_number() const { return total > 0 && total < std::numeric_limits<double>::infinity(); }
    std::int64_t block_size(std::int64_t block) const { return std::min(kBlock, num_tokens - block * kBlock); }
    std::int64_t part_size(std::int64_t part) const { return std::min(kPart, num_tokens - part * kPart); }

    // Weights of a block are relative to its largest logit; this makes them relative to the row's.
    double block_scale(std::int64_t block) const {
        const double below = double(blocks[block].most) - double(most);
        return std::isnan(below) ? 1.0 : std::exp(below / temperature);  // -inf - -inf: a sum of nothing, or NaN
    }

    template <typename SumOfPart>
    void add_up(const SumOfPart& sum_of_part) {
        total = 0;
        for (std::int64_t b = 0; b < num_blocks(num_tokens); ++b) {
            double sum = 0;
            const std::int64_t end = std::min((b + 1) * kParts, num_parts(num_tokens));
            for (std::int64_t part = b * kParts; part < end; ++part) sum += double(sum_of_part(part));
            total += sum * block_scale(b);
        }
        log_total = std::log(total);
        if (!is_number()) log_total = std::numeric_limits<double>::quiet_NaN();
    }

    float logprob(float logit) const {
        return float((double(logit) - double(most)) / temperature - log_total);
    }

    float entropy() const {
        double mean = 0;  // of the arguments
        for (std::int64_t b = 0; b < num_blocks(num_tokens); ++b) {
            if (blocks[b].most == -std::numeric_limits<float>::infinity()) continue;
            double sum = 0, slope = 0;
            for (std::int64_t part = 0; part < kParts; ++part) {
                sum += double(blocks[b].sums[part]);
                slope += double(blocks[b].slopes[part]);
            }
            mean += (slope + sum * ((double(blocks[b].most) - double(most)) / temperature)) * block_scale(b);
        }
        return float(log_total - mean / total);
    }

    float weight_scale() const { return scale_of(temperature); }
};

// A search for the last token that counts when tokens are taken, likeliest first, until their weights reach
// enough. It cuts the range of the logits into bins and looks into the one where enough is reached, until few
// are left: two passes over most of the tokens and no sort of them. Bins keep order: every step of their
// formula does.
struct Search {
    static constexpr int num_bins = 512;
    std::vector<float> logits, weights;
    std::vector<std::int32_t> bins;

    // The smallest logit where enough is not reached. Loses the tokens; there is at least one.
    float last_that_counts(double enough) {
        double before = 0;
        while (logits.size() > kSmall) {
            const auto [least, most] = least_and_most();
            if (least == most) return most;
            before += narrow(double(most), double(most) - double(least), enough - before);
        }
        std::pair<float, float> few[kSmall];
        for (std::size_t i = 0; i < logits.size(); ++i) few[i] = {logits[i], weights[i]};
        std::sort(few, few + logits.size(), [](const auto& a, const auto& b) { return a.first > b.first; });
        std::size_t last = 0;
        while (last + 1 < logits.size() && before + double(few[last].second) < enough) {
            before += double(few[last++].second);
        }
        return few[last].first;
    }

private:
    // In lanes, for a single chain of comparisons would take longer than all the rest.
    std::pair<float, float> least_and_most() const {
        constexpr std::size_t num_lanes = 16;
        float least[num_lanes], most[num_lanes];
        std::fill_n(least, num_lanes, logits[0]);
        std::fill_n(most, num_lanes, logits[0]);
        std::size_t i = 0;
        for (; i + num_lanes <= logits.size(); i += num_lanes) {
            for (std::size_t j = 0; j < num_lanes; ++j) {
                least[j] = logits[i + j] < least[j] ? logits[i + j] : least[j];
                most[j] = logits[i + j] > most[j] ? logits[i + j] : most[j];
            }
        }
        for (; i < logits.size(); ++i) {
            least[0] = std::min(least[0], logits[i]);
            most[0] = std::max(most[0], logits[i]);
        }
        return {*std::min_element(least, least + num_lanes), *std::max_element(most, most + num_lanes)};
    }

    // Keeps the tokens of the bin where enough is reached; returns the weight of those above it.
    double narrow(double high, double range, double enough) {
        const double density = double(num_bins) / range;
        double masses[num_bins] = {}, before = 0;
        bins.resize(logits.size());
        for (std::size_t i = 0; i < logits.size(); ++i) {
            bins[i] = std::min(num_bins - 1, int((high - double(logits[i])) * density));
        }
        for (std::size_t i = 0; i < logits.size(); ++i) masses[bins[i]] += double(weights[i]);
        int bin = 0;
        while (bin + 1 < num_bins && before + masses[bin] < enough) before += masses[bin++];
        std::size_t kept = 0;
        for (std::size_t i = 0; i < logits.size(); ++i) {
            logits[kept] = logits[i];
            weights[kept] = weights[i];
            kept += bins[i] == bin;
        }
        logits.resize(kept);
        weights.resize(kept);
        return before;
    }
};

// Tokens of a row that may be kept, in ascending order of their ids, and memory to choose among them. One per
// thread, because a row's worth of fresh memory costs more than the search.
struct Candidates {
    std::vector<float> logits, weights;
    std::vector<std::int32_t> token_ids;
    Search search;

    void gather(const RowView& row, float least) {
        logits.clear();
        token_ids.clear();
        float values[kBlock + 16];
        std::int32_t places[kBlock + 16];
        for (std::int64_t b = 0; b < num_blocks(row.num_tokens); ++b) {
            if (!(row.blocks[b].most >= least)) continue;
            const std::int64_t count = row.kernels.gather(row.x + b * kBlock, row.block_size(b), least, values, places);
            logits.insert(logits.end(), values, values + count);
            for (std::int64_t i = 0; i < count; ++i) places[i] += std::int32_t(b * kBlock);
            token_ids.insert(token_ids.end(), places, places + count);
        }
    }

    void keep(float least) {
        std::size_t kept = 0;
        for (std::size_t i = 0; i < logits.size(); ++i) {
            if (logits[i] < least) continue;
            logits[kept] = logits[i];
            token_ids[kept++] = token_ids[i];
        }
        logits.resize(kept);
        token_ids.resize(kept);
    }

    void weigh(const RowView& row) {
        weights.resize(logits.size());
        row.kernels.weigh(logits.data(), std::int64_t(logits.size()), row.most, row.weight_scale(), 1.0f,
                          weights.data());
    }

    float last_by_count(std::int64_t count) {
        search.logits = logits;
        search.weights.assign(logits.size(), 1.0f);
        return search.last_that_counts(double(count));
    }

    float last_by_mass(const RowView& row, double mass) {
        weigh(row);
        search.logits = logits;
        search.weights = weights;
        return search.last_that_counts(mass);
    }

    // The largest logit of every group: as many tokens of the row, so that what is enough for some of them is
    // enough for the row, and the last one that counts among them is a bound for the row's.
    void take_groups(const RowView& row) {
        logits.clear();
        for (std::int64_t b = 0; b < num_blocks(row.num_tokens); ++b) {
            const float* const groups = row.blocks[b].groups;
            std::size_t kept = logits.size();
            logits.insert(logits.end(), groups, groups + kGroups);
            for (std::int64_t i = 0; i < kGroups; ++i) {
                logits[kept] = groups[i];
                kept += groups[i] >= kLowest;
            }
            logits.resize(kept);
        }
    }

    // Gathers at least the count likeliest tokens, or all that are possible.
    void gather_count(const RowView& row, std::int64_t count) {
        take_groups(row);
        gather(row, count <= std::int64_t(logits.size()) ? last_by_count(count) : kLowest);
    }

    // Gathers at least the likeliest tokens that together have the share of the row's total.
    void gather_mass(const RowView& row, double share) {
        take_groups(row);
        const double enough = share * row.total * 1.0001;
        if (mass(row) > enough) return gather(row, last_by_mass(row, enough));
        // Tokens lighter than this have, all together, no more than the rest. Sixteen times as much is a guess.
        const double lightest = (1 - share) * row.total / double(row.num_tokens);
        for (double factor : {16.0, 1.0}) {
            const double least = double(row.most) + row.temperature * (std::log(lightest * factor) - 1e-3);
            gather(row, std::min(row.most, std::max(kLowest, float(least))));
            if (factor == 1.0 || mass(row) > enough) return;
        }
    }

    // What the tokens weigh together.
    double mass(const RowView& row) {
        weigh(row);
        double sum = 0;
        for (float weight : weights) sum += double(weight);
        return sum;
    }
};

Candidates& candidates() {
    thread_local Candidates mine;
    return mine;
}

// The first of the four words of Philox4x32-10 and those behind it. Source: Salmon, Moraes, Dror, Shaw,
// "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3; constants of Random123 1.14.
void philox(std::uint32_t block, const DrawRow& row, std::uint32_t* words) {
    std::uint32_t c0 = block, c1 = std::uint32_t(row.draw), c2 = std::uint32_t(row.completion), c3 = 0;
    std::uint32_t k0 = std::uint32_t(row.seed), k1 = std::uint32_t(row.seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const std::uint64_t product0 = std::uint64_t(c0) * 0xD2511F53u, product1 = std::uint64_t(c2) * 0xCD9E8D57u;
        c0 = std::uint32_t(product1 >> 32) ^ c1 ^ k0;
        c1 = std::uint32_t(product1);
        c2 = std::uint32_t(product0 >> 32) ^ c3 ^ k1;
        c3 = std::uint32_t(product0);
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

// A race for argmax(weight / exponential noise), entrants in order; the first among equals.
struct Race {
    const DrawRow& row;
    const std::int64_t first;  // number of the first entrant's noise
    std::int64_t num_entered = 0, best = 0;
    double best_speed = -1;

    Race(const DrawRow& row, std::int64_t first) : row(row), first(first) {}

    void enter(double weight) {
        const std::int64_t place = num_entered++;
        if (weight == 0 && best_speed >= 0) return;
        const double uniform = (double(word(first + place)) + 0.5) * 0x1p-32;
        // The noise is at least 1 - uniform: most entrants are too slow whatever its logarithm is.
        if (weight <= best_speed * (1 - uniform) * (1 - 1e-12)) return;
        const double speed = weight / -std::log(uniform);
        if (speed > best_speed) {
            best_speed = speed;
            best = place;
        }
    }

private:
    std::uint32_t word(std::int64_t number) {
        if (number / 4 != block_) {
            block_ = number / 4;
            philox(std::uint32_t(block_), row, words_);
        }
        return words_[number % 4];
    }

    std::int64_t block_ = -1;
    std::uint32_t words_[4];
};

// The row's settings, applied to its summaries one after the other.
class Drawing {
public:
    Drawing(const VocabKernels& kernels, const DrawCall& call, std::int64_t place, const BlockSummary* blocks)
        : call_(call), place_(place), settings_(call.rows[place]),
          view_(kernels, call.logits + place * call.stride, call.num_tokens,
                settings_.temperature > 0 ? settings_.temperature : 1.0, blocks) {}

    void finish() {
        call_.token_ids[place_] = 0;
        call_.logprobs[place_] = std::numeric_limits<float>::quiet_NaN();
        if (call_.least != nullptr) call_.least[place_] = kLowest;
        std::fill_n(call_.top_ids + settings_.first_top, settings_.num_tops, -1);
        if (!view_.is_number()) return;
        if (settings_.temperature > 0) {
            truncate();
            if (call_.least != nullptr) call_.least[place_] = least_;
            take(draw());
        } else {
            take(most_likely());
        }
        report_top();
    }

private:
    void take(std::int64_t token_id) {
        call_.token_ids[place_] = token_id;
        call_.logprobs[place_] = view_.logprob(view_.x[token_id]);
    }

    std::int64_t most_likely() const {
        std::int64_t block = 0;
        while (view_.blocks[block].most != view_.most) ++block;
        return block * kBlock + view_.kernels.find(view_.x + block * kBlock, view_.block_size(block), view_.most);
    }

    // Finds the least logit that is kept, and adds up again what is.
    void truncate() {
        const bool has_top_k = settings_.top_k > 0 && settings_.top_k < view_.num_tokens;
        const bool has_top_p = settings_.top_p < 1, has_min_p = settings_.min_p > 0;
        if (!has_top_k && !has_top_p && !has_min_p) return;
        Candidates& found = candidates();
        if (has_top_k) {
            found.gather_count(view_, settings_.top_k);
            least_ = found.last_by_count(settings_.top_k);
            found.keep(least_);
        }
        if (has_top_p) {
            const double total = has_top_k ? found.mass(view_) : view_.total;
            if (!has_top_k) found.gather_mass(view_, settings_.top_p);
            least_ = found.last_by_mass(view_, settings_.top_p * total);
        }
        if (has_min_p) {
            const float light = float(double(view_.most) + view_.temperature * std::log(settings_.min_p));
            least_ = std::max(least_, std::max(light, kLowest));
        }
        if (has_top_k || has_top_p) {
            found.keep(least_);
        } else {
            found.gather(view_, least_);
        }
        is_truncated_ = true;
        add_up_kept(found);
    }

    void add_up_kept(const Candidates& found) {
        kept_sums_.assign(std::size_t(num_parts(view_.num_tokens)), 0.0f);
        std::int64_t last = -1;
        for (std::int32_t token_id : found.token_ids) {
            const std::int64_t part = token_id / kPart;
            if (part == last) continue;
            last = part;
            kept_sums_[std::size_t(part)] =
                view_.kernels.sum_kept(view_.x + part * kPart, view_.part_size(part),
                                       view_.blocks[part / kParts].most, view_.weight_scale(), least_);
        }
        view_.add_up([&](std::int64_t part) { return kept_sums_[std::size_t(part)]; });
    }

    // Gumbel-max on two levels: a part by its mass, then a token of it. Source: arXiv 1411.0030, section 2.
    std::int64_t draw() const {
        Race parts(settings_, kPart);
        double scale = 0;
        for (std::int64_t part = 0; part < num_parts(view_.num_tokens); ++part) {
            if (part % kParts == 0) scale = view_.block_scale(part / kParts);
            const float sum = is_truncated_ ? kept_sums_[std::size_t(part)]
                                            : view_.blocks[part / kParts].sums[part % kParts];
            parts.enter(double(sum) * scale);
        }
        const float* const x = view_.x + parts.best * kPart;
        const std::int64_t count = view_.part_size(parts.best);
        float weights[kPart];
        view_.kernels.weigh(x, count, view_.blocks[parts.best / kParts].most, view_.weight_scale(), 1.0f, weights);
        Race tokens(settings_, 0);
        for (std::int64_t i = 0; i < count; ++i) tokens.enter(x[i] >= least_ ? double(weights[i]) : 0.0);
        return parts.best * kPart + tokens.best;
    }

    void report_top() const {
        const std::int64_t count = settings_.num_tops;
        if (count == 0) return;
        Candidates& found = candidates();
        if (!is_truncated_) found.gather_count(view_, count);
        std::vector<std::pair<float, std::int32_t>> best;
        for (std::size_t i = 0; i < found.logits.size(); ++i) best.emplace_back(found.logits[i], found.token_ids[i]);
        const std::int64_t num_best = std::min(count, std::int64_t(best.size()));
        std::partial_sort(best.begin(), best.begin() + num_best, best.end(), [](const auto& a, const auto& b) {
            return a.first > b.first || (a.first == b.first && a.second < b.second);
        });
        for (std::int64_t i = 0; i < num_best; ++i) {
            call_.top_ids[settings_.first_top + i] = best[std::size_t(i)].second;
            call_.top_logprobs[settings_.first_top + i] = view_.logprob(best[std::size_t(i)].first);
        }
    }

    const DrawCall& call_;
    const std::int64_t place_;
    const DrawRow& settings_;
    RowView view_;
    bool is_truncated_ = false;
    float least_ = kLowest;
    std::vector<float> kept_sums_;
};

bool is_adjusted(const DrawRow& row) { return row.num_counted > 0 || row.num_biased > 0 || row.mask != nullptr; }

// Penalties, biases, mask: the formulas and their sources are in kernels/sampling/penalties.py.
void adjust(const DrawRow& row, float* x, std::int64_t num_tokens) {
    const float repetition = float(row.repetition_penalty), presence = float(row.presence_penalty);
    const float frequency = float(row.frequency_penalty);
    for (std::int64_t i = 0; i < row.num_counted; ++i) {
        float& logit = x[row.counted_ids[i]];
        if (repetition != 1.0f) logit = logit > 0 ? logit / repetition : logit * repetition;
        logit -= float(row.counts[i]) * frequency + (row.counts[i] > 0 ? presence : 0.0f);
    }
    for (std::int64_t i = 0; i < row.num_biased; ++i) x[row.biased_ids[i]] += row.biases[i];
    if (row.mask == nullptr) return;
    for (std::int64_t i = 0; i < num_tokens; ++i) {
        x[i] = row.mask[i] != 0 ? x[i] : -std::numeric_limits<float>::infinity();
    }
}

// Blocks of many rows, then each row: for many rows in one go, while the row is in a near cache.
struct Summaries {
    const std::int64_t num_rows, num_tokens, blocks_per_row;
    const std::unique_ptr<BlockSummary[]> all;

    Summaries(std::int64_t num_rows, std::int64_t num_tokens)
        : num_rows(num_rows), num_tokens(num_tokens), blocks_per_row(num_blocks(num_tokens)),
          all(new BlockSummary[std::size_t(num_rows * blocks_per_row)]) {}

    BlockSummary* of(std::int64_t row) const { return all.get() + row * blocks_per_row; }

    template <typename Prepare, typename Summarize, typename Finish>
    void run(const Prepare& prepare, const Summarize& summarize, const Finish& finish) const {
        if (num_rows >= kManyRows) {
            return for_each_chunk(num_rows, [&](std::int64_t row) {
                prepare(row);
                for (std::int64_t block = 0; block < blocks_per_row; ++block) summarize(row, block);
                finish(row);
            });
        }
        for (std::int64_t row = 0; row < num_rows; ++row) prepare(row);
        const std::int64_t total = num_rows * blocks_per_row;
        for_each_chunk((total + kBlocksPerChunk - 1) / kBlocksPerChunk, [&](std::int64_t chunk) {
            const std::int64_t end = std::min((chunk + 1) * kBlocksPerChunk, total);
            for (std::int64_t i = chunk * kBlocksPerChunk; i < end; ++i) {
                summarize(i / blocks_per_row, i % blocks_per_row);
            }
        });
        for_each_chunk(num_rows, finish);
    }

    void summarize(const VocabKernels& kernels, const float* x, std::int64_t row, std::int64_t block, float scale,
                   bool has_slopes) const {
        const std::int64_t start = block * kBlock;
        kernels.summarize(x + start, std::min(kBlock, num_tokens - start), scale, has_slopes, of(row) + block);
    }
};

}  // namespace

void draw_tokens(Isa isa, const DrawCall& call) {
    const VocabKernels& kernels = kernels_of(isa);
    const Summaries summaries(call.num_rows, call.num_tokens);
    summaries.run(
        [&](std::int64_t row) {
            if (is_adjusted(call.rows[row])) adjust(call.rows[row], call.logits + row * call.stride, call.num_tokens);
        },
        [&](std::int64_t row, std::int64_t block) {
            const double temperature = call.rows[row].temperature > 0 ? call.rows[row].temperature : 1.0;
            summaries.summarize(kernels, call.logits + row * call.stride, row, block, scale_of(temperature), false);
        },
        [&](std::int64_t row) { Drawing(kernels, call, row, summaries.of(row)).finish(); });
}

void token_logprobs(Isa isa, const LogprobCall& call) {
    const VocabKernels& kernels = kernels_of(isa);
    const Summaries summaries(call.num_rows, call.num_tokens);
    const float scale = scale_of(call.temperature);
    summaries.run([](std::int64_t) {},
                  [&](std::int64_t row, std::int64_t block) {
                      summaries.summarize(kernels, call.logits + row * call.stride, row, block, scale,
                                          call.entropies != nullptr);
                  },
                  [&](std::int64_t row) {
                      const float* const x = call.logits + row * call.stride;
                      const RowView view(kernels, x, call.num_tokens, call.temperature, summaries.of(row));
                      call.logprobs[row] = view.logprob(x[call.targets[row]]);
                      if (call.entropies != nullptr) call.entropies[row] = view.entropy();
                  });
}

void token_logprobs_grad(Isa isa, const LogprobGradCall& call) {
    const VocabKernels& kernels = kernels_of(isa);
    const Summaries summaries(call.num_rows, call.num_tokens);
    const float scale = scale_of(call.temperature);
    summaries.run([](std::int64_t) {},
                  [&](std::int64_t row, std::int64_t block) {
                      summaries.summarize(kernels, call.logits + row * call.stride, row, block, scale, false);
                  },
                  [&](std::int64_t row) {
                      float* const x = call.logits + row * call.stride;
                      const RowView view(kernels, x, call.num_tokens, call.temperature, summaries.of(row));
                      const double grad = double(call.grads[row]) / call.temperature;
                      const double share = grad / (view.is_number() ? view.total : std::nan(""));
                      kernels.weigh(x, call.num_tokens, view.most, scale, float(-share), x);
                      x[call.targets[row]] += float(grad);
                  });
}

}  // namespace hearth
