#include "attention_kernel.h"

namespace hearth {

std::int64_t attention_rows_avx512() { return kMaxRows; }

void attention_avx512(const AttentionCall& call, const QueryBlock& block, float* scratch) {
    attend_block(call, block, scratch);
}

}  // namespace hearth
