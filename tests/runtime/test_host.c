#include "runtime/base/host.h"
#include "runtime/base/isa.h"

#include <criterion/criterion.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

Test(host, counts_only_the_cpus_that_the_process_may_use)
{
    cpu_set_t all;
    cpu_set_t one;

    cr_assert_eq(sched_getaffinity(0, sizeof all, &all), 0);
    cr_assert_eq(host_cpus(), CPU_COUNT(&all));

    size_t first = 0;
    while (!CPU_ISSET(first, &all))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    cr_assert_eq(sched_setaffinity(0, sizeof one, &one), 0);
    cr_assert_eq(host_cpus(), 1);
}

Test(host, resident_bytes_follow_the_pages_touched_and_the_peak_remains)
{
    const size_t n_bytes = (size_t)64 << 20;
    const uint64_t before = host_resident_bytes();
    void *block = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    cr_assert_neq(block, MAP_FAILED);
    memset(block, 1, n_bytes);
    /* The kernel counts per thread and may be some pages late. */
    cr_assert_geq(host_resident_bytes(), before + n_bytes - ((size_t)4 << 20));
    munmap(block, n_bytes);
    cr_assert_lt(host_resident_bytes(), before + n_bytes / 2);
    cr_assert_geq(host_peak_resident_bytes(), before + n_bytes - ((size_t)4 << 20));
}

Test(host, memory_available_is_part_of_the_memory)
{
    cr_assert_gt(host_memory_available_bytes(), 0);
    cr_assert_lt(host_memory_available_bytes(), host_memory_bytes());
    cr_assert_gt(host_memory_bytes(), host_resident_bytes());
    cr_assert_gt(host_anonymous_resident_bytes(), 0);
    cr_assert_lt(host_anonymous_resident_bytes(), host_resident_bytes());
}

Test(host, cpu_name_fits_the_buffer)
{
    char name[128];
    char shorter[6];

    host_cpu_name(name, sizeof name);
    host_cpu_name(shorter, sizeof shorter);
    cr_assert_gt(strlen(name), 0);
    cr_assert_null(strchr(name, '\n'));
    cr_assert_eq(strncmp(name, shorter, sizeof shorter - 1), 0);
    cr_assert_lt(strlen(shorter), sizeof shorter);
}

Test(isa, environment_lowers_the_choice_but_never_raises_it)
{
    unsetenv("SHOAL_ISA");
    const enum isa best = isa_best();

    setenv("SHOAL_ISA", "scalar", 1);
    cr_assert_eq(isa_best(), ISA_SCALAR);
    setenv("SHOAL_ISA", "avx2", 1);
    cr_assert_eq(isa_best(), best < ISA_AVX2 ? best : ISA_AVX2);
    setenv("SHOAL_ISA", "avx512", 1);
    cr_assert_eq(isa_best(), best);
    setenv("SHOAL_ISA", "no such set", 1);
    cr_assert_eq(isa_best(), best);
}
