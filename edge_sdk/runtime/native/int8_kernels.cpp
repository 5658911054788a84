// Chooses the int8 kernels by what the processor has.
#include "int8_kernels.h"

#include "choice.h"

#ifdef __aarch64__
#include <sys/auxv.h>
#endif

namespace trajsyn {

extern const Int8Kernels kInt8Baseline;
#ifdef __x86_64__
extern const Int8Kernels kInt8Avx512Vnni;
#endif
#ifdef __aarch64__
extern const Int8Kernels kInt8NeonDotprod;
#endif

namespace {

bool is_supported(const Int8Kernels& table) {
#ifdef __x86_64__
  if (&table == &kInt8Avx512Vnni) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
  }
#endif
#ifdef __aarch64__
  constexpr unsigned long kDotProduct = 1UL << 20;  // HWCAP_ASIMDDP
  if (&table == &kInt8NeonDotprod) return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#endif
  return &table == &kInt8Baseline;
}

const Int8Kernels* const kBestFirst[] = {
#ifdef __x86_64__
    &kInt8Avx512Vnni,
#endif
#ifdef __aarch64__
    &kInt8NeonDotprod,
#endif
    &kInt8Baseline,
};

Choice<Int8Kernels> choice(kBestFirst, is_supported);

}  // namespace

const Int8Kernels& int8_kernels() { return choice.get(); }
const char* supported_int8_kernels() { return choice.names(); }
bool select_int8_kernels(const char* name) { return choice.select(name); }

}  // namespace trajsyn
