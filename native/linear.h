// y[T, N] = x[T, K] W[N, K]^T + bias[N], accumulated in float32.
//
// Packed weights: panels of 32 output columns, padded with zero columns; within a panel
//   float32: line k of 128 bytes holds input k of each column.
//   bf16: line p holds the pair of inputs 2p, 2p + 1 of each column, side by side (the layout that AMX
//     tiles and VDPBF16PS read); K is padded with zeros to a multiple of 32.
//   blocks (Q8_0, Q4_0, Q4_1, Q4_K of GGUF): groups of 32 inputs, see linear_blocks.h. The numbers are
//     those of the file: nothing is quantised again.
//
// Order of arithmetic: an output is one chain over k ascending, in steps of the instruction set (AMX 32
// inputs, AVX-512 BF16 2, AVX2 and float32 1), then the bias, then the rounding to the output's type.
// float32 weights: a chain for every 8 inputs, added up in order in float64, which keeps the rounding error
// of long rows down. Blocks: for every group such a chain from zero of x times the whole numbers q, which
// are exact in bf16, then sum = fma(scale, chain, sum), and where the format has minima
// sum = fma(minimum, sum of the group's x, sum); groups ascending.
// It depends on the instruction set, never on T, the position of the row, the chunks or the threads.
//
// x of blocks is bf16. With ..._bytes, asked for with --weights int8 or int4, AVX2 and AVX-512 round it to int8 per
// group of 32, as llama.cpp does for these formats: chain and sum of x are then whole numbers without any rounding, and
// the scale above is the weight's times x's; both give the same bits. A byte's product costs half of bf16's or less. The
// price is up to 1/254 of the group's largest |x| in every product, where bf16 is off by 2^-9 of the number
// itself, the rounding that the rest of the model has anyway. With AMX the tiles are fast enough for bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace hearth {

constexpr std::int64_t kPanel = 32;      // output columns of a panel
constexpr std::int64_t kLineBytes = 128; // of a panel, for one input (float32) or two (bf16)
constexpr std::int64_t kTileInputs = 32; // inputs that one AMX step consumes
constexpr std::int64_t kChain = 8;       // inputs of one chain (float32)
constexpr std::int64_t kGroup = 32;      // inputs that share a scale (blocks)

enum class Number : int { f32 = 0, bf16 = 1 };
// ..._bytes: the same weight, but x is rounded to bytes where there are no tiles.
enum class Format : int {
    f32 = 0, bf16 = 1, q8_0 = 2, q4_0 = 3, q4_1 = 4, q4_k = 5, q8_0_bytes = 6, q4_0_bytes = 7, q4_1_bytes = 8, q4_k_bytes = 9
};
constexpr int kNumFormats = 10, kBytesAfter = 4;

struct LinearCall {
    const void* x;            // num_rows rows of num_inputs numbers of type x_number(format)
    std::int64_t x_stride;    // numbers from one row to the next
    const void* weight;       // packed
    const float* bias;        // padded to whole panels, or null
    void* out;
    std::int64_t out_stride;
    std::int64_t num_rows, num_outputs, num_inputs;
    Format format;            // of the weight
    Number out_number;
    bool adds = false;        // out += scale * y in float32, rounded once, where y alone would be written
    float scale = 1.0f;
};

// Static: every file keeps the version compiled with its own instruction set.
static inline bool is_blocks(Format format) { return format != Format::f32 && format != Format::bf16; }
static inline bool takes_bytes(Format format) { return format >= Format::q8_0_bytes; }
static inline Format stored(Format format) { return takes_bytes(format) ? Format(int(format) - kBytesAfter) : format; }
static inline bool has_minima(Format format) { return stored(format) == Format::q4_1 || stored(format) == Format::q4_k; }
static inline Number x_number(Format format) { return format == Format::f32 ? Number::f32 : Number::bf16; }

// num_inputs must be a multiple of this.
static inline std::int64_t inputs_per_block(Format format) {
    return stored(format) == Format::q4_k ? 256 : is_blocks(format) ? kGroup : 1;
}

static inline std::int64_t num_panels(std::int64_t num_outputs) { return (num_outputs + kPanel - 1) / kPanel; }

static inline std::int64_t panel_bytes(std::int64_t num_inputs, Format format) {
    switch (stored(format)) {
        case Format::f32: return num_inputs * kLineBytes;
        case Format::bf16: return (num_inputs + kTileInputs - 1) / kTileInputs * (kTileInputs / 2) * kLineBytes;
        case Format::q8_0: return num_inputs / kGroup * (64 + 1024);
        case Format::q4_0: return num_inputs / kGroup * (64 + 512);
        case Format::q4_1: return num_inputs / kGroup * (128 + 512);
        case Format::q4_k: return num_inputs / 256 * (128 + 8 * (64 + 512));
        default: return 0;
    }
    return 0;
}

// Bytes of the packed weight.
static inline std::int64_t packed_bytes(std::int64_t num_outputs, std::int64_t num_inputs, Format format) {
    return num_panels(num_outputs) * panel_bytes(num_inputs, format);
}

// Rows [row, row_end) by panels [panel, panel_end) of the output.
struct Block {
    std::int64_t row, row_end, panel, panel_end;
};

void linear_avx2(const LinearCall& call, const Block& block);
void linear_avx512(const LinearCall& call, const Block& block);
void linear_amx(const LinearCall& call, const Block& block);  // bf16 only

