// y[T, N] = x[T, K] W[N, K]^T + bias[N], accumulated in float32.
//
// Packed weights: panels of 32 output columns; within a panel, lines of 128 bytes. bf16: line p holds the
// pair of inputs 2p, 2p + 1 of each column, side by side (the layout that AMX tiles and VDPBF16PS read);
// K is padded with zeros to a multiple of 32, so that a panel is a whole number of tiles. float32: line k
// holds input k of each column. N is padded with zero columns.
//
// Order of arithmetic: an output is one chain over k ascending, in steps of the instruction set (AMX 32
// inputs, AVX-512 BF16 2, AVX2 and float32 1), then the bias, then the rounding to the output's type.
// float32 weights: a chain for every 64 inputs, added up in order, which keeps the rounding error of long
// rows down. It depends on the instruction set, never on T, the position of the row, the chunks or the
// threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace hearth {

constexpr std::int64_t kPanel = 32;      // output columns of a panel
constexpr std::int64_t kLineBytes = 128; // of a panel, for one input (float32) or two (bf16)
constexpr std::int64_t kTileInputs = 32; // inputs that one AMX step consumes
constexpr std::int64_t kChain = 64;      // inputs of one chain (float32)

enum class Number : int { f32 = 0, bf16 = 1 };

struct LinearCall {
    const void* x;            // num_rows rows of num_inputs numbers
    std::int64_t x_stride;    // numbers from one row to the next
    const void* weight;       // packed
    const float* bias;        // padded to whole panels, or null
    void* out;
    std::int64_t out_stride;
    std::int64_t num_rows, num_outputs, num_inputs;
    Number number;            // of x and the weight
    Number out_number;
};

// Static: every file keeps the version compiled with its own instruction set.
static inline std::int64_t num_panels(std::int64_t num_outputs) { return (num_outputs + kPanel - 1) / kPanel; }

static inline std::int64_t lines_per_panel(std::int64_t num_inputs, Number number) {
    if (number == Number::f32) return num_inputs;
    return (num_inputs + kTileInputs - 1) / kTileInputs * (kTileInputs / 2);
}

// Bytes of the packed weight.
static inline std::int64_t packed_bytes(std::int64_t num_outputs, std::int64_t num_inputs, Number number) {
    return num_panels(num_outputs) * lines_per_panel(num_inputs, number) * kLineBytes;
}

// Rows [row, row_end) by panels [panel, panel_end) of the output.
struct Block {
    std::int64_t row, row_end, panel, panel_end;
};

void linear_avx2(const LinearCall& call, const Block& block);
void linear_avx512(const LinearCall& call, const Block& block);
void linear_amx(const LinearCall& call, const Block& block);  // bf16 only

// Computes whole calls on the pool, together as one job. The instruction set must not be missing.
void linear(Isa isa, const LinearCall* calls, std::size_t num_calls);

// weight: num_outputs rows of num_inputs numbers, stride numbers apart. packed: packed_bytes(), 64-byte aligned.
void pack_weight(const void* weight, std::int64_t stride, std::int64_t num_outputs, std::int64_t num_inputs,
                 Number number, void* packed);
void unpack_weight(const void* packed, std::int64_t num_outputs, std::int64_t num_inputs, Number number,
                   void* weight);

}  // namespace hearth
