// Runs an ExecuTorch program on buffers that the caller owns, behind a C ABI.
//
// A program here has one method, `forward`, whose inputs and outputs are dense tensors of static
// shape that the exporter left unplanned: their memory is the caller's, so a step copies nothing.
// No exception leaves this file: a function that fails returns NULL or -1 and leaves its reason
// in trajsyn_last_error(), one text for each thread.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include "int8_kernels.h"
#include "kernels.h"
#include "operator_call.h"
#include "thread_pool.h"

namespace et = executorch::runtime;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::MallocMemoryAllocator;

namespace trajsyn {
bool register_operators();
}

namespace {

constexpr int kMaxRank = 8;
constexpr size_t kAlignment = 64;
constexpr int64_t kMaxPlannedBytes = int64_t{4} << 30;  // of all buffers together

thread_local std::string last_error;
thread_local std::string last_log;

void keep_log(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t,
              const char* message, size_t length) {
  if (level == kError || level == kFatal) last_log.assign(message, length);
}

void require(et::Error error, const char* what) {
  if (error == et::Error::Ok) return;
  char code[16];
  std::snprintf(code, sizeof code, "0x%02x", static_cast<unsigned>(error));
  throw std::runtime_error(std::string(what) + ": ExecuTorch error " + code +
                           (last_log.empty() ? "" : " (" + last_log + ")"));
}

// A tensor whose data pointer is set anew for each call.
struct Slot {
  explicit Slot(const et::TensorInfo& info)
      : sizes(info.sizes().begin(), info.sizes().end()),
        dim_order(info.dim_order().begin(), info.dim_order().end()),
        strides(sizes.size()),
        dtype(info.scalar_type()),
        bytes(info.nbytes()) {
    if (std::any_of(sizes.begin(), sizes.end(), [](int32_t size) { return size < 0; })) {
      throw std::runtime_error("a tensor has a negative size");
    }
    if (sizes.size() > kMaxRank) throw std::runtime_error("a tensor has more than 8 dimensions");
    if (info.is_memory_planned()) {
      throw std::runtime_error("the program plans memory for its inputs or outputs; export it without");
    }
    int64_t stride = 1;
    for (size_t i = sizes.size(); i-- > 0; stride *= sizes[i]) {
      if (dim_order[i] != i) throw std::runtime_error("a tensor is not in row-major order");
      if (stride > INT32_MAX) throw std::runtime_error("a tensor is too large");
      strides[i] = static_cast<int32_t>(stride);
    }
  }

