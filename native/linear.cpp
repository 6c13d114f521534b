// How a linear layer is cut into chunks for the pool, and which kernel computes them.
#include "linear.h"

#include <algorithm>

#include "pool.h"

namespace hearth {
namespace {

// A chunk's weight and rows of x stay together in a core's second-level cache (2 MiB on AMX machines).
constexpr std::int64_t kWeightBytesPerChunk = 256 << 10;
constexpr std::int64_t kRowBytesPerChunk = 768 << 10;
constexpr std::int64_t kSmallestChunkBytes = 48 << 10;  // of weight; a few microseconds of reading
constexpr std::int64_t kRowBlock = 32;                  // rows of two AMX tiles

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

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Panels of one chunk: enough to be worth taking, few enough to share the work evenly.
std::int64_t panels_per_chunk(const LinearCall& call) {
    const std::int64_t bytes = std::max<std::int64_t>(1, lines_per_panel(call.num_inputs, call.number) * kLineBytes);
    const std::int64_t fair = num_panels(call.num_outputs) / (4 * num_threads());
    return std::clamp(fair, std::max<std::int64_t>(1, kSmallestChunkBytes / bytes),
                      std::max<std::int64_t>(1, kWeightBytesPerChunk / bytes));
}

// Rows of one chunk: as many as the cache holds, so that the weight is fetched seldom, unless that would
// leave threads without work.
std::int64_t rows_per_chunk(const LinearCall& call, std::int64_t num_across) {
    const std::int64_t row_bytes = std::max<std::int64_t>(1, call.num_inputs * (call.number == Number::bf16 ? 2 : 4));
    const std::int64_t fair = call.num_rows * num_across / (4 * num_threads());
    const std::int64_t most = std::max(kRowBlock, std::min(kRowBytesPerChunk / row_bytes, fair));
    const std::int64_t even = divide_up(call.num_rows, std::max<std::int64_t>(1, divide_up(call.num_rows, most)));
    return std::max(kRowBlock, divide_up(even, kRowBlock) * kRowBlock);
}

}  // namespace

void linear(Isa isa, const LinearCall* calls, std::size_t num_calls) {
    struct Cut {
        Kernel kernel;
        std::int64_t width, height, num_across, end;  // end: chunks of the calls so far
    };
    constexpr std::size_t kMaxTogether = 8;
    Cut cuts[kMaxTogether];
    for (; num_calls > kMaxTogether; ++calls, --num_calls) linear(isa, calls, 1);
    std::int64_t num_chunks = 0;
    for (std::size_t i = 0; i < num_calls; ++i) {
        const std::int64_t width = panels_per_chunk(calls[i]);
        const std::int64_t num_across = divide_up(num_panels(calls[i].num_outputs), width);
        const std::int64_t height = rows_per_chunk(calls[i], num_across);
        num_chunks += num_across * divide_up(calls[i].num_rows, height);
        cuts[i] = {kernel_of(isa, calls[i].number), width, height, num_across, num_chunks};
    }
    for_each_chunk(num_chunks, [&](std::int64_t chunk) {
        std::size_t i = 0;
        while (chunk >= cuts[i].end) ++i;
        const Cut& cut = cuts[i];
        const std::int64_t inside = chunk - (i == 0 ? 0 : cuts[i - 1].end);
        const std::int64_t row = inside / cut.num_across * cut.height, panel = inside % cut.num_across * cut.width;
        cut.kernel(calls[i], Block{row, std::min(row + cut.height, calls[i].num_rows), panel,
                                   std::min(panel + cut.width, num_panels(calls[i].num_outputs))});
    });
}

}  // namespace hearth
