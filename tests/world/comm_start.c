#include "comm/comm_internal.h"
#include "runtime/base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Worker: a part of comm_open fails on one rank.
 * Usage: comm_start PART RANK RANKS_PER_HOST.  Prints what each rank learns.
 */
static const char *failing;
static int failing_rank;

/* Before MPI says so the launcher does. */
static bool fails(const char *part)
{
    const char *rank = getenv("PMI_RANK");

    return strcmp(part, failing) == 0 && rank != NULL && atoi(rank) == failing_rank;
}

static shoal_status refuse(const char *part)
{
    return fail(SHOAL_ERR_NOMEM, "%s: refused", part);
}

shoal_status __real_comm_links_socket(int *fd_out, uint16_t *port_out);
shoal_status __wrap_comm_links_socket(int *fd_out, uint16_t *port_out);
shoal_status __real_comm_memory_make(const char *name, size_t n_bytes,
                                     struct shared_memory *memory_out);
shoal_status __wrap_comm_memory_make(const char *name, size_t n_bytes,
                                     struct shared_memory *memory_out);
shoal_status __real_comm_memory_attach(const char *name, pid_t pid, int fd, size_t n_bytes,
                                       struct shared_memory *memory_out);
shoal_status __wrap_comm_memory_attach(const char *name, pid_t pid, int fd, size_t n_bytes,
                                       struct shared_memory *memory_out);
shoal_status __real_comm_links_create(struct comm *comm, int fd, struct links **links_out);
shoal_status __wrap_comm_links_create(struct comm *comm, int fd, struct links **links_out);
shoal_status __real_comm_wire_create(struct comm *comm, struct wire **wire_out);
shoal_status __wrap_comm_wire_create(struct comm *comm, struct wire **wire_out);
shoal_status __real_comm_watchdog_create(struct comm *comm, struct watchdog **watchdog_out);
shoal_status __wrap_comm_watchdog_create(struct comm *comm, struct watchdog **watchdog_out);
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);

shoal_status __wrap_comm_links_socket(int *fd_out, uint16_t *port_out)
{
    return fails("socket") ? refuse("socket") : __real_comm_links_socket(fd_out, port_out);
}

shoal_status __wrap_comm_memory_make(const char *name, size_t n_bytes,
                                     struct shared_memory *memory_out)
{
    return fails("make") ? refuse("make") : __real_comm_memory_make(name, n_bytes, memory_out);
}

shoal_status __wrap_comm_memory_attach(const char *name, pid_t pid, int fd, size_t n_bytes,
                                       struct shared_memory *memory_out)
{
    return fails("attach") ? refuse("attach")
                           : __real_comm_memory_attach(name, pid, fd, n_bytes, memory_out);
}

shoal_status __wrap_comm_links_create(struct comm *comm, int fd, struct links **links_out)
{
    return fails("links") ? refuse("links") : __real_comm_links_create(comm, fd, links_out);
}

shoal_status __wrap_comm_wire_create(struct comm *comm, struct wire **wire_out)
{
    return fails("wire") ? refuse("wire") : __real_comm_wire_create(comm, wire_out);
}

shoal_status __wrap_comm_watchdog_create(struct comm *comm, struct watchdog **watchdog_out)
{
    return fails("watchdog") ? refuse("watchdog") : __real_comm_watchdog_create(comm, watchdog_out);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return size == sizeof(struct rank_entry) && fails("ranks") ? NULL : __real_calloc(n, size);
}

int main(int argc, char **argv)
{
    struct comm_params params = {0};
    struct comm *comm;
    const char *rank = getenv("PMI_RANK");

    if (argc != 4 || rank == NULL)
        return 64;
    failing = argv[1];
    failing_rank = atoi(argv[2]);
    params.ranks_per_host = atoi(argv[3]);
    shoal_status status = comm_open(&params, &comm);

    fprintf(stderr, "learned by %s: %d %s\n", rank, (int)status,
            status != SHOAL_OK ? shoal_last_error() : "");
    if (status == SHOAL_OK)
        status = comm_close(comm, status);
    return shoal_exit_code(status);
}
