// Calls every kernel on random shapes with buffers of exactly the size that operators.cpp checks,
// to be run under AddressSanitizer: a byte read or written outside of them ends the process.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "int8_kernels.h"
#include "kernels.h"

using trajsyn::Activation;
using trajsyn::Convolution;

namespace {

std::mt19937 generator(0);

int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

std::vector<float> random_floats(size_t count) {
  std::vector<float> values(count);
  std::normal_distribution<float> normal;
  for (float& value : values) value = normal(generator);
  return values;
}

int panels(int columns, int width) { return (columns + width - 1) / width; }

Convolution random_convolution(int multiple) {
  const int kernels[] = {1, 3, 5};
  return {between(1, 9), between(1, between(1, 8) == 8 ? 70 : 9), multiple * between(1, 20),
          multiple * between(1, 35), kernels[between(0, 2)]};
}

void call_float(const trajsyn::Kernels& isa) {
  const Convolution shape = random_convolution(between(0, 1) ? 4 : 1);
  const int rows = shape.taps() * shape.inputs, images = between(1, 2);
  const int width = isa.panel_width(shape.outputs), count = panels(shape.outputs, width);
  const auto weight = random_floats(size_t(rows) * shape.outputs);
  const std::vector<float> steps(shape.outputs, 0.01f);
  const float* rounding = between(0, 1) ? steps.data() : nullptr;
  const size_t frame = size_t(shape.padded_height()) * shape.padded_width() * shape.inputs;
  const size_t pixels = size_t(shape.height) * shape.width;
  const auto padded = random_floats(images * frame);
  std::vector<float> result(pixels * shape.outputs);
  const auto bias = random_floats(shape.outputs);
  for (int panel = 0; panel < count; ++panel) {
    std::vector<float> packed(size_t(rows) * width);
    isa.pack(weight.data(), rows, shape.outputs, panel, width, rounding, packed.data());
    isa.convolve(shape, padded.data(), packed.data(), panel, width, bias.data(), 0, shape.height,
                 result.data());
  }
  const int back = isa.panel_width(shape.inputs);
  for (int panel = 0; panel < panels(shape.inputs, back); ++panel) {
    std::vector<float> packed(size_t(shape.taps()) * shape.outputs * back);
    isa.pack_transposed(weight.data(), shape, panel, back, rounding, packed.data());
  }
  const auto gradient = random_floats(images * pixels * shape.outputs);
  std::vector<float> dweight(weight.size());
  for (int tap = 0; tap < shape.taps(); ++tap) {
    for (int panel = 0; panel < count; ++panel) {
      isa.weight_gradient(shape, images, padded.data(), gradient.data(), tap, panel, width,
                          dweight.data());
    }
  }
}

void call_activation(const trajsyn::Kernels& isa) {
  Activation shape{};
  shape.height = between(1, 9), shape.width = between(1, 9), shape.channels = between(1, 140);
  const auto scale = random_floats(shape.channels), shift = random_floats(shape.channels);
  if (between(0, 1)) shape.scale = scale.data(), shape.shift = shift.data();
  shape.epsilon = 1e-5f, shape.relu = between(0, 1);
  shape.pool = static_cast<trajsyn::Pool>(between(0, 2));
  shape.pool_size = between(1, std::min(shape.height, shape.width));
  const auto z = random_floats(size_t(shape.height) * shape.width * shape.channels);
  std::vector<float> y(size_t(shape.pooled_height()) * shape.pooled_width() * shape.channels);
  std::vector<float> mean(shape.channels), inverse(shape.channels), dz(z.size());
  std::vector<float> dscale(shape.channels), dshift(shape.channels);
  for (int first = 0; first < shape.channels; first += trajsyn::kChunk) {
    const int count = std::min(trajsyn::kChunk, shape.channels - first);
    isa.activate(shape, z.data(), first, count, y.data(), &mean[first], &inverse[first]);
    isa.activate_backward(shape, y.data(), z.data(), first, count, &mean[first], &inverse[first],
                          dz.data(), &dscale[first], &dshift[first]);
  }
  const trajsyn::Grid grid{0.01f, 100, 3, between(0, 3) == 0};
  float low = 0, high = 0;
  std::vector<float> rounded(z.size());
  isa.round_to(grid, z.data(), ptrdiff_t(z.size()), rounded.data(), &low, &high);
  isa.pass_inside(grid, z.data(), ptrdiff_t(z.size()), rounded.data());
}

void call_int8(const trajsyn::Int8Kernels& isa) {
  const Convolution shape = random_convolution(4);
  const Convolution back{shape.height, shape.width, shape.outputs, shape.inputs, shape.kernel};
  const int rows = shape.taps() * shape.inputs, images = between(1, 2);
  const int count = panels(shape.outputs, isa.panel);
  const size_t plane = size_t(shape.padded_height()) * shape.padded_width();
  const size_t pixels = size_t(shape.height) * shape.width;
  const auto weight = random_floats(size_t(rows) * shape.outputs);
  const auto x = random_floats(pixels * shape.inputs);
  const auto gradient = random_floats(pixels * shape.outputs);
  const std::vector<float> steps(shape.outputs, 0.01f), inverse(shape.outputs, 30.0f);
  const std::vector<float> scales(std::max(shape.inputs, shape.outputs), 0.01f);
  const trajsyn::Grid grid{0.01f, 100, 3, false};
  float low = 0, high = 0;

  std::vector<uint8_t> bytes(plane * shape.inputs);
  std::vector<uint8_t> planes(images * plane * shape.inputs + 256);  // operators.cpp's slack
  const int margin = shape.kernel / 2;
  for (int y = 0; y < shape.height; ++y) {
    const size_t at = size_t(y + margin) * shape.padded_width() + margin;
    isa.round_line(grid, x.data() + size_t(y) * shape.width * shape.inputs, shape.width,
                   shape.inputs, bytes.data() + at * shape.inputs, planes.data() + at,
                   ptrdiff_t(plane), &low, &high);
  }
  std::vector<float> result(pixels * shape.outputs), dx(x.size());
  for (int panel = 0; panel < count; ++panel) {
    std::vector<int8_t> packed(size_t(rows) * isa.panel);
    std::vector<int32_t> sums(isa.panel);
    isa.pack(weight.data(), rows, shape.outputs, panel, steps.data(), packed.data(), sums.data());
    isa.convolve(shape, bytes.data(), packed.data(), sums.data(), panel, 3, scales.data(), nullptr,
                 0, shape.height, result.data());
  }
  std::vector<uint8_t> scaled(plane * shape.outputs);
  for (int y = 0; y < shape.height; ++y) {
    const size_t at = (size_t(y + margin) * shape.padded_width() + margin) * shape.outputs;
    isa.round_scaled_line(gradient.data() + size_t(y) * shape.width * shape.outputs, shape.width,
                          shape.outputs, y, inverse.data(), scaled.data() + at);
  }
  for (int panel = 0; panel < panels(shape.inputs, isa.panel); ++panel) {
    std::vector<int8_t> packed(size_t(shape.taps()) * shape.outputs * isa.panel);
    std::vector<int32_t> sums(isa.panel);
    isa.pack_transposed(weight.data(), shape, panel, steps.data(), packed.data(), sums.data());
    isa.convolve(back, scaled.data(), packed.data(), sums.data(), panel, isa.offset,
                 scales.data(), nullptr, 0, shape.height, dx.data());
  }
  const size_t image_bytes = size_t(shape.height) * ((shape.width + 3) / 4) * shape.outputs * 4;
  std::vector<int8_t> rounded(images * image_bytes + 256);
  std::vector<int32_t> sums(shape.outputs);
  for (int image = 0; image < images; ++image) {
    isa.round_gradient(gradient.data(), shape, image, inverse.data(),
                       rounded.data() + image * image_bytes, sums.data());
  }
  std::vector<float> dweight(weight.size());
  for (int tap = 0; tap < shape.taps(); ++tap) {
    for (int panel = 0; panel < count; ++panel) {
      isa.weight_gradient(shape, images, planes.data(), ptrdiff_t(plane), rounded.data(),
                          sums.data(), 3, scales.data(), tap, panel, dweight.data());
    }
  }
}

template <typename Select, typename Call>
void for_each(const char* names, Select select, Call call) {
  std::istringstream words(names);
  for (std::string name; words >> name;) {
    if (!select(name.c_str())) std::abort();
    for (int i = 0; i < 150; ++i) call();
    std::printf("%s\n", name.c_str());
  }
}

}  // namespace

int main() {
  for_each(trajsyn::supported_kernels(), trajsyn::select_kernels, [] {
    call_float(trajsyn::kernels());
    call_activation(trajsyn::kernels());
  });
  for_each(trajsyn::supported_int8_kernels(), trajsyn::select_int8_kernels,
           [] { call_int8(trajsyn::int8_kernels()); });
}
