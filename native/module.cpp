// The Python module openhearth._native: addresses and shapes in, nothing of torch. Callers check shapes
// and types and keep the memory alive; the functions give the interpreter's lock away.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "isa.h"
#include "linear.h"
#include "pool.h"

namespace nb = nanobind;
using namespace hearth;

namespace {

using Address = std::uintptr_t;

Isa isa_of(int number) {
    if (number < int(Isa::avx2) || number > int(Isa::amx)) throw nb::value_error("no such instruction set");
    return static_cast<Isa>(number);
}

void call_linear(int isa, Address x, std::int64_t x_stride, Address weight, Address bias, Address out,
                 std::int64_t out_stride, std::int64_t num_rows, std::int64_t num_outputs, std::int64_t num_inputs,
                 bool is_bf16, bool is_out_bf16) {
    const Isa chosen = isa_of(isa);
    if (!missing(chosen).empty()) throw nb::value_error(missing(chosen).c_str());
    const LinearCall call{reinterpret_cast<const void*>(x),
                          x_stride,
                          reinterpret_cast<const void*>(weight),
                          reinterpret_cast<const float*>(bias),
                          reinterpret_cast<void*>(out),
                          out_stride,
                          num_rows,
                          num_outputs,
                          num_inputs,
                          is_bf16 ? Number::bf16 : Number::f32,
                          is_out_bf16 ? Number::bf16 : Number::f32};
    nb::gil_scoped_release without_lock;
    linear(chosen, call);
}

void call_pack(Address weight, std::int64_t stride, std::int64_t num_outputs, std::int64_t num_inputs, bool is_bf16,
               Address packed) {
    nb::gil_scoped_release without_lock;
    pack_weight(reinterpret_cast<const void*>(weight), stride, num_outputs, num_inputs,
                is_bf16 ? Number::bf16 : Number::f32, reinterpret_cast<void*>(packed));
}

void call_unpack(Address packed, std::int64_t num_outputs, std::int64_t num_inputs, bool is_bf16, Address weight) {
    nb::gil_scoped_release without_lock;
    unpack_weight(reinterpret_cast<const void*>(packed), num_outputs, num_inputs,
                  is_bf16 ? Number::bf16 : Number::f32, reinterpret_cast<void*>(weight));
}

void call_set_num_threads(int count) {
    if (count < 1 || count > 1024) throw nb::value_error("expected 1 to 1024 threads");
    nb::gil_scoped_release without_lock;
    set_num_threads(count);
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "CPU kernels of openhearth; see native/ in the sources.";
    module.def("missing", [](int isa) { return missing(isa_of(isa)); }, "Why an instruction set cannot be used, or ''.");
    module.def("num_threads", &num_threads);
    module.def("set_num_threads", &call_set_num_threads);
    module.def("packed_bytes", [](std::int64_t num_outputs, std::int64_t num_inputs, bool is_bf16) {
        return packed_bytes(num_outputs, num_inputs, is_bf16 ? Number::bf16 : Number::f32);
    });
    module.def("pack_weight", &call_pack);
    module.def("unpack_weight", &call_unpack);
    module.def("linear", &call_linear);
}
