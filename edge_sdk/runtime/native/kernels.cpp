// Chooses the instruction set once, at the first use.
#include "kernels.h"

#include <atomic>
#include <cstring>
#include <string>

namespace trajsyn {

extern const Kernels kBaseline;
#ifdef __x86_64__
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

namespace {

bool is_supported(const Kernels& table) {
#ifdef __x86_64__
  if (&table == &kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (&table == &kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &table == &kBaseline;
}

const Kernels* const kBestFirst[] = {
#ifdef __x86_64__
    &kAvx512,
    &kAvx2,
#endif
    &kBaseline,
};

const Kernels* best() {
  for (const Kernels* table : kBestFirst) {
    if (is_supported(*table)) return table;
  }
  return &kBaseline;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* table = chosen.load(std::memory_order_acquire);
  if (table == nullptr) chosen.store(table = best(), std::memory_order_release);
  return *table;
}

const char* supported_kernels() {
  static const std::string names = [] {
    std::string text;
    for (const Kernels* table : kBestFirst) {
      if (is_supported(*table)) text += (text.empty() ? "" : " ") + std::string(table->name);
    }
    return text;
  }();
  return names.c_str();
}

bool select_kernels(const char* name) {
  for (const Kernels* table : kBestFirst) {
    if (std::strcmp(table->name, name) == 0 && is_supported(*table)) {
      chosen.store(table, std::memory_order_release);
      return true;
    }
  }
  return false;
}

}  // namespace trajsyn