// The same for blocks. x_sums: for formats with minima, num_inputs / 32 numbers per row of the call, from
// group_sums of the same instruction set (AMX: that of AVX-512). scratch: scratch_bytes(), 64-byte aligned.
void linear_blocks_avx2(const LinearCall& call, const Block& block, const float* x_sums, char* scratch);
void linear_blocks_avx512(const LinearCall& call, const Block& block, const float* x_sums, char* scratch);
void linear_blocks_amx(const LinearCall& call, const Block& block, const float* x_sums, char* scratch);
void group_sums_avx2(const LinearCall& call, std::int64_t row, std::int64_t row_end, float* sums);
void group_sums_avx512(const LinearCall& call, std::int64_t row, std::int64_t row_end, float* sums);

// A group of 32 of x as whole numbers q of one byte, four by four in the order 0, 2, 1, 3 (that of packed 4-bit
// quants), times a scale: the group's largest |x| / 127, NaN where not all x are finite, 0 where all are tiny.
struct ByteGroup {
    signed char q[kGroup];
    float scale, sum;        // of the x that scale and q give
    std::int32_t minus_sum;  // of q
};
constexpr float kSmallestTop = 1e-34f;  // below it 127 / |x| might be infinite

// Blocks over bytes. x: num_inputs / 32 groups per row of the call, from byte_groups.
void linear_bytes_avx2(const LinearCall& call, const Block& block, const ByteGroup* x, char* scratch);
void linear_bytes_avx512(const LinearCall& call, const Block& block, const ByteGroup* x, char* scratch);
void byte_groups_avx2(const LinearCall& call, std::int64_t row, std::int64_t row_end, ByteGroup* groups);
void byte_groups_avx512(const LinearCall& call, std::int64_t row, std::int64_t row_end, ByteGroup* groups);

// Room for one panel with every q as float32, the largest form that a kernel keeps it in.
static inline std::int64_t scratch_bytes(std::int64_t num_inputs) { return num_inputs * kPanel * 4; }

// Computes whole calls on the pool, together as one job. The instruction set must not be missing.
void linear(Isa isa, const LinearCall* calls, std::size_t num_calls);

// Writes rows [row, row + num_rows) of a packed weight of num_inputs inputs, so that several weights can lie
// in one pack. rows: numbers (f32, bf16) or the blocks of a GGUF file, stride bytes apart; row r comes from
// rows[source_rows[r]], or from rows[r] where source_rows is null. packed: 64-byte aligned; what no row
// fills must be zero before.
void pack_rows(const void* rows, std::int64_t stride, const std::int64_t* source_rows, std::int64_t num_rows,
               std::int64_t num_inputs, Format format, void* packed, std::int64_t row);

// Writes rows row_ids[i] of a packed weight, or rows 0, 1, ... where it is null, as numbers, contiguous.
// Blocks give the bits of the gguf package's dequantisation, rounded to nearest for bf16; plain numbers come out
// in their own type, bf16 also widened to float32.
void unpack_rows(const void* packed, const std::int64_t* row_ids, std::int64_t num_rows, std::int64_t num_inputs,
                 Format format, Number out_number, void* out);

// Writes the transposed weight as a pack of bf16, or of f32 where it is f32: num_inputs outputs, num_outputs inputs.
// Numbers are those of unpack_rows. out: packed_bytes of that weight, 64-byte aligned.
void transpose_packed(const void* packed, std::int64_t num_outputs, std::int64_t num_inputs, Format format, void* out);

// total[N, K] += grad[T, N]^T x[T, K]: what a weight's gradient grows by. The sum over T is that of `linear` over
// its inputs, added to the total once.
struct WeightGradCall {
    const void* grad;  // T rows, grad_stride numbers apart
    const void* x;     // T rows, x_stride numbers apart
    float* total;      // contiguous
    std::int64_t grad_stride, x_stride;
    std::int64_t num_rows, num_outputs, num_inputs;  // T, N, K
    Number number;     // of grad and x
    void* scratch;     // weight_grad_bytes, 64-byte aligned
};

std::int64_t weight_grad_bytes(std::int64_t num_rows, std::int64_t num_outputs, std::int64_t num_inputs, Number number);
void weight_grad(Isa isa, const WeightGradCall& call);

// Up to 32 columns of num_rows rows of bf16 numbers become rows of out, filled up to a multiple of 16 numbers.
void columns_to_rows_avx512(const std::uint16_t* rows, std::int64_t stride, std::int64_t num_rows, std::int64_t num_columns,
                            std::uint16_t* out, std::int64_t out_stride);

// Quantises rows of numbers, stride bytes apart, to the blocks that a GGUF file would hold: q8_0, or q4_1 with
// scale and minimum of least squared error among a few candidates. out: contiguous blocks.
// Every instruction set gives the same bytes.
void quantize_rows(Isa isa, const void* rows, std::int64_t stride, Number number, std::int64_t num_rows,
                   std::int64_t num_inputs, Format format, void* out);

// One row of num_groups groups, for quantize.cpp.
void quantize_row_avx2(const void* row, Number number, Format format, std::int64_t num_groups, char* blocks);
void quantize_row_avx512(const void* row, Number number, Format format, std::int64_t num_groups, char* blocks);

}  // namespace hearth
