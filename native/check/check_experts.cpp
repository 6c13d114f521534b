// Runs the experts of a layer on every instruction set this CPU has, with buffers that end (or start) at a page that
// may not be touched, and compares bits with products, gates and sums computed one after the other. tests/native/
// runs it under the sanitizers.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "experts.h"
#include "guarded.h"
#include "isa.h"
#include "linear.h"
#include "pool.h"
#include "rows.h"

using namespace hearth;

namespace {

int num_failures = 0;

struct Shape {
    std::int64_t rows, experts, chosen, size, inner;
};

std::int64_t bytes_of(Number number) { return number == Number::bf16 ? 2 : 4; }

// A packed weight: numbers, or blocks of what the quantiser makes of them.
std::unique_ptr<Guarded> draw_weight(std::int64_t outputs, std::int64_t inputs, Format format, bool is_at_end) {
    auto packed = std::make_unique<Guarded>(std::size_t(packed_bytes(outputs, inputs, format)), is_at_end);
    const Number number = x_number(format);
    Numbers weight(outputs * inputs, number, is_at_end);
    for (std::int64_t i = 0; i < outputs * inputs; ++i) weight.set(i, draw() / 4);
    const std::int64_t row_bytes = inputs * bytes_of(number);
    if (!is_blocks(format)) {
        pack_rows(weight.memory.as<char>(), row_bytes, nullptr, outputs, inputs, format, packed->as<char>(), 0);
        return packed;
    }
    const std::int64_t block_bytes = inputs / kGroup * (format == Format::q8_0 ? 34 : 20);
    Guarded blocks(std::size_t(outputs * block_bytes), is_at_end);
    quantize_rows(Isa::avx2, weight.memory.as<char>(), row_bytes, number, outputs, inputs, format, blocks.as<char>());
    pack_rows(blocks.as<char>(), block_bytes, nullptr, outputs, inputs, format, packed->as<char>(), 0);
    return packed;
}

// Adds what one expert returns for one row.
void add_one(Isa isa, const ExpertsCall& call, std::int64_t row, std::int64_t expert, float scale, float* total) {
    const Number number = x_number(call.gate_format);
    const bool is_clamped = call.activation == Activation::clamped;
    const Number inner_number = is_clamped ? Number::f32 : number;
    std::vector<char> gates(std::size_t(call.inner_size * 4)), ups(gates.size()), gated(gates.size());
    std::vector<float> y(std::size_t(call.size));
    const auto weight = [&](int which) { return reinterpret_cast<const void*>(call.weights[3 * expert + which]); };
    const char* const x = static_cast<const char*>(call.x) + row * call.x_stride * bytes_of(number);
    const auto bias = [&](int which) {
        return call.biases == nullptr ? nullptr : reinterpret_cast<const float*>(call.biases[3 * expert + which]);
    };
    const LinearCall both[] = {{x, call.size, weight(0), bias(0), gates.data(), call.inner_size, 1, call.inner_size, call.size,
                                call.gate_format, inner_number},
                               {x, call.size, weight(1), bias(1), ups.data(), call.inner_size, 1, call.inner_size, call.size,
                                call.up_format, inner_number}};
    linear(isa, both, 2);
    glu(isa, {gates.data(), ups.data(), gated.data(), call.inner_size, call.inner_size, call.inner_size, 1, call.inner_size,
              inner_number, call.activation, is_clamped && number == Number::bf16});
    const LinearCall down{gated.data(), call.inner_size, weight(2), bias(2), y.data(), call.size, 1, call.size,
                          call.inner_size, call.down_format, Number::f32};
    linear(isa, &down, 1);
    for (std::size_t i = 0; i < y.size(); ++i) {
        const volatile float product = y[i] * scale;  // rounded: never fused with the sum
        total[i] = total[i] + product;
    }
}

void check(Isa isa, const char* name, const Shape& shape, Format format, Format down_format, bool is_at_end,
           bool is_biased) {
    const Number number = x_number(format);
    std::vector<std::unique_ptr<Guarded>> packs;
    Guarded weights(std::size_t(shape.experts * 3) * sizeof(std::uintptr_t), is_at_end);
    for (std::int64_t i = 0; i < shape.experts * 3; ++i) {
        const bool is_down = i % 3 == 2;
        packs.push_back(draw_weight(is_down ? shape.size : shape.inner, is_down ? shape.inner : shape.size,
                                    is_down ? down_format : format, is_at_end));
        weights.as<std::uintptr_t>()[i] = reinterpret_cast<std::uintptr_t>(packs.back()->as<char>());
    }
    std::vector<std::unique_ptr<Numbers>> biases;
    std::vector<std::uintptr_t> bias_table;
    for (std::int64_t i = 0; is_biased && i < shape.experts * 3; ++i) {
        const std::int64_t padded = num_panels(i % 3 == 2 ? shape.size : shape.inner) * kPanel;
        biases.push_back(std::make_unique<Numbers>(padded, Number::f32, is_at_end));
        for (std::int64_t n = 0; n < padded; ++n) biases.back()->set(n, draw() * 8);
        bias_table.push_back(i == 1 ? 0 : reinterpret_cast<std::uintptr_t>(biases.back()->memory.as<char>()));
    }
    const std::int64_t stride = shape.size + 3, count = shape.rows * shape.chosen;
    Numbers x(shape.rows == 0 ? 0 : (shape.rows - 1) * stride + shape.size, number, is_at_end);
    for (std::int64_t i = 0; i + 3 < shape.rows * stride; ++i) x.set(i, draw());
    Guarded experts_of_rows(std::size_t(count) * 8, is_at_end), scales(std::size_t(count) * 4, is_at_end);
    Guarded out(std::size_t(shape.rows * shape.size) * 4, is_at_end);  // zero
    for (std::int64_t i = 0; i < count; ++i) {  // neighbours in a circle without the last expert, ascending
        const std::int64_t first = i / shape.chosen * 5 % (shape.experts - shape.chosen);
        experts_of_rows.as<std::int64_t>()[i] = first + i % shape.chosen;
        scales.as<float>()[i] = draw();
    }
    const ExpertsCall call{x.memory.as<char>(), stride, experts_of_rows.as<std::int64_t>(), scales.as<float>(),
                           weights.as<std::uintptr_t>(), is_biased ? bias_table.data() : nullptr, out.as<float>(),
                           shape.rows, shape.chosen, shape.experts, shape.size, shape.inner, format, format, down_format,
                           is_biased ? Activation::clamped : Activation::silu};
    experts(isa, call);
    for (std::int64_t row = 0; row < shape.rows; ++row) {
        std::vector<float> wanted(std::size_t(shape.size), 0.0f);
        for (std::int64_t c = row * shape.chosen; c < (row + 1) * shape.chosen; ++c) {
            add_one(isa, call, row, call.experts[c], call.scales[c], wanted.data());
        }
        if (std::memcmp(wanted.data(), call.out + row * shape.size, wanted.size() * 4) == 0) continue;
        ++num_failures;
        std::printf("FAILED %s, format %d, rows %ld, row %ld\n", name, int(format), long(shape.rows), long(row));
    }
}

}  // namespace

