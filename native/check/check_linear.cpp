// Runs packing, every instruction set this CPU has, and the pool with buffers that end (or start) at a page
// that may not be touched, and compares with sums in double. tests/native/ runs it under the
// sanitizers; the guard pages also see what they do not instrument: tile and masked loads and stores.
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "guarded.h"
#include "isa.h"
#include "linear.h"
#include "pool.h"

using namespace hearth;

namespace {

int num_failures = 0;

void expect(bool holds, const char* what, const char* isa, const std::int64_t* shape) {
    if (holds) return;
    ++num_failures;
    std::printf("FAILED %s, %s, T %ld N %ld K %ld\n", what, isa, long(shape[0]), long(shape[1]), long(shape[2]));
}

// Whether the transposed pack holds the same numbers, whose rows are given.
bool is_transposed(const Guarded& packed, const Numbers& weight, std::int64_t outputs, std::int64_t inputs,
                   Format format, Number number, bool is_at_end) {
    const Format plain = number == Number::bf16 ? Format::bf16 : Format::f32;
    Guarded turned(std::size_t(packed_bytes(inputs, outputs, plain)), is_at_end);
    std::memset(turned.as<char>(), 0x7f, std::size_t(packed_bytes(inputs, outputs, plain)));
    transpose_packed(packed.as<char>(), outputs, inputs, format, turned.as<char>());
    Numbers columns(inputs * outputs, number, is_at_end);
    unpack_rows(turned.as<char>(), nullptr, inputs, outputs, plain, number, columns.memory.as<char>());
    Guarded again(std::size_t(packed_bytes(inputs, outputs, plain)), is_at_end);  // zero where no row is
    pack_rows(columns.memory.as<char>(), outputs * (number == Number::bf16 ? 2 : 4), nullptr, inputs, outputs, plain,
              again.as<char>(), 0);
    for (std::int64_t i = 0; i < outputs * inputs; ++i) {
        if (columns.get(i % inputs * outputs + i / inputs) != weight.get(i)) return false;
    }
    return std::memcmp(turned.as<char>(), again.as<char>(), std::size_t(packed_bytes(inputs, outputs, plain))) == 0;
}

void check(Isa isa, const char* name, const std::int64_t* shape, Number number, Number out_number, bool is_at_end) {
    const std::int64_t rows = shape[0], outputs = shape[1], inputs = shape[2];
    const Format format = number == Number::bf16 ? Format::bf16 : Format::f32;
    Numbers x(rows * inputs, number, is_at_end), weight(outputs * inputs, number, is_at_end);
    Numbers back(outputs * inputs, number, is_at_end), out(rows * outputs, out_number, is_at_end);
    for (std::int64_t i = 0; i < rows * inputs; ++i) x.set(i, draw());
    for (std::int64_t i = 0; i < outputs * inputs; ++i) weight.set(i, draw());
    Guarded packed(std::size_t(packed_bytes(outputs, inputs, format)), is_at_end);
    Guarded bias(std::size_t(num_panels(outputs) * kPanel) * sizeof(float), is_at_end);
    for (std::int64_t n = 0; n < num_panels(outputs) * kPanel; ++n) bias.as<float>()[n] = draw();
    pack_rows(weight.memory.as<char>(), inputs * (number == Number::bf16 ? 2 : 4), nullptr, outputs, inputs, format,
              packed.as<char>(), 0);
    unpack_rows(packed.as<char>(), nullptr, outputs, inputs, format, number, back.memory.as<char>());
    for (std::int64_t i = 0; i < outputs * inputs; ++i) {
        if (back.get(i) != weight.get(i)) return expect(false, "unpacking", name, shape);
    }
    expect(is_transposed(packed, weight, outputs, inputs, format, number, is_at_end), "transposing", name, shape);
    const LinearCall call{x.memory.as<char>(), inputs, packed.as<char>(), bias.as<float>(), out.memory.as<char>(),
                          outputs, rows, outputs, inputs, format, out_number};
    linear(isa, &call, 1);
    for (std::int64_t t = 0; t < rows; ++t) {
        for (std::int64_t n = 0; n < outputs; ++n) {
            double sum = bias.as<float>()[n], size = std::fabs(sum);
            for (std::int64_t k = 0; k < inputs; ++k) {
                const double product = double(x.get(t * inputs + k)) * double(weight.get(n * inputs + k));
                sum += product;
                size += std::fabs(product);
            }
            const double rounding = out_number == Number::bf16 ? std::ldexp(std::fabs(sum), -8) : 0.0;
            const double bound = std::ldexp(size * double(inputs + 3), -23) + rounding;
            if (!(std::fabs(out.get(t * outputs + n) - sum) <= bound)) return expect(false, "value", name, shape);
        }
    }
}

// total + grad^T x, with rows further apart than they are long.
void check_weight_grad(Isa isa, const char* name, const std::int64_t* shape, Number number, bool is_at_end) {
    const std::int64_t rows = shape[0], outputs = shape[1], inputs = shape[2];
    const std::int64_t grad_stride = outputs + 3, x_stride = inputs + 1;
    const std::int64_t num_grads = rows == 0 ? 0 : (rows - 1) * grad_stride + outputs;
    const std::int64_t num_x = rows == 0 ? 0 : (rows - 1) * x_stride + inputs;
    Numbers grad(num_grads, number, is_at_end), x(num_x, number, is_at_end);
    Numbers total(outputs * inputs, Number::f32, is_at_end), before(outputs * inputs, Number::f32, is_at_end);
    for (std::int64_t i = 0; i < num_grads; ++i) grad.set(i, draw());
    for (std::int64_t i = 0; i < num_x; ++i) x.set(i, draw());
    for (std::int64_t i = 0; i < outputs * inputs; ++i) {
        before.set(i, draw());
        total.set(i, before.get(i));
    }
    const std::size_t num_bytes = std::size_t(weight_grad_bytes(rows, outputs, inputs, number));
    Guarded scratch((num_bytes + 63) / 64 * 64, is_at_end);
    std::memset(scratch.as<char>(), 0x7f, num_bytes);  // NaN wherever it is read unwritten
    weight_grad(isa, {grad.memory.as<char>(), x.memory.as<char>(), total.memory.as<float>(), grad_stride, x_stride, rows,
                      outputs, inputs, number, scratch.as<char>()});
    for (std::int64_t n = 0; n < outputs; ++n) {
        for (std::int64_t k = 0; k < inputs; ++k) {
            double sum = before.get(n * inputs + k), size = std::fabs(sum);
            for (std::int64_t t = 0; t < rows; ++t) {
                const double product = double(grad.get(t * grad_stride + n)) * double(x.get(t * x_stride + k));
                sum += product;
                size += std::fabs(product);
            }
            const double bound = std::ldexp(size * double(rows + 3), -23);
            if (!(std::fabs(total.get(n * inputs + k) - sum) <= bound)) return expect(false, "gradient", name, shape);
        }
    }
}

// Bytes of one GGUF block of the format, and how many float16 numbers it begins with.
struct BlockShape {
    Format format;
    std::int64_t numbers, bytes, halves;
};

// Blocks of random quants in two packs of different rows, against sums of the unpacked numbers.
void check_blocks(Isa isa, const char* name, const std::int64_t* shape, const BlockShape& block, bool is_at_end) {
    const std::int64_t rows = shape[0], outputs = shape[1], inputs = shape[2], groups = inputs / kGroup;
    const std::int64_t row_bytes = inputs / block.numbers * block.bytes;
    const bool is_rounded = takes_bytes(block.format) && isa != Isa::amx;
    Guarded raw(std::size_t(outputs * row_bytes), is_at_end);
    for (std::int64_t i = 0; i < outputs * row_bytes; ++i) raw.as<char>()[i] = char(int(draw() * 127));
    for (std::int64_t start = 0; start < outputs * row_bytes; start += block.bytes) {
        for (std::int64_t half = 0; half < block.halves; ++half) {
            const std::uint16_t small = std::uint16_t(0x2000 + int((draw() + 1) * 1023));  // 2^-7 to 2^-5
            std::memcpy(raw.as<char>() + start + 2 * half, &small, 2);
        }
    }
    Guarded packed(std::size_t(packed_bytes(outputs, inputs, block.format)), is_at_end);
    const std::int64_t first = outputs / 3;
    pack_rows(raw.as<char>(), row_bytes, nullptr, first, inputs, block.format, packed.as<char>(), 0);
    pack_rows(raw.as<char>() + first * row_bytes, row_bytes, nullptr, outputs - first, inputs, block.format,
              packed.as<char>(), first);
    Numbers weight(outputs * inputs, Number::f32, is_at_end), x(rows * inputs, Number::bf16, is_at_end);
    unpack_rows(packed.as<char>(), nullptr, outputs, inputs, block.format, Number::f32, weight.memory.as<char>());
    Numbers rounded(outputs * inputs, Number::bf16, is_at_end);
    unpack_rows(packed.as<char>(), nullptr, outputs, inputs, block.format, Number::bf16, rounded.memory.as<char>());
    expect(is_transposed(packed, rounded, outputs, inputs, block.format, Number::bf16, is_at_end),
           "transposed blocks", name, shape);
    for (std::int64_t i = 0; i < rows * inputs; ++i) x.set(i, draw());
    Numbers out(rows * outputs, Number::f32, is_at_end);
    const LinearCall call{x.memory.as<char>(), inputs, packed.as<char>(), nullptr, out.memory.as<char>(),
                          outputs, rows, outputs, inputs, block.format, Number::f32};
    Numbers again(rows * outputs, Number::f32, is_at_end);
    LinearCall twice[] = {call, call};
    twice[1].out = again.memory.as<char>();
    linear(isa, twice, 2);
    if (std::memcmp(out.memory.as<char>(), again.memory.as<char>(), std::size_t(rows * outputs) * 4) != 0) {
        return expect(false, "blocks together", name, shape);
    }
    for (std::int64_t t = 0; t < rows; ++t) {
        for (std::int64_t n = 0; n < outputs; ++n) {
            double sum = 0, size = 0, rounding = 0;
            for (std::int64_t k = 0; k < inputs; ++k) {
                const double product = double(x.get(t * inputs + k)) * double(weight.get(n * inputs + k));
                sum += product;
                size += std::fabs(product) + std::fabs(double(x.get(t * inputs + k)));  // |m| < 2^-5 * 63
                if (is_rounded) rounding += std::fabs(double(weight.get(n * inputs + k))) / 254;  // |x| <= 1
            }
            const double bound = std::ldexp(4 * size * double(kGroup + groups + 4), -23) + rounding * 1.0001;
            if (!(std::fabs(out.get(t * outputs + n) - sum) <= bound)) return expect(false, "blocks", name, shape);
        }
    }
}

void check_quantizing(Isa isa, Format format, std::int64_t block_bytes, bool is_at_end) {
    const std::int64_t shape[3] = {0, 37, 96 + 32 * 17};
    for (Number number : {Number::f32, Number::bf16}) {
        Numbers weight(shape[1] * shape[2], number, is_at_end);
        for (std::int64_t i = 0; i < shape[1] * shape[2]; ++i) weight.set(i, draw());
        Guarded blocks(std::size_t(shape[1] * shape[2] / kGroup * block_bytes), is_at_end);
        quantize_rows(isa, weight.memory.as<char>(), shape[2] * (number == Number::bf16 ? 2 : 4), number, shape[1], shape[2],
                      format, blocks.as<char>());
        Guarded packed(std::size_t(packed_bytes(shape[1], shape[2], format)), is_at_end);
        pack_rows(blocks.as<char>(), shape[2] / kGroup * block_bytes, nullptr, shape[1], shape[2], format,
                  packed.as<char>(), 0);
        Numbers back(shape[1] * shape[2], Number::f32, is_at_end);
        unpack_rows(packed.as<char>(), nullptr, shape[1], shape[2], format, Number::f32, back.memory.as<char>());
        const float step = format == Format::q8_0 ? 2.0f / 254 : 2.0f / 15;
        for (std::int64_t i = 0; i < shape[1] * shape[2]; ++i) {
            if (!(std::fabs(back.get(i) - weight.get(i)) <= 2 * step)) return expect(false, "quantizing", "", shape);
        }
    }
}

// What another library configured for the tiles of this thread is there again after a call.
void check_tile_config() {
#if defined(__x86_64__)
    if (!missing(Isa::amx).empty()) return;
    alignas(64) char before[64] = {}, after[64] = {};
    before[0] = 1;       // palette
    before[16] = 32;     // bytes of a row of tile 0
    before[48] = 7;      // rows of tile 0
    std::uint16_t x[32] = {}, out[32] = {};
    alignas(64) std::uint16_t weight[32 * 32] = {};
    __asm__ volatile("ldtilecfg %0" ::"m"(before) : "memory");
    const LinearCall call{x, 32, weight, nullptr, out, 32, 1, 32, 32, Format::bf16, Number::bf16};
    linear(Isa::amx, &call, 1);
    __asm__ volatile("sttilecfg %0" : "=m"(after)::"memory");
    __asm__ volatile("tilerelease");
    const std::int64_t shape[3] = {1, 32, 32};
    expect(std::memcmp(before, after, sizeof before) == 0, "tile configuration", "amx", shape);
#endif
}

void check_pool() {
    constexpr int num_chunks = 97;
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller) {
        callers.emplace_back([] {
            for (int round = 0; round < 300; ++round) {
                int counts[num_chunks] = {};
                const auto inner = [](std::int64_t) {};
                for_each_chunk(num_chunks, [&](std::int64_t chunk) {
                    ++counts[chunk];
                    if (chunk == 50) for_each_chunk(3, inner);
                });
                for (int count : counts) {
                    if (count != 1) std::abort();
                }
            }
        });
    }
    for (int count : {4, 1, 3, 2}) set_num_threads(count);
    for (auto& caller : callers) caller.join();
}

