// The operators `trajsyn::...` of training programs, registered as ExecuTorch kernels.
//
// A program is untrusted: each operator checks the type, the number of elements and the memory of
// every tensor before it touches one. Results and scratch memory are outputs that ExecuTorch planned,
// so nothing is allocated here. `edge_sdk/export/operators.py` declares the same operators for the
// exporter.

#include <cmath>
#include <cstring>

#include "operator_call.h"

namespace trajsyn {
namespace {

// Copies one image into a frame of zeros; with a grid, rounds it and notes its least and largest.
void pad(const Convolution& shape, int channels, const float* image, const Grid* grid,
         float* observed, float* padded) {
  const int margin = shape.kernel / 2;
  const size_t line = size_t(shape.padded_width()) * channels, inner = size_t(shape.width) * channels;
  const size_t edge = size_t(margin) * channels;
  std::fill(padded, padded + margin * line, 0.0f);
  float low = image[0], high = image[0];
  for (int y = 0; y < shape.height; ++y) {
    float* to = padded + (y + margin) * line;
    const float* from = image + y * inner;
    std::fill(to, to + edge, 0.0f);
    if (grid == nullptr) {
      std::memcpy(to + edge, from, inner * sizeof(float));
    } else {
      kernels().round_to(*grid, from, ptrdiff_t(inner), to + edge, &low, &high);
    }
    std::fill(to + edge + inner, to + line, 0.0f);
  }
  std::fill(padded + (shape.height + margin) * line, padded + shape.padded_height() * line, 0.0f);
  if (observed != nullptr) observed[0] = low, observed[1] = high;
}

// result = images (*) packed weights, over all panels.
void convolve_all(const Layer& layer, const float* padded, const float* packed, int panel_rows,
                  int width, const float* bias, float* result) {
  const Kernels& isa = kernels();
  const Convolution& shape = layer.shape;
  const int count = panels(shape.outputs, width);
  const int splits = line_splits(layer, count);
  const int64_t image_size = padded_size(layer) / layer.images;
  const int64_t result_size = int64_t{shape.height} * shape.width * shape.outputs;
  parallel(size_t(layer.images) * count * splits, [&](size_t task) {
    const int split = int(task % splits), panel = int(task / splits % count);
    const int64_t image = int64_t(task / splits / count);
    isa.convolve(shape, padded + image * image_size, packed + int64_t{panel} * panel_rows * width,
                 panel, width, bias, int(int64_t{shape.height} * split / splits),
                 int(int64_t{shape.height} * (split + 1) / splits), result + image * result_size);
  });
}

// x, weight, bias?, kernel -> z, padded, packed
// quantized: x, weight, bias?, kernel, range -> z, padded, packed, observed, steps
template <bool kQuantized>
void convolution(KernelRuntimeContext& context, Span<EValue*> arguments) {
  constexpr size_t kOut = kQuantized ? 5 : 4;
  Call call(context, arguments, kOut, kQuantized ? 5 : 3);
  const FloatTensor x = call.tensor(0), weight = call.tensor(1), bias = call.optional_tensor(2);
  const int kernel = call.integer(3, 0, kMaxKernel);
  check_kernel(call, kernel);
  const FloatTensor z = call.tensor(kOut), padded = call.tensor(kOut + 1);
  const FloatTensor packed = call.tensor(kOut + 2);
  const auto [batch, height, width, inputs] = call.image(0);
  const int outputs = call.size(1, 2, 1);
  call.require(std::max({height, width, inputs, outputs}) < kMaxSide);
  call.shape(x, {batch, height, width, inputs});
  const Layer layer = layer_of(call, batch, height, width, inputs, outputs, kernel);
  const Convolution& shape = layer.shape;
  const int64_t rows = int64_t{shape.taps()} * shape.inputs;
  call.shape(weight, {rows, outputs});
  if (bias.data != nullptr) call.shape(bias, {outputs});
  call.shape(z, {layer.images, shape.height, shape.width, outputs});
  call.shape(padded, {layer.images, shape.padded_height(), shape.padded_width(), shape.inputs});
  call.shape(packed, {rows, padded_outputs(outputs)});
  FloatTensor range, observed, steps;
  if (kQuantized) {
    range = call.tensor(4), observed = call.tensor(kOut + 3), steps = call.tensor(kOut + 4);
    call.shape(range, {2});
    call.shape(observed, {batch, 2});
    call.shape(steps, {outputs});
  }
  if (call.refused("convolution")) return;

  const Kernels& isa = kernels();
  const int panel = isa.panel_width(outputs), count = panels(outputs, panel);
  Grid grid{};
  if (kQuantized) {
    grid = activation_grid(range.data);
    weight_steps(weight.data, int(rows), outputs, steps.data);
  }
  // A fully connected layer's examples are padded one by one, to observe each by itself.
  const Convolution one = kernel == 0 ? Convolution{1, 1, shape.inputs, 0, 1} : shape;
  const int64_t image_size = x.elements / batch, frame_size = padded.elements / batch;
  parallel(size_t(batch + count), [&](size_t task) {
    if (task < size_t(batch)) {
      pad(one, shape.inputs, x.data + task * image_size, kQuantized ? &grid : nullptr,
          kQuantized ? observed.data + 2 * task : nullptr, padded.data + task * frame_size);
      return;
    }
    const int index = int(task) - batch;
    isa.pack(weight.data, int(rows), outputs, index, panel, kQuantized ? steps.data : nullptr,
             packed.data + index * rows * panel);
  });
  convolve_all(layer, padded.data, packed.data, int(rows), panel, bias.data, z.data);
}

// padded, dz, kernel -> dweight
void convolution_weight_gradient(KernelRuntimeContext& context, Span<EValue*> arguments) {
  Call call(context, arguments, 3, 1);
  const FloatTensor padded = call.tensor(0), dz = call.tensor(1), result = call.tensor(3);
  const int kernel = call.integer(2, 0, kMaxKernel);
  check_kernel(call, kernel);
  const auto [batch, frame_height, frame_width, inputs] = call.image(0);
  const int outputs = call.size(3, 2, 1);
  const int margin = kernel == 0 ? 0 : kernel - 1;
  const int height = frame_height - margin, width = frame_width - margin;
  call.require(height > 0 && width > 0 && std::max({height, width, inputs, outputs}) < kMaxSide);
  const Layer layer = layer_of(call, batch, height, width, inputs, outputs, kernel);
  const Convolution& shape = layer.shape;
  call.shape(padded, {layer.images, shape.padded_height(), shape.padded_width(), shape.inputs});
  call.shape(dz, {layer.images, shape.height, shape.width, outputs});
  call.shape(result, {shape.taps(), shape.inputs, outputs});
  if (call.refused("convolution_weight_gradient")) return;

  const Kernels& isa = kernels();
  const int panel = isa.panel_width(outputs);
  const int count = panels(outputs, panel);
  parallel(size_t(shape.taps()) * count, [&](size_t task) {
    isa.weight_gradient(shape, layer.images, padded.data, dz.data, int(task) / count,
                        int(task) % count, panel, result.data);
  });
}

// Whether a product of every pixel with all taps at once is less work than a convolution backwards,
// whose panels are mostly empty where a layer has few inputs, as the first one of an attack.
bool multiplies_first(const Convolution& shape) {
  const int columns = shape.taps() * shape.inputs;
  return columns <= shape.outputs &&
         2 * padded_outputs(columns) <= shape.taps() * padded_outputs(shape.inputs);
}

// The input's gradient that way; `columns` has room for (pixels, taps * inputs).
void multiply_and_spread(const Layer& layer, const float* dz, const float* weight, float* packed,
                         float* columns, float* dx) {
  const Kernels& isa = kernels();
  const Convolution& shape = layer.shape;
  const int width = shape.taps() * shape.inputs, panel = isa.panel_width(width);
  const Convolution pixel{shape.height, shape.width, width, shape.outputs, 1};
  parallel(size_t(panels(width, panel)), [&](size_t index) {
    isa.pack_transposed(weight, pixel, int(index), panel, nullptr,
                        packed + int64_t(index) * shape.outputs * panel);
  });
  const Layer product{layer.images, {shape.height, shape.width, shape.outputs, width, 1}};
  convolve_all(product, dz, packed, shape.outputs, panel, nullptr, columns);

  const int margin = shape.kernel / 2, inputs = shape.inputs;
  parallel(size_t(layer.images) * shape.height, [&](size_t task) {
    const int y = int(task % shape.height);
    const int64_t image = int64_t(task) - y;  // its first line, counted over all images
    float* line = dx + int64_t(task) * shape.width * inputs;
    std::fill(line, line + int64_t{shape.width} * inputs, 0.0f);
    for (int tap = 0; tap < shape.taps(); ++tap) {
      const int from_y = y + margin - tap / shape.kernel, shift = margin - tap % shape.kernel;
      if (from_y < 0 || from_y >= shape.height) continue;
      const float* from =
          columns + (image + from_y) * shape.width * width + int64_t{shift} * width + tap * inputs;
      const int begin = std::max(0, -shift), end = std::min(shape.width, shape.width - shift);
      for (int x = begin; x < end; ++x) {
        for (int i = 0; i < inputs; ++i) line[x * inputs + i] += from[int64_t{x} * width + i];
      }
    }
  });
}

// dz, weight, kernel, height, width -> dx, padded, packed
// quantized: dz, weight, kernel, height, width, x, range, steps -> dx, padded, packed
template <bool kQuantized>
void convolution_input_gradient(KernelRuntimeContext& context, Span<EValue*> arguments) {
  constexpr size_t kOut = kQuantized ? 8 : 5;
  Call call(context, arguments, kOut, 3);
  const FloatTensor dz = call.tensor(0), weight = call.tensor(1);
  const int kernel = call.integer(2, 0, kMaxKernel);
  check_kernel(call, kernel);
  const int height = call.integer(3, 1, kMaxSide), width = call.integer(4, 1, kMaxSide);
  const FloatTensor dx = call.tensor(kOut), padded = call.tensor(kOut + 1);
  const FloatTensor packed = call.tensor(kOut + 2);
  const int rows = call.size(1, 2, 0), outputs = call.size(1, 2, 1);
  const int pixels = height * width, share = kernel == 0 ? pixels : kernel * kernel;
  call.require(share > 0 && rows % share == 0 && outputs < kMaxSide);
  const int inputs = rows / std::max(share, 1);
  const int64_t image_size = kernel == 0 ? outputs : int64_t{pixels} * outputs;
  call.require(image_size > 0 && dz.elements % image_size == 0);
  if (call.refused("convolution_input_gradient")) return;
  const int batch = int(dz.elements / image_size);
  const Layer layer = layer_of(call, batch, height, width, inputs, outputs, kernel);
  const Convolution& shape = layer.shape;
  // The same convolution seen from behind: outputs come in, inputs go out.
  const Layer back{layer.images, {shape.height, shape.width, outputs, shape.inputs, shape.kernel}};
  const int64_t back_rows = int64_t{shape.taps()} * outputs;
  call.shape(dz, {layer.images, shape.height, shape.width, outputs});
  call.shape(dx, {layer.images, shape.height, shape.width, shape.inputs});
  call.shape(padded,
             {layer.images, shape.padded_height(), shape.padded_width(), outputs});
  call.shape(packed, {back_rows, padded_outputs(shape.inputs)});
  FloatTensor x, range, steps;
  if (kQuantized) {
    x = call.tensor(5), range = call.tensor(6), steps = call.tensor(7);
    call.shape(x, {dx.elements});
    call.shape(range, {2});
    call.shape(steps, {outputs});
  }
  if (call.refused("convolution_input_gradient")) return;

  if (!kQuantized && multiplies_first(shape)) {
    multiply_and_spread(layer, dz.data, weight.data, packed.data, padded.data, dx.data);
    return;
  }
  const Kernels& isa = kernels();
  const int panel = isa.panel_width(shape.inputs), count = panels(shape.inputs, panel);
  const int64_t frame_size = padded.elements / layer.images;
  parallel(size_t(layer.images + count), [&](size_t task) {
    if (task < size_t(layer.images)) {
      pad(back.shape, outputs, dz.data + task * (dz.elements / layer.images), nullptr, nullptr,
          padded.data + task * frame_size);
      return;
    }
    const int index = int(task) - layer.images;
    isa.pack_transposed(weight.data, shape, index, panel, kQuantized ? steps.data : nullptr,
                        packed.data + index * back_rows * panel);
  });
  convolve_all(back, padded.data, packed.data, int(back_rows), panel, nullptr, dx.data);
  if (!kQuantized) return;
  const Grid grid = activation_grid(range.data);
  constexpr int64_t kPart = 1 << 14;
  parallel(size_t((dx.elements + kPart - 1) / kPart), [&](size_t task) {
    const int64_t begin = int64_t(task) * kPart, count = std::min(kPart, dx.elements - begin);
    isa.pass_inside(grid, x.data + begin, count, dx.data + begin);
  });
}

// dz -> dbias
void bias_gradient(KernelRuntimeContext& context, Span<EValue*> arguments) {
  Call call(context, arguments, 1, 1);
  const FloatTensor dz = call.tensor(0), result = call.tensor(1);
  const int outputs = call.size(1, 1, 0);
  call.require(outputs > 0 && dz.elements > 0 && dz.elements % std::max(outputs, 1) == 0);
  call.shape(result, {outputs});
  if (call.refused("bias_gradient")) return;
  const int64_t pixels = dz.elements / outputs;
  constexpr int64_t kRun = 64;  // partial sums keep the rounding error small
  parallel(size_t(panels(outputs, kChunk)), [&](size_t task) {
    const int first = int(task) * kChunk, count = std::min(kChunk, outputs - first);
    float total[kChunk] = {};
    for (int64_t begin = 0; begin < pixels; begin += kRun) {
      float part[kChunk] = {};
      for (int64_t pixel = begin; pixel < std::min(pixels, begin + kRun); ++pixel) {
        const float* from = dz.data + pixel * outputs + first;
        for (int i = 0; i < count; ++i) part[i] += from[i];
      }
      for (int i = 0; i < count; ++i) total[i] += part[i];
    }
    std::copy(total, total + count, result.data + first);
  });
}

struct ActivationCall {
  int batch;
  Activation shape;
};

// Reads z (4 dimensions), scale?, shift? and, from `options` on, relu, pool, pool_size.
ActivationCall activation_of(Call& call, size_t z, size_t scale, size_t options) {
  const FloatTensor values = call.tensor(z), factor = call.optional_tensor(scale);
  const FloatTensor offset = call.optional_tensor(scale + 1);
  const auto [batch, height, width, channels] = call.image(z);
  Activation shape{};
  shape.height = height, shape.width = width, shape.channels = channels;
  call.shape(values, {batch, shape.height, shape.width, channels});
  call.require((factor.data == nullptr) == (offset.data == nullptr));
  if (factor.data != nullptr) {
    call.shape(factor, {channels});
    call.shape(offset, {channels});
  }
  shape.scale = factor.data, shape.shift = offset.data;
  shape.relu = call.boolean(options);
  shape.pool = static_cast<Pool>(call.integer(options + 1, kNoPool, kMaxPool));
  shape.pool_size = call.integer(options + 2, 1, 64);
  call.require(shape.pool_size >= 1 && shape.height >= shape.pool_size &&
               shape.width >= shape.pool_size && std::max(shape.height, shape.width) < kMaxSide);
  if (shape.pool_size < 1) shape.pool_size = 1;
  return {batch, shape};
}

// z, scale?, shift?, epsilon, relu, pool, pool_size -> y, statistics
void activation(KernelRuntimeContext& context, Span<EValue*> arguments) {
  Call call(context, arguments, 7, 2);
  ActivationCall found = activation_of(call, 0, 1, 4);
  Activation& shape = found.shape;
  shape.epsilon = call.number(3);
  const FloatTensor z = call.tensor(0), y = call.tensor(7), statistics = call.tensor(8);
  call.shape(y, {found.batch, shape.pooled_height(), shape.pooled_width(), shape.channels});
  call.shape(statistics, {found.batch, 2, shape.channels});
  if (call.refused("activation")) return;

  const Kernels& isa = kernels();
  const int chunks = panels(shape.channels, kChunk);
  const int64_t z_size = z.elements / found.batch, y_size = y.elements / found.batch;
  parallel(size_t(found.batch) * chunks, [&](size_t task) {
    const int64_t image = int64_t(task) / chunks;
    const int first = int(task % chunks) * kChunk;
    float* mean = statistics.data + image * 2 * shape.channels + first;
    isa.activate(shape, z.data + image * z_size, first, std::min(kChunk, shape.channels - first),
                 y.data + image * y_size, mean, mean + shape.channels);
  });
}

// dy, z, statistics, scale?, shift?, relu, pool, pool_size -> dz, dscale, dshift, partials
void activation_backward(KernelRuntimeContext& context, Span<EValue*> arguments) {
  Call call(context, arguments, 8, 4);
  const ActivationCall found = activation_of(call, 1, 3, 5);
  const Activation& shape = found.shape;
  const FloatTensor dy = call.tensor(0), z = call.tensor(1), statistics = call.tensor(2);
  const FloatTensor dz = call.tensor(8), dscale = call.tensor(9), dshift = call.tensor(10);
  const FloatTensor partials = call.tensor(11);
  const int channels = shape.channels;
  call.shape(dy, {found.batch, shape.pooled_height(), shape.pooled_width(), channels});
  call.shape(statistics, {found.batch, 2, channels});
  call.shape(dz, {z.elements});
  call.shape(dscale, {channels});
  call.shape(dshift, {channels});
  call.shape(partials, {found.batch, 2, channels});
  if (call.refused("activation_backward")) return;

  const Kernels& isa = kernels();
  const int chunks = panels(channels, kChunk);
  const int64_t z_size = z.elements / found.batch, y_size = dy.elements / found.batch;
  parallel(size_t(found.batch) * chunks, [&](size_t task) {
    const int64_t image = int64_t(task) / chunks, row = image * 2 * channels;
    const int first = int(task % chunks) * kChunk;
    const float* mean = statistics.data + row + first;
    float* slot = partials.data + row + first;
    isa.activate_backward(shape, dy.data + image * y_size, z.data + image * z_size, first,
                          std::min(kChunk, channels - first), mean, mean + channels,
                          dz.data + image * z_size, slot, slot + channels);
  });
  std::fill(dscale.data, dscale.data + channels, 0.0f);
  std::fill(dshift.data, dshift.data + channels, 0.0f);
  if (shape.scale == nullptr) return;
  for (int image = 0; image < found.batch; ++image) {
    const float* row = partials.data + int64_t{image} * 2 * channels;
    for (int c = 0; c < channels; ++c) {
      dscale.data[c] += row[c];
      dshift.data[c] += row[channels + c];
    }
  }
}

// x, scale, shift -> y, for each channel
void scale_shift(KernelRuntimeContext& context, Span<EValue*> arguments) {
  Call call(context, arguments, 3, 1);
  const FloatTensor x = call.tensor(0), scale = call.tensor(1), shift = call.tensor(2);
  const FloatTensor y = call.tensor(3);
  const int channels = call.size(1, 1, 0);
  call.shape(scale, {channels});
  call.shape(shift, {channels});
  call.require(x.elements > 0 && x.elements % std::max(channels, 1) == 0);
  call.shape(y, {x.elements});
  if (call.refused("scale_shift")) return;
  for (int64_t pixel = 0; pixel < x.elements; pixel += channels) {
    for (int c = 0; c < channels; ++c) {
      y.data[pixel + c] = x.data[pixel + c] * scale.data[c] + shift.data[c];
    }
  }
}

// logits, labels -> loss, dlogits: -sum(labels * log softmax), zero for rows of zero labels
void softmax_cross_entropy(KernelRuntimeContext& context, Span<EValue*> arguments) {
  Call call(context, arguments, 2, 2);
  const FloatTensor logits = call.tensor(0), labels = call.tensor(1);
  const FloatTensor loss = call.tensor(2), gradient = call.tensor(3);
  const int rows = call.size(0, 2, 0), classes = call.size(0, 2, 1);
  call.shape(logits, {rows, classes});
  call.shape(labels, {rows, classes});
  call.shape(gradient, {rows, classes});
  call.shape(loss, {1});
  if (call.refused("softmax_cross_entropy")) return;
  double total = 0;
  for (int row = 0; row < rows; ++row) {
    const float *z = logits.data + int64_t{row} * classes, *t = labels.data + int64_t{row} * classes;
    float* d = gradient.data + int64_t{row} * classes;
    float largest = z[0], mass = 0;
    for (int c = 0; c < classes; ++c) {
      largest = z[c] > largest ? z[c] : largest;
      mass += t[c];
    }
    double sum = 0;
    for (int c = 0; c < classes; ++c) sum += std::exp(double{z[c]} - largest);
    const double log_sum = std::log(sum);
    for (int c = 0; c < classes; ++c) {
      const double log_probability = double{z[c]} - largest - log_sum;
      // Not a product: a class that has no label and an infinite loss would give NaN.
      if (t[c] != 0) total -= t[c] * log_probability;
      d[c] = static_cast<float>((mass == 0 ? 0 : mass * std::exp(log_probability)) - t[c]);
    }
  }
  loss.data[0] = static_cast<float>(total);
}

const et::Kernel kOperators[] = {
    et::Kernel("trajsyn::convolution.out", convolution<false>),
    et::Kernel("trajsyn::quantized_convolution.out", convolution<true>),
    et::Kernel("trajsyn::convolution_weight_gradient.out", convolution_weight_gradient),
    et::Kernel("trajsyn::convolution_input_gradient.out", convolution_input_gradient<false>),
    et::Kernel("trajsyn::quantized_convolution_input_gradient.out",
               convolution_input_gradient<true>),
    et::Kernel("trajsyn::bias_gradient.out", bias_gradient),
    et::Kernel("trajsyn::activation.out", activation),
    et::Kernel("trajsyn::activation_backward.out", activation_backward),
    et::Kernel("trajsyn::scale_shift.out", scale_shift),
    et::Kernel("trajsyn::softmax_cross_entropy.out", softmax_cross_entropy),
};

}  // namespace

bool register_int8_operators();

bool register_operators() {
  return et::register_kernels({kOperators, sizeof kOperators / sizeof *kOperators}) ==
             et::Error::Ok &&
         register_int8_operators();
}

}  // namespace trajsyn
