// The Python module openhearth._native: addresses and shapes in, nothing of torch. Callers check shapes
// and types and keep the memory alive; the functions give the interpreter's lock away.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "attention.h"
#include "isa.h"
#include "linear.h"
#include "pool.h"
#include "program.h"
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
Activation activation_of(bool is_gelu) { return is_gelu ? Activation::gelu : Activation::silu; }

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
    linear(chosen, &call, 1);
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
                   Address sum, Address out, std::int64_t num_rows, std::int64_t size, float eps, bool is_bf16,
                   bool is_out_bf16) {
    const Isa chosen = usable(isa);
    const RmsNormCall call{at(x), at(delta), at(weight), at<void>(sum), at<void>(out), x_stride, delta_stride,
                           num_rows, size, eps, number_of(is_bf16), number_of(is_out_bf16)};
    nb::gil_scoped_release without_lock;
    rms_norm(chosen, call);
}

void call_glu(int isa, Address gate, std::int64_t gate_stride, Address up, std::int64_t up_stride, Address out,
                 std::int64_t num_rows, std::int64_t size, bool is_bf16, bool is_gelu) {
    const Isa chosen = usable(isa);
    const GluCall call{at(gate), at(up), at<void>(out), gate_stride, up_stride, num_rows, size, number_of(is_bf16),
                       activation_of(is_gelu)};
    nb::gil_scoped_release without_lock;
    glu(chosen, call);
}

void call_embed(int isa, Address table, Address token_ids, Address out, std::int64_t num_rows, std::int64_t size,
                bool is_bf16, bool is_out_bf16) {
    const Isa chosen = usable(isa);
    const EmbedCall call{at(table), at<const std::int64_t>(token_ids), at<void>(out), num_rows, size,
                         number_of(is_bf16), number_of(is_out_bf16)};
    nb::gil_scoped_release without_lock;
    embed(chosen, call);
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

void add_embed(Program& program, Address table, std::int64_t size, bool is_bf16, int out, bool is_out_bf16) {
    program.add(EmbedStep{{at(table), nullptr, nullptr, 0, size, number_of(is_bf16), number_of(is_out_bf16)}, out});
}

void add_packed_embed(Program& program, Address table, std::int64_t size, int format, int out, bool is_out_bf16) {
    const Format chosen = format_of(format);
    program.add(EmbedStep{{at(table), nullptr, nullptr, 0, size, x_number(chosen), number_of(is_out_bf16), true, chosen}, out});
}

void add_norm(Program& program, int x, int delta, int sum, int out, Address weight, std::int64_t size, float eps,
              bool is_bf16, bool is_out_bf16) {
    const RmsNormCall call{nullptr, nullptr, at(weight), nullptr, nullptr, size, size, 0, size, eps,
                           number_of(is_bf16), number_of(is_out_bf16)};
    program.add(NormStep{call, x, delta, sum, out});
}

void add_linear(Program& program, int x, int out, Address weight, Address bias, std::int64_t num_outputs,
                std::int64_t num_inputs, int format, bool is_out_bf16) {
    const LinearCall call{nullptr, num_inputs, at(weight), at<const float>(bias), nullptr, num_outputs, 0, num_outputs,
                          num_inputs, format_of(format), number_of(is_out_bf16)};
    program.add(LinearStep{{call}, x, {out}});
}

// What add_linear and add_lora know of a packed weight: its address, bias, outputs, inputs and format.
using Weight = std::tuple<Address, Address, std::int64_t, std::int64_t, int>;

// slots: A, B and the scale of each; addresses of 0 where a slot has nothing.
void add_lora(Program& program, int x, int low, int delta, int y,
              const std::vector<std::tuple<Weight, Weight, float>>& slots, bool is_bf16, bool is_y_bf16) {
    const auto call_of = [&](const Weight& weight, Number out_number) {
        const auto [address, bias, num_outputs, num_inputs, format] = weight;
        return LinearCall{nullptr, num_inputs, at(address), at<const float>(bias), nullptr, num_outputs, 0,
                          num_outputs, num_inputs, format_of(format), out_number};
    };
    LoraStep step{{}, x, low, delta, y, number_of(is_y_bf16)};
    for (const auto& [a, b, scale] : slots) {
        step.slots.push_back({call_of(a, number_of(is_bf16)), call_of(b, Number::f32), scale});
    }
    program.add(step);
}

void add_attend(Program& program, int rotation, int q, int k, int v, int turned, int out, Address keys, Address values,
                std::int64_t page_size, std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t head_dim,
                float scale, bool is_bf16) {
    const Number number = number_of(is_bf16);
    const std::int64_t width = num_heads * head_dim, kv_width = num_kv_heads * head_dim;
    const RopeCall turning{nullptr, nullptr, nullptr, width, kv_width, kv_width, nullptr, nullptr, nullptr, nullptr,
                           at<void>(keys), at<void>(values), 0, num_heads, num_kv_heads, head_dim, number};
    const AttentionCall attending{nullptr, width, at(keys), at(values), nullptr, nullptr, 0, page_size, nullptr,
                                  nullptr, 0, num_heads, num_kv_heads, head_dim, scale, number};
    program.add(AttendStep{turning, attending, rotation, q, k, v, turned, out});
}

void add_glu(Program& program, int gate, int up, int out, std::int64_t size, bool is_bf16, bool is_gelu) {
    const GluCall call{nullptr, nullptr, nullptr, size, size, 0, size, number_of(is_bf16), activation_of(is_gelu)};
    program.add(GluStep{call, gate, up, out});
}

void run_program(Program& program, Address token_ids, const std::vector<Address>& rotations, Address slots,
                 Address page_table, std::int64_t pages_per_sequence, Address query_starts, Address context_lens,
                 std::int64_t num_sequences, std::int64_t num_rows,
                 const std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>>& adapters, Address out) {
    Pack pack{at<const std::int64_t>(token_ids), {}, {}, at<const std::int64_t>(slots), at<const std::int64_t>(page_table),
              at<const std::int64_t>(query_starts), at<const std::int64_t>(context_lens), num_rows, num_sequences,
              pages_per_sequence, at<void>(out)};
    for (Address rotation : rotations) pack.rotations.push_back(at<const float>(rotation));
    for (const auto& [start, end, slot] : adapters) pack.adapters.push_back({start, end, slot});
    nb::gil_scoped_release without_lock;
    program.run(pack);
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
    module.def("glu", &call_glu);
    module.def("embed", &call_embed);
    module.def("attend", &call_attend);
    nb::class_<Program>(module, "Program", "Recorded steps of a forward pass; see native/program.h.")
        .def("__init__", [](Program* program, int isa) { new (program) Program(usable(isa)); })
        .def("add_buffer", [](Program& program, std::int64_t width, bool is_bf16) {
            return program.add_buffer(width, number_of(is_bf16));
        })
        .def("add_embed", &add_embed)
        .def("add_packed_embed", &add_packed_embed)
        .def("add_norm", &add_norm)
        .def("add_linear", &add_linear)
        .def("add_lora", &add_lora)
        .def("add_attend", &add_attend)
        .def("add_glu", &add_glu)
        .def("finish", &Program::finish)
        .def("run", &run_program)
        .def("set_measured", &Program::set_measured)
        .def("take_times", &Program::take_times);
}
