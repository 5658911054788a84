// The operators of training in real int8 arithmetic, beside those of operators.cpp.
//
// The forward product rounds to nearest; both gradients round stochastically (Gupta et al. 2015), so
// that small gradients count on average. The result of every product is float32 again.

#include <cstring>

#include "int8_kernels.h"
#include "operator_call.h"

namespace trajsyn {
namespace {

// Sums of products of two bytes stay within int32 up to here.
constexpr int64_t kMaxTerms = (int64_t{1} << 31) / (255 * 128) - 1;
constexpr int64_t kSlack = 256;  // the last group may be read as far as a panel is wide

int64_t padded_columns(int64_t columns) { return (columns + 63) / 64 * 64; }

void check_layer(Call& call, const Convolution& shape, int64_t images) {
  call.require(shape.kernel >= 1 && shape.kernel <= kMaxKernel && shape.kernel % 2 == 1);
  call.require(shape.inputs % kGroup == 0 && shape.outputs % kGroup == 0);
  const int sides[] = {shape.height, shape.width, shape.inputs, shape.outputs};
  for (int side : sides) call.require(side > 0 && side < kMaxSide);
  const int64_t columns = std::max(shape.inputs, shape.outputs);
  call.require(shape.taps() * columns < kMaxTerms);
  call.require(images * shape.height * (shape.width + kGroup) < kMaxTerms);
}

int64_t frame_of(const Convolution& shape) {
  return int64_t{shape.padded_height()} * shape.padded_width();
}

// Rounds one image into a frame of zeros, as rows of pixels and as planes of channels.
void round_image(const Convolution& shape, const Grid& grid, const float* image, uint8_t* rows,
                 uint8_t* planes, float* observed) {
  const Int8Kernels& isa = int8_kernels();
  const int zero = int(grid.zero_point) + isa.offset, margin = shape.kernel / 2;
  const int64_t frame = frame_of(shape);
  std::memset(rows, zero, size_t(frame * shape.inputs));
  std::memset(planes, zero, size_t(frame * shape.inputs));
  float low = image[0], high = image[0];
  for (int y = 0; y < shape.height; ++y) {
    const int64_t at = int64_t{y + margin} * shape.padded_width() + margin;
    isa.round_line(grid, image + int64_t{y} * shape.width * shape.inputs, shape.width,
                   shape.inputs, rows + at * shape.inputs, planes + at, frame, &low, &high);
  }
  observed[0] = low, observed[1] = high;
}

template <typename Scales>
void convolve_all(const Convolution& shape, int images, const uint8_t* rows, const int8_t* packed,
                  const int32_t* sums, int zero, Scales scales, const float* bias, float* result) {
  const Int8Kernels& isa = int8_kernels();
  const int count = panels(shape.outputs, isa.panel);
  const int splits = line_splits({images, shape}, count);
  const int64_t frame = frame_of(shape) * shape.inputs;
  const int64_t size = int64_t{shape.height} * shape.width * shape.outputs;
  const int64_t panel_size = int64_t{shape.taps()} * shape.inputs * isa.panel;
  parallel(size_t(images) * count * splits, [&](size_t task) {
    const int split = int(task % splits), panel = int(task / splits % count);
    const int64_t image = int64_t(task / splits / count);
    isa.convolve(shape, rows + image * frame, packed + panel * panel_size,
                 sums + int64_t{panel} * isa.panel, panel, zero, scales(image), bias,
                 int(int64_t{shape.height} * split / splits),
                 int(int64_t{shape.height} * (split + 1) / splits), result + image * size);
  });
}

// x, weight, bias?, kernel, range
//   -> z, rows, planes, packed, sums, observed, used, steps, scales
void int8_convolution(KernelRuntimeContext& context, Span<EValue*> arguments) {
  Call call(context, arguments, 5, 9);
  const FloatTensor x = call.tensor(0), weight = call.tensor(1), bias = call.optional_tensor(2);
  const int kernel = call.integer(3, 1, kMaxKernel);
  const FloatTensor range = call.tensor(4), z = call.tensor(5);
  const Buffer rows = call.buffer(6), planes = call.buffer(7), packed = call.buffer(8);
  const Buffer sums = call.buffer(9);
  const FloatTensor observed = call.tensor(10), used = call.tensor(11), steps = call.tensor(12);
  const FloatTensor scales = call.tensor(13);
  const auto [batch, height, width, inputs] = call.image(0);
  const int outputs = call.size(1, 2, 1);
  const Convolution shape{height, width, inputs, outputs, kernel};
  check_layer(call, shape, batch);
  call.shape(x, {batch, height, width, inputs});
  const int64_t terms = int64_t{shape.taps()} * inputs;
  call.shape(weight, {terms, outputs});
  if (bias.data != nullptr) call.shape(bias, {outputs});
  call.shape(range, {2});
  call.shape(z, {batch, height, width, outputs});
  call.shape(observed, {batch, 2});
  call.shape(used, {2});
  call.shape(steps, {outputs});
  call.shape(scales, {outputs});
  const int64_t frame = frame_of(shape) * inputs;
  call.require(rows.bytes == batch * frame && planes.bytes == batch * frame + kSlack);
  call.require(packed.bytes == terms * padded_columns(outputs));
  call.require(sums.bytes == padded_columns(outputs) * 4);
  if (call.refused("int8_convolution")) return;

  const Int8Kernels& isa = int8_kernels();
  std::copy(range.data, range.data + 2, used.data);
  if (range.data[0] > range.data[1]) {  // nothing is known yet: this batch's own range
    const auto [low, high] = std::minmax_element(x.data, x.data + x.elements);
    used.data[0] = *low, used.data[1] = *high;
    if (!(used.data[0] <= used.data[1])) used.data[0] = used.data[1] = 0;
  }
  const Grid grid = activation_grid(used.data);
  weight_steps(weight.data, int(terms), outputs, steps.data);
  for (int o = 0; o < outputs; ++o) scales.data[o] = grid.step * steps.data[o];
  auto* column_sums = reinterpret_cast<int32_t*>(sums.data);
  auto* weights = reinterpret_cast<int8_t*>(packed.data);
  const int count = panels(outputs, isa.panel);
  std::memset(planes.data + batch * frame, 0, kSlack);
  parallel(size_t(batch + count), [&](size_t task) {
    if (task < size_t(batch)) {
      round_image(shape, grid, x.data + task * (x.elements / batch), rows.data + task * frame,
                  planes.data + task * frame, observed.data + 2 * task);
      return;
    }
    const int panel = int(task) - batch;
    isa.pack(weight.data, int(terms), outputs, panel, steps.data,
             weights + panel * terms * isa.panel, column_sums + int64_t{panel} * isa.panel);
  });
  const int zero = int(grid.zero_point) + isa.offset;
  convolve_all(shape, batch, rows.data, weights, column_sums, zero,
               [&](int64_t) { return scales.data; }, bias.data, z.data);
}

// dz, planes, used, kernel, inputs -> dweight, rounded, sums, scales, inverse_steps
void int8_weight_gradient(KernelRuntimeContext& context, Span<EValue*> arguments) {
  Call call(context, arguments, 5, 5);
  const FloatTensor dz = call.tensor(0);
  const Buffer planes = call.buffer(1);
  const FloatTensor used = call.tensor(2);
  const int kernel = call.integer(3, 1, kMaxKernel), inputs = call.integer(4, 1, kMaxSide);
  const FloatTensor result = call.tensor(5);
  const Buffer rounded = call.buffer(6), sums = call.buffer(7);
  const FloatTensor scales = call.tensor(8), inverse_steps = call.tensor(9);
  const auto [batch, height, width, outputs] = call.image(0);
  const Convolution shape{height, width, inputs, outputs, kernel};
  check_layer(call, shape, batch);
  call.shape(dz, {batch, height, width, outputs});
  call.shape(used, {2});
  call.shape(result, {shape.taps(), inputs, outputs});
  call.shape(scales, {outputs});
  call.shape(inverse_steps, {outputs});
  const int64_t groups = (width + kGroup - 1) / kGroup;
  const int64_t image_bytes = height * groups * outputs * kGroup;
  const int64_t plane = frame_of(shape);
  call.require(planes.bytes == batch * plane * inputs + kSlack);
  call.require(rounded.bytes == batch * image_bytes + kSlack);
  call.require(sums.bytes == int64_t{batch} * outputs * 4);
  if (call.refused("int8_weight_gradient")) return;

  const Int8Kernels& isa = int8_kernels();
  const Grid grid = activation_grid(used.data);
  weight_steps(dz.data, batch * height * width, outputs, scales.data);
  for (int o = 0; o < outputs; ++o) {
    inverse_steps.data[o] = 1 / scales.data[o];
    scales.data[o] *= grid.step;
  }
  auto* values = reinterpret_cast<int8_t*>(rounded.data);
  auto* totals = reinterpret_cast<int32_t*>(sums.data);
  std::memset(sums.data, 0, size_t(sums.bytes));
  std::memset(rounded.data + batch * image_bytes, 0, kSlack);
  const int64_t image_size = dz.elements / batch;
  parallel(size_t(batch), [&](size_t image) {
    isa.round_gradient(dz.data + image * image_size, shape, int64_t(image) * image_size,
                       inverse_steps.data, values + image * image_bytes, totals + image * outputs);
  });
  for (int image = 1; image < batch; ++image) {
    for (int o = 0; o < outputs; ++o) totals[o] += totals[int64_t{image} * outputs + o];
  }
  const int zero = int(grid.zero_point) + isa.offset, count = panels(outputs, isa.panel);
  parallel(size_t(shape.taps()) * count, [&](size_t task) {
    isa.weight_gradient(shape, batch, planes.data, plane, values, totals, zero, scales.data,
                        int(task) / count, int(task) % count, result.data);
  });
}

// dz, weight, kernel, x, used, steps -> dx, rows, packed, sums, factors, scales
void int8_input_gradient(KernelRuntimeContext& context, Span<EValue*> arguments) {
  Call call(context, arguments, 6, 6);
  const FloatTensor dz = call.tensor(0), weight = call.tensor(1);
  const int kernel = call.integer(2, 1, kMaxKernel);
  const FloatTensor x = call.tensor(3), used = call.tensor(4), steps = call.tensor(5);
  const FloatTensor dx = call.tensor(6);
  const Buffer rows = call.buffer(7), packed = call.buffer(8), sums = call.buffer(9);
  const FloatTensor factors = call.tensor(10), scales = call.tensor(11);
  const auto [batch, height, width, outputs] = call.image(0);
  const int64_t terms = int64_t{kernel} * kernel * outputs;
  const int share = std::max(kernel * kernel, 1);
  const int inputs = call.size(1, 2, 0) / share;
  const Convolution shape{height, width, inputs, outputs, kernel};
  // The same convolution seen from behind: outputs come in, inputs go out.
  const Convolution back{height, width, outputs, inputs, kernel};
  check_layer(call, shape, batch);
  call.shape(dz, {batch, height, width, outputs});
  call.shape(weight, {share, inputs, outputs});
  call.shape(x, {batch, height, width, inputs});
  call.shape(used, {2});
  call.shape(steps, {outputs});
  call.shape(dx, {batch, height, width, inputs});
  call.shape(factors, {batch, outputs});
  call.shape(scales, {batch, inputs});
  const int64_t frame = frame_of(back) * outputs;
  call.require(rows.bytes == batch * frame);
  call.require(packed.bytes == terms * padded_columns(inputs));
  call.require(sums.bytes == padded_columns(inputs) * 4);
  if (call.refused("int8_input_gradient")) return;

  const Int8Kernels& isa = int8_kernels();
  auto* column_sums = reinterpret_cast<int32_t*>(sums.data);
  auto* weights = reinterpret_cast<int8_t*>(packed.data);
  const int count = panels(inputs, isa.panel), margin = kernel / 2;
  const int64_t image_size = dz.elements / batch, line = int64_t{width} * outputs;
  parallel(size_t(batch + count), [&](size_t task) {
    if (task >= size_t(batch)) {
      const int panel = int(task) - batch;
      isa.pack_transposed(weight.data, shape, panel, steps.data, weights + panel * terms * isa.panel,
                          column_sums + int64_t{panel} * isa.panel);
      return;
    }
    // A column's step belongs to the sum's other side here, so it goes into the gradient.
    const float* image = dz.data + task * image_size;
    float* factor = factors.data + task * outputs;
    std::fill(factor, factor + outputs, 0.0f);
    for (int64_t at = 0; at < image_size; at += outputs) {
      for (int o = 0; o < outputs; ++o) {
        const float value = std::fabs(image[at + o]);
        factor[o] = value > factor[o] ? value : factor[o];
      }
    }
    float largest = 0;
    for (int o = 0; o < outputs; ++o) largest = std::max(largest, factor[o] * steps.data[o]);
    const float step = std::isnormal(largest / 127) ? largest / 127 : 1;
    for (int o = 0; o < outputs; ++o) factor[o] = steps.data[o] / step;
    std::fill(scales.data + task * inputs, scales.data + (task + 1) * inputs, step);
    uint8_t* to = rows.data + task * frame;
    std::memset(to, isa.offset, size_t(frame));
    for (int y = 0; y < height; ++y) {
      const int64_t at = (int64_t{y + margin} * back.padded_width() + margin) * outputs;
      isa.round_scaled_line(image + y * line, width, outputs,
                            int64_t(task) * image_size + y * line, factor, to + at);
    }
  });
  convolve_all(back, batch, rows.data, weights, column_sums, isa.offset,
               [&](int64_t image) { return scales.data + image * inputs; }, nullptr, dx.data);
  const Grid grid = activation_grid(used.data);
  constexpr int64_t kPart = 1 << 14;
  parallel(size_t((dx.elements + kPart - 1) / kPart), [&](size_t task) {
    const int64_t begin = int64_t(task) * kPart, part = std::min(kPart, dx.elements - begin);
    kernels().pass_inside(grid, x.data + begin, part, dx.data + begin);
  });
}

const et::Kernel kOperators[] = {
    et::Kernel("trajsyn::int8_convolution.out", int8_convolution),
    et::Kernel("trajsyn::int8_weight_gradient.out", int8_weight_gradient),
    et::Kernel("trajsyn::int8_input_gradient.out", int8_input_gradient),
};

}  // namespace

bool register_int8_operators() {
  return et::register_kernels({kOperators, sizeof kOperators / sizeof *kOperators}) ==
         et::Error::Ok;
}

}  // namespace trajsyn