int main(int, char**) {
    const Shape plain[] = {{1, 3, 2, 1, 1}, {1, 9, 4, 48, 80}, {0, 3, 2, 8, 8}, {70, 4, 2, 33, 31}, {300, 3, 1, 20, 40}};
    const Shape blocks[] = {{1, 9, 4, 64, 96}, {70, 4, 2, 96, 32}};
    const struct {
        Isa isa;
        const char* name;
    } all[] = {{Isa::avx2, "avx2"}, {Isa::avx512, "avx512"}, {Isa::amx, "amx"}};
    set_num_threads(3);
    for (const auto& one : all) {
        if (!missing(one.isa).empty()) {
            std::printf("%s: not checked, %s\n", one.name, missing(one.isa).c_str());
            continue;
        }
        for (int i = 0; i < 4; ++i) {
            const bool is_at_end = i % 2 == 1, is_biased = i >= 2;
            for (const Shape& shape : plain) {
                check(one.isa, one.name, shape, Format::f32, Format::f32, is_at_end, is_biased);
                check(one.isa, one.name, shape, Format::bf16, Format::bf16, is_at_end, is_biased);
            }
            for (const Shape& shape : blocks) {
                check(one.isa, one.name, shape, Format::q8_0, Format::q4_1, is_at_end, is_biased);
                check(one.isa, one.name, shape, Format::q4_1, Format::q8_0, is_at_end, is_biased);
            }
        }
        std::printf("%s: checked\n", one.name);
    }
    set_num_threads(1);
    std::printf(num_failures == 0 ? "all good\n" : "%d failed\n", num_failures);
    return num_failures == 0 ? 0 : 1;
}
