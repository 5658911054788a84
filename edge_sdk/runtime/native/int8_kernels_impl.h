// The int8 kernels in GCC's portable vectors, but for `dot`, which each including file defines with
// its processor's instruction, beside LANES (int32 values a vector), VECTORS (vectors a panel is
// wide), ROWS (rows of a register tile), OFFSET, NAME and TABLE. As in kernels_impl.h, nothing here
// may call an inline function of the standard library.

#include "int8_kernels.h"

namespace trajsyn {
namespace {

constexpr int kLanes = LANES;
constexpr int kVectors = VECTORS;
constexpr int kPanel = kLanes * kVectors;
constexpr int kOffset = OFFSET;
constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23, see kernels_impl.h

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef float FloatsUnaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t IntsUnaligned __attribute__((vector_size(LANES * 4), aligned(1), may_alias));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint8_t BytesUnaligned __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));
typedef uint32_t Word __attribute__((aligned(1), may_alias));

inline int least(int a, int b) { return a < b ? a : b; }
inline Floats load(const float* from) { return *reinterpret_cast<const FloatsUnaligned*>(from); }
inline Ints load(const int32_t* from) { return *reinterpret_cast<const IntsUnaligned*>(from); }
inline void store(int32_t* to, Ints value) { *reinterpret_cast<IntsUnaligned*>(to) = value; }

// NaN becomes `low`: there is no integer for it, and what a conversion gives differs by processor.
inline Floats bounded(Floats q, float low, float high) {
  const Floats floor = low - Floats{}, ceiling = high - Floats{};
  q = q > floor ? q : floor;
  return q > ceiling ? ceiling : q;
}

inline Ints nearest(Floats q) {
  return __builtin_convertvector((q + kToInteger) - kToInteger, Ints);
}

// Bits that depend on the value and its place only: runs and thread counts repeat them.
inline Floats uniform(Floats value, uint32_t position) {
  Bits bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  Bits lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<uint32_t>(i);
  bits += (lane + position) * 0x9E3779B1u;
  bits ^= bits >> 16;
  bits *= 0x85EBCA6Bu;
  bits ^= bits >> 13;
  bits *= 0xC2B2AE35u;
  bits ^= bits >> 16;
  return __builtin_convertvector(bits >> 8, Floats) * (1.0f / 16777216.0f);
}

// floor(q + u) for uniform u: the expectation is q (Gupta et al. 2015).
inline Ints stochastic(Floats q, uint32_t position) {
  const Floats moved = bounded(q, -127, 127) + uniform(q, position);
  const Ints whole = __builtin_convertvector(moved, Ints);  // towards zero
  const Floats back = __builtin_convertvector(whole, Floats);
  const Ints floored = whole + (back > moved ? Ints{} - 1 : Ints{});
  return floored > 127 ? Ints{} + 127 : floored;
}

void round_line(const Grid& grid, const float* values, int width, int channels, uint8_t* rows,
                uint8_t* planes, ptrdiff_t plane, float* low, float* high) {
  const ptrdiff_t count = static_cast<ptrdiff_t>(width) * channels;
  Floats lowest = *low - Floats{}, highest = *high - Floats{}, total = {};
  ptrdiff_t at = 0;
  for (; at + kLanes <= count; at += kLanes) {
    const Floats value = load(values + at);
    lowest = value < lowest ? value : lowest;
    highest = value > highest ? value : highest;
    total += value;
    const Ints q = nearest(bounded(value * grid.inverse_step + grid.zero_point, -128, 127));
    *reinterpret_cast<BytesUnaligned*>(rows + at) = __builtin_convertvector(q + kOffset, Bytes);
  }
  for (; at < count; ++at) {
    const float value = values[at];
    lowest[0] = value < lowest[0] ? value : lowest[0];
    highest[0] = value > highest[0] ? value : highest[0];
    total[0] += value;
    float q = value * grid.inverse_step + grid.zero_point;
    q = q > -128 ? q : -128;
    q = q > 127 ? 127 : q;
    rows[at] = static_cast<uint8_t>(static_cast<int>((q + kToInteger) - kToInteger) + kOffset);
  }
  for (int i = 0; i < kLanes; ++i) {
    *low = lowest[i] < *low ? lowest[i] : *low;
    *high = highest[i] > *high ? highest[i] : *high;
  }
  for (int i = 0; i < kLanes; ++i) {
    if (total[i] != total[i]) *low = *high = total[i];
  }
  // Four pixels of four channels at a time.
  for (int c = 0; c < channels; c += kGroup) {
    uint8_t* to = planes + c * plane;
    int x = 0;
    for (; x + kGroup <= width; x += kGroup) {
      uint32_t p[kGroup];
      for (int i = 0; i < kGroup; ++i) {
        p[i] = *reinterpret_cast<const Word*>(rows + static_cast<ptrdiff_t>(x + i) * channels + c);
      }
      for (int i = 0; i < kGroup; ++i) {
        const int shift = 8 * i;
        *reinterpret_cast<Word*>(to + i * plane + x) =
            (p[0] >> shift & 255) | (p[1] >> shift & 255) << 8 | (p[2] >> shift & 255) << 16 |
            (p[3] >> shift & 255) << 24;
      }
    }
    for (; x < width; ++x) {
      for (int i = 0; i < kGroup; ++i) {
        to[i * plane + x] = rows[static_cast<ptrdiff_t>(x) * channels + c + i];
      }
    }
  }
}

