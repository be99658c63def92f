#include "comm/comm_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * Memory shared by the ranks of a host is a memfd that local rank 0 makes and the others open
 * through /proc/<pid>/fd.  MPI_Win_allocate_shared would put it into /dev/shm: containers give that
 * 64 MB by default, and its files stay behind, holding memory, when a job is killed by
 * SIGKILL.  A memfd has no limit of its own and vanishes with its last process.
 */

static shoal_status map(const char *name, int fd, size_t n_bytes, struct shared_memory *memory_out)
{
    void *base = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (base == MAP_FAILED)
        return fail(SHOAL_ERR_NOMEM, "%s: cannot map %zu bytes: %s", name, n_bytes,
                    strerror(errno));
    /* Best effort: it needs /sys/kernel/mm/transparent_hugepage/shmem_enabled = advise. */
    madvise(base, n_bytes, MADV_HUGEPAGE);
    *memory_out = (struct shared_memory){.base = base, .n_bytes = n_bytes, .fd = fd};
    return SHOAL_OK;
}

shoal_status comm_memory_make(const char *name, size_t n_bytes, struct shared_memory *memory_out)
{
    shoal_status status;
    int fd = memfd_create(name, MFD_CLOEXEC);

    if (fd < 0)
        return fail(SHOAL_ERR_NOMEM, "%s: memfd_create: %s", name, strerror(errno));
    if (ftruncate(fd, (off_t)n_bytes) != 0) {
        status = fail(SHOAL_ERR_NOMEM, "%s: cannot size shared memory to %zu bytes: %s", name,
                      n_bytes, strerror(errno));
        goto err_close;
    }
    SHOAL_TRY_GOTO(map(name, fd, n_bytes, memory_out), err_close);
    return SHOAL_OK;

err_close:
    close(fd);
    return status;
}

shoal_status comm_memory_attach(const char *name, pid_t pid, int fd, size_t n_bytes,
                                struct shared_memory *memory_out)
{
    shoal_status status;
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)pid, fd);
    int own = open(path, O_RDWR | O_CLOEXEC);
    if (own < 0) {
        status = fail(SHOAL_ERR_UNAVAILABLE, "%s: cannot open %s: %s", name, path, strerror(errno));
        fail_why(status, "ranks of one host share memory through each other's /proc entries");
        return fail_hint(status,
                         "run all ranks of a host as one user, in one container, with /proc "
                         "mounted and without hidepid");
    }
    SHOAL_TRY_GOTO(map(name, own, n_bytes, memory_out), err_close);
    return SHOAL_OK;

err_close:
    close(own);
    return status;
}

void comm_memory_release(struct shared_memory *memory)
{
    if (memory->base == NULL)
        return;
    munmap(memory->base, memory->n_bytes);
    close(memory->fd);
    *memory = (struct shared_memory){.fd = -1};
}

void comm_futex_wait(_Atomic uint32_t *word, uint32_t value, double timeout_s, bool shared)
{
    struct timespec timeout = {.tv_sec = (time_t)timeout_s};

    timeout.tv_nsec = (long)((timeout_s - (double)timeout.tv_sec) * 1e9);
    syscall(SYS_futex, word, shared ? FUTEX_WAIT : FUTEX_WAIT_PRIVATE, value, &timeout, NULL, 0);
}

void comm_futex_wake_all(_Atomic uint32_t *word, bool shared)
{
    syscall(SYS_futex, word, shared ? FUTEX_WAKE : FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}
