// Blocks of a GGUF file into the groups of linear_blocks.h, and back to numbers. Layouts of the blocks:
// `block_q8_0`, `block_q4_0`, `block_q4_1` and `block_q4_K` of ggml-common.h (ggml).
#include "linear_blocks.h"

#include <cstring>

#include "number.h"

namespace hearth {
namespace {

constexpr std::uint32_t kNibbles = 0x0f0f0f0fu;

std::uint16_t half_at(const char* at) {
    std::uint16_t half;
    std::memcpy(&half, at, sizeof half);
    return half;
}

void put_half(char* at, const char* from) { std::memcpy(at, from, 2); }

// Four inputs 4 line, ... of a column lie in one double word: this is where, and how far its nibbles are shifted.
char* nibbles_of(char* quants, std::int64_t line, std::int64_t column) {
    return quants + line * 64 + column % 16 * 4;
}
int nibble_shift(std::int64_t column) { return column < 16 ? 0 : 4; }

// q: 32 numbers below 16.
void put_nibbles(char* quants, std::int64_t column, const std::uint8_t* q) {
    const int shift = nibble_shift(column);
    for (std::int64_t line = 0; line < 8; ++line, q += 4) {
        char* const at = nibbles_of(quants, line, column);
        const std::uint32_t four = q[0] | std::uint32_t(q[2]) << 8 | std::uint32_t(q[1]) << 16 | std::uint32_t(q[3]) << 24;
        std::uint32_t word;
        std::memcpy(&word, at, sizeof word);
        word = (word & ~(kNibbles << shift)) | four << shift;
        std::memcpy(at, &word, sizeof word);
    }
}

void get_nibbles(const char* quants, std::int64_t column, std::uint8_t* q) {
    for (std::int64_t line = 0; line < 8; ++line, q += 4) {
        std::uint32_t word;
        std::memcpy(&word, nibbles_of(const_cast<char*>(quants), line, column), sizeof word);
        word = (word >> nibble_shift(column)) & kNibbles;
        q[0] = std::uint8_t(word);
        q[2] = std::uint8_t(word >> 8);
        q[1] = std::uint8_t(word >> 16);
        q[3] = std::uint8_t(word >> 24);
    }
}

// Offset of inputs 0 and 1 of a column; those of the next pair follow 64 bytes later.
std::int64_t bytes_of(std::int64_t column) {
    const std::int64_t in_half = column % 16;
    return 16 * (in_half / 4) + 8 * (column / 16) + 2 * (in_half % 4);
}

// The low halves of 16 bytes, then the high halves.
void split(const char* bytes, std::uint8_t* q) {
    for (int i = 0; i < 16; ++i) {
        const std::uint8_t byte = std::uint8_t(bytes[i]);
        q[i] = byte & 15;
        q[i + 16] = byte >> 4;
    }
}

// The 6-bit scale and minimum of one of eight sub-blocks (`get_scale_min_k4` of ggml-quants.c).
void six_bits(const std::uint8_t* packed, int index, std::uint8_t& scale, std::uint8_t& minimum) {
    if (index < 4) {
        scale = packed[index] & 63;
        minimum = packed[index + 4] & 63;
    } else {
        scale = std::uint8_t((packed[index + 4] & 15) | (packed[index - 4] >> 6) << 4);
        minimum = std::uint8_t((packed[index + 4] >> 4) | (packed[index] >> 6) << 4);
    }
}

void pack_q8_0(const char* block, std::int64_t column, char* group) {
    put_half(group + 2 * column, block);
    char* const at = group + scale_bytes(Format::q8_0) + bytes_of(column);
    for (int pair = 0; pair < 16; ++pair) std::memcpy(at + pair * 64, block + 2 + 2 * pair, 2);
}

void pack_q4(const char* block, std::int64_t column, bool has_minimum, char* group) {
    std::uint8_t q[kGroup];
    put_half(group + 2 * column, block);
    if (has_minimum) put_half(group + 64 + 2 * column, block + 2);
    split(block + (has_minimum ? 4 : 2), q);
    if (!has_minimum) {
        for (std::uint8_t& one : q) one ^= 8;  // q - 8 in two's complement
    }
    put_nibbles(group + (has_minimum ? 128 : 64), column, q);
}

// One of the eight sub-blocks of a block of 256.
void pack_q4_k(const char* block, std::int64_t column, int index, char* super, char* group) {
    if (index == 0) {
        put_half(super + 2 * column, block);
        put_half(super + 64 + 2 * column, block + 2);
    }
    std::uint8_t scale, minimum, q[kGroup];
    six_bits(reinterpret_cast<const std::uint8_t*>(block + 4), index, scale, minimum);
    group[column] = char(scale);
    group[32 + column] = char(minimum);
    const char* const bytes = block + 16 + index / 2 * 32;
    for (int i = 0; i < 32; ++i) q[i] = index % 2 == 0 ? bytes[i] & 15 : std::uint8_t(bytes[i]) >> 4;
    put_nibbles(group + 64, column, q);
}

}  // namespace

void pack_block_group(const char* row, std::int64_t index, std::int64_t column, Format format, char* panel) {
    char* const group = panel + group_offset(format, index);
    switch (format) {
        case Format::q8_0: return pack_q8_0(row + index * 34, column, group);
        case Format::q4_0: return pack_q4(row + index * 18, column, false, group);
        case Format::q4_1: return pack_q4(row + index * 20, column, true, group);
        case Format::q4_k:
            return pack_q4_k(row + index / 8 * 144, column, int(index % 8), panel + super_offset(index), group);
        default: return;
    }
}

void unpack_block_group(const char* panel, std::int64_t index, std::int64_t column, Format format, float* out) {
    const char* const group = panel + group_offset(format, index);
    const char* const quants = group + scale_bytes(format);
    if (format == Format::q8_0) {
        const float scale = float_of_half(half_at(group + 2 * column));
        for (int i = 0; i < kGroup; ++i) {
            out[i] = scale * float(static_cast<signed char>(quants[bytes_of(column) + i / 2 * 64 + i % 2]));
        }
        return;
    }
    std::uint8_t q[kGroup];
    get_nibbles(quants, column, q);
    if (format == Format::q4_0) {
        const float scale = float_of_half(half_at(group + 2 * column));
        for (int i = 0; i < kGroup; ++i) out[i] = scale * float(int(q[i] ^ 8) - 8);
    } else if (format == Format::q4_1) {
        const float scale = float_of_half(half_at(group + 2 * column));
        const float minimum = float_of_half(half_at(group + 64 + 2 * column));
        for (int i = 0; i < kGroup; ++i) out[i] = float(q[i]) * scale + minimum;
    } else {
        const char* const super = panel + super_offset(index);
        const float scale = float_of_half(half_at(super + 2 * column)) * float(std::uint8_t(group[column]));
        const float minimum = float_of_half(half_at(super + 64 + 2 * column)) * float(std::uint8_t(group[32 + column]));
        for (int i = 0; i < kGroup; ++i) out[i] = float(q[i]) * scale - minimum;
    }
}

}  // namespace hearth
