// The state of a thread that computes with AMX tiles of 16 rows x 64 bytes. Included only by files compiled
// for AMX; everything is local to the file, for the reason given in linear_avx2.cpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace hearth {
namespace {

// The 64 bytes that LDTILECFG reads (Intel SDM volume 1, 18.3). Loading and storing it are written out
// with all 64 bytes as operands: the intrinsics of gcc 12 name only 8, so it drops the stores to the rest.
struct alignas(64) Tiles {
    std::uint8_t palette, start_row, reserved[14];
    std::uint16_t row_bytes[16];
    std::uint8_t rows[16];
};
static_assert(sizeof(Tiles) == 64, "what LDTILECFG reads");

// Keeps the compiler from moving plain loads and stores over those of tiles, which it does not know.
inline void finish_stores() { __asm__ volatile("" ::: "memory"); }

// Denormal numbers count as 0, as in the tile unit; what the thread had before returns at the end.
class FlushDenormals {
public:
    FlushDenormals() : outer_(_mm_getcsr()) {
        _mm_setcsr(0x1f80 | 0x8040);  // all exceptions masked, nearest, flush to zero, denormals are zero
        finish_stores();
    }
    ~FlushDenormals() {
        finish_stores();
        _mm_setcsr(outer_);
    }
    FlushDenormals(const FlushDenormals&) = delete;

private:
    unsigned outer_;
};

// All eight tiles whole.
inline Tiles whole_tiles() {
    Tiles all;
    __builtin_memset(&all, 0, sizeof all);
    all.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
        all.row_bytes[tile] = 64;
        all.rows[tile] = 16;
    }
    return all;
}

// Tiles of the given shapes, and denormals flushed. Another library may have its own configuration loaded in
// this thread and count on it: that returns too.
class TileSession {
public:
    explicit TileSession(const Tiles& tiles) {
        __asm__ volatile("sttilecfg %0" : "=m"(outer_)::"memory");
        __asm__ volatile("ldtilecfg %0" ::"m"(tiles) : "memory");
    }
    ~TileSession() {
        if (outer_.palette == 0) {
            _tile_release();
        } else {
            __asm__ volatile("ldtilecfg %0" ::"m"(outer_) : "memory");
        }
    }
    TileSession(const TileSession&) = delete;

private:
    FlushDenormals flush_;
    Tiles outer_;
};

}  // namespace
}  // namespace hearth
