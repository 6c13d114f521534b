// Attention's backward pass with AMX, for bf16 rows. Includes no C++ library header, for the reason given in
// linear_avx2.cpp.
#include "amx.h"
#include "gradients_kernel.h"

namespace hearth {
namespace {

// c[rows, columns] = (is_sum: c +) a b, all multiples of kGradRows. b: pairs of its rows side by side, pair by pair.
template <bool is_sum>
inline void multiply_tiles(float* c, std::int64_t c_stride, const std::uint16_t* a, std::int64_t a_stride, const std::uint16_t* b,
                           std::int64_t b_stride, std::int64_t rows, std::int64_t columns, std::int64_t depth) {
    const std::int64_t c_bytes = c_stride * 4, a_bytes = a_stride * 2, b_bytes = b_stride * 4;
    finish_stores();
    for (std::int64_t column = 0; column < columns; column += kGradRows) {
        for (std::int64_t row = 0; row < rows; row += kGradRows) {
            float* const to = c + row * c_stride + column;
            if (is_sum) {
                _tile_loadd(0, to, c_bytes);
                _tile_loadd(1, to + 16, c_bytes);
                _tile_loadd(2, to + 16 * c_stride, c_bytes);
                _tile_loadd(3, to + 16 * c_stride + 16, c_bytes);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            const std::uint16_t *left = a + row * a_stride, *right = b + 2 * column;
            for (std::int64_t k = 0; k < depth; k += kGradRows, left += kGradRows, right += kGradRows * b_stride) {
                _tile_loadd(4, left, a_bytes);
                _tile_loadd(6, right, b_bytes);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, right + kGradRows, b_bytes);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, left + 16 * a_stride, a_bytes);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, to, c_bytes);
            _tile_stored(1, to + 16, c_bytes);
            _tile_stored(2, to + 16 * c_stride, c_bytes);
            _tile_stored(3, to + 16 * c_stride + 16, c_bytes);
        }
    }
    finish_stores();
}

}  // namespace
}  // namespace hearth

#include "gradients_tiles.h"

namespace hearth {

void attention_grad_amx(const AttentionGradCall& call, const AttentionFamily& family, float* scratch) {
    if (call.number != Number::bf16) return attention_grad_avx512(call, family, scratch);
    const TileScope scope(whole_tiles());
    attention_grad_tiles(call, family, scratch);
}

}  // namespace hearth
