// Backward passes for Python.
#include "gradients.h"
#include "module.h"

namespace hearth {
namespace {

void call_glu_grad(int isa, Address gate, Address up, Address grad, Address grad_gate, Address grad_up, std::int64_t num_rows,
                   std::int64_t size, bool is_bf16, bool is_gelu) {
    const Isa chosen = usable(isa);
    const GluGradCall call{at(gate), at(up), at(grad), at<void>(grad_gate), at<void>(grad_up), num_rows, size,
                           number_of(is_bf16), activation_of(is_gelu)};
    nb::gil_scoped_release without_lock;
    glu_grad(chosen, call);
}

void call_rms_norm_grad(int isa, Address h, Address weight, Address grad, Address grad_sum, Address grad_h, Address grad_weight,
                        std::int64_t num_rows, std::int64_t size, float eps, bool is_bf16, bool is_out_bf16) {
    const Isa chosen = usable(isa);
    const RmsNormGradCall call{at(h), at(weight), at(grad), at(grad_sum), at<void>(grad_h), at<float>(grad_weight),
                               num_rows, size, eps, number_of(is_bf16), number_of(is_out_bf16)};
    nb::gil_scoped_release without_lock;
    rms_norm_grad(chosen, call);
}

void call_attend_grad(int isa, Address q, Address k, Address v, Address grad, std::int64_t q_stride, std::int64_t k_stride,
                      std::int64_t v_stride, std::int64_t grad_stride, Address grad_q, Address grad_k, Address grad_v,
                      Address cos, Address sin, Address positions, std::int64_t rotary_dim, Address query_starts,
                      Address parents, std::int64_t num_sequences, std::int64_t num_heads, std::int64_t num_kv_heads,
                      std::int64_t head_dim, float scale, bool is_bf16) {
    const Isa chosen = usable(isa);
    if (head_dim > kMaxHeadDim) throw nb::value_error("heads of more than 1024 numbers");
    const AttentionGradCall call{at(q), at(k), at(v), at(grad), q_stride, k_stride, v_stride, grad_stride,
                                 at<void>(grad_q), at<void>(grad_k), at<void>(grad_v), at<const float>(cos),
                                 at<const float>(sin), at<const std::int64_t>(positions), rotary_dim,
                                 at<const std::int64_t>(query_starts), at<const std::int64_t>(parents), num_sequences,
                                 num_heads, num_kv_heads, head_dim, scale, number_of(is_bf16)};
    nb::gil_scoped_release without_lock;
    attention_grad(chosen, call);
}

}  // namespace

void bind_gradients(nb::module_& module) {
    module.def("glu_grad", &call_glu_grad);
    module.def("rms_norm_grad", &call_rms_norm_grad);
    module.def("attend_grad", &call_attend_grad);
}

}  // namespace hearth
