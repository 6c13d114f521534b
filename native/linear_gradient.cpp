// The gradient of a weight as a linear layer: the rows are the columns of grad, the weight is the columns of x.
#include <algorithm>
#include <cstring>

#include "linear.h"
#include "pool.h"

namespace hearth {
namespace {

Format format_of(Number number) { return number == Number::bf16 ? Format::bf16 : Format::f32; }

std::int64_t padded(std::int64_t num_rows) { return (num_rows + kTileInputs - 1) / kTileInputs * kTileInputs; }

std::int64_t turned_bytes(std::int64_t num_rows, std::int64_t num_outputs, Number number) {
    return (num_outputs * padded(num_rows) * (number == Number::bf16 ? 2 : 4) + 63) / 64 * 64;
}

template <typename T>
void columns_to_rows(const T* rows, std::int64_t stride, std::int64_t num_rows, std::int64_t num_columns, T* out,
                     std::int64_t out_stride) {
    for (std::int64_t first = 0; first < num_rows; first += 32) {
        const std::int64_t end = std::min(first + 32, num_rows);
        for (std::int64_t column = 0; column < num_columns; ++column) {
            for (std::int64_t row = first; row < end; ++row) out[column * out_stride + row] = rows[row * stride + column];
        }
    }
}

// grad as num_outputs rows of padded(num_rows) numbers.
void turn(Isa isa, const WeightGradCall& call, void* out) {
    const std::int64_t stride = padded(call.num_rows);
    for_each_chunk(num_panels(call.num_outputs), [&](std::int64_t panel) {
        const std::int64_t first = panel * kPanel, count = std::min(kPanel, call.num_outputs - first);
        if (call.number == Number::f32) {
            return columns_to_rows(static_cast<const float*>(call.grad) + first, call.grad_stride, call.num_rows, count,
                                   static_cast<float*>(out) + first * stride, stride);
        }
        const std::uint16_t* const grad = static_cast<const std::uint16_t*>(call.grad) + first;
        std::uint16_t* const to = static_cast<std::uint16_t*>(out) + first * stride;
#if defined(HEARTH_HAS_AVX512)
        if (isa != Isa::avx2) return columns_to_rows_avx512(grad, call.grad_stride, call.num_rows, count, to, stride);
#endif
        (void)isa;
        columns_to_rows(grad, call.grad_stride, call.num_rows, count, to, stride);
    });
}

// Two rows of x as a line of a panel, the second one null where there is none.
void write_pair(const std::uint16_t* first, const std::uint16_t* second, std::int64_t count, std::uint32_t* line) {
    if (second == nullptr) {
        for (std::int64_t i = 0; i < count; ++i) line[i] = first[i];
    } else {
        for (std::int64_t i = 0; i < count; ++i) line[i] = first[i] | std::uint32_t(second[i]) << 16;
    }
}

// x as a packed weight whose outputs are its columns.
void pack_columns(const WeightGradCall& call, char* out) {
    const Format format = format_of(call.number);
    const std::int64_t bytes = panel_bytes(call.num_rows, format), num_lines = bytes / kLineBytes;
    const int rows_per_line = call.number == Number::bf16 ? 2 : 1;
    for_each_chunk(num_panels(call.num_inputs), [&](std::int64_t panel) {
        const std::int64_t first = panel * kPanel, count = std::min(kPanel, call.num_inputs - first);
        for (std::int64_t i = 0; i < num_lines; ++i) {
            char* const line = out + panel * bytes + i * kLineBytes;
            const std::int64_t row = i * rows_per_line, at = row * call.x_stride + first;
            if (count < kPanel || row >= call.num_rows) std::memset(line, 0, kLineBytes);
            if (row >= call.num_rows) continue;
            if (call.number == Number::f32) {
                std::memcpy(line, static_cast<const float*>(call.x) + at, std::size_t(count) * 4);
            } else {
                const std::uint16_t* const x = static_cast<const std::uint16_t*>(call.x) + at;
                write_pair(x, row + 1 < call.num_rows ? x + call.x_stride : nullptr, count,
                           reinterpret_cast<std::uint32_t*>(line));
            }
        }
    });
}

}  // namespace

std::int64_t weight_grad_bytes(std::int64_t num_rows, std::int64_t num_outputs, std::int64_t num_inputs, Number number) {
    return turned_bytes(num_rows, num_outputs, number) + packed_bytes(num_inputs, num_rows, format_of(number));
}

void weight_grad(Isa isa, const WeightGradCall& call) {
    if (call.num_rows == 0) return;
    char* const packed = static_cast<char*>(call.scratch) + turned_bytes(call.num_rows, call.num_outputs, call.number);
    turn(isa, call, call.scratch);
    pack_columns(call, packed);
    const LinearCall product{call.scratch, padded(call.num_rows), packed, nullptr, call.total, call.num_inputs,
                             call.num_outputs, call.num_inputs, call.num_rows, format_of(call.number), Number::f32, true, 1.0f};
    linear(isa, &product, 1);
}

}  // namespace hearth
