// What the files of the Python module share: addresses, and names for what numbers of Python mean.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "cache.h"
#include "isa.h"
#include "linear.h"
#include "rows.h"

namespace hearth {

namespace nb = nanobind;

using Address = std::uintptr_t;

inline Isa isa_of(int number) {
    if (number < int(Isa::avx2) || number > int(Isa::amx)) throw nb::value_error("no such instruction set");
    return static_cast<Isa>(number);
}

inline Isa usable(int number) {
    const Isa isa = isa_of(number);
    if (!missing(isa).empty()) throw nb::value_error(missing(isa).c_str());
    return isa;
}

inline Number number_of(bool is_bf16) { return is_bf16 ? Number::bf16 : Number::f32; }
inline Format format_of(int number) {
    if (number < 0 || number >= kNumFormats) throw nb::value_error("no such weight format");
    return static_cast<Format>(number);
}

inline Activation activation_of(bool is_gelu) { return is_gelu ? Activation::gelu : Activation::silu; }

inline Cache cache_of(int number, std::int64_t head_dim) {
    if (number < int(Cache::f32) || number > int(Cache::int8)) throw nb::value_error("no such cache type");
    if (head_dim > kMaxHeadDim) throw nb::value_error("heads of more than 1024 numbers");
    return static_cast<Cache>(number);
}

template <typename T = const void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// Adds backward passes (gradients.h).
void bind_gradients(nb::module_& module);

// Adds the class Program (program.h).
void bind_program(nb::module_& module);

}  // namespace hearth
