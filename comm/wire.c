#include "comm/comm_internal.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/*
 * The communication thread.  MPI makes progress only inside its calls, and Debian's MPICH never
 * yields the processor in a blocking one: with more ranks than cores a small blocking all-reduce
 * takes milliseconds.  So one thread starts nonblocking operations and polls them: test, pause,
 * yield, then sleep for 50 us.
 *
 * Jobs are numbered by three counters, posted >= started >= finished (modulo 2^32); job k
 * lies in entry k % WIRE_JOBS.  One thread posts.
 */
struct wire {
    struct comm *comm;
    pthread_t thread;
    _Atomic uint32_t posted, finished; /* futex words */
    _Atomic bool is_stopping;
    struct wire_job jobs[WIRE_JOBS];
    MPI_Request requests[WIRE_JOBS];
    int errors[WIRE_JOBS];
};

/* The steps of a wait: pause, then yield, then sleep. */
static void wait_a_little(int *turn)
{
    enum { PAUSES = 100, YIELDS = 50 };
    const struct timespec nap = {.tv_nsec = 50 * 1000};

    if (*turn < PAUSES)
        cpu_pause();
    else if (*turn < PAUSES + YIELDS)
        sched_yield();
    else
        nanosleep(&nap, NULL);
    if (*turn < PAUSES + YIELDS)
        (*turn)++;
}

static int start(const struct comm *comm, const struct wire_job *job, MPI_Request *request)
{
    int n = (int)job->n;

    switch (job->kind) {
    case WIRE_ALL_TO_ALL:
        return MPI_Ialltoall(job->send, n, MPI_FLOAT, job->receive, n, MPI_FLOAT, comm->cross,
                             request);
    case WIRE_ALL_GATHER:
        return MPI_Iallgather(job->send, n, MPI_BYTE, job->receive, n, MPI_BYTE, comm->cross,
                              request);
    case WIRE_ALL_REDUCE:
        return MPI_Iallreduce(MPI_IN_PLACE, job->receive, n, MPI_INT64_T, MPI_SUM, comm->cross,
                              request);
    case WIRE_ALL_REDUCE_MAX:
        return MPI_Iallreduce(MPI_IN_PLACE, job->receive, n, MPI_INT64_T, MPI_MAX, comm->cross,
                              request);
    case WIRE_BROADCAST:
        return MPI_Ibcast(job->receive, n, MPI_BYTE, job->root, comm->cross, request);
    case WIRE_BARRIER:
        return MPI_Ibarrier(comm->cross, request);
    case WIRE_REDUCE_SCATTER:
        return MPI_Ireduce_scatter_block(job->send, job->receive, n, MPI_FLOAT, MPI_SUM,
                                         comm->world, request);
    }
    return MPI_ERR_ARG;
}

static void *wire_main(void *arg)
{
    struct wire *wire = arg;
    uint32_t started = 0, finished = 0;
    int turn = 0;

    while (!atomic_load(&wire->is_stopping)) {
        uint32_t posted = atomic_load_explicit(&wire->posted, memory_order_acquire);

        if (finished == posted) {
            comm_futex_wait(&wire->posted, posted, 0.1, false);
            turn = 0;
            continue;
        }
        for (; started != posted; started++) {
            uint32_t k = started % WIRE_JOBS;

            wire->errors[k] = start(wire->comm, &wire->jobs[k], &wire->requests[k]);
        }
        uint32_t k = finished % WIRE_JOBS;
        int is_done = wire->errors[k] != MPI_SUCCESS;

        if (!is_done) {
            int error = MPI_Test(&wire->requests[k], &is_done, MPI_STATUS_IGNORE);
            if (error != MPI_SUCCESS) {
                wire->errors[k] = error;
                is_done = 1;
            }
        }
        if (is_done) {
            atomic_store_explicit(&wire->finished, ++finished, memory_order_release);
            comm_futex_wake_all(&wire->finished, false);
            turn = 0;
        } else {
            wait_a_little(&turn);
        }
    }
    return NULL;
}

