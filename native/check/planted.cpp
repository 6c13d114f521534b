// Faults on purpose, one per argument: a build that lets one of them pass has no sanitizer in it.
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "pool.h"

namespace {

volatile int num_beyond = 1, result = 0;  // the compiler must neither see the faults nor drop them

void read_beyond_the_end() {
    const std::vector<int> numbers(8, 1);
    result = numbers.data()[numbers.size() - 1 + std::size_t(num_beyond)];
}

void overflow() { result = std::numeric_limits<int>::max() + num_beyond; }

// Several, because an old pointer may still stand on the stack or in a register.
void leak() {
    int* volatile lost = nullptr;
    for (int i = 0; i < 10; ++i) lost = new int[100]();
    lost = nullptr;
}

// Chunks that write one number, in threads of the pool.
void race() {
    std::int64_t sum = 0;
    hearth::set_num_threads(4);
    for (int round = 0; round < 100; ++round) {
        hearth::for_each_chunk(1000, [&](std::int64_t chunk) { sum += chunk; });
    }
    result = int(sum);
}

}  // namespace

int main(int num_arguments, char** arguments) {
    const char* const fault = num_arguments == 2 ? arguments[1] : "";
    if (std::strcmp(fault, "bounds") == 0) read_beyond_the_end();
    if (std::strcmp(fault, "overflow") == 0) overflow();
    if (std::strcmp(fault, "leak") == 0) leak();
    if (std::strcmp(fault, "race") == 0) race();
    return 0;
}
