// Between the row-major weight of a checkpoint and the panels of linear.h.
#include <algorithm>
#include <cstring>

#include "linear.h"
#include "pool.h"

namespace hearth {
namespace {

// Copies one panel, `group` inputs side by side, between rows and lines. Columns and inputs beyond the
// weight become zero when packing and are skipped when unpacking.
template <typename T, int group, bool is_packing, typename Rows, typename Lines>
void copy_panel(Rows* rows, std::int64_t stride, Lines* lines, std::int64_t num_columns, std::int64_t num_inputs,
                std::int64_t num_lines) {
    if (is_packing) std::memset(const_cast<T*>(lines), 0, std::size_t(num_lines * kLineBytes));
    constexpr std::int64_t kBlock = 64 / sizeof(T);  // one cache line of each row at a time
    for (std::int64_t start = 0; start < num_inputs; start += kBlock) {
        const std::int64_t end = std::min(start + kBlock, num_inputs);
        for (std::int64_t column = 0; column < num_columns; ++column) {
            auto* row = rows + column * stride;
            auto* line = lines + column * group;
            for (std::int64_t k = start; k < end; ++k) {
                auto* cell = line + k / group * (kPanel * group) + k % group;
                if constexpr (is_packing) {
                    *cell = row[k];
                } else {
                    row[k] = *cell;
                }
            }
        }
    }
}

template <typename T, int group, bool is_packing, typename Rows, typename Lines>
void copy_weight(Rows* rows, std::int64_t stride, Lines* packed, std::int64_t num_outputs, std::int64_t num_inputs,
                 Number number) {
    const std::int64_t num_lines = lines_per_panel(num_inputs, number);
    for_each_chunk(num_panels(num_outputs), [&](std::int64_t panel) {
        const std::int64_t column = panel * kPanel;
        copy_panel<T, group, is_packing>(rows + column * stride, stride, packed + panel * num_lines * kPanel * group,
                                         std::min(kPanel, num_outputs - column), num_inputs, num_lines);
    });
}

}  // namespace

void pack_weight(const void* weight, std::int64_t stride, std::int64_t num_outputs, std::int64_t num_inputs,
                 Number number, void* packed) {
    if (number == Number::bf16) {
        copy_weight<std::uint16_t, 2, true>(static_cast<const std::uint16_t*>(weight), stride,
                                            static_cast<std::uint16_t*>(packed), num_outputs, num_inputs, number);
    } else {
        copy_weight<std::uint32_t, 1, true>(static_cast<const std::uint32_t*>(weight), stride,
                                            static_cast<std::uint32_t*>(packed), num_outputs, num_inputs, number);
    }
}

void unpack_weight(const void* packed, std::int64_t num_outputs, std::int64_t num_inputs, Number number,
                   void* weight) {
    if (number == Number::bf16) {
        copy_weight<std::uint16_t, 2, false>(static_cast<std::uint16_t*>(weight), num_inputs,
                                             static_cast<const std::uint16_t*>(packed), num_outputs, num_inputs, number);
    } else {
        copy_weight<std::uint32_t, 1, false>(static_cast<std::uint32_t*>(weight), num_inputs,
                                             static_cast<const std::uint32_t*>(packed), num_outputs, num_inputs, number);
    }
}

}  // namespace hearth
