#include "comm/nccl/nccl_internal.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The NCCL transport: start and end. */

/* NCCL finds the machine's links first; who dies or is silent meanwhile is noticed all the same. */
#define INIT_LIMIT_S 60.0

static const struct nccl_platform *platform_for_tests;

void comm_nccl_set_platform(const struct nccl_platform *platform)
{
    platform_for_tests = platform;
}

static const struct nccl_platform *platform_of(const struct device *device)
{
    const struct nccl_platform *platform =
        platform_for_tests != NULL ? platform_for_tests : &comm_nccl_cuda;

    return strcmp(device->ops->name, platform->name) == 0 ? platform : NULL;
}

bool comm_nccl_identify(struct device *device, char *id_out, size_t n_bytes)
{
    const struct nccl_platform *platform = platform_of(device);

    return platform != NULL && platform->identify(device, id_out, n_bytes) == SHOAL_OK;
}

shoal_status comm_nccl_check(ncclResult_t result, ncclComm_t comm, const char *what)
{
    const char *detail;

    if (result == ncclSuccess)
        return SHOAL_OK;
    fail(SHOAL_ERR_UNAVAILABLE, "nccl: %s: %s", what, ncclGetErrorString(result));
    detail = ncclGetLastError(comm);
    if (detail != NULL && detail[0] != '\0')
        fail_why(SHOAL_ERR_UNAVAILABLE, "%.200s", detail);
    return SHOAL_ERR_UNAVAILABLE;
}

/* ---- waiting ---- */

void comm_nccl_nap(struct nccl *nccl, int turn)
{
    enum { YIELDS = 500 };
    const struct timespec pause = {.tv_nsec = 50 * 1000};

    pthread_mutex_unlock(&nccl->lock);
    if (turn < YIELDS)
        sched_yield();
    else
        nanosleep(&pause, NULL);
    pthread_mutex_lock(&nccl->lock);
}

shoal_status comm_nccl_wait_more(struct nccl *nccl, struct patience *patience, uint64_t *progress,
                                 double limit_s, const char *what)
{
    struct comm *comm = nccl->comm;

    if (nccl->is_gone)
        return comm_nccl_aborted(nccl);
    SHOAL_TRY(comm_board_check(comm));
    uint64_t now = comm_progress_of_all(comm);

    if (now != *progress)
        patience_start(patience);
    *progress = now;
    if (patience_spent(patience) > limit_s)
        return fail(SHOAL_ERR_UNAVAILABLE, "nccl: %s: no answer from the other ranks in %.1f s",
                    what, limit_s);
    return SHOAL_OK;
}

shoal_status comm_nccl_settle(struct nccl *nccl, enum nccl_use use, ncclResult_t result,
                              double limit_s, const char *what)
{
    struct patience patience;
    shoal_status status = SHOAL_OK;
    uint64_t progress = 0;

    patience_start(&patience);
    atomic_store_explicit(&nccl->comm->self->waiting, WAITING_REMOTE, memory_order_relaxed);
    for (int turn = 0; result == ncclInProgress && status == SHOAL_OK; turn++) {
        if (turn > 0)
            comm_nccl_nap(nccl, turn);
        status = comm_nccl_wait_more(nccl, &patience, &progress, limit_s, what);
        if (status != SHOAL_OK)
            break;
        ncclResult_t asked = ncclCommGetAsyncError(nccl->comms[use], &result);

        if (asked != ncclSuccess)
            result = asked;
    }
    atomic_store_explicit(&nccl->comm->self->waiting, WAITING_NO, memory_order_relaxed);
    SHOAL_TRY(status);
    return comm_nccl_check(result, nccl->comms[use], what);
}

/* ---- start and end ---- */

static shoal_status init_one(struct nccl *nccl, enum nccl_use use, ncclUniqueId id)
{
    struct comm *comm = nccl->comm;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    double limit_s = wait_limit_s(comm) > INIT_LIMIT_S ? wait_limit_s(comm) : INIT_LIMIT_S;

    config.blocking = 0;
    ncclResult_t result =
        ncclCommInitRankConfig(&nccl->comms[use], comm->size, id, comm->rank, &config);

    return comm_nccl_settle(nccl, use, result, limit_s, "connect the ranks");
}

static shoal_status make_ids(const struct comm *comm, ncclUniqueId *ids)
{
    for (int use = 0; comm->rank == 0 && use < NCCL_USES; use++)
        SHOAL_TRY(comm_nccl_check(ncclGetUniqueId(&ids[use]), NULL, "make an id"));
    return SHOAL_OK;
}