inline int rounded_weight(float weight, float step) {
  float q = weight * (1 / step);
  q = q > -127 ? q : -127;
  q = q > 127 ? 127 : q;
  return static_cast<int>((q + kToInteger) - kToInteger);
}

inline Ints rounded_weights(Floats weights, Floats inverse_steps) {
  return nearest(bounded(weights * inverse_steps, -127, 127));
}

void pack(const float* weight, int rows, int outputs, int panel, const float* steps,
          int8_t* packed, int32_t* sums) {
  const int first = panel * kPanel, count = least(kPanel, outputs - first);
  for (int i = 0; i < kPanel; i += kLanes) {
    const int lanes = least(kLanes, count - i);
    const bool whole = lanes == kLanes;
    Floats inverse = {};  // of columns beyond the last: everything rounds to 0
    for (int lane = 0; lane < lanes; ++lane) inverse[lane] = 1 / steps[first + i + lane];
    Ints total = {};
    for (int row = 0; row < rows; row += kGroup) {
      const float* from = weight + static_cast<ptrdiff_t>(row) * outputs + first + i;
      Ints word = {};
      for (int k = 0; k < kGroup; ++k) {
        Floats values = {};
        if (whole) {
          values = load(from + static_cast<ptrdiff_t>(k) * outputs);
        } else {
          for (int lane = 0; lane < lanes; ++lane) {
            values[lane] = from[static_cast<ptrdiff_t>(k) * outputs + lane];
          }
        }
        const Ints q = rounded_weights(values, inverse);
        word |= (q & 255) << (8 * k);
        total += q;
      }
      store(reinterpret_cast<int32_t*>(packed) + static_cast<ptrdiff_t>(row / kGroup) * kPanel + i,
            word);
    }
    store(sums + i, total);
  }
}

void pack_transposed(const float* weight, const Convolution& shape, int panel, const float* steps,
                     int8_t* packed, int32_t* sums) {
  const int first = panel * kPanel, count = least(kPanel, shape.inputs - first);
  const int outputs = shape.outputs, whole = outputs / kLanes * kLanes;
  for (int i = 0; i < kPanel; ++i) sums[i] = 0;
  for (int tap = 0; tap < shape.taps(); ++tap) {
    const ptrdiff_t row = static_cast<ptrdiff_t>(shape.taps() - 1 - tap) * shape.inputs + first;
    Word* to = reinterpret_cast<Word*>(packed) +
               static_cast<ptrdiff_t>(tap) * (outputs / kGroup) * kPanel;
    for (int o = 0; o < whole; o += kLanes) {
      const Floats inverse = 1 / load(steps + o);
      for (int i = 0; i < count; ++i) {
        const Ints q = rounded_weights(load(weight + (row + i) * outputs + o), inverse);
        const Bytes bytes = __builtin_convertvector(q, Bytes);
        uint32_t words[kLanes / kGroup];
        __builtin_memcpy(words, &bytes, sizeof words);
        for (int k = 0; k < kLanes / kGroup; ++k) {
          to[static_cast<ptrdiff_t>(o / kGroup + k) * kPanel + i] = words[k];
        }
        int total = 0;
        for (int lane = 0; lane < kLanes; ++lane) total += q[lane];
        sums[i] += total;
      }
    }
    for (int o = whole; o < outputs; o += kGroup) {
      for (int i = 0; i < count; ++i) {
        uint32_t word = 0;
        for (int k = 0; k < kGroup; ++k) {
          const int q = rounded_weight(weight[(row + i) * outputs + o + k], steps[o + k]);
          word |= (static_cast<uint32_t>(q) & 255) << (8 * k);
          sums[i] += q;
        }
        to[static_cast<ptrdiff_t>(o / kGroup) * kPanel + i] = word;
      }
    }
    for (int o = 0; o < outputs; o += kGroup) {
      for (int i = count; i < kPanel; ++i) to[static_cast<ptrdiff_t>(o / kGroup) * kPanel + i] = 0;
    }
  }
}

