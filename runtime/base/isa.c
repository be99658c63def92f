#include "runtime/base/isa.h"

#include <stdlib.h>
#include <string.h>

static const char *const NAMES[] = {
    [ISA_SCALAR] = "scalar",
    [ISA_AVX2] = "avx2",
    [ISA_AVX512] = "avx512",
};

/* The features that launch/cmake/rules.cmake compiles for (every CPU with AVX2 has F16C). */
static enum isa isa_of_cpu(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return ISA_SCALAR;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return ISA_AVX512;
    return ISA_AVX2;
#else
    return ISA_SCALAR;
#endif
}

/*
 * The variable can only lower the choice: more than the CPU has would end in SIGILL.  Names that
 * are not known change nothing.
 */
enum isa isa_best(void)
{
    const enum isa best = isa_of_cpu();
    const char *wanted = getenv("SHOAL_ISA");

    for (int isa = ISA_SCALAR; wanted != NULL && isa < (int)best; isa++) {
        if (strcmp(wanted, NAMES[isa]) == 0)
            return (enum isa)isa;
    }
    return best;
}

const char *isa_name(enum isa isa)
{
    return NAMES[isa];
}
