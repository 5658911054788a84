// Kernels for x86-64 with AVX-512: 32 registers of 16 floats.
#define LANES 16
#define PANEL_VECTORS 4
#define TABLE kAvx512
#define NAME "avx512"
#include "kernels_impl.h"
