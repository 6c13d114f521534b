// The Python module openhearth._native: addresses and shapes in, nothing of torch. Callers check shapes
// and types and keep the memory alive; the functions give the interpreter's lock away.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <vector>

#include "attention.h"
#include "experts.h"
#include "isa.h"
#include "linear.h"
#include "module.h"
#include "pool.h"
#include "routing.h"
#include "rows.h"
#include "vocab.h"

namespace nb = nanobind;
using namespace hearth;

namespace {

void call_linear(int isa, Address x, std::int64_t x_stride, Address weight, Address bias, Address out,
                 std::int64_t out_stride, std::int64_t num_rows, std::int64_t num_outputs, std::int64_t num_inputs,
                 int format, bool is_out_bf16, bool adds, float scale) {
    const Isa chosen = usable(isa);
    const LinearCall call{at(x), x_stride, at(weight), at<const float>(bias), at<void>(out), out_stride, num_rows,
                          num_outputs, num_inputs, format_of(format), number_of(is_out_bf16), adds, scale};
    nb::gil_scoped_release without_lock;
    linear(chosen, &call, 1);
}

// A product of its own for every head: rows of x and out have the heads side by side, or further apart.
void call_linear_heads(int isa, Address x, std::int64_t x_stride, std::int64_t x_head_stride, Address weights, Address out,
                       std::int64_t num_heads, std::int64_t num_rows, std::int64_t num_outputs, std::int64_t num_inputs,
                       int format) {
    const Isa chosen = usable(isa);
    const Format number_format = format_of(format);
    if (is_blocks(number_format)) throw nb::value_error("weights of heads are plain numbers");
    const Number number = x_number(number_format);
    const std::int64_t number_bytes = number == Number::bf16 ? 2 : 4;
    const std::int64_t weight_bytes = packed_bytes(num_outputs, num_inputs, number_format);
    std::vector<LinearCall> calls;
    for (std::int64_t head = 0; head < num_heads; ++head) {
        calls.push_back({at<const char>(x) + head * x_head_stride * number_bytes, x_stride,
                         at<const char>(weights) + head * weight_bytes, nullptr,
                         at<char>(out) + head * num_outputs * number_bytes, num_heads * num_outputs, num_rows,
                         num_outputs, num_inputs, number_format, number});
    }
    nb::gil_scoped_release without_lock;
    linear(chosen, calls.data(), calls.size());
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

void call_transpose(Address packed, std::int64_t num_outputs, std::int64_t num_inputs, int format, Address out) {
    const Format chosen = format_of(format);
    nb::gil_scoped_release without_lock;
    transpose_packed(at(packed), num_outputs, num_inputs, chosen, at<void>(out));
}

void call_weight_grad(int isa, Address grad, std::int64_t grad_stride, Address x, std::int64_t x_stride, Address total,
                      std::int64_t num_rows, std::int64_t num_outputs, std::int64_t num_inputs, bool is_bf16, Address scratch) {
    const Isa chosen = usable(isa);
    const WeightGradCall call{at(grad), at(x), at<float>(total), grad_stride, x_stride, num_rows, num_outputs, num_inputs,
                              number_of(is_bf16), at<void>(scratch)};
    nb::gil_scoped_release without_lock;
    weight_grad(chosen, call);
}

std::int64_t call_weight_grad_bytes(std::int64_t num_rows, std::int64_t num_outputs, std::int64_t num_inputs, bool is_bf16) {
    return weight_grad_bytes(num_rows, num_outputs, num_inputs, number_of(is_bf16));
}

void call_quantize(int isa, Address rows, std::int64_t stride, bool is_bf16, std::int64_t num_rows, std::int64_t num_inputs,
                   int format, Address out) {
    const Format chosen = format_of(format);
    if (chosen != Format::q8_0 && chosen != Format::q4_1) throw nb::value_error("weights become q8_0 or q4_1");
    const Isa path = usable(isa);
    nb::gil_scoped_release without_lock;
    quantize_rows(path, at(rows), stride, number_of(is_bf16), num_rows, num_inputs, chosen, at<void>(out));
}

void call_rms_norm(int isa, Address x, std::int64_t x_stride, Address delta, std::int64_t delta_stride, Address weight,
                   Address sum, Address out, std::int64_t num_rows, std::int64_t size, float eps, bool is_bf16,
                   bool is_out_bf16, float offset, bool is_wide) {
    const Isa chosen = usable(isa);
    const RmsNormCall call{at(x), at(delta), at(weight), at<void>(sum), at<void>(out), x_stride, delta_stride,
                           num_rows, size, eps, number_of(is_bf16), number_of(is_out_bf16), offset, is_wide};
    nb::gil_scoped_release without_lock;
    rms_norm(chosen, call);
}

void call_glu(int isa, Address gate, std::int64_t gate_stride, Address up, std::int64_t up_stride, Address out,
                 std::int64_t num_rows, std::int64_t size, bool is_bf16, bool is_gelu) {
    const Isa chosen = usable(isa);
    const GluCall call{at(gate), at(up), at<void>(out), gate_stride, up_stride, size, num_rows, size, number_of(is_bf16),
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

void check_ids(const std::int64_t* ids, std::int64_t count, std::int64_t end, const char* what) {
    for (std::int64_t i = 0; i < count; ++i) {
        if (ids[i] < 0 || ids[i] >= end) throw nb::index_error(what);
    }
}

void call_experts(int isa, Address x, std::int64_t x_stride, Address experts_of_rows, Address scales, Address weights,
                  Address biases, Address out, std::int64_t num_rows, std::int64_t num_chosen, std::int64_t num_experts,
                  std::int64_t size, std::int64_t inner_size, int gate_format, int up_format, int down_format,
                  int activation) {
    const Isa chosen = usable(isa);
    const ExpertsCall call{at(x), x_stride, at<const std::int64_t>(experts_of_rows), at<const float>(scales),
                           at<const Address>(weights), at<const Address>(biases), at<float>(out), num_rows, num_chosen,
                           num_experts, size, inner_size, format_of(gate_format), format_of(up_format),
                           format_of(down_format), expert_activation_of(activation)};
    check_ids(call.experts, num_rows * num_chosen, num_experts, "an expert is not in the layer");
    nb::gil_scoped_release without_lock;
    experts(chosen, call);
}

void call_choose(int isa, Address logits, Address corrections, Address experts_of_rows, Address weights,
                 std::int64_t num_rows, std::int64_t num_experts, std::int64_t num_chosen, std::int64_t num_groups,
                 std::int64_t num_chosen_groups, bool is_sigmoid, bool is_top2, bool is_normalised, float scale) {
    const Isa chosen = usable(isa);
    ChooseCall call = choose_call_of(num_experts, num_chosen, num_groups, num_chosen_groups, is_sigmoid, is_top2,
                                     is_normalised, scale, corrections);
    call.logits = at<const float>(logits);
    call.logits_stride = num_experts;
    call.experts = at<std::int64_t>(experts_of_rows);
    call.weights = at<float>(weights);
    call.num_rows = num_rows;
    nb::gil_scoped_release without_lock;
    choose(chosen, call);
}

void call_weigh(int isa, Address x, std::int64_t x_stride, Address logits, std::int64_t logits_stride, Address out,
                std::int64_t num_rows, std::int64_t size) {
    const Isa chosen = usable(isa);
    const WeighCall call{at<const float>(x), at<const float>(logits), at<float>(out), x_stride, logits_stride, num_rows, size};
    nb::gil_scoped_release without_lock;
    weigh(chosen, call);
}

// Turns q and k, puts keys and values where they belong, and attends.
void call_attend(int isa, Address q, Address k, Address v, std::int64_t q_stride, std::int64_t k_stride,
                 std::int64_t v_stride, Address cos, Address sin, Address positions, std::int64_t rotary_dim,
                 Address slots, Address turned_q, Address keys, Address values, Address out, Address page_table,
                 std::int64_t pages_per_sequence, std::int64_t page_size, Address query_starts, Address context_lens,
                 std::int64_t num_sequences, std::int64_t num_rows, std::int64_t num_heads,
                 std::int64_t num_kv_heads, std::int64_t head_dim, float scale, float soft_cap, std::int64_t window,
                 Address sinks, bool is_bf16, int cache_type) {
    const Isa chosen = usable(isa);
    const Number number = number_of(is_bf16);
    const Cache cache = cache_of(cache_type, head_dim);
    const RopeCall turning{at(q), at(k), at(v), q_stride, k_stride, v_stride, at<const float>(cos),
                           at<const float>(sin), at<const std::int64_t>(slots), at<void>(turned_q), at<void>(keys),
                           at<void>(values), num_rows, num_heads, num_kv_heads, head_dim, number, cache, rotary_dim,
                           at<const std::int64_t>(positions)};
    const AttentionCall attending{at(turned_q), num_heads * head_dim, at(keys), at(values), at<void>(out),
                                  at<const std::int64_t>(page_table), pages_per_sequence, page_size,
                                  at<const std::int64_t>(query_starts), at<const std::int64_t>(context_lens),
                                  num_sequences, num_heads, num_kv_heads, head_dim, scale, number, cache, soft_cap,
                                  window, at<const float>(sinks)};
    nb::gil_scoped_release without_lock;
    rope(chosen, turning);
    attention(chosen, attending);
}

// rows: num_rows records of DrawRow, as bytes.
void call_draw_tokens(int isa, Address logits, std::int64_t stride, std::int64_t num_rows, std::int64_t num_tokens,
                      nb::bytes rows, Address token_ids, Address logprobs, Address top_ids, Address top_logprobs,
                      Address least) {
    const Isa chosen = usable(isa);
    if (rows.size() != std::size_t(num_rows) * sizeof(DrawRow)) throw nb::value_error("rows of another layout");
    std::vector<DrawRow> records(static_cast<std::size_t>(num_rows));
    std::memcpy(records.data(), rows.c_str(), rows.size());
    const char* const not_in_vocabulary = "a token id is not in the vocabulary";
    for (const DrawRow& record : records) {
        check_ids(record.counted_ids, record.num_counted, num_tokens, not_in_vocabulary);
        check_ids(record.biased_ids, record.num_biased, num_tokens, not_in_vocabulary);
    }
    const DrawCall call{at<float>(logits), stride, num_rows, num_tokens, records.data(), at<std::int64_t>(token_ids),
                        at<float>(logprobs), at<std::int64_t>(top_ids), at<float>(top_logprobs), at<float>(least)};
    nb::gil_scoped_release without_lock;
    draw_tokens(chosen, call);
}

void call_token_logprobs(int isa, Address logits, std::int64_t stride, std::int64_t num_rows, std::int64_t num_tokens,
                         Address targets, double temperature, Address logprobs, Address entropies) {
    const Isa chosen = usable(isa);
    const LogprobCall call{at<const float>(logits), stride, num_rows, num_tokens, at<const std::int64_t>(targets),
                           temperature, at<float>(logprobs), at<float>(entropies)};
    nb::gil_scoped_release without_lock;
    token_logprobs(chosen, call);
}

void call_token_logprobs_grad(int isa, Address logits, std::int64_t stride, std::int64_t num_rows,
                              std::int64_t num_tokens, Address targets, Address grads, double temperature) {
    const Isa chosen = usable(isa);
    const LogprobGradCall call{at<float>(logits), stride, num_rows, num_tokens, at<const std::int64_t>(targets),
                               at<const float>(grads), temperature};
    nb::gil_scoped_release without_lock;
    token_logprobs_grad(chosen, call);
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
    module.def("transpose_packed", &call_transpose);
    module.def("quantize_rows", &call_quantize);
    module.def("linear", &call_linear);
    module.def("linear_heads", &call_linear_heads);
    module.def("weight_grad", &call_weight_grad);
    module.def("weight_grad_bytes", &call_weight_grad_bytes);
    module.def("rms_norm", &call_rms_norm);
    module.def("glu", &call_glu);
    module.def("embed", &call_embed);
    module.def("experts", &call_experts);
    module.def("choose", &call_choose);
    module.def("weigh", &call_weigh);
    module.def("attend", &call_attend);
    module.def("draw_tokens", &call_draw_tokens);
    module.def("token_logprobs", &call_token_logprobs);
    module.def("token_logprobs_grad", &call_token_logprobs_grad);
    bind_gradients(module);
    bind_program(module);
}
