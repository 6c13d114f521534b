// Between the rows of a checkpoint and the panels of linear.h.
#include <algorithm>
#include <cstring>

#include "linear.h"
#include "linear_blocks.h"
#include "number.h"
#include "pool.h"

namespace hearth {
namespace {

constexpr std::int64_t kRowsPerChunk = 16;  // when unpacking

// One row of a panel of plain numbers, `group` inputs side by side.
template <typename T, int group>
void pack_numbers(const T* row, std::int64_t first, std::int64_t end, T* cells) {
    for (std::int64_t k = first; k < end; ++k) cells[k / group * (kPanel * group) + k % group] = row[k];
}

template <typename T>
void unpack_numbers(const T* cells, std::int64_t num_inputs, T* row) {
    for (std::int64_t k = 0; k < num_inputs; ++k) row[k] = cells[k * kPanel];
}

// bf16 numbers, two inputs at a time.
void unpack_pairs(const std::uint16_t* cells, std::int64_t num_inputs, std::uint16_t* row) {
    for (std::int64_t pair = 0; pair < num_inputs / 2; ++pair) std::memcpy(row + 2 * pair, cells + pair * (2 * kPanel), 4);
    if (num_inputs % 2 != 0) row[num_inputs - 1] = cells[num_inputs / 2 * (2 * kPanel)];
}

// Inputs [first, end) of a row into its column of a panel.
void pack_part(const char* row, std::int64_t first, std::int64_t end, std::int64_t column, Format format, char* panel) {
    if (format == Format::f32) {
        pack_numbers<std::uint32_t, 1>(reinterpret_cast<const std::uint32_t*>(row), first, end,
                                       reinterpret_cast<std::uint32_t*>(panel) + column);
    } else if (format == Format::bf16) {
        pack_numbers<std::uint16_t, 2>(reinterpret_cast<const std::uint16_t*>(row), first, end,
                                       reinterpret_cast<std::uint16_t*>(panel) + 2 * column);
    } else {
        for (std::int64_t group = first / kGroup; group < end / kGroup; ++group) {
            pack_block_group(row, group, column, format, panel);
        }
    }
}

void unpack_row(const char* panel, std::int64_t column, std::int64_t num_inputs, Format format, Number out_number,
                char* out) {
    if (format == Format::f32) {
        return unpack_numbers(reinterpret_cast<const std::uint32_t*>(panel) + column, num_inputs,
                                                reinterpret_cast<std::uint32_t*>(out));
    }
    if (format == Format::bf16 && out_number == Number::f32) {
        const std::uint16_t* const cells = reinterpret_cast<const std::uint16_t*>(panel) + 2 * column;
        float* const widened = reinterpret_cast<float*>(out);
        for (std::int64_t k = 0; k < num_inputs; ++k) widened[k] = float_of_bf16(cells[k / 2 * (kPanel * 2) + k % 2]);
        return;
    }
    if (format == Format::bf16) {
        return unpack_pairs(reinterpret_cast<const std::uint16_t*>(panel) + 2 * column, num_inputs,
                            reinterpret_cast<std::uint16_t*>(out));
    }
    for (std::int64_t group = 0; group < num_inputs / kGroup; ++group) {
        float numbers[kGroup];
        unpack_block_group(panel, group, column, format, numbers);
        if (out_number == Number::f32) {
            std::memcpy(out + group * kGroup * 4, numbers, sizeof numbers);
        } else {
            std::uint16_t* const rounded = reinterpret_cast<std::uint16_t*>(out) + group * kGroup;
            for (int i = 0; i < kGroup; ++i) rounded[i] = bf16_of_float(numbers[i]);
        }
    }
}

}  // namespace

void pack_rows(const void* rows, std::int64_t stride, const std::int64_t* source_rows, std::int64_t num_rows,
               std::int64_t num_inputs, Format format, void* packed, std::int64_t row) {
    const std::int64_t bytes = panel_bytes(num_inputs, format), first_panel = row / kPanel;
    // As much of each row at a time as its lines of the panel stay in the first-level cache for.
    const std::int64_t part = inputs_per_block(format) > kGroup ? inputs_per_block(format) : kGroup;
    for_each_chunk(num_panels(row + num_rows) - first_panel, [&](std::int64_t chunk) {
        const std::int64_t panel = first_panel + chunk;
        const std::int64_t start = std::max(row, panel * kPanel), end = std::min(row + num_rows, (panel + 1) * kPanel);
        for (std::int64_t first = 0; first < num_inputs; first += part) {
            for (std::int64_t at = start; at < end; ++at) {
                const std::int64_t source = source_rows != nullptr ? source_rows[at - row] : at - row;
                pack_part(static_cast<const char*>(rows) + source * stride, first, std::min(first + part, num_inputs),
                          at - panel * kPanel, format, static_cast<char*>(packed) + panel * bytes);
            }
        }
    });
}

void unpack_rows(const void* packed, const std::int64_t* row_ids, std::int64_t num_rows, std::int64_t num_inputs,
                 Format format, Number out_number, void* out) {
    const std::int64_t bytes = panel_bytes(num_inputs, format), row_bytes = num_inputs * (out_number == Number::f32 ? 4 : 2);
    const auto unpack = [&](std::int64_t chunk) {
        for (std::int64_t i = chunk * kRowsPerChunk; i < std::min((chunk + 1) * kRowsPerChunk, num_rows); ++i) {
            const std::int64_t row = row_ids != nullptr ? row_ids[i] : i;
            unpack_row(static_cast<const char*>(packed) + row / kPanel * bytes, row % kPanel, num_inputs, format, out_number,
                       static_cast<char*>(out) + i * row_bytes);
        }
    };
    const std::int64_t num_chunks = (num_rows + kRowsPerChunk - 1) / kRowsPerChunk;
    if (num_chunks == 1) return unpack(0);  // a decoding step's embeddings: not worth the pool
    for_each_chunk(num_chunks, unpack);
}

}  // namespace hearth
