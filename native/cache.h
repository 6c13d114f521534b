// How keys and values lie in memory: rows of num_kv_heads parts, one part per head.
//
// f32, bf16: head_dim numbers. int8: head_dim signed bytes, then a bf16 scale for every 32 of them; a number
// is its byte times its scale. The scale is the group's largest size / 127, rounded up to bf16, so that no
// byte overflows: a number is off by at most half a scale, 0.4 % of the group's largest. A group with a NaN
// or an infinity gets the scale NaN.
#pragma once

#include <cstdint>

namespace hearth {

enum class Cache : int { f32 = 0, bf16 = 1, int8 = 2 };

constexpr std::int64_t kScaleGroup = 32;  // numbers that share a scale

// Bytes of one head's part. Static: every file keeps the version compiled with its own instruction set.
static inline std::int64_t part_bytes(std::int64_t head_dim, Cache cache) {
    if (cache == Cache::int8) return head_dim + (head_dim + kScaleGroup - 1) / kScaleGroup * 2;
    return head_dim * (cache == Cache::bf16 ? 2 : 4);
}

}  // namespace hearth
