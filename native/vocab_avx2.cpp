#include "vocab_kernel.h"

namespace hearth {

const VocabKernels vocab_avx2 = {summarize, sum_kept, weigh, gather, find};

}  // namespace hearth
