// Kernels for what every processor of the architecture has: SSE2 on x86-64, NEON on aarch64.
#define LANES 4
#ifdef __aarch64__
#define PANEL_VECTORS 4
#define NAME "neon"
#else
#define PANEL_VECTORS 2
#define NAME "sse2"
#endif
#define TABLE kBaseline
#include "kernels_impl.h"
