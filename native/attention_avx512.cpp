#include "attention_kernel.h"

namespace hearth {

std::int64_t attention_rows_avx512() { return kMaxRows; }

void attention_avx512(const AttentionCall& call, const QueryBlock& block, float* scratch) {
    if (call.number == Number::bf16) {
        attend_block<std::uint16_t>(call, block, scratch);
    } else {
        attend_block<float>(call, block, scratch);
    }
}

}  // namespace hearth