shoal_status comm_wire_create(struct comm *comm, struct wire **wire_out)
{
    struct wire *wire = calloc(1, sizeof *wire);

    if (wire == NULL)
        return fail(SHOAL_ERR_NOMEM, "communication thread: out of memory");
    wire->comm = comm;
    shoal_status status = comm_thread_start("shoal-comm", &wire->thread, wire_main, wire);
    if (status != SHOAL_OK) {
        free(wire);
        return status;
    }
    *wire_out = wire;
    return SHOAL_OK;
}

bool comm_wire_destroy(struct wire *wire)
{
    if (wire == NULL)
        return true;
    atomic_store(&wire->is_stopping, true);
    comm_futex_wake_all(&wire->posted, false);
    pthread_join(wire->thread, NULL);
    bool is_idle = atomic_load(&wire->posted) == atomic_load(&wire->finished);
    free(wire);
    return is_idle;
}

uint32_t comm_wire_post(struct wire *wire, const struct wire_job *job)
{
    uint32_t ticket = atomic_load_explicit(&wire->posted, memory_order_relaxed);

    wire->jobs[ticket % WIRE_JOBS] = *job;
    atomic_store_explicit(&wire->posted, ticket + 1, memory_order_release);
    comm_futex_wake_all(&wire->posted, false);
    return ticket;
}

static shoal_status report_no_answer(struct comm *comm)
{
    char hosts[256] = "", call_text[128], place[192], text[BOARD_TEXT_BYTES];
    size_t n = 0;
    struct call call = comm_call_now(comm);

    for (int h = 0; h < comm->host_count; h++) {
        const struct control_host *host = &comm->control_hosts[h];
        uint64_t calls = atomic_load(&host->slowest_calls);
        int slowest = atomic_load(&host->slowest_rank);

        if (h == comm->host || calls >= call.number || n >= sizeof hosts)
            continue;
        struct note note = comm_note_read(&host->note);
        comm_describe_place(&note, calls, place, sizeof place);
        n += (size_t)snprintf(hosts + n, sizeof hosts - n, "%srank %d (%s) was last at %s",
                              n == 0 ? "" : "; ", slowest, comm->ranks[slowest].host_name, place);
    }
    comm_describe_call(&call, call_text, sizeof call_text);
    snprintf(text, sizeof text, "no answer from other hosts in %s within %.1f s\n%s", call_text,
             wait_limit_s(comm), n > 0 ? hosts : "all ranks have entered the call");
    comm_board_post(comm, SHOAL_ERR_UNAVAILABLE, comm->rank, text);
    SHOAL_TRY(comm_board_check(comm));
    return fail_adopt(SHOAL_ERR_UNAVAILABLE, text);
}

/* `waiting` of the own control entry is set around this. */
static shoal_status wait_finished(struct comm *comm, uint32_t ticket)
{
    struct wire *wire = comm->wire;
    struct patience patience;
    uint64_t progress = 0;

    patience_start(&patience);
    for (;;) {
        uint32_t finished = atomic_load_explicit(&wire->finished, memory_order_acquire);
        if ((int32_t)(finished - ticket) > 0)
            break;
        comm_futex_wait(&wire->finished, finished, 0.01, false);
        SHOAL_TRY(comm_board_check(comm));
        uint64_t now = comm_progress_of_all(comm) + finished;
        if (now != progress)
            patience_start(&patience);
        progress = now;
        if (patience_spent(&patience) > wait_limit_s(comm))
            return report_no_answer(comm);
    }
    return comm_mpi_check(wire->errors[ticket % WIRE_JOBS], "exchange between hosts");
}

shoal_status comm_wire_wait(struct comm *comm, uint32_t ticket)
{
    atomic_store_explicit(&comm->self->waiting, WAITING_REMOTE, memory_order_relaxed);
    shoal_status status = wait_finished(comm, ticket);
    atomic_store_explicit(&comm->self->waiting, WAITING_NO, memory_order_relaxed);
    return status;
}

shoal_status comm_wire_run(struct comm *comm, const struct wire_job *job)
{
    return comm_wire_wait(comm, comm_wire_post(comm->wire, job));
}
