#include "comm/nccl/nccl_internal.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* The watch of the NCCL transport, and the end of its communicators. */

#define FINALIZE_LIMIT_S 5.0 /* all ranks have met already */
#define END_SLACK_S      2.0

/* Frees it, too. */
static void *abort_one(void *on)
{
    (void)ncclCommAbort(on);
    return NULL;
}

/*
 * At the same time: what an abort frees is device memory, for which it waits until the device is idle,
 * and the other communicator's kernels end only when that is aborted, too.  A group would not do:
 * NCCL 2.19 has freed all when the call in it returns.
 */
void comm_nccl_abort(struct nccl *nccl)
{
    pthread_t threads[NCCL_USES];
    bool has_thread[NCCL_USES] = {false};

    if (nccl->is_gone)
        return;
    nccl->is_gone = true;
    for (int use = 1; use < NCCL_USES; use++)
        has_thread[use] =
            nccl->comms[use] != NULL && comm_thread_start("shoal-abort", &threads[use], abort_one,
                                                          nccl->comms[use]) == SHOAL_OK;
    for (int use = 0; use < NCCL_USES; use++)
        if (nccl->comms[use] != NULL && !has_thread[use])
            abort_one(nccl->comms[use]);
    for (int use = 0; use < NCCL_USES; use++)
        if (has_thread[use])
            pthread_join(threads[use], NULL);
}

shoal_status comm_nccl_aborted(const struct nccl *nccl)
{
    SHOAL_TRY(comm_board_check(nccl->comm));
    return fail(SHOAL_ERR_UNAVAILABLE, "nccl: the communicators were aborted");
}

shoal_status comm_nccl_advance(struct nccl *nccl)
{
    struct device *device = nccl->comm->device;

    while (nccl->finished < nccl->issued) {
        bool is_done = false;

        SHOAL_TRY(nccl->platform->is_done(device, nccl->pending[nccl->finished % MAX_PENDING].end,
                                          &is_done));
        if (!is_done)
            break;
        nccl->finished++;
        atomic_fetch_add_explicit(&nccl->comm->self->progress, 1, memory_order_relaxed);
    }
    return SHOAL_OK;
}

/* ---- what goes wrong ---- */

static void post(struct nccl *nccl, const char *what)
{
    struct comm *comm = nccl->comm;
    char text[BOARD_TEXT_BYTES];

    snprintf(text, sizeof text, "rank %d (%s): %.900s", comm->rank,
             comm->ranks[comm->rank].host_name, what);
    comm_board_post(comm, SHOAL_ERR_UNAVAILABLE, comm->rank, text);
}

/* Ranks of this host that have not issued the operation that this one waits in. */
static size_t name_missing(const struct comm *comm, uint64_t number, char *out, size_t n_bytes)
{
    char name[128], place[192];
    size_t n = 0;

    out[0] = '\0';
    for (int l = 0; l < comm->local_size; l++) {
        const struct control_rank *rank = &comm->control_ranks[l];
        struct note note = comm_note_read(&rank->note);

        if (atomic_load(&rank->issued) > number || n >= n_bytes)
            continue;
        comm_describe_rank(comm, leader_of(comm, comm->host) + l, name, sizeof name);
        comm_describe_place(&note, atomic_load(&rank->calls), place, sizeof place);
        n += (size_t)snprintf(out + n, n_bytes - n, "%s%s has not issued it; last at %s",
                              n == 0 ? "" : "; ", name, place);
    }
    return n;
}

static void report_stuck(struct nccl *nccl)
{
    const struct pending *oldest = &nccl->pending[nccl->finished % MAX_PENDING];
    char missing[512], text[BOARD_TEXT_BYTES];

    if (name_missing(nccl->comm, nccl->finished, missing, sizeof missing) == 0)
        snprintf(missing, sizeof missing, "all ranks of this host have issued it");
    snprintf(text, sizeof text,
             "nccl: %s (bulk operation %llu, n = %zu) has begun and not ended within %.1f s\n%s",
             oldest->kind == CALL_ALL_GATHER ? "all-gather" : "reduce-scatter",
             (unsigned long long)nccl->finished + 1, oldest->n, wait_limit_s(nccl->comm), missing);
    post(nccl, text);
}

static bool has_errors(struct nccl *nccl)
{
    if (!nccl->is_ready)
        return false;
    for (int use = 0; use < NCCL_USES; use++) {
        ncclResult_t result = ncclSuccess;
        ncclResult_t asked = ncclCommGetAsyncError(nccl->comms[use], &result);

        if (asked != ncclSuccess)
            result = asked;
        if (result == ncclSuccess || result == ncclInProgress)
            continue;
        (void)comm_nccl_check(result, nccl->comms[use],
                              use == NCCL_GATHER ? "all-gathers" : "reduce-scatters");
        post(nccl, shoal_last_error());
        return true;
    }
    return false;
}

