// Rows of numbers to the blocks of a GGUF file.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "linear.h"
#include "number.h"
#include "pool.h"

namespace hearth {
namespace {

constexpr int kLanes = 8;
constexpr std::int64_t kRowsPerChunk = 16;
constexpr float kShrink[] = {1.0f, 0.97f, 0.94f, 0.91f, 0.88f, 0.84f, 0.8f, 0.75f};  // of the range, tried in turn

// Nearest whole number, ties to even, below 2^22 in size; the addition drops the fraction.
inline float round_whole(float number) {
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23
    return (number + magic) - magic;
}

// d = largest size / 127 in float16, q = round(x / d): closer than with the d before its rounding, which
// `quantize_row_q8_0_ref` of ggml-quants.c divides by.
void quantize_q8_0(const float* x, char* block) {
    float largest = 0.0f;
    for (int i = 0; i < kGroup; ++i) largest = std::max(largest, std::fabs(x[i]));
    const std::uint16_t half = half_of_float(largest / 127.0f);
    const float scale = float_of_half(half), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    std::memcpy(block, &half, 2);
    for (int i = 0; i < kGroup; ++i) block[2 + i] = char(int(std::min(127.0f, std::max(-127.0f, round_whole(x[i] * inverse)))));
}

struct Line {
    float scale, minimum;
};

// Codes 0 to 15 of x on a line.
void encode(const float* x, Line line, float* q) {
    const float inverse = line.scale > 0.0f ? 1.0f / line.scale : 0.0f;
    for (int i = 0; i < kGroup; ++i) q[i] = std::min(15.0f, std::max(0.0f, round_whole((x[i] - line.minimum) * inverse)));
}

float squared_error(const float* x, const float* q, Line line) {
    float sums[kLanes] = {};
    for (int i = 0; i < kGroup; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const float error = x[i + lane] - (line.scale * q[i + lane] + line.minimum);
            sums[lane] += error * error;
        }
    }
    float total = 0.0f;
    for (float sum : sums) total += sum;
    return total;
}

// Least squares of x over q; false where all codes are equal.
bool fit(const float* x, const float* q, Line& line) {
    float q_sums[kLanes] = {}, q2_sums[kLanes] = {}, x_sums[kLanes] = {}, qx_sums[kLanes] = {};
    for (int i = 0; i < kGroup; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            q_sums[lane] += q[i + lane];
            q2_sums[lane] += q[i + lane] * q[i + lane];
            x_sums[lane] += x[i + lane];
            qx_sums[lane] += q[i + lane] * x[i + lane];
        }
    }
    double q_sum = 0, q2_sum = 0, x_sum = 0, qx_sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
        q_sum += q_sums[lane];
        q2_sum += q2_sums[lane];
        x_sum += x_sums[lane];
        qx_sum += qx_sums[lane];
    }
    const double spread = kGroup * q2_sum - q_sum * q_sum;
    if (!(spread > 0.0)) return false;
    line.scale = float((kGroup * qx_sum - q_sum * x_sum) / spread);
    line.minimum = float((x_sum - double(line.scale) * q_sum) / kGroup);
    return line.scale > 0.0f;
}

Line stored(Line line) {
    return {float_of_half(half_of_float(line.scale)), float_of_half(half_of_float(line.minimum))};
}

// The range of x, and shrunk ones that trade the outermost numbers for finer steps, each followed by a least
// squares fit of its codes; the stored line of least squared error wins, the plain range where all are equal.
void quantize_q4_1(const float* x, char* block) {
    float low = x[0], high = x[0];
    for (int i = 1; i < kGroup; ++i) {
        low = std::min(low, x[i]);
        high = std::max(high, x[i]);
    }
    Line best = stored({(high - low) / 15.0f, low});
    float q[kGroup], best_q[kGroup];
    encode(x, best, best_q);
    float best_error = squared_error(x, best_q, best);
    const auto consider = [&](Line line) {
        line = stored(line);
        encode(x, line, q);
        const float error = squared_error(x, q, line);
        if (error < best_error) {
            best = line;
            best_error = error;
            std::memcpy(best_q, q, sizeof q);
        }
    };
    const float middle = 0.5f * (low + high), reach = 0.5f * (high - low);
    for (float shrink : kShrink) {
        Line line{2.0f * reach * shrink / 15.0f, middle - reach * shrink};
        encode(x, line, q);
        if (fit(x, q, line)) consider(line);
    }
    Line refined;
    if (fit(x, best_q, refined)) consider(refined);
    const std::uint16_t halves[2] = {half_of_float(best.scale), half_of_float(best.minimum)};
    std::memcpy(block, halves, sizeof halves);
    for (int i = 0; i < 16; ++i) block[4 + i] = char(int(best_q[i]) | int(best_q[i + 16]) << 4);
}

}  // namespace

void quantize_rows(const void* rows, std::int64_t stride, Number number, std::int64_t num_rows, std::int64_t num_inputs,
                   Format format, void* out) {
    const std::int64_t num_groups = num_inputs / kGroup, block_bytes = format == Format::q8_0 ? 34 : 20;
    for_each_chunk((num_rows + kRowsPerChunk - 1) / kRowsPerChunk, [&](std::int64_t chunk) {
        for (std::int64_t row = chunk * kRowsPerChunk; row < std::min((chunk + 1) * kRowsPerChunk, num_rows); ++row) {
            const char* const from = static_cast<const char*>(rows) + row * stride;
            char* block = static_cast<char*>(out) + row * num_groups * block_bytes;
            for (std::int64_t group = 0; group < num_groups; ++group, block += block_bytes) {
                float x[kGroup];
                if (number == Number::f32) {
                    std::memcpy(x, from + group * kGroup * 4, sizeof x);
                } else {
                    std::uint16_t low[kGroup];
                    std::memcpy(low, from + group * kGroup * 2, sizeof low);
                    for (int i = 0; i < kGroup; ++i) x[i] = float_of_bf16(low[i]);
                }
                if (format == Format::q8_0) {
                    quantize_q8_0(x, block);
                } else {
                    quantize_q4_1(x, block);
                }
            }
        }
    });
}

}  // namespace hearth
