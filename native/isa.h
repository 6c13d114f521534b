// Which instruction sets this process may use: what the CPU has and the operating system saves.
#pragma once

#include <string>

namespace hearth {

// Ordered: a CPU with one of these nearly always has those before it.
enum class Isa : int { avx2 = 1, avx512 = 2, amx = 3 };

// Empty when kernels of this level may run here, else the reason why not, for a person to read.
// avx2: AVX2, FMA and F16C. avx512: F, BW, DQ, VL and BF16. amx: avx512, VBMI, AMX-TILE, AMX-BF16 with
// the kernel's permission to use tile data. The answer is found once; safe from any thread.
const std::string& missing(Isa isa);

}  // namespace hearth
