// ExecuTorch's thread pool, which XNNPACK uses too. The wheel ships the class in
// libexecutorch_threadpool.so but not its header.
#pragma once

#include <cstddef>
#include <cstdint>

#include <executorch/runtime/core/function_ref.h>

namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
  void run(executorch::runtime::FunctionRef<void(size_t)> task, size_t count);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace trajsyn {

inline int thread_count() {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  return pool == nullptr ? 1 : static_cast<int>(pool->get_thread_count());
}

// Runs body(0) ... body(count - 1), each once, in no particular order.
template <typename Body>
void parallel(size_t count, Body&& body) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool == nullptr || pool->get_thread_count() == 1 || count < 2) {
    for (size_t task = 0; task < count; ++task) body(task);
    return;
  }
  pool->run([&body](size_t task) { body(task); }, count);
}

}  // namespace trajsyn
