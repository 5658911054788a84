// What the operators' files share: reading a call's arguments, and splitting a layer into tasks.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>

#include "kernels.h"
#include "thread_pool.h"

namespace trajsyn {

namespace et = executorch::runtime;
using et::EValue;
using et::KernelRuntimeContext;
using et::Span;

constexpr int64_t kMaxSide = 1 << 15;

struct FloatTensor {
  float* data = nullptr;
  int64_t elements = -1;
};

struct Buffer {
  uint8_t* data = nullptr;
  int64_t bytes = -1;
};

// The file of the program that this thread runs: its constants are read, never written, because
// ExecuTorch reads its instructions from the same bytes while it runs.
inline thread_local Buffer program_bytes;

// The arguments of one call; anything that is not as expected makes `ok` false.
class Call {
 public:
  Call(KernelRuntimeContext& context, Span<EValue*> arguments, size_t inputs, size_t results)
      : context_(context),
        arguments_(arguments),
        inputs_(inputs),
        ok_(arguments.size() >= inputs + results) {}

  FloatTensor tensor(size_t index) {
    if (!ok_ || !arguments_[index]->isTensor()) return fail();
    const auto tensor = arguments_[index]->toTensor();
    if (tensor.scalar_type() != executorch::aten::ScalarType::Float) return fail();
    return {static_cast<float*>(memory(index)), tensor.numel()};
  }

  // A tensor of bytes or int32, of which only the number of bytes is known.
  Buffer buffer(size_t index) {
    if (!ok_ || !arguments_[index]->isTensor()) return fail(), Buffer{};
    const auto tensor = arguments_[index]->toTensor();
    const auto type = tensor.scalar_type();
    require(type == executorch::aten::ScalarType::Byte ||
            type == executorch::aten::ScalarType::Char ||
            type == executorch::aten::ScalarType::Int);
    return {static_cast<uint8_t*>(memory(index)), int64_t(tensor.nbytes())};
  }

  FloatTensor optional_tensor(size_t index) {
    if (ok_ && arguments_[index]->isNone()) return {nullptr, 0};
    return tensor(index);
  }

  // Size of one dimension of a tensor of `rank` dimensions.
  int size(size_t index, int rank, int dimension) {
    if (!ok_ || !arguments_[index]->isTensor()) return fail(), 0;
    const auto tensor = arguments_[index]->toTensor();
    require(tensor.dim() == rank);
    if (!ok_) return 0;
    const int64_t size = tensor.size(dimension);
    require(size > 0 && size < (1 << 30));
    return static_cast<int>(size);
  }

  // (batch, height, width, channels) of a tensor; rows of features are images of one pixel.
  struct Image {
    int batch, height, width, channels;
  };

  Image image(size_t index) {
    const bool flat = ok_ && arguments_[index]->isTensor() && arguments_[index]->toTensor().dim() == 2;
    if (flat) return {size(index, 2, 0), 1, 1, size(index, 2, 1)};
    return {size(index, 4, 0), size(index, 4, 1), size(index, 4, 2), size(index, 4, 3)};
  }

  int integer(size_t index, int64_t low, int64_t high) {
    if (!ok_ || !arguments_[index]->isInt()) return fail(), 0;
    const int64_t value = arguments_[index]->toInt();
    require(value >= low && value <= high);
    return ok_ ? static_cast<int>(value) : 0;
  }

  bool boolean(size_t index) {
    if (!ok_ || !arguments_[index]->isBool()) return fail(), false;
    return arguments_[index]->toBool();
  }

  float number(size_t index) {
    if (!ok_ || !arguments_[index]->isDouble()) return fail(), 0.0f;
    return static_cast<float>(arguments_[index]->toDouble());
  }

  void require(bool condition) {
    if (!condition) fail();
  }

  // The product of these sizes must be the tensor's number of elements.
  void shape(const FloatTensor& tensor, std::initializer_list<int64_t> sizes) {
    int64_t elements = 1;
    for (int64_t size : sizes) {
      require(size > 0 && size < (int64_t{1} << 31) && elements < (int64_t{1} << 31));
      if (!ok_) return;
      elements *= size;
    }
    require(tensor.data != nullptr && tensor.elements == elements);
  }

