// A convolution's three products in real int8 arithmetic: int8 x int8 sums in int32.
//
// Rows are pixels of int8 channels, stored with `offset` added so that a processor whose dot product
// takes one unsigned side can use them. Four neighbours along the sum share 32 bits: four channels
// of a pixel, or four pixels of a channel. Channels are multiples of four.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace trajsyn {

constexpr int kGroup = 4;  // int8 values that one dot product sums

struct Int8Kernels {
  const char* name;
  int offset;  // added to stored rows and planes: 128 or 0
  int panel;   // output channels of a panel

  // One line of `width` pixels, rounded to the grid: bytes (width, channels) and, with the bytes of
  // a channel side by side, planes of `plane` bytes each. Notes the least and largest
  // value, or NaN for both if there is one.
  void (*round_line)(const Grid& grid, const float* values, int width, int channels, uint8_t* rows,
                     uint8_t* planes, ptrdiff_t plane, float* low, float* high);

  // A panel of the weight (rows, outputs), and the sum of each of its columns.
  void (*pack)(const float* weight, int rows, int outputs, int panel, const float* steps,
               int8_t* packed, int32_t* sums);

  // The same for the input gradient: rows are (reversed tap, output), columns are inputs.
  void (*pack_transposed)(const float* weight, const Convolution& shape, int panel,
                          const float* steps, int8_t* packed, int32_t* sums);

  // As Kernels::convolve over padded rows: result = bias + (dot - zero * column sum) * scale, where
  // `zero` is the stored byte that means 0 and `scales` has one entry an output.
  void (*convolve)(const Convolution& shape, const uint8_t* padded, const int8_t* packed,
                   const int32_t* sums, int panel, int zero, const float* scales,
                   const float* bias, int first_row, int last_row, float* result);

  // One image's gradient for the weight's: (height, groups of 4 pixels, outputs, 4), rounded
  // stochastically to `inverse_steps` and zero beyond the width; adds up each output's sum.
  void (*round_gradient)(const float* gradient, const Convolution& shape, int64_t position,
                         const float* inverse_steps, int8_t* rounded, int32_t* sums);

  // One line of the gradient for the input's: gradient * factors, rounded stochastically.
  void (*round_scaled_line)(const float* gradient, int width, int outputs, int64_t position,
                            const float* factors, uint8_t* rows);

  // As Kernels::weight_gradient: result = (dot - zero * sum of the gradient) * scale.
  void (*weight_gradient)(const Convolution& shape, int images, const uint8_t* planes,
                          ptrdiff_t plane, const int8_t* rounded, const int32_t* sums, int zero,
                          const float* scales, int tap, int panel, float* result);
};

// The best of this processor, or the one that `select_int8_kernels` chose.
const Int8Kernels& int8_kernels();

// The names that `select_int8_kernels` takes here, the best first, with spaces between.
const char* supported_int8_kernels();

// False where there are no such kernels, or the processor lacks what they need.
bool select_int8_kernels(const char* name);

}  // namespace trajsyn
