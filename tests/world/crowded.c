/*
 * The shoal command on a device whose memory is counted.  All ranks of the run share it, and each takes
 * some when the device is opened, when ops are created, when they warm up, and when the transport
 * starts.
 *
 * CROWDED="FILE TOTAL OPENING LIBRARIES TRANSPORT", in MiB, LIBRARIES twice; FILE, of zeros, is where
 * the ranks add up.
 * CROWDED_SLOW=take: higher ranks take theirs later; look: rank 0 is late to see how much is free.
 * CROWDED_BLIND=RANK: there it cannot be seen.
 */
#include "comm/comm.h"
#include "models/ops/ops.h"
#include "runtime/device/device.h"
#include "runtime/shoal.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

shoal_status __real_device_open(const char *name, int local_rank, struct device **device_out);
shoal_status __wrap_device_open(const char *name, int local_rank, struct device **device_out);
shoal_status __real_ops_create_cpu(struct pool *pool, struct ops **ops_out);
shoal_status __wrap_ops_create_cpu(struct pool *pool, struct ops **ops_out);
shoal_status __real_ops_warm_up(struct ops *ops, size_t *own_bytes_out);
shoal_status __wrap_ops_warm_up(struct ops *ops, size_t *own_bytes_out);
shoal_status __real_comm_use_device(struct comm *comm, struct device *device);
shoal_status __wrap_comm_use_device(struct comm *comm, struct device *device);

static struct {
    char path[128];
    size_t total, opening, libraries, transport;
    _Atomic size_t *used;
    int rank;
} crowd;
static struct device_ops counted;
static const struct device_ops *real;

static void be_slow(const char *at, long ms)
{
    const char *slow = getenv("CROWDED_SLOW");
    const struct timespec late = {.tv_nsec = ms * 1000 * 1000};

    if (slow != NULL && strcmp(slow, at) == 0)
        nanosleep(&late, NULL);
}

static void take(size_t mib)
{
    be_slow("take", 80 * crowd.rank);
    atomic_fetch_add(crowd.used, mib << 20);
}

static shoal_status counted_memory(struct device *device, size_t *free_out, size_t *total_out)
{
    const char *blind = getenv("CROWDED_BLIND");

    (void)device;
    if (blind != NULL && atoi(blind) == crowd.rank)
        return fail(SHOAL_ERR_UNAVAILABLE, "device: cannot be asked for its memory");
    be_slow("look", crowd.rank == 0 ? 300 : 0);
    *total_out = crowd.total << 20;
    *free_out = *total_out - atomic_load(crowd.used);
    return SHOAL_OK;
}

static shoal_status counted_alloc(struct device *device, const char *name, size_t n_bytes,
                                  void **ptr_out)
{
    atomic_fetch_add(crowd.used, n_bytes);
    return real->alloc(device, name, n_bytes, ptr_out);
}

static void counted_free(struct device *device, void *ptr, size_t n_bytes)
{
    if (ptr != NULL)
        atomic_fetch_sub(crowd.used, n_bytes);
    real->free(device, ptr, n_bytes);
}

shoal_status __wrap_device_open(const char *name, int local_rank, struct device **device_out)
{
    SHOAL_TRY(__real_device_open(name, local_rank, device_out));
    real = (*device_out)->ops;
    counted = *real;
    counted.memory = counted_memory;
    counted.alloc = counted_alloc;
    counted.free = counted_free;
    (*device_out)->ops = &counted;
    take(crowd.opening);
    return SHOAL_OK;
}

shoal_status __wrap_ops_create_cpu(struct pool *pool, struct ops **ops_out)
{
    SHOAL_TRY(__real_ops_create_cpu(pool, ops_out));
    take(crowd.libraries);
    return SHOAL_OK;
}

shoal_status __wrap_ops_warm_up(struct ops *ops, size_t *own_bytes_out)
{
    SHOAL_TRY(__real_ops_warm_up(ops, own_bytes_out));
    take(crowd.libraries);
    return SHOAL_OK;
}

shoal_status __wrap_comm_use_device(struct comm *comm, struct device *device)
{
    SHOAL_TRY(__real_comm_use_device(comm, device));
    take(crowd.transport);
    return SHOAL_OK;
}

int main(int argc, char **argv)
{
    const char *script = getenv("CROWDED"), *rank = getenv("PMI_RANK");

    if (script == NULL || sscanf(script, "%127s %zu %zu %zu %zu", crowd.path, &crowd.total,
                                 &crowd.opening, &crowd.libraries, &crowd.transport) != 5)
        return 64;
    crowd.rank = rank == NULL ? 0 : atoi(rank);
    int fd = open(crowd.path, O_RDWR | O_CLOEXEC);
    void *shared = mmap(NULL, sizeof *crowd.used, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (shared == MAP_FAILED)
        return 64;
    close(fd);
    crowd.used = shared;
    setenv("SHOAL_TEST_DEVICE", "remote", 1);
    return shoal_main(argc, argv);
}