template <int R>
void convolve_tile(const uint8_t* const* pixels, const ptrdiff_t* taps, int tap_count,
                   int channels, const int8_t* packed, int32_t* result) {
  Ints sums[R][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[i][v] = Ints{};
  }
  for (int tap = 0; tap < tap_count; ++tap) {
    const uint8_t* at[R];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) at[i] = pixels[i] + taps[tap];
    for (int c = 0; c < channels; c += kGroup) {
      Ints weights[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        weights[v] = load(reinterpret_cast<const int32_t*>(packed) + v * kLanes);
      }
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const Ints x = Ints{} + static_cast<int32_t>(*reinterpret_cast<const Word*>(at[i] + c));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[i][v] = dot(sums[i][v], x, weights[v]);
      }
      packed += kPanel * kGroup;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(result + i * kPanel + v * kLanes, sums[i][v]);
  }
}

template <int R = ROWS>
void convolve_tiles(int rows, const uint8_t* const* pixels, const ptrdiff_t* taps, int tap_count,
                    int channels, const int8_t* packed, int32_t* result) {
  if (rows == R) {
    convolve_tile<R>(pixels, taps, tap_count, channels, packed, result);
  } else if constexpr (R > 1) {
    convolve_tiles<R - 1>(rows, pixels, taps, tap_count, channels, packed, result);
  }
}

void convolve(const Convolution& shape, const uint8_t* padded, const int8_t* packed,
              const int32_t* sums, int panel, int zero, const float* scales, const float* bias,
              int first_row, int last_row, float* result) {
  const int first = panel * kPanel, count = least(kPanel, shape.outputs - first);
  ptrdiff_t taps[kMaxKernel * kMaxKernel];
  const ptrdiff_t line = static_cast<ptrdiff_t>(shape.padded_width()) * shape.inputs;
  for (int tap = 0; tap < shape.taps(); ++tap) {
    taps[tap] = (tap / shape.kernel) * line + (tap % shape.kernel) * shape.inputs;
  }
  const int end = last_row * shape.width;
  int rows;
  for (int pixel = first_row * shape.width; pixel < end; pixel += rows) {
    rows = least(ROWS, end - pixel);
    const uint8_t* pixels[ROWS];
    int y = pixel / shape.width, x = pixel % shape.width;
    for (int i = 0; i < rows; ++i) {
      pixels[i] = padded + y * line + static_cast<ptrdiff_t>(x) * shape.inputs;
      if (++x == shape.width) x = 0, ++y;
    }
    int32_t dots[ROWS * kPanel];
    convolve_tiles(rows, pixels, taps, shape.taps(), shape.inputs, packed, dots);
    for (int i = 0; i < rows; ++i) {
      float* to = result + static_cast<ptrdiff_t>(pixel + i) * shape.outputs + first;
      for (int o = 0; o < count; ++o) {
        const float value = static_cast<float>(dots[i * kPanel + o] - zero * sums[o]);
        to[o] = value * scales[first + o] + (bias != nullptr ? bias[first + o] : 0);
      }
    }
  }
}

void round_gradient(const float* gradient, const Convolution& shape, int64_t position,
                    const float* inverse_steps, int8_t* rounded, int32_t* sums) {
  const int outputs = shape.outputs, groups = (shape.width + kGroup - 1) / kGroup;
  for (int y = 0; y < shape.height; ++y) {
    for (int group = 0; group < groups; ++group) {
      const ptrdiff_t pixel = static_cast<ptrdiff_t>(y) * shape.width + group * kGroup;
      const int pixels = least(kGroup, shape.width - group * kGroup);
      int8_t* line = rounded + (static_cast<ptrdiff_t>(y) * groups + group) * outputs * kGroup;
      for (int o = 0; o < outputs; o += kLanes) {
        const int lanes = least(kLanes, outputs - o);
        Floats scale = {};
        __builtin_memcpy(&scale, inverse_steps + o, static_cast<size_t>(lanes) * 4);
        Ints word = {}, total = {};
        for (int k = 0; k < pixels; ++k) {
          const ptrdiff_t at = (pixel + k) * outputs + o;
          Floats value = {};
          __builtin_memcpy(&value, gradient + at, static_cast<size_t>(lanes) * 4);
          const Ints q = stochastic(value * scale, static_cast<uint32_t>(position + at));
          word |= (q & 255) << (8 * k);
          total += q;
        }
        __builtin_memcpy(line + static_cast<ptrdiff_t>(o) * kGroup, &word,
                         static_cast<size_t>(lanes) * 4);
        for (int i = 0; i < lanes; ++i) sums[o + i] += total[i];
      }
    }
  }
}

