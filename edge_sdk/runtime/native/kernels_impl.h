// The kernels in GCC's portable vectors. Each kernels_<instruction set>.cpp includes this file
// after defining LANES (floats a vector), TABLE (the name of its Kernels) and PANEL_VECTORS (how
// many vectors wide the panels are at most), and is compiled for its instruction set. Nothing here
// may call an inline function of the standard library: the linker could keep that copy for all.

#include "kernels.h"

namespace trajsyn {
namespace {

constexpr int kLanes = LANES;
constexpr int kMaxRows = 14;
constexpr int kPixelBlock = 64;  // pixels whose gradients stay in the first-level cache

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }
inline Vector splat(float value) { return value - Vector{}; }
inline int least(int a, int b) { return a < b ? a : b; }

// Rows of a register tile: as many accumulators as the register file holds beside the operands.
constexpr int tile_rows(int vectors) {
#if defined(__AVX512F__) || defined(__aarch64__)
  return vectors >= 4 ? 6 : vectors == 2 ? 12 : 14;
#else
  return vectors >= 2 ? 6 : 12;
#endif
}

int panel_width(int outputs) {
  int vectors = PANEL_VECTORS;
  while (vectors > 1 && outputs <= kLanes * vectors / 2) vectors /= 2;
  return kLanes * vectors;
}

// The nearest integer, ties to even, of a magnitude below 2^22; the compiler may not reassociate.
constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23

inline float rounded(float weight, float step) {
  float q = weight * (1 / step);
  q = q < -127 ? -127 : q;
  q = q > 127 ? 127 : q;
  return ((q + kToInteger) - kToInteger) * step;
}

void pack(const float* weight, int rows, int outputs, int panel, int width,
          const float* steps, float* packed) {
  const int first = panel * width;
  const int count = least(width, outputs - first);
  for (int row = 0; row < rows; ++row) {
    const float* from = weight + static_cast<ptrdiff_t>(row) * outputs + first;
    float* to = packed + static_cast<ptrdiff_t>(row) * width;
    if (steps != nullptr) {
      for (int i = 0; i < count; ++i) to[i] = rounded(from[i], steps[first + i]);
    } else {
      for (int i = 0; i < count; ++i) to[i] = from[i];
    }
    for (int i = count; i < width; ++i) to[i] = 0;
  }
}

typedef float Four __attribute__((vector_size(16)));
typedef float FourUnaligned __attribute__((vector_size(16), aligned(4), may_alias));

// The steps of four columns, and whether there are any.
struct FourSteps {
  bool any;
  Four step, inverse;
};

inline Four four_weights(const float* from, const FourSteps& steps) {
  const Four values = *reinterpret_cast<const FourUnaligned*>(from);
  if (!steps.any) return values;
  Four q = values * steps.inverse;
  q = q < Four{} - 127 ? Four{} - 127 : q;
  q = q > Four{} + 127 ? Four{} + 127 : q;
  return ((q + kToInteger) - kToInteger) * steps.step;
}

// Writes the transpose of four rows of four weights.
inline void transpose_four(const float* from, ptrdiff_t from_row, const FourSteps& steps,
                           float* to, ptrdiff_t to_row) {
  const Four a = four_weights(from, steps);
  const Four b = four_weights(from + from_row, steps);
  const Four c = four_weights(from + 2 * from_row, steps);
  const Four d = four_weights(from + 3 * from_row, steps);
  typedef int Order __attribute__((vector_size(16)));
  const Four ab_low = __builtin_shuffle(a, b, Order{0, 4, 1, 5});
  const Four ab_high = __builtin_shuffle(a, b, Order{2, 6, 3, 7});
  const Four cd_low = __builtin_shuffle(c, d, Order{0, 4, 1, 5});
  const Four cd_high = __builtin_shuffle(c, d, Order{2, 6, 3, 7});
  *reinterpret_cast<FourUnaligned*>(to) = __builtin_shuffle(ab_low, cd_low, Order{0, 1, 4, 5});
  *reinterpret_cast<FourUnaligned*>(to + to_row) =
      __builtin_shuffle(ab_low, cd_low, Order{2, 3, 6, 7});
  *reinterpret_cast<FourUnaligned*>(to + 2 * to_row) =
      __builtin_shuffle(ab_high, cd_high, Order{0, 1, 4, 5});
  *reinterpret_cast<FourUnaligned*>(to + 3 * to_row) =
      __builtin_shuffle(ab_high, cd_high, Order{2, 3, 6, 7});
}

void pack_transposed(const float* weight, const Convolution& shape, int panel, int width,
                     const float* steps, float* packed) {
  const int first = panel * width;
  const int count = least(width, shape.inputs - first);
  const int outputs = shape.outputs;
  const int blocks = count / 4 * 4, columns = outputs / 4 * 4;
  for (int tap = 0; tap < shape.taps(); ++tap) {
    const ptrdiff_t row = static_cast<ptrdiff_t>(shape.taps() - 1 - tap) * shape.inputs + first;
    const float* from = weight + row * outputs;
    float* to = packed + static_cast<ptrdiff_t>(tap) * outputs * width;
    for (int o = 0; o < columns; o += 4) {
      FourSteps four{steps != nullptr, {}, {}};
      if (four.any) {
        four.step = *reinterpret_cast<const FourUnaligned*>(steps + o);
        four.inverse = 1 / four.step;
      }
      for (int i = 0; i < blocks; i += 4) {
        transpose_four(from + static_cast<ptrdiff_t>(i) * outputs + o, outputs, four,
                       to + static_cast<ptrdiff_t>(o) * width + i, width);
      }
    }
    for (int o = 0; o < outputs; ++o) {
      float* line = to + static_cast<ptrdiff_t>(o) * width;
      for (int i = o < columns ? blocks : 0; i < count; ++i) {
        const float value = from[static_cast<ptrdiff_t>(i) * outputs + o];
        line[i] = steps != nullptr ? rounded(value, steps[o]) : value;
      }
      for (int i = count; i < width; ++i) line[i] = 0;
    }
  }
}

void round_to(const Grid& grid, const float* values, ptrdiff_t count, float* rounded, float* low,
              float* high) {
  Vector lowest = splat(*low), highest = splat(*high);
  const Vector floor = splat(-128), ceiling = splat(127), zero = splat(grid.zero_point);
  Vector tail = lowest;
  for (ptrdiff_t at = 0; at < count; at += kLanes) {
    const bool whole = at + kLanes <= count;
    Vector value = tail;  // beyond the end: a value that changes nothing
    if (whole) {
      value = load(values + at);
    } else {
      for (ptrdiff_t i = at; i < count; ++i) value[i - at] = values[i];
    }
    lowest = value < lowest ? value : lowest;
    highest = value > highest ? value : highest;
    Vector result = value;
    if (!grid.is_empty) {
      Vector q = value * grid.inverse_step + zero;
      q = q < floor ? floor : q;  // NaN passes
      q = q > ceiling ? ceiling : q;
      result = ((q + kToInteger) - kToInteger - zero) * grid.step;
    }
    if (whole) {
      store(rounded + at, result);
    } else {
      for (ptrdiff_t i = at; i < count; ++i) rounded[i] = result[i - at];
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    *low = lowest[i] < *low ? lowest[i] : *low;
    *high = highest[i] > *high ? highest[i] : *high;
  }
}

void pass_inside(const Grid& grid, const float* values, ptrdiff_t count, float* gradients) {
  if (grid.is_empty) return;
  for (ptrdiff_t i = 0; i < count; ++i) {
    const float q = values[i] * grid.inverse_step + grid.zero_point;
    gradients[i] = q >= -128.5f && q < 127.5f ? gradients[i] : 0;
  }
}

// R pixels times V vectors of output channels; `pixels` point at their first tap.
template <int R, int V>
void convolve_tile(const float* const* pixels, const ptrdiff_t* taps, int tap_count, int channels,
                   const float* packed, const float* bias, float* result, ptrdiff_t stride) {
  Vector sums[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[i][v] = load(bias + v * kLanes);
  }
  for (int tap = 0; tap < tap_count; ++tap) {
    const float* at[R];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) at[i] = pixels[i] + taps[tap];
    for (int c = 0; c < channels; ++c) {
      Vector weights[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) weights[v] = load(packed + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const Vector x = splat(at[i][c]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[i][v] += x * weights[v];
      }
      packed += V * kLanes;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(result + i * stride + v * kLanes, sums[i][v]);
  }
}

template <int V, int R = tile_rows(V)>
void convolve_tiles(int rows, const float* const* pixels, const ptrdiff_t* taps, int tap_count,
                    int channels, const float* packed, const float* bias, float* result,
                    ptrdiff_t stride) {
  if (rows == R) {
    convolve_tile<R, V>(pixels, taps, tap_count, channels, packed, bias, result, stride);
  } else if constexpr (R > 1) {
    convolve_tiles<V, R - 1>(rows, pixels, taps, tap_count, channels, packed, bias, result,
                             stride);
  }
}

template <int V>
void convolve_panel(const Convolution& shape, const float* padded, const float* packed, int first,
                    const float* bias, int first_row, int last_row, float* result) {
  constexpr int kWidth = V * kLanes;
  const int count = least(kWidth, shape.outputs - first);
  float offsets[kWidth];
  for (int i = 0; i < kWidth; ++i) offsets[i] = bias != nullptr && i < count ? bias[first + i] : 0;
  ptrdiff_t taps[kMaxKernel * kMaxKernel];
  const ptrdiff_t line = static_cast<ptrdiff_t>(shape.padded_width()) * shape.inputs;
  for (int tap = 0; tap < shape.taps(); ++tap) {
    taps[tap] = (tap / shape.kernel) * line + (tap % shape.kernel) * shape.inputs;
  }
  const int end = last_row * shape.width;
  int rows;
  for (int pixel = first_row * shape.width; pixel < end; pixel += rows) {
    rows = least(tile_rows(V), end - pixel);
    const float* pixels[kMaxRows];
    int y = pixel / shape.width, x = pixel % shape.width;
    for (int i = 0; i < rows; ++i) {
      pixels[i] = padded + y * line + static_cast<ptrdiff_t>(x) * shape.inputs;
      if (++x == shape.width) x = 0, ++y;
    }
    float* to = result + static_cast<ptrdiff_t>(pixel) * shape.outputs + first;
    if (count == kWidth) {
      convolve_tiles<V>(rows, pixels, taps, shape.taps(), shape.inputs, packed, offsets, to,
                        shape.outputs);
    } else {
      float whole[kMaxRows * kWidth];
      convolve_tiles<V>(rows, pixels, taps, shape.taps(), shape.inputs, packed, offsets, whole,
                        kWidth);
      for (int i = 0; i < rows; ++i) {
        for (int o = 0; o < count; ++o) {
          to[static_cast<ptrdiff_t>(i) * shape.outputs + o] = whole[i * kWidth + o];
        }
      }
    }
  }
}

void convolve(const Convolution& shape, const float* padded, const float* packed, int panel,
              int width, const float* bias, int first_row, int last_row, float* result) {
  const int first = panel * width;
  switch (width / kLanes) {
    case 1:
      return convolve_panel<1>(shape, padded, packed, first, bias, first_row, last_row, result);
    case 2:
      return convolve_panel<2>(shape, padded, packed, first, bias, first_row, last_row, result);
    default:
      return convolve_panel<4>(shape, padded, packed, first, bias, first_row, last_row, result);
  }
}

// What one block of pixels adds to R rows of the weight's gradient, V vectors wide.
template <int R, int V>
void gradient_tile(const float* x, ptrdiff_t x_line, ptrdiff_t x_pixel, const float* d,
                   ptrdiff_t d_line, ptrdiff_t d_pixel, int lines, int width, bool fresh,
                   float* sums_at, ptrdiff_t stride) {
  Vector sums[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      sums[i][v] = fresh ? Vector{} : load(sums_at + i * stride + v * kLanes);
    }
  }
  for (int line = 0; line < lines; ++line) {
    const float *xp = x + line * x_line, *dp = d + line * d_line;
    for (int pixel = 0; pixel < width; ++pixel) {
      Vector gradient[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) gradient[v] = load(dp + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const Vector value = splat(xp[i]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[i][v] += value * gradient[v];
      }
      xp += x_pixel;
      dp += d_pixel;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(sums_at + i * stride + v * kLanes, sums[i][v]);
  }
}

template <int V, int R = tile_rows(V)>
void gradient_tiles(int rows, const float* x, ptrdiff_t x_line, ptrdiff_t x_pixel, const float* d,
                    ptrdiff_t d_line, ptrdiff_t d_pixel, int lines, int width, bool fresh,
                    float* sums, ptrdiff_t stride) {
  if (rows == R) {
    gradient_tile<R, V>(x, x_line, x_pixel, d, d_line, d_pixel, lines, width, fresh, sums, stride);
  } else if constexpr (R > 1) {
    gradient_tiles<V, R - 1>(rows, x, x_line, x_pixel, d, d_line, d_pixel, lines, width, fresh,
                             sums, stride);
  }
}

template <int V>
void gradient_panel(const Convolution& shape, int images, const float* padded,
                    const float* gradient, int tap, int first, float* result) {
  constexpr int kWidth = V * kLanes;
  const int count = least(kWidth, shape.outputs - first);
  const ptrdiff_t x_pixel = shape.inputs, x_line = x_pixel * shape.padded_width();
  const ptrdiff_t d_pixel = shape.outputs, d_line = d_pixel * shape.width;
  const float* shifted = padded + (tap / shape.kernel) * x_line + (tap % shape.kernel) * x_pixel;
  float* to = result + static_cast<ptrdiff_t>(tap) * shape.inputs * shape.outputs + first;
  const int block_lines = shape.width >= kPixelBlock ? 1 : kPixelBlock / shape.width;
  const int block_width = least(shape.width, kPixelBlock);
  float narrow[kPixelBlock * kWidth];  // a copy of the gradient where the last panel is cut off
  float whole[kMaxRows * kWidth];
  for (int image = 0; image < images; ++image) {
    const float* x = shifted + image * x_line * shape.padded_height();
    const float* d = gradient + image * d_line * shape.height + first;
    for (int line = 0; line < shape.height; line += block_lines) {
      const int lines = least(block_lines, shape.height - line);
      for (int at = 0; at < shape.width; at += block_width) {
        const int width = least(block_width, shape.width - at);
        const bool fresh = image + line + at == 0;
        const float* from = x + line * x_line + at * x_pixel;
        const float* block = d + line * d_line + at * d_pixel;
        ptrdiff_t block_line = d_line, block_pixel = d_pixel;
        if (count < kWidth) {
          for (int y = 0; y < lines; ++y) {
            for (int p = 0; p < width; ++p) {
              float* copy = narrow + (y * width + p) * kWidth;
              for (int o = 0; o < kWidth; ++o) {
                copy[o] = o < count ? block[y * d_line + p * d_pixel + o] : 0;
              }
            }
          }
          block = narrow, block_pixel = kWidth, block_line = width * block_pixel;
        }
        int rows;
        for (int c = 0; c < shape.inputs; c += rows) {
          rows = least(tile_rows(V), shape.inputs - c);
          float* sums = to + static_cast<ptrdiff_t>(c) * shape.outputs;
          if (count == kWidth) {
            gradient_tiles<V>(rows, from + c, x_line, x_pixel, block, block_line, block_pixel,
                              lines, width, fresh, sums, shape.outputs);
            continue;
          }
          for (int i = 0; i < rows && !fresh; ++i) {
            for (int o = 0; o < kWidth; ++o) {
              whole[i * kWidth + o] =
                  o < count ? sums[static_cast<ptrdiff_t>(i) * shape.outputs + o] : 0;
            }
          }
          gradient_tiles<V>(rows, from + c, x_line, x_pixel, block, block_line, block_pixel, lines,
                            width, fresh, whole, kWidth);
          for (int i = 0; i < rows; ++i) {
            for (int o = 0; o < count; ++o) {
              sums[static_cast<ptrdiff_t>(i) * shape.outputs + o] = whole[i * kWidth + o];
            }
          }
        }
      }
    }
  }
}

void weight_gradient(const Convolution& shape, int images, const float* padded,
                     const float* gradient, int tap, int panel, int width, float* result) {
  const int first = panel * width;
  switch (width / kLanes) {
    case 1:
      return gradient_panel<1>(shape, images, padded, gradient, tap, first, result);
    case 2:
      return gradient_panel<2>(shape, images, padded, gradient, tap, first, result);
    default:
      return gradient_panel<4>(shape, images, padded, gradient, tap, first, result);
  }
}

}  // namespace
}  // namespace trajsyn

#include "activation_kernels_impl.h"

namespace trajsyn {

extern const Kernels TABLE;
const Kernels TABLE = {NAME,     panel_width, pack,     pack_transposed,  convolve, weight_gradient,
                       round_to, pass_inside, activate, activate_backward};

}  // namespace trajsyn
