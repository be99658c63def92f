#pragma once

/*
 * Kernels that are compiled once per instruction set (CMake's ISA sources).  A kernel
 * file writes `void ISA_NAME(adamw)(...)`, which becomes adamw_scalar, adamw_avx2 and
 * adamw_avx512; a dispatcher picks one at start with isa_best().
 *
 * All builds use the same IEEE operations in the same order per element (no contraction, fma
 * only where written, sums over explicit lanes), so they give the same bits.
 */

#ifdef SHOAL_ISA
#define ISA_PASTE_(name, isa) name##_##isa
#define ISA_PASTE(name, isa)  ISA_PASTE_(name, isa)
#define ISA_NAME(name)        ISA_PASTE(name, SHOAL_ISA)
#endif

enum isa { ISA_SCALAR, ISA_AVX2, ISA_AVX512 };

/* The widest set this CPU has; SHOAL_ISA=scalar|avx2|avx512 in the environment lowers it (tests). */
enum isa isa_best(void);
const char *isa_name(enum isa isa);
