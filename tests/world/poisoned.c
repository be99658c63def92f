/*
 * The shoal command with an allocator that refuses to work while a schedule runs.
 *
 * Every allocation of the process goes through here (Shoal's, MPI's, libc's).  Exempt is oneDNN with the
 * libraries that only it uses: its sgemm takes packing buffers per call, which the plan counts in
 * the measured base.  Exit code 1 if anything was refused, else that of the command.
 */
#include "runtime/schedule/schedule.h"
#include "runtime/shoal.h"

#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
shoal_status __real_exec_run(struct schedule *sched);
shoal_status __wrap_exec_run(struct schedule *sched);

enum { MAX_RANGES = 64 };

static struct {
    uintptr_t begin, end;
} exempt[MAX_RANGES];
static int n_exempt;
static atomic_bool armed;
static atomic_int refused;
static void *first_caller;

static int note_library(struct dl_phdr_info *info, size_t size, void *arg)
{
    static const char *const names[] = {"libdnnl", "libstdc++", "libgomp"};

    (void)size;
    (void)arg;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strstr(info->dlpi_name, names[i]) != NULL)
            for (int h = 0; h < info->dlpi_phnum && n_exempt < MAX_RANGES; h++) {
                exempt[n_exempt].begin = info->dlpi_addr + info->dlpi_phdr[h].p_vaddr;
                exempt[n_exempt].end = exempt[n_exempt].begin + info->dlpi_phdr[h].p_memsz;
                n_exempt++;
            }
    return 0;
}

static bool refuse(void *caller)
{
    uintptr_t at = (uintptr_t)caller;

    if (!atomic_load(&armed))
        return false;
    for (int i = 0; i < n_exempt; i++)
        if (at >= exempt[i].begin && at < exempt[i].end)
            return false;
    if (atomic_fetch_add(&refused, 1) == 0)
        first_caller = caller;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t n)
{
    return refuse(__builtin_return_address(0)) ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return refuse(__builtin_return_address(0)) ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return refuse(__builtin_return_address(0)) ? NULL : __libc_realloc(p, n);
}

void *memalign(size_t align, size_t n)
{
    return refuse(__builtin_return_address(0)) ? NULL : __libc_memalign(align, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    return refuse(__builtin_return_address(0)) ? NULL : __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    if (refuse(__builtin_return_address(0)))
        return ENOMEM;
    *out = __libc_memalign(align, n);
    return *out == NULL ? ENOMEM : 0;
}

shoal_status __wrap_exec_run(struct schedule *sched)
{
    static int runs;

    /* The first run of a schedule may still find lazy set-up in libraries. */
    atomic_store(&armed, runs++ > 0);
    shoal_status status = __real_exec_run(sched);
    atomic_store(&armed, false);
    return status;
}

int main(int argc, char **argv)
{
    dl_iterate_phdr(note_library, NULL);
    if (getenv("SHOAL_TEST_ALLOCATE") != NULL) {
        atomic_store(&armed, true);
        void *volatile p = malloc(10); /* else clang takes the call away */
        atomic_store(&armed, false);
        return p == NULL ? 1 : 0;
    }
    int rc = shoal_main(argc, argv);
    fprintf(stderr, "allocations were refused: %d (first caller %p)\n", atomic_load(&refused),
            first_caller);
    return atomic_load(&refused) != 0 ? 1 : rc;
}
