// How a linear layer is cut into chunks for the pool, and which kernel computes them.
#include "linear.h"

#include <algorithm>

#include "pool.h"

namespace hearth {
namespace {

constexpr std::int64_t kWeightBytesPerChunk = 256 << 10;  // stays in a core's second-level cache
constexpr std::int64_t kSmallestChunkBytes = 48 << 10;    // a few microseconds of reading
constexpr std::int64_t kRowsPerChunk = 128;               // a multiple of every kernel's block of rows

using Kernel = void (*)(const LinearCall&, const Block&);

Kernel kernel_of(Isa isa, Number number) {
#if defined(HEARTH_HAS_AMX)
    if (isa == Isa::amx && number == Number::bf16) return linear_amx;
#endif
#if defined(HEARTH_HAS_AVX512)
    if (isa != Isa::avx2) return linear_avx512;
#endif
    (void)isa;
    (void)number;
#if defined(HEARTH_X86)
    return linear_avx2;
#else
    return nullptr;
#endif
}

// Panels of one chunk: enough to be worth taking, few enough to share the work evenly and to stay in
// cache while several blocks of rows pass over them.
std::int64_t panels_per_chunk(const LinearCall& call) {
    const std::int64_t panels = num_panels(call.num_outputs);
    const std::int64_t bytes = std::max<std::int64_t>(1, lines_per_panel(call.num_inputs, call.number) * kLineBytes);
    const std::int64_t fair = panels / (4 * num_threads());
    return std::clamp(fair, std::max<std::int64_t>(1, kSmallestChunkBytes / bytes),
                      std::max<std::int64_t>(1, kWeightBytesPerChunk / bytes));
}

}  // namespace

void linear(Isa isa, const LinearCall& call) {
    const Kernel kernel = kernel_of(isa, call.number);
    const std::int64_t panels = num_panels(call.num_outputs);
    const std::int64_t width = panels_per_chunk(call);
    const std::int64_t num_across = (panels + width - 1) / width;
    const std::int64_t num_down = (call.num_rows + kRowsPerChunk - 1) / kRowsPerChunk;
    for_each_chunk(num_across * num_down, [&](std::int64_t chunk) {
        const std::int64_t row = chunk / num_across * kRowsPerChunk, panel = chunk % num_across * width;
        kernel(call, Block{row, std::min(row + kRowsPerChunk, call.num_rows), panel,
                           std::min(panel + width, panels)});
    });
}

}  // namespace hearth