void round_scaled_line(const float* gradient, int width, int outputs, int64_t position,
                       const float* factors, uint8_t* rows) {
  for (int x = 0; x < width; ++x) {
    for (int o = 0; o < outputs; o += kLanes) {
      const int lanes = least(kLanes, outputs - o);
      const ptrdiff_t at = static_cast<ptrdiff_t>(x) * outputs + o;
      Floats value = {}, factor = {};
      __builtin_memcpy(&value, gradient + at, static_cast<size_t>(lanes) * 4);
      __builtin_memcpy(&factor, factors + o, static_cast<size_t>(lanes) * 4);
      const Ints q = stochastic(value * factor, static_cast<uint32_t>(position + at));
      const Bytes bytes = __builtin_convertvector(q + kOffset, Bytes);
      __builtin_memcpy(rows + at, &bytes, static_cast<size_t>(lanes));
    }
  }
}

// R channels of one tap: adds the products of all pixels of one image to int32 sums.
template <int R>
void gradient_tile(const uint8_t* x, ptrdiff_t plane, int line, const int8_t* rounded,
                   ptrdiff_t group, int height, int groups, bool fresh, int32_t* sums_at) {
  Ints sums[R][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = fresh ? Ints{} : load(sums_at + i * kPanel + v * kLanes);
    }
  }
  for (int y = 0; y < height; ++y) {
    const uint8_t* at = x + static_cast<ptrdiff_t>(y) * line;
    for (int g = 0; g < groups; ++g) {
      Ints gradient[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        gradient[v] = load(reinterpret_cast<const int32_t*>(rounded) + v * kLanes);
      }
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const Ints value = Ints{} + static_cast<int32_t>(
                                        *reinterpret_cast<const Word*>(at + i * plane));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[i][v] = dot(sums[i][v], value, gradient[v]);
      }
      at += kGroup;
      rounded += group;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sums_at + i * kPanel + v * kLanes, sums[i][v]);
  }
}

template <int R = ROWS>
void gradient_tiles(int rows, const uint8_t* x, ptrdiff_t plane, int line, const int8_t* rounded,
                    ptrdiff_t group, int height, int groups, bool fresh, int32_t* sums) {
  if (rows == R) {
    gradient_tile<R>(x, plane, line, rounded, group, height, groups, fresh, sums);
  } else if constexpr (R > 1) {
    gradient_tiles<R - 1>(rows, x, plane, line, rounded, group, height, groups, fresh, sums);
  }
}

void weight_gradient(const Convolution& shape, int images, const uint8_t* planes, ptrdiff_t plane,
                     const int8_t* rounded, const int32_t* sums, int zero, const float* scales,
                     int tap, int panel, float* result) {
  const int first = panel * kPanel, count = least(kPanel, shape.outputs - first);
  const int line = shape.padded_width(), groups = (shape.width + kGroup - 1) / kGroup;
  const ptrdiff_t group = static_cast<ptrdiff_t>(shape.outputs) * kGroup;
  const uint8_t* shifted = planes + (tap / shape.kernel) * line + tap % shape.kernel;
  int rows;
  for (int c = 0; c < shape.inputs; c += rows) {
    rows = least(ROWS, shape.inputs - c);
    int32_t dots[ROWS * kPanel];
    for (int image = 0; image < images; ++image) {
      const uint8_t* x = shifted + (static_cast<ptrdiff_t>(image) * shape.inputs + c) * plane;
      const int8_t* d = rounded + static_cast<ptrdiff_t>(image) * shape.height * groups * group +
                        static_cast<ptrdiff_t>(first) * kGroup;
      gradient_tiles(rows, x, plane, line, d, group, shape.height, groups, image == 0, dots);
    }
    for (int i = 0; i < rows; ++i) {
      float* to = result +
                  (static_cast<ptrdiff_t>(tap) * shape.inputs + c + i) * shape.outputs + first;
      for (int o = 0; o < count; ++o) {
        to[o] = static_cast<float>(dots[i * kPanel + o] - zero * sums[first + o]) *
                scales[first + o];
      }
    }
  }
}

}  // namespace

extern const Int8Kernels TABLE;
const Int8Kernels TABLE = {NAME,           kOffset,  kPanel,         round_line,
                           pack,           pack_transposed, convolve, round_gradient,
                           round_scaled_line, weight_gradient};

}  // namespace trajsyn