  bool refused(const char* name) {
    if (ok_) return false;
    ET_LOG(Error, "%s was called with arguments that do not fit together", name);
    context_.fail(et::Error::InvalidArgument);
    return true;
  }

 private:
  FloatTensor fail() {
    ok_ = false;
    return {};
  }

  // A tensor may have been given no memory, an odd address, or a result the place of a constant.
  void* memory(size_t index) {
    void* data = arguments_[index]->toTensor().mutable_data_ptr();
    const auto address = reinterpret_cast<uintptr_t>(data);
    const auto file = reinterpret_cast<uintptr_t>(program_bytes.data);
    require(data != nullptr && address % alignof(float) == 0);
    require(index < inputs_ || address < file || address - file >= uint64_t(program_bytes.bytes));
    return data;
  }

  KernelRuntimeContext& context_;
  Span<EValue*> arguments_;
  size_t inputs_;
  bool ok_;
};

inline int panels(int outputs, int width) { return (outputs + width - 1) / width; }

// Enough for every instruction set's panels; operators.py computes the same.
inline int64_t padded_outputs(int64_t outputs) {
  const int64_t unit = outputs > 32 ? 64 : outputs > 16 ? 32 : 16;
  return (outputs + unit - 1) / unit * unit;
}

// The batch and the layer of a convolution; a fully connected layer (kernel 0) is one image whose
// pixels are the examples.
struct Layer {
  int images;
  Convolution shape;
};

inline Layer layer_of(Call& call, int batch, int height, int width, int inputs, int outputs,
                      int kernel) {
  if (kernel != 0) return {batch, {height, width, inputs, outputs, kernel}};
  constexpr int64_t kMaxFeatures = 1 << 30;
  const int64_t pixels = int64_t{height} * width;
  const bool fits = pixels < kMaxFeatures && pixels * inputs < kMaxFeatures;
  call.require(fits);
  return {1, {1, batch, fits ? int(pixels * inputs) : 0, outputs, 1}};
}

inline int64_t padded_size(const Layer& layer) {
  return int64_t{layer.images} * layer.shape.padded_height() * layer.shape.padded_width() *
         layer.shape.inputs;
}

inline void check_kernel(Call& call, int kernel) {
  call.require(kernel >= 0 && kernel <= kMaxKernel && (kernel == 0 || kernel % 2 == 1));
}

// Any range gives a grid that is safe to round to, even one that is not finite.
inline Grid activation_grid(const float* range) {
  if (range[0] > range[1]) return {1, 1, 0, true};
  const float low = std::min(range[0], 0.0f), high = std::max(range[1], 0.0f);
  float step = (high - low) / 255;
  if (!std::isnormal(step)) step = 1;  // of a subnormal one the inverse would be infinite
  const float zero_point = std::min(127.0f, std::max(-128.0f, -128 - std::rint(low / step)));
  return {step, 1 / step, zero_point, false};
}

// Splits an image's lines where images and panels alone would leave threads without work.
inline int line_splits(const Layer& layer, int panel_count) {
  const int wanted = 2 * thread_count();
  const int64_t tasks = int64_t{layer.images} * panel_count;
  if (tasks >= wanted) return 1;
  return std::min(layer.shape.height, int((wanted + tasks - 1) / tasks));
}

// The steps of all output channels' grids: the largest weight of each column is 127 steps. A column
// with NaN gets NaN, which integers could not carry on.
inline void weight_steps(const float* weight, int rows, int outputs, float* steps) {
  parallel(size_t(panels(outputs, kChunk)), [&](size_t task) {
    const int first = int(task) * kChunk, count = std::min(kChunk, outputs - first);
    float largest[kChunk] = {}, total[kChunk] = {};
    for (int row = 0; row < rows; ++row) {
      const float* from = weight + int64_t{row} * outputs + first;
      for (int i = 0; i < count; ++i) {
        const float value = std::fabs(from[i]);
        largest[i] = value > largest[i] ? value : largest[i];
        total[i] += value;
      }
    }
    for (int i = 0; i < count; ++i) {
      const float step = std::isnan(total[i]) ? total[i] : largest[i] / 127;
      steps[first + i] = step < FLT_MIN ? 1 : step;  // the inverse must be finite
    }
  });
}

}  // namespace trajsyn
