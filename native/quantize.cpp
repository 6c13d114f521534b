// Rows of numbers to the blocks of a GGUF file, cut into chunks for the pool.
#include <algorithm>

#include "linear.h"
#include "pool.h"

namespace hearth {
namespace {

constexpr std::int64_t kRowsPerChunk = 16;

using RowFunction = void (*)(const void* row, Number number, Format format, std::int64_t num_groups, char* blocks);

RowFunction row_function(Isa isa) {
#if defined(HEARTH_HAS_AVX512)
    return isa == Isa::avx2 ? quantize_row_avx2 : quantize_row_avx512;
#elif defined(HEARTH_X86)
    (void)isa;
    return quantize_row_avx2;
#else  // every instruction set is missing here, so this is never called
    (void)isa;
    return nullptr;
#endif
}

}  // namespace

void quantize_rows(Isa isa, const void* rows, std::int64_t stride, Number number, std::int64_t num_rows,
                   std::int64_t num_inputs, Format format, void* out) {
    const RowFunction quantize_row = row_function(isa);
    const std::int64_t num_groups = num_inputs / kGroup, row_bytes = num_groups * (format == Format::q8_0 ? 34 : 20);
    for_each_chunk((num_rows + kRowsPerChunk - 1) / kRowsPerChunk, [&](std::int64_t chunk) {
        for (std::int64_t row = chunk * kRowsPerChunk; row < std::min((chunk + 1) * kRowsPerChunk, num_rows); ++row) {
            quantize_row(static_cast<const char*>(rows) + row * stride, number, format, num_groups,
                         static_cast<char*>(out) + row * row_bytes);
        }
    });
}

}  // namespace hearth
