// The Python module openhearth._native: addresses and shapes in, nothing of torch. Callers check shapes
// and types and keep the memory alive; the functions give the interpreter's lock away.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "attention.h"
#include "isa.h"
#include "linear.h"
#include "pool.h"
#include "rows.h"

namespace nb = nanobind;
using namespace hearth;

namespace {

using Address = std::uintptr_t;

Isa isa_of(int number) {
    if (number < int(Isa::avx2) || number > int(Isa::amx)) throw nb::value_error("no such instruction set");
    return static_cast<Isa>(number);
}

Isa usable(int number) {
    const Isa isa = isa_of(number);
    if (!missing(isa).empty()) throw nb::value_error(missing(isa).c_str());
    return isa;
}

Number number_of(bool is_bf16) { return is_bf16 ? Number::bf16 : Number::f32; }

template <typename T = const void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

Format format_of(int number) {
    if (number < 0 || number >= kNumFormats) throw nb::value_error("no such weight format");
    return static_cast<Format>(number);
}

void call_linear(int isa, Address x, std::int64_t x_stride, Address weight, Address bias, Address out,
                 std::int64_t out_stride, std::int64_t num_rows, std::int64_t num_outputs, std::int64_t num_inputs,
                 int format, bool is_out_bf16) {
    const Isa chosen = usable(isa);
    const LinearCall call{at(x), x_stride, at(weight), at<const float>(bias), at<void>(out), out_stride, num_rows,
                          num_outputs, num_inputs, format_of(format), number_of(is_out_bf16)};
    nb::gil_scoped_release without_lock;
    linear(chosen, call);
}

void call_pack(Address rows, std::int64_t stride, Address source_rows, std::int64_t num_rows, std::int64_t num_inputs,
               int format, Address packed, std::int64_t row) {
    const Format chosen = format_of(format);
    nb::gil_scoped_release without_lock;
    pack_rows(at(rows), stride, at<const std::int64_t>(source_rows), num_rows, num_inputs, chosen, at<void>(packed), row);
}

void call_unpack(Address packed, Address row_ids, std::int64_t num_rows, std::int64_t num_inputs, int format,
                 bool is_out_bf16, Address out) {
    const Format chosen = format_of(format);
    nb::gil_scoped_release without_lock;
    unpack_rows(at(packed), at<const std::int64_t>(row_ids), num_rows, num_inputs, chosen, number_of(is_out_bf16),
                at<void>(out));
}

void call_quantize(Address rows, std::int64_t stride, bool is_bf16, std::int64_t num_rows, std::int64_t num_inputs,
                   int format, Address out) {
    const Format chosen = format_of(format);
    if (chosen != Format::q8_0 && chosen != Format::q4_1) throw nb::value_error("weights become q8_0 or q4_1");
    nb::gil_scoped_release without_lock;
    quantize_rows(at(rows), stride, number_of(is_bf16), num_rows, num_inputs, chosen, at<void>(out));
}

void call_rms_norm(int isa, Address x, std::int64_t x_stride, Address delta, std::int64_t delta_stride, Address weight,
                   Address sum, Address out, std::int64_t num_rows, std::int64_t size, float eps, bool is_bf16) {
    const Isa chosen = usable(isa);
    const RmsNormCall call{at(x), at(delta), at(weight), at<void>(sum), at<void>(out), x_stride, delta_stride,
                           num_rows, size, eps, number_of(is_bf16)};
    nb::gil_scoped_release without_lock;
    rms_norm(chosen, call);
}

void call_swiglu(int isa, Address gate, std::int64_t gate_stride, Address up, std::int64_t up_stride, Address out,
                 std::int64_t num_rows, std::int64_t size, bool is_bf16) {
    const Isa chosen = usable(isa);
    const SwigluCall call{at(gate), at(up), at<void>(out), gate_stride, up_stride, num_rows, size,
                          number_of(is_bf16)};
    nb::gil_scoped_release without_lock;
    swiglu(chosen, call);
}

// Turns q and k, puts keys and values where they belong, and attends.
void call_attend(int isa, Address q, Address k, Address v, std::int64_t q_stride, std::int64_t k_stride,
                 std::int64_t v_stride, Address cos, Address sin, Address slots, Address turned_q, Address keys,
                 Address values, Address out, Address page_table, std::int64_t pages_per_sequence,
                 std::int64_t page_size, Address query_starts, Address context_lens, std::int64_t num_sequences,
                 std::int64_t num_rows, std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t head_dim,
                 float scale, bool is_bf16) {
    const Isa chosen = usable(isa);
    const Number number = number_of(is_bf16);
    const RopeCall turning{at(q), at(k), at(v), q_stride, k_stride, v_stride, at<const float>(cos),
                           at<const float>(sin), at<const std::int64_t>(slots), at<void>(turned_q), at<void>(keys),
                           at<void>(values), num_rows, num_heads, num_kv_heads, head_dim, number};
    const AttentionCall attending{at(turned_q), num_heads * head_dim, at(keys), at(values), at<void>(out),
                                  at<const std::int64_t>(page_table), pages_per_sequence, page_size,
                                  at<const std::int64_t>(query_starts), at<const std::int64_t>(context_lens),
                                  num_sequences, num_heads, num_kv_heads, head_dim, scale, number};
    nb::gil_scoped_release without_lock;
    rope(chosen, turning);
    attention(chosen, attending);
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
    module.def("packed_bytes", [](std::int64_t num_outputs, std::int64_t num_inputs, int format) {
        return packed_bytes(num_outputs, num_inputs, format_of(format));
    });
    module.def("pack_rows", &call_pack);
    module.def("unpack_rows", &call_unpack);
    module.def("quantize_rows", &call_quantize);
    module.def("linear", &call_linear);
    module.def("rms_norm", &call_rms_norm);
    module.def("swiglu", &call_swiglu);
    module.def("attend", &call_attend);
}