static shoal_status connect_ranks(struct nccl *nccl)
{
    struct comm *comm = nccl->comm;
    ncclUniqueId ids[NCCL_USES];
    shoal_status status = SHOAL_OK;

    memset(ids, 0, sizeof ids);
    SHOAL_TRY(comm_agree(comm, make_ids(comm, ids)));
    SHOAL_TRY(comm_broadcast(comm, 0, ids, sizeof ids));
    pthread_mutex_lock(&nccl->lock);
    for (int use = 0; status == SHOAL_OK && use < NCCL_USES; use++)
        status = init_one(nccl, (enum nccl_use)use, ids[use]);
    nccl->is_ready = status == SHOAL_OK;
    pthread_mutex_unlock(&nccl->lock);
    /* Who fails tells the others, who may wait for it inside NCCL. */
    comm_fail(comm, status);
    return comm_agree(comm, status);
}

static shoal_status prepare(struct nccl *nccl)
{
    struct device *device = nccl->comm->device;

    for (int k = 0; k < MAX_PENDING; k++) {
        SHOAL_TRY(device->ops->event_create(device, &nccl->pending[k].begin));
        SHOAL_TRY(device->ops->event_create(device, &nccl->pending[k].end));
    }
    return comm_nccl_watch_start(nccl);
}

static shoal_status start(struct comm *comm)
{
    struct nccl *nccl = calloc(1, sizeof *nccl);
    shoal_status status;

    if (nccl == NULL) {
        status = fail(SHOAL_ERR_NOMEM, "transport nccl: out of memory");
    } else {
        comm->nccl = nccl;
        nccl->comm = comm;
        nccl->platform = platform_of(comm->device);
        nccl->stream = nccl->platform->stream(comm->device);
        pthread_mutex_init(&nccl->lock, NULL);
        status = prepare(nccl);
    }
    SHOAL_TRY(comm_agree(comm, status));
    return connect_ranks(nccl);
}

static shoal_status attach(struct comm *comm)
{
    comm->nccl->layout =
        comm_nccl_tree_layout(comm->size, comm->local_size, comm->on_device.own_bytes);
    return SHOAL_OK;
}

/* Until all that was issued is done. */
static shoal_status drain(struct nccl *nccl, const char *what)
{
    struct patience patience;
    shoal_status status = SHOAL_OK;
    uint64_t progress = 0;

    patience_start(&patience);
    pthread_mutex_lock(&nccl->lock);
    for (int turn = 0; status == SHOAL_OK && nccl->finished < nccl->issued; turn++) {
        if (turn > 0)
            comm_nccl_nap(nccl, turn);
        status = comm_nccl_wait_more(nccl, &patience, &progress, wait_limit_s(nccl->comm), what);
        if (status == SHOAL_OK)
            status = comm_nccl_advance(nccl);
    }
    pthread_mutex_unlock(&nccl->lock);
    return status;
}

/* NCCL connects two ranks, and takes memory for that, when they first speak: that is now. */
static shoal_status warm_up(struct comm *comm)
{
    const struct device_memory *memory = &comm->on_device;
    const size_t R = (size_t)comm->size;
    const size_t n = memory->own_bytes / (R + 1) / CACHE_LINE * CACHE_LINE / sizeof(float);
    const size_t n_bytes = memory->shared_bytes / R / CACHE_LINE * CACHE_LINE;
    float *own = (float *)(void *)memory->own;

    SHOAL_TRY(comm_nccl_all_gather(comm, memory->shared + (size_t)comm->rank * n_bytes,
                                   memory->shared, n_bytes));
    SHOAL_TRY(comm_nccl_reduce_scatter(comm, own, own + R * n, n));
    return drain(comm->nccl, "the first exchange");
}

static bool stop(struct comm *comm, shoal_status status)
{
    struct nccl *nccl = comm->nccl;
    struct device *device = comm->device;

    if (nccl == NULL)
        return true;
    if (status == SHOAL_OK)
        status = drain(nccl, "the end"); /* the ranks have met, so that it does */
    if (!comm_nccl_watch_stop(nccl, status == SHOAL_OK ? ORDER_FINALIZE : ORDER_ABORT))
        return false;
    for (int k = 0; k < MAX_PENDING; k++) {
        device->ops->event_destroy(device, nccl->pending[k].begin);
        device->ops->event_destroy(device, nccl->pending[k].end);
    }
    pthread_mutex_destroy(&nccl->lock);
    free(nccl);
    comm->nccl = NULL;
    return true;
}

const struct transport comm_transport_nccl = {.id = COMM_NCCL,
                                              .name = "nccl",
                                              .is_on_device = true,
                                              .start = start,
                                              .attach = attach,
                                              .warm_up = warm_up,
                                              .stop = stop,
                                              .all_gather = comm_nccl_all_gather,
                                              .reduce_scatter = comm_nccl_reduce_scatter};
