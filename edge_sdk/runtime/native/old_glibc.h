// Included in every file by the build: keeps the library loadable where glibc is older than the
// one it is built on. glibc gave these functions a new version when it moved them from libpthread
// to libc (2.34) and when exp, log and pow stopped reporting errors the old way (2.29). Asked for
// by the version that the architecture began with, they are found in old and new releases alike.
#pragma once

#if defined(__x86_64__)
#define TRAJSYN_FIRST_GLIBC(name) __asm__(".symver " #name "," #name "@GLIBC_2.2.5")
#elif defined(__aarch64__)
#define TRAJSYN_FIRST_GLIBC(name) __asm__(".symver " #name "," #name "@GLIBC_2.17")
#endif

#ifdef TRAJSYN_FIRST_GLIBC
TRAJSYN_FIRST_GLIBC(pthread_rwlock_rdlock);
TRAJSYN_FIRST_GLIBC(pthread_rwlock_wrlock);
TRAJSYN_FIRST_GLIBC(pthread_rwlock_unlock);
TRAJSYN_FIRST_GLIBC(exp);
TRAJSYN_FIRST_GLIBC(log);
TRAJSYN_FIRST_GLIBC(pow);
#endif