  std::vector<int32_t> sizes;
  std::vector<uint8_t> dim_order;
  std::vector<int32_t> strides;
  executorch::aten::ScalarType dtype;
  size_t bytes;
};

class Program {
 public:
  Program(const void* data, size_t size)
      : bytes_(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, padded(size))), std::free),
        loader_(copied(bytes_.get(), data, size), size),
        size_(static_cast<int64_t>(size)),
        program_(load(&loader_)) {
    auto meta = program_.method_meta("forward");
    require(meta.error(), "the program has no method `forward`");
    for (size_t i = 0; i < meta->num_inputs(); ++i) {
      auto info = meta->input_tensor_meta(i);
      require(info.error(), "an input is not a tensor");
      inputs.emplace_back(*info);
    }
    for (size_t i = 0; i < meta->num_outputs(); ++i) {
      auto info = meta->output_tensor_meta(i);
      require(info.error(), "an output is not a tensor");
      outputs.emplace_back(*info);
    }
    std::vector<int64_t> planned_bytes;
    int64_t left = kMaxPlannedBytes;
    for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i) {
      auto planned = meta->memory_planned_buffer_size(i);
      require(planned.error(), "a planned buffer has no size");
      if (*planned < 0 || *planned > left) {
        throw std::runtime_error("the program asks for too much memory");
      }
      left -= *planned;
      planned_bytes.push_back(*planned);
    }
    for (const int64_t bytes : planned_bytes) {
      buffers_.emplace_back(static_cast<size_t>(bytes) + kAlignment);
      const auto address = reinterpret_cast<uintptr_t>(buffers_.back().data());
      const size_t shift = (kAlignment - address % kAlignment) % kAlignment;
      spans_.emplace_back(buffers_.back().data() + shift, static_cast<size_t>(bytes));
    }
    attach();
  }

  // Delegates hold a pointer to the thread pool: detach before it is replaced, attach after.
  void detach() {
    method_.reset();
    method_memory_.reset();
  }

  void attach() {
    method_memory_.emplace();
    planned_.emplace(et::Span<et::Span<uint8_t>>(spans_.data(), spans_.size()));
    memory_.emplace(&*method_memory_, &*planned_, &temporary_);
    auto method = program_.load_method("forward", &*memory_);
    require(method.error(), "the program could not be prepared");
    method_.emplace(std::move(*method));
  }

  void execute(void* const* input_data, void* const* output_data) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!method_) throw std::runtime_error("the program could not be prepared again; load it anew");
    for (size_t i = 0; i < inputs.size(); ++i) {
      Slot& slot = inputs[i];
      TensorImpl tensor(slot.dtype, static_cast<ssize_t>(slot.sizes.size()), slot.sizes.data(),
                        input_data[i], slot.dim_order.data(), slot.strides.data());
      require(method_->set_input(et::EValue(Tensor(&tensor)), i), "an input was refused");
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      require(method_->set_output_data_ptr(output_data[i], outputs[i].bytes, i),
              "an output was refused");
    }
    trajsyn::program_bytes = {bytes_.get(), size_};
    const et::Error error = method_->execute();
    temporary_.reset();
    require(error, "the program failed");
  }

  std::vector<Slot> inputs;
  std::vector<Slot> outputs;

 private:
  static size_t padded(size_t size) { return (size / kAlignment + 1) * kAlignment; }

  static uint8_t* copied(uint8_t* to, const void* from, size_t size) {
    if (to == nullptr) throw std::bad_alloc();
    std::memcpy(to, from, size);
    return to;
  }

  static et::Program load(et::DataLoader* loader) {
    auto program = et::Program::load(loader, et::Program::Verification::InternalConsistency);
    require(program.error(), "not a usable ExecuTorch program");
    return std::move(*program);
  }

  std::unique_ptr<uint8_t, void (*)(void*)> bytes_;
  executorch::extension::BufferDataLoader loader_;
  int64_t size_;
  et::Program program_;
  std::vector<std::vector<uint8_t>> buffers_;
  std::vector<et::Span<uint8_t>> spans_;
  MallocMemoryAllocator temporary_;
  std::optional<MallocMemoryAllocator> method_memory_;
  std::optional<et::HierarchicalAllocator> planned_;
  std::optional<et::MemoryManager> memory_;
  std::optional<et::Method> method_;  // declared last: it is destroyed before what it uses
  std::mutex mutex_;
};

// Held shared while programs run, alone while the set of programs or the thread pool changes.
std::shared_mutex pool_mutex;
std::set<Program*> programs;

void initialize() {
  static const bool done = [] {
    et::register_pal(et::PalImpl::create(keep_log, __FILE__));
    et::runtime_init();
    return trajsyn::register_operators();
  }();
  if (!done) throw std::runtime_error("the operators could not be registered");
}

template <typename Body>
int guarded(Body body) noexcept {
  try {
    last_error.clear();
    last_log.clear();
    body();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown failure";
  }
  return -1;
}

}  // namespace

