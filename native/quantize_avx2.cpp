#include "quantize_kernel.h"

namespace hearth {

void quantize_row_avx2(const void* row, Number number, Format format, std::int64_t num_groups, char* blocks) {
    if (number == Number::f32) {
        quantize_groups(static_cast<const float*>(row), format, num_groups, blocks);
    } else {
        quantize_groups(static_cast<const std::uint16_t*>(row), format, num_groups, blocks);
    }
}

}  // namespace hearth
