// Chooses the kernels by what the processor has.
#include "kernels.h"

#include "choice.h"

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

Choice<Kernels> choice(kBestFirst, is_supported);

}  // namespace

const Kernels& kernels() { return choice.get(); }
const char* supported_kernels() { return choice.names(); }
bool select_kernels(const char* name) { return choice.select(name); }

}  // namespace trajsyn
