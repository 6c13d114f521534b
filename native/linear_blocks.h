// Where a panel of quantised weights keeps its parts.
//
// A group of 32 inputs x 32 columns: scales, then quants.
//   Q8_0  64 bytes of 32 float16 scales                      1024 bytes of quants
//   Q4_0  64 bytes of 32 float16 scales                       512
//   Q4_1  128 bytes of 32 float16 scales, 32 minima           512
//   Q4_K  64 bytes of 32 6-bit scales, 32 6-bit minima (a byte each)   512; and 128 bytes of float16 d and dmin of
//         the columns before every eight groups
//
// Quants expand to the 16 lines of a bf16 panel (linear.h): half line 2p + h holds inputs 2p, 2p + 1 of columns
// 16h to 16h + 15 as 32 words, word 2c + j for input 2p + j of column c.
//   8 bits: 64 bytes per line; word w of its half h is byte 16 (w / 8) + 8 h + w % 8, so that interleaving with
//     another vector (VPUNPCKLBW, VPUNPCKHBW) gives one half line each.
//   4 bits: word w of 64 bytes holds word w of four half lines, lowest bits first, so that shifts and a table
//     look-up (VPERMW) give one each. Q4_0 stores q - 8 in two's complement, Q4_1 and Q4_K 0 to 15.
#pragma once

#include "linear.h"

namespace hearth {

constexpr std::int64_t kLinesPerGroup = 16;

static inline std::int64_t scale_bytes(Format format) { return format == Format::q4_1 ? 128 : 64; }
static inline std::int64_t quant_bytes(Format format) { return format == Format::q8_0 ? 1024 : 512; }
static inline std::int64_t group_bytes(Format format) { return scale_bytes(format) + quant_bytes(format); }

// Offset of a group's scales in its panel.
static inline std::int64_t group_offset(Format format, std::int64_t group) {
    return group * group_bytes(format) + (format == Format::q4_k ? (group / 8 + 1) * 128 : 0);
}

// Offset of d and dmin of a group (Q4_K).
static inline std::int64_t super_offset(std::int64_t group) { return group / 8 * (128 + 8 * group_bytes(Format::q4_k)); }

// One group of one column, from a row of GGUF blocks and back to numbers (the bits of the gguf package).
void pack_block_group(const char* row, std::int64_t index, std::int64_t column, Format format, char* panel);
void unpack_block_group(const char* panel, std::int64_t index, std::int64_t column, Format format, float* out);

}  // namespace hearth
