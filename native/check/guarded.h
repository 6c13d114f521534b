// What the check programs share: guarded memory, numbers of both types, random draws.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "linear.h"

namespace hearth {

// Memory between two pages without access, flush with one of them.
class Guarded {
public:
    Guarded(std::size_t size, bool is_at_end) : page_(std::size_t(sysconf(_SC_PAGESIZE))) {
        inner_ = (size + page_ - 1) / page_ * page_;
        base_ = static_cast<char*>(mmap(nullptr, inner_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED || (inner_ != 0 && mprotect(base_ + page_, inner_, PROT_READ | PROT_WRITE) != 0)) {
            std::abort();
        }
        start_ = base_ + page_ + (is_at_end ? inner_ - size : 0);
    }
    ~Guarded() { munmap(base_, inner_ + 2 * page_); }
    Guarded(const Guarded&) = delete;

    template <typename T>
    T* as() const {
        return reinterpret_cast<T*>(start_);
    }

private:
    std::size_t page_, inner_;
    char* base_;
    char* start_;
};

inline std::uint16_t bf16_of(float number) {
    std::uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return std::uint16_t(bits >> 16);
}

inline float float_of(std::uint16_t number) {
    const std::uint32_t bits = std::uint32_t(number) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline std::uint32_t random_state = 1;
inline float draw() {
    random_state = random_state * 1664525u + 1013904223u;  // Numerical Recipes, section 7.1
    return float(std::int32_t(random_state)) / float(1u << 31);
}

struct Numbers {
    Guarded memory;
    Number number;
    Numbers(std::int64_t count, Number number, bool is_at_end)
        : memory(std::size_t(count) * (number == Number::bf16 ? 2 : 4), is_at_end), number(number) {}
    void set(std::int64_t i, float value) {
        if (number == Number::bf16) {
            memory.as<std::uint16_t>()[i] = bf16_of(value);
        } else {
            memory.as<float>()[i] = value;
        }
    }
    float get(std::int64_t i) const {
        return number == Number::bf16 ? float_of(memory.as<std::uint16_t>()[i]) : memory.as<float>()[i];
    }
};

}  // namespace hearth
