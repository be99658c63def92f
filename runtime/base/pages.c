#include "runtime/base/pages.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 };

/* Mappings of at least two huge pages are aligned to one, so that the kernel can use them. */
shoal_status pages_alloc(const char *name, size_t n_bytes, void **ptr_out)
{
    if (n_bytes == 0 || n_bytes > SIZE_MAX - HUGE_PAGE)
        return fail(SHOAL_ERR_NOMEM, "%s: cannot map %zu bytes", name, n_bytes);

    size_t slack = n_bytes >= 2 * (size_t)HUGE_PAGE ? HUGE_PAGE : 0;
    char *raw = mmap(NULL, n_bytes + slack, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED)
        return fail(SHOAL_ERR_NOMEM, "%s: cannot map %zu bytes: %s", name, n_bytes,
                    strerror(errno));
    char *base = raw;
    if (slack != 0) {
        base = (char *)(((uintptr_t)raw + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
        if (base > raw)
            munmap(raw, (size_t)(base - raw));
        size_t tail = (size_t)(raw + n_bytes + slack - (base + n_bytes));
        uintptr_t end = ((uintptr_t)base + n_bytes + 4095) & ~(uintptr_t)4095;
        size_t unused = (size_t)((uintptr_t)(raw + n_bytes + slack) - end);
        if (tail >= 4096 && unused > 0)
            munmap((void *)end, unused & ~(size_t)4095);
        madvise(base, n_bytes, MADV_HUGEPAGE); /* a hint: failure changes speed only */
    }
    *ptr_out = base;
    return SHOAL_OK;
}

void pages_free(void *ptr, size_t n_bytes)
{
    if (ptr != NULL)
        munmap(ptr, n_bytes);
}
