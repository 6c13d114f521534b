// From float32 logits to tokens and log-probabilities: greedy and random draws with penalties, bias, mask,
// temperature, top-k, top-p and min-p; the likeliest tokens; log-probabilities of given tokens, their
// entropy and their gradient.
//
// Order of arithmetic, the same for every function here and any number of rows or threads: the vocabulary is
// cut into blocks of kBlock tokens and parts of kPart; a weight is exp((x - most of the block) / temperature)
// in float32, a part's sum has a fixed order of additions per instruction set, and parts and blocks are added
// in ascending order in double. A token that truncation leaves out has weight 0 at its place: the sums are
// those of a row that holds -inf there.
//
// With u = 2^-24, a log-probability is within (15 + 3.1 ln V) u of the exact one, then rounded to float32: a part
// has chains of 8 sums and 5 levels of halves, the exponential 1.2 u, its argument 3.05 u of its size, and
// the mean size of the arguments is at most the entropy, ln V. NaN or +inf among a row's logits, and a row
// of nothing but -inf, give NaN.
#pragma once

#include <cstdint>

#include "isa.h"

namespace hearth {

constexpr std::int64_t kBlock = 4096;  // 16 KiB: read twice, the second time from the nearest cache
constexpr std::int64_t kPart = 256;    // tokens of one entrant in the first round of a draw
constexpr std::int64_t kParts = kBlock / kPart;
constexpr std::int64_t kGroups = 64;   // token i of a block is in group i % kGroups

// What one block of a row comes to. sums: of weights per part; slopes: of weight times argument.
struct BlockSummary {
    float most;
    float groups[kGroups];  // the largest logit of each, -inf where there is none
    float sums[kParts], slopes[kParts];
};

// One row to draw from; laid out like the record in kernels/sampling/native.py.
struct DrawRow {
    double temperature;  // 0: greedy
    double top_p, min_p;
    double repetition_penalty, presence_penalty, frequency_penalty;
    std::uint64_t seed;
    std::int64_t completion, draw;  // with seed: the address of the row's noise
    std::int64_t top_k;
    std::int64_t num_counted;
    const std::int64_t *counted_ids, *counts;
    std::int64_t num_biased;
    const std::int64_t* biased_ids;
    const float* biases;
    const std::uint8_t* mask;  // of allowed tokens, or null
    std::int64_t num_tops;     // likeliest tokens to report
    std::int64_t first_top;    // where in the call's top_ids
};

// Draws one token per row; logits are changed by penalties, biases and masks.
struct DrawCall {
    float* logits;
    std::int64_t stride, num_rows, num_tokens;
    const DrawRow* rows;
    std::int64_t* token_ids;
    float* logprobs;
    std::int64_t* top_ids;  // best first, the lower id among equals; -1 behind the last possible one
    float* top_logprobs;
    float* least;  // per row, the least logit that truncation kept; null where nobody asks
};

// Log-probabilities of one given token per row, and the rows' entropies where asked for.
struct LogprobCall {
    const float* logits;
    std::int64_t stride, num_rows, num_tokens;
    const std::int64_t* targets;
    double temperature;
    float *logprobs, *entropies;  // entropies: null for none
};

// Replaces logits by the gradient of sum(grads * logprobs) with respect to them.
struct LogprobGradCall {
    float* logits;
    std::int64_t stride, num_rows, num_tokens;
    const std::int64_t* targets;
    const float* grads;
    double temperature;
};

// What an instruction set has to offer. count: tokens of a block (summarize, gather) or of any stretch.
struct VocabKernels {
    void (*summarize)(const float* x, std::int64_t count, float scale, bool has_slopes, BlockSummary* summary);
    // The sum of a part as summarize has it, without tokens below least.
    float (*sum_kept)(const float* x, std::int64_t count, float most, float scale, float least);
    // out = exp((x - most) * scale) * factor; x and out may be the same.
    void (*weigh)(const float* x, std::int64_t count, float most, float scale, float factor, float* out);
    // Values of at least least and their places, in order; there must be no NaN, and both outputs need room for
    // 16 more than count.
    std::int64_t (*gather)(const float* x, std::int64_t count, float least, float* values, std::int32_t* places);
    // The first place of value; count where there is none.
    std::int64_t (*find)(const float* x, std::int64_t count, float value);
};

extern const VocabKernels vocab_avx2, vocab_avx512;

// The whole call on the pool. The instruction set must not be missing.
void draw_tokens(Isa isa, const DrawCall& call);
void token_logprobs(Isa isa, const LogprobCall& call);
void token_logprobs_grad(Isa isa, const LogprobGradCall& call);

}  // namespace hearth