extern "C" {

// Copies the bytes; returns NULL on failure.
void* trajsyn_load(const void* data, size_t size) {
  std::unique_ptr<Program> program;
  const int status = guarded([&] {
    initialize();
    std::unique_lock<std::shared_mutex> lock(pool_mutex);
    program = std::make_unique<Program>(data, size);
    programs.insert(program.get());
  });
  return status == 0 ? program.release() : nullptr;
}

// Waits for running programs; a handle that was freed before is left alone.
void trajsyn_free(void* handle) {
  guarded([&] {
    std::unique_lock<std::shared_mutex> lock(pool_mutex);
    Program* program = static_cast<Program*>(handle);
    if (programs.erase(program) != 0) delete program;
  });
}

int trajsyn_input_count(const void* handle) {
  return static_cast<int>(static_cast<const Program*>(handle)->inputs.size());
}

int trajsyn_output_count(const void* handle) {
  return static_cast<int>(static_cast<const Program*>(handle)->outputs.size());
}

// Writes the dtype (ExecuTorch's number) and up to 8 sizes; returns the number of dimensions.
int trajsyn_describe(const void* handle, int is_output, int index, int* dtype, int32_t* sizes) {
  const Program* program = static_cast<const Program*>(handle);
  const std::vector<Slot>& slots = is_output ? program->outputs : program->inputs;
  const Slot& slot = slots[static_cast<size_t>(index)];
  *dtype = static_cast<int>(slot.dtype);
  std::copy(slot.sizes.begin(), slot.sizes.end(), sizes);
  return static_cast<int>(slot.sizes.size());
}

// Every pointer must be valid for the whole tensor; outputs must not overlap inputs.
int trajsyn_execute(void* handle, void* const* inputs, void* const* outputs) {
  return guarded([&] {
    std::shared_lock<std::shared_mutex> lock(pool_mutex);
    Program* program = static_cast<Program*>(handle);
    if (programs.count(program) == 0) throw std::runtime_error("the program was closed");
    program->execute(inputs, outputs);
  });
}

// Waits for running programs, replaces the process-wide pool and prepares every program again.
int trajsyn_set_threads(uint32_t count) {
  return guarded([&] {
    initialize();
    std::unique_lock<std::shared_mutex> lock(pool_mutex);
    auto* pool = executorch::extension::threadpool::get_threadpool();
    if (pool == nullptr) throw std::runtime_error("there is no thread pool");
    if (pool->get_thread_count() == count) return;
    for (Program* program : programs) program->detach();
    const bool replaced = pool->_unsafe_reset_threadpool(count);
    for (Program* program : programs) program->attach();
    if (!replaced) throw std::runtime_error("the thread pool could not be replaced");
  });
}

int trajsyn_threads() {
  int count = -1;
  guarded([&] {
    initialize();
    std::shared_lock<std::shared_mutex> lock(pool_mutex);
    auto* pool = executorch::extension::threadpool::get_threadpool();
    if (pool == nullptr) throw std::runtime_error("there is no thread pool");
    count = static_cast<int>(pool->get_thread_count());
  });
  return count;
}

// d = gradient * scale + decay * w + mu * (w - start); v = momentum * v + d; w -= rate * v, and the
// gradient becomes zero. `velocity` may be null where momentum is 0, `start` where mu is.
int trajsyn_sgd_step(float* weights, float* gradient, float* velocity, const float* start,
                     size_t count, float scale, float rate, float momentum, float decay, float mu) {
  return guarded([&] {
    initialize();
    std::shared_lock<std::shared_mutex> lock(pool_mutex);
    constexpr size_t kPart = 1 << 14;
    trajsyn::parallel((count + kPart - 1) / kPart, [&](size_t part) {
      const size_t end = std::min(count, (part + 1) * kPart);
      for (size_t i = part * kPart; i < end; ++i) {
        float d = gradient[i] * scale + decay * weights[i];
        if (mu != 0) d += mu * (weights[i] - start[i]);
        if (momentum != 0) d = velocity[i] = momentum * velocity[i] + d;
        weights[i] -= rate * d;
        gradient[i] = 0;
      }
    });
  });
}

// The instruction sets that training can use here, the fastest first, with spaces between.
const char* trajsyn_instruction_sets() { return trajsyn::supported_kernels(); }
const char* trajsyn_int8_instruction_sets() { return trajsyn::supported_int8_kernels(); }

// Uses another one of either list from the next call on; fails where the processor lacks it.
int trajsyn_set_instruction_set(const char* name) {
  return guarded([&] {
    std::unique_lock<std::shared_mutex> lock(pool_mutex);
    if (!trajsyn::select_kernels(name) && !trajsyn::select_int8_kernels(name)) {
      throw std::runtime_error("not on this processor");
    }
  });
}

const char* trajsyn_last_error() { return last_error.c_str(); }

}  // extern "C"
