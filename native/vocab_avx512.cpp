#include "vocab_kernel.h"

namespace hearth {

const VocabKernels vocab_avx512 = {summarize, sum_kept, weigh, gather, find};

}  // namespace hearth