/*
 * Time runs from the operation's begin in the queue, so that waiting for this rank's own work is
 * no delay, and starts anew with every sign of progress of any rank.
 */
static bool is_stuck(struct nccl *nccl)
{
    uint64_t progress = comm_progress_of_all(nccl->comm);

    if (nccl->finished == nccl->issued)
        return false;
    if (nccl->watched != nccl->finished || !nccl->has_begun) {
        nccl->watched = nccl->finished;
        nccl->has_begun = false;
        if (nccl->platform->is_done(nccl->comm->device,
                                    nccl->pending[nccl->finished % MAX_PENDING].begin,
                                    &nccl->has_begun) != SHOAL_OK)
            return false; /* the next question for an event tells */
        patience_start(&nccl->patience);
    }
    if (progress != nccl->progress)
        patience_start(&nccl->patience);
    nccl->progress = progress;
    return patience_spent(&nccl->patience) > wait_limit_s(nccl->comm);
}

static void look_around(struct nccl *nccl)
{
    if (nccl->is_gone)
        return;
    if (comm_board_is_set(nccl->comm) || has_errors(nccl)) {
        comm_nccl_abort(nccl);
        return;
    }
    if (comm_nccl_advance(nccl) != SHOAL_OK) {
        post(nccl, shoal_last_error());
        comm_nccl_abort(nccl);
    } else if (is_stuck(nccl)) {
        report_stuck(nccl);
        comm_nccl_abort(nccl);
    }
}

/* ---- the end ---- */

static bool is_quiet(struct nccl *nccl)
{
    ncclResult_t result = ncclSuccess;

    for (int use = 0; use < NCCL_USES; use++)
        if (ncclCommGetAsyncError(nccl->comms[use], &result) != ncclSuccess ||
            result == ncclInProgress)
            return false;
    return true;
}

/* All ranks do this at the same time: they have met.  Falls back to aborting. */
static void finalize(struct nccl *nccl)
{
    const struct timespec nap = {.tv_nsec = 1000 * 1000};
    struct patience patience;

    if (nccl->is_gone || !nccl->is_ready) {
        comm_nccl_abort(nccl);
        return;
    }
    for (int use = 0; use < NCCL_USES; use++)
        (void)ncclCommFinalize(nccl->comms[use]);
    patience_start(&patience);
    while (!is_quiet(nccl)) {
        if (patience_spent(&patience) > FINALIZE_LIMIT_S || comm_board_is_set(nccl->comm)) {
            comm_nccl_abort(nccl);
            return;
        }
        nanosleep(&nap, NULL);
    }
    for (int use = 0; use < NCCL_USES; use++)
        (void)ncclCommDestroy(nccl->comms[use]);
    nccl->is_gone = true;
}

static void *watch_main(void *arg)
{
    struct nccl *nccl = arg;

    (void)nccl->platform->use(nccl->comm->device);
    while (atomic_load(&nccl->order) == ORDER_WATCH) {
        comm_futex_wait(&nccl->order, ORDER_WATCH, nccl->comm->heartbeat_s, false);
        pthread_mutex_lock(&nccl->lock);
        look_around(nccl);
        pthread_mutex_unlock(&nccl->lock);
    }
    pthread_mutex_lock(&nccl->lock);
    if (atomic_load(&nccl->order) == ORDER_FINALIZE)
        finalize(nccl);
    else
        comm_nccl_abort(nccl);
    pthread_mutex_unlock(&nccl->lock);
    atomic_store(&nccl->has_ended, 1);
    comm_futex_wake_all(&nccl->has_ended, false);
    return NULL;
}

shoal_status comm_nccl_watch_start(struct nccl *nccl)
{
    SHOAL_TRY(comm_thread_start("shoal-nccl", &nccl->thread, watch_main, nccl));
    nccl->has_thread = true;
    return SHOAL_OK;
}

bool comm_nccl_watch_stop(struct nccl *nccl, enum nccl_order order)
{
    struct patience patience;

    if (!nccl->has_thread)
        return true;
    atomic_store(&nccl->order, (uint32_t)order);
    comm_futex_wake_all(&nccl->order, false);
    patience_start(&patience);
    while (atomic_load(&nccl->has_ended) == 0) {
        comm_futex_wait(&nccl->has_ended, 0, 0.1, false);
        if (patience_spent(&patience) > FINALIZE_LIMIT_S + END_SLACK_S)
            return false; /* the thread is inside NCCL, and so is the lock */
    }
    pthread_join(nccl->thread, NULL);
    nccl->has_thread = false;
    return true;
}
