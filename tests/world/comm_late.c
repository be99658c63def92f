#include "comm/comm_internal.h"
#include "runtime/base/log.h"

#include <string.h>
#include <time.h>

/*
 * Worker for two ranks: rank 1 leaves a broadcast because of a failure, and only then rank 0's part
 * arrives.  It must not be written to memory that is rank 1's own again.
 */
enum { N = 4096, SENT = 0x11, KEPT = 0x77 };

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
}

static void *fail_soon(void *arg)
{
    struct comm *comm = arg;

    for (int i = 0; i < 10; i++)
        nap();
    comm_board_post(comm, SHOAL_ERR_IO, comm_rank(comm), "disk is full");
    return NULL;
}

static const char *leave_early(struct comm *comm)
{
    static char data[N], kept[N];
    pthread_t thread;

    if (comm_thread_start("fail-soon", &thread, fail_soon, comm) != SHOAL_OK)
        return "no thread";
    shoal_status status = comm_broadcast(comm, 0, data, N);

    pthread_join(thread, NULL);
    if (status != SHOAL_ERR_IO)
        return "the broadcast did not end with the failure";
    memset(data, KEPT, N);
    memset(kept, KEPT, N);
    while (comm_wire_wait(comm, 0) != SHOAL_OK) /* the watchdog ends this if it lasts */
        nap();
    return memcmp(data, kept, N) == 0 ? NULL : "the broadcast wrote to memory after its return";
}

static const char *arrive_late(struct comm *comm)
{
    static char data[N];

    while (!comm_board_is_set(comm))
        nap();
    for (int i = 0; i < 10; i++)
        nap();
    memset(data, SENT, N);
    comm_wire_post(comm->wire, &(struct wire_job){.kind = WIRE_BROADCAST, .receive = data, .n = N});
    while (comm_wire_wait(comm, 0) != SHOAL_OK)
        nap();
    return NULL;
}

int main(void)
{
    struct comm *comm;
    shoal_status status = comm_open(&(struct comm_params){.ranks_per_host = 1}, &comm);

    if (status != SHOAL_OK) {
        log_failure(shoal_exit_code(status));
        return 1;
    }
    log_init(comm_rank(comm), LOG_NORMAL);
    const char *complaint = comm_rank(comm) == 1 ? leave_early(comm) : arrive_late(comm);

    if (complaint != NULL)
        log_rank_line("failed", "%s", complaint);
    comm_close(comm, SHOAL_ERR_IO);
    return complaint != NULL;
}
