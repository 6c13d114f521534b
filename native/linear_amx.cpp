// Linear layers with AMX: bf16 tiles of 16 rows x 32 inputs against 32 inputs x 16 columns. Includes no
// C++ library header, for the reason given in linear_avx2.cpp.
#include <immintrin.h>

#include "amx.h"
#include "linear.h"
#include "linear_store.h"

namespace hearth {
namespace {

constexpr std::int64_t kTileBytes = kTileInputs / 2 * kLineBytes;  // of a panel, that one step consumes
constexpr std::int64_t kAhead = 4 * kTileBytes;                    // fetched ahead while streaming

struct Rows {
    const std::uint16_t* x;
    std::int64_t stride_bytes;
    const std::uint16_t* tail;  // the last, incomplete 32 inputs of each row, padded with zeros
    std::int64_t num_whole;     // steps of 32 inputs that can be read from x
    bool has_tail;
};

template <bool is_two>
inline void step(const void* x, std::int64_t stride, const char* weight) {
    _tile_loadd(6, weight, kLineBytes);
    _tile_loadd(7, weight + 64, kLineBytes);
    _tile_loadd(4, x, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (is_two) {
        _tile_loadd(5, static_cast<const char*>(x) + kTileLines * stride, stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

// Finished sums of one panel on their way from the tiles to the output. Writing them out is vector work
// that the tile unit has no part in, so it happens a few rows at a time between the next panel's steps.
struct Leaving {
    alignas(64) float sums[2 * kTileLines][kPanel];
    std::int64_t row, panel;
    int next = 0, num_rows = 0;

    void write(const LinearCall& call, int count) {
        for (; count > 0 && next < num_rows; --count, ++next) {
            store_panel_row(call, row + next, panel, _mm512_load_ps(sums[next]), _mm512_load_ps(sums[next] + 16));
        }
    }
};

// Sums of up to 16 (is_two: 17 to 32) rows with one panel, left in tiles 0 to 3.
template <bool is_two>
inline void accumulate(const LinearCall& call, const Rows& rows, const char* panel, Leaving& leaving) {
    _tile_zero(0);
    _tile_zero(1);
    if (is_two) {
        _tile_zero(2);
        _tile_zero(3);
    }
    const int rows_per_step = int(2 * kTileLines / (rows.num_whole + 1) + 1);
    const char* x = reinterpret_cast<const char*>(rows.x);
    for (std::int64_t i = 0; i < rows.num_whole; ++i, x += 64, panel += kTileBytes) {
        if (!is_two) {
            for (std::int64_t byte = 0; byte < kTileBytes; byte += 64) _mm_prefetch(panel + kAhead + byte, _MM_HINT_T0);
        }
        step<is_two>(x, rows.stride_bytes, panel);
        leaving.write(call, rows_per_step);
    }
    if (rows.has_tail) step<is_two>(rows.tail, 64, panel);
    leaving.write(call, 2 * kTileLines);
}

template <bool is_two>
void compute(const LinearCall& call, const Rows& rows, std::int64_t row, int num_rows, std::int64_t panel,
             Leaving& leaving) {
    const std::int64_t bytes = panel_bytes(call.num_inputs, Format::bf16);
    accumulate<is_two>(call, rows, static_cast<const char*>(call.weight) + panel * bytes, leaving);
    _tile_stored(0, leaving.sums[0], kLineBytes);
    _tile_stored(1, leaving.sums[0] + 16, kLineBytes);
    if (is_two) {
        _tile_stored(2, leaving.sums[kTileLines], kLineBytes);
        _tile_stored(3, leaving.sums[kTileLines] + 16, kLineBytes);
    }
    leaving.row = row;
    leaving.panel = panel;
    leaving.next = 0;
    leaving.num_rows = num_rows;
}

}  // namespace

void linear_amx(const LinearCall& call, const Block& block) {
    TileScope tiles;
    Leaving leaving;
    const std::int64_t num_whole = call.num_inputs / kTileInputs, num_left = call.num_inputs % kTileInputs;
    for (std::int64_t row = block.row; row < block.row_end; row += 2 * kTileLines) {
        const std::int64_t rows_left = block.row_end - row;
        const int num_rows = int(rows_left < 2 * kTileLines ? rows_left : 2 * kTileLines);
        tiles.use(num_rows);
        const std::uint16_t* const x = static_cast<const std::uint16_t*>(call.x) + row * call.x_stride;
        alignas(64) std::uint16_t tail[2 * kTileLines][kTileInputs];
        if (num_left != 0) {
            __builtin_memset(tail, 0, sizeof tail);
            for (int r = 0; r < num_rows; ++r) {
                __builtin_memcpy(tail[r], x + r * call.x_stride + num_whole * kTileInputs, std::size_t(num_left) * 2);
            }
            finish_stores();
        }
        const Rows rows{x, call.x_stride * 2, tail[0], num_whole, num_left != 0};
        for (std::int64_t panel = block.panel; panel < block.panel_end; ++panel) {
            if (num_rows > kTileLines) {
                compute<true>(call, rows, row, num_rows, panel, leaving);
            } else {
                compute<false>(call, rows, row, num_rows, panel, leaving);
            }
        }
    }
    leaving.write(call, 2 * kTileLines);
}

}  // namespace hearth
