// int8 kernels for every processor: 16-bit products, which all have, in place of a dot product.
#include <cstdint>

#define LANES 4
#define VECTORS 2
#define ROWS 4
#define OFFSET 0
#define TABLE kInt8Baseline
#define NAME "portable"

namespace trajsyn {
namespace {
typedef int32_t Ints __attribute__((vector_size(16)));

inline Ints dot(Ints sum, Ints rows, Ints weights) {
  typedef int16_t Shorts __attribute__((vector_size(16)));
  // Sign-extended even and odd bytes; a product of two bytes fits 16 bits, two of them need 32.
  const Shorts even = ((Shorts)rows << 8 >> 8) * ((Shorts)weights << 8 >> 8);
  const Shorts odd = ((Shorts)rows >> 8) * ((Shorts)weights >> 8);
  return sum + ((Ints)even << 16 >> 16) + ((Ints)even >> 16) + ((Ints)odd << 16 >> 16) +
         ((Ints)odd >> 16);
}
}  // namespace
}  // namespace trajsyn

#include "int8_kernels_impl.h"
