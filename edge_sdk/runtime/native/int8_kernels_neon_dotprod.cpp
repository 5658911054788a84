// int8 kernels for aarch64 with the dot product of Armv8.2 (Cortex-A55, A75 and newer).
#include <arm_neon.h>

#include <cstdint>

#define LANES 4
#define VECTORS 4
#define ROWS 6
#define OFFSET 0
#define TABLE kInt8NeonDotprod
#define NAME "neon_dotprod"

namespace trajsyn {
namespace {
typedef int32_t Ints __attribute__((vector_size(16)));

inline Ints dot(Ints sum, Ints rows, Ints weights) {
  return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)rows, (int8x16_t)weights);
}
}  // namespace
}  // namespace trajsyn

#include "int8_kernels_impl.h"
