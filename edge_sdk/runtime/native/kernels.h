// The arithmetic of a training step, once for each instruction set.
//
// Activations are NHWC float32. A convolution has an odd square kernel, stride 1 and "same"
// padding; its weight is a matrix (kernel * kernel * inputs, outputs). A fully connected layer is
// the convolution with kernel 1 over an image of 1 x batch pixels.
#pragma once

#include <cstddef>

namespace trajsyn {

// Input channels and output channels of one convolution on images of height x width pixels.
struct Convolution {
  int height, width, inputs, outputs, kernel;

  int padded_height() const { return height + kernel - 1; }
  int padded_width() const { return width + kernel - 1; }
  int taps() const { return kernel * kernel; }
};

enum Pool { kNoPool = 0, kAveragePool = 1, kMaxPool = 2 };

// What follows a convolution: instance norm where `scale` is set, ReLU, pooling, in this order.
struct Activation {
  int height, width, channels;
  const float* scale;  // (channels,), with `shift`; null: no norm
  const float* shift;
  float epsilon;
  bool relu;
  Pool pool;
  int pool_size;

  int pooled_height() const { return pool == kNoPool ? height : height / pool_size; }
  int pooled_width() const { return pool == kNoPool ? width : width / pool_size; }
};

// 256 equally spaced activations, zero among them: value = (integer - zero_point) * step.
struct Grid {
  float step, inverse_step, zero_point;
  bool is_empty;  // nothing is known of the values yet, and nothing is rounded
};

constexpr int kChunk = 64;      // channels that an activation task takes at once
constexpr int kMaxKernel = 15;  // bounds the table of a convolution's taps

// The functions of one instruction set. Every sum is taken in an order that depends on the shapes
// alone, never on the number of threads.
struct Kernels {
  const char* name;

  // Output channels that one panel of packed weights holds; divides kChunk.
  int (*panel_width)(int outputs);

  // Panel of columns [panel * width, ...) of a weight (rows, outputs), zero beyond the last. With
  // `steps`, one an output, the weights are rounded to -127 ... 127 steps (simulated int8).
  void (*pack)(const float* weight, int rows, int outputs, int panel, int width,
               const float* steps, float* packed);

  // The same for the input gradient: rows are (reversed tap, output), columns are inputs.
  void (*pack_transposed)(const float* weight, const Convolution& shape, int panel, int width,
                          const float* steps, float* packed);

  // Rows [first_row, last_row) of an image's result in the columns of one panel. `padded` is the
  // padded image, `packed` the panel, `result` the image (height, width, outputs).
  void (*convolve)(const Convolution& shape, const float* padded, const float* packed, int panel,
                   int width, const float* bias, int first_row, int last_row, float* result);

  // The weight's gradient in the rows of one tap and the columns of one panel, summed over images.
  void (*weight_gradient)(const Convolution& shape, int images, const float* padded,
                          const float* gradient, int tap, int panel, int width, float* result);

  // Values rounded to the grid; lowers `low` and raises `high` to the values' own.
  void (*round_to)(const Grid& grid, const float* values, ptrdiff_t count, float* rounded,
                   float* low, float* high);

  // Sets gradients to zero where the value lies beyond the grid.
  void (*pass_inside)(const Grid& grid, const float* values, ptrdiff_t count, float* gradients);

  // One image, channels [first, first + count): y from z, and the mean and inverse deviation.
  void (*activate)(const Activation& shape, const float* z, int first, int count, float* y,
                   float* mean, float* inverse);

  // The gradients by z, scale and shift of one image's chunk of channels.
  void (*activate_backward)(const Activation& shape, const float* dy, const float* z, int first,
                            int count, const float* mean, const float* inverse, float* dz,
                            float* dscale, float* dshift);
};

// The best instruction set of this processor, or the one that `select_kernels` chose.
const Kernels& kernels();

// The names that `select_kernels` takes here, the best first, with spaces between.
const char* supported_kernels();

// False where there is no such instruction set, or the processor lacks it.
bool select_kernels(const char* name);

}  // namespace trajsyn