// A child of fork computes with workers of its own.
void check_fork() {
    int total = 0;
    const pid_t child = fork();
    if (child == 0) {
        std::int64_t sums[40] = {};
        for_each_chunk(40, [&](std::int64_t chunk) { sums[chunk] = chunk; });
        for (std::int64_t sum : sums) total += int(sum);
        set_num_threads(1);
        _exit(total == 780 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    if (status != 0) {
        ++num_failures;
        std::printf("FAILED fork, status %d\n", status);
    }
}

}  // namespace

int main(int num_arguments, char**) {
    const std::int64_t shapes[][3] = {{1, 1, 1},    {1, 64, 64},  {2, 33, 31},  {3, 31, 33},   {5, 65, 2},
                                      {16, 32, 32}, {17, 95, 97}, {32, 40, 48}, {33, 129, 63}, {70, 34, 130},
                                      {1, 576, 99}, {0, 8, 8},    {4, 40, 0},   {300, 16, 40}};
    const std::int64_t block_shapes[][3] = {{1, 1, 32},   {1, 64, 96},  {2, 33, 256}, {3, 40, 64},  {7, 31, 256},
                                            {17, 70, 96}, {33, 65, 32}, {70, 34, 256}, {0, 8, 32}};
    const BlockShape all_blocks[] = {{Format::q8_0, 32, 34, 1}, {Format::q4_0, 32, 18, 1}, {Format::q4_1, 32, 20, 2},
                                  {Format::q4_k, 256, 144, 2}, {Format::q8_0_bytes, 32, 34, 1},
                                  {Format::q4_0_bytes, 32, 18, 1}, {Format::q4_1_bytes, 32, 20, 2},
                                  {Format::q4_k_bytes, 256, 144, 2}};
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
        for (const auto& shape : shapes) {
            for (int variant = 0; variant < 8; ++variant) {
                check(one.isa, one.name, shape, variant & 1 ? Number::bf16 : Number::f32,
                      variant & 2 ? Number::bf16 : Number::f32, (variant & 4) != 0);
                if (variant & 2) continue;
                check_weight_grad(one.isa, one.name, shape, variant & 1 ? Number::bf16 : Number::f32, (variant & 4) != 0);
            }
        }
        for (const BlockShape& block : all_blocks) {
            for (const auto& shape : block_shapes) {
                if (shape[2] % block.numbers != 0) continue;
                for (bool is_at_end : {false, true}) check_blocks(one.isa, one.name, shape, block, is_at_end);
            }
        }
        for (bool is_at_end : {false, true}) {
            check_quantizing(one.isa, Format::q8_0, 34, is_at_end);
            check_quantizing(one.isa, Format::q4_1, 20, is_at_end);
        }
        std::printf("%s: checked\n", one.name);
    }
    check_tile_config();
    check_pool();
    if (num_arguments == 1) check_fork();  // an argument leaves it out: ThreadSanitizer cannot follow a fork
    set_num_threads(1);
    std::printf(num_failures == 0 ? "all good\n" : "%d failed\n", num_failures);
    return num_failures == 0 ? 0 : 1;
}
