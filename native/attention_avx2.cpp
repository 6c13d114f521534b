#include "attention_kernel.h"

namespace hearth {

std::int64_t attention_rows_avx2() { return kMaxRows; }

void attention_avx2(const AttentionCall& call, const QueryBlock& block, float* scratch) {
    attend_block(call, block, scratch);
}

}  // namespace hearth
