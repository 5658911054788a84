// Kernels for x86-64 with AVX2 and FMA: 16 registers of 8 floats.
#define LANES 8
#define PANEL_VECTORS 2
#define TABLE kAvx2
#define NAME "avx2"
#include "kernels_impl.h"
