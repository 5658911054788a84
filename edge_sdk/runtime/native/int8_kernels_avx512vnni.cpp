// int8 kernels for x86-64 with AVX-512 VNNI, whose dot product takes unsigned times signed bytes.
#include <immintrin.h>

#include <cstdint>

#define LANES 16
#define VECTORS 4
#define ROWS 6
#define OFFSET 128
#define TABLE kInt8Avx512Vnni
#define NAME "avx512vnni"

namespace trajsyn {
namespace {
typedef int32_t Ints __attribute__((vector_size(64)));

inline Ints dot(Ints sum, Ints unsigned_bytes, Ints signed_bytes) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
}
}  // namespace
}  // namespace trajsyn

#include "int8_kernels_impl.h"
