#include "tests/world/fake_nccl.h"

#include "comm/nccl/nccl_internal.h"
#include "tests/world/fake_device.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/*
 * An NCCL for the fake device.  It is as strict as the real one is, or more:
 *
 * - Nothing but communicators that do not block.  A call returns "in progress", and reaches the
 *   queue only when the communicator has been asked for its state a few times: who goes on
 *   without asking finds his work out of order or refused.
 * - Sends and receives of a pair match in order and must agree in length.
 * - An operation whose peer does not come never ends, unless the communicator is aborted.
 * - To abort waits for the device, as it frees memory there: also for another communicator's work, and
 *   also in a group, as up to NCCL 2.19 at least; later ones leave that to a thread of their own.
 * - Sealed, it connects no ranks that have not spoken on that communicator.
 * - Its reduce-scatter adds in the order of a line, so that it differs from the tree.
 *
 * Ranks meet in a file of /dev/shm named by the id; data goes by process_vm_readv from the sender.
 */

enum { MAX_RANKS = 8, POLLS = 3, MAX_MOVES = 256 };

/* From one rank to another: one message at a time. */
struct box {
    _Atomic uint64_t posted, taken;
    const void *address;
    size_t n_bytes;
    pid_t pid;
};

struct hall {
    _Atomic int arrived, finalized;
    struct box boxes[MAX_RANKS][MAX_RANKS]; /* [from][to] */
};

struct move {
    bool is_send, is_posted, is_done;
    int peer;
    char *at;
    size_t n_bytes;
};

struct launch {
    ncclComm_t comm;
    cudaStream_t stream;
    int n_moves;
    struct move moves[MAX_MOVES];
    bool hangs;
    float *sum; /* of a reduce-scatter: where, and what came */
    float *parts;
    size_t n_sum;
};

struct ncclComm {
    struct hall *hall;
    char path[NCCL_UNIQUE_ID_BYTES];
    int rank, size;
    _Atomic bool is_aborted;
    bool is_connected, is_finalizing;
    struct launch *waiting; /* not in the queue yet */
    int polls;
    _Atomic int error;
    bool has_met[MAX_RANKS]; /* whom it has spoken to; of the queue's thread */
};

static struct launch *group;                       /* open, or NULL */
static char made[NCCL_USES][NCCL_UNIQUE_ID_BYTES]; /* files of this process' ids */
static bool must_fail;
static atomic_bool is_sealed;

void fake_nccl_seal(void)
{
    atomic_store(&is_sealed, true);
}

void fake_nccl_fail_next(void)
{
    must_fail = true;
}

/* FAKE_NCCL names what goes wrong, on rank 1 or, with an id, on rank 0 who makes it. */
static bool is_faulty(const char *mode)
{
    const char *wanted = getenv("FAKE_NCCL");

    return wanted != NULL && strcmp(wanted, mode) == 0;
}

static void rest(void)
{
    const struct timespec nap = {.tv_nsec = 50 * 1000};

    nanosleep(&nap, NULL);
}

/* ---- in the queue ---- */

static bool fetch(const struct box *box, char *to)
{
    for (size_t done = 0; done < box->n_bytes;) {
        struct iovec own = {.iov_base = to + done, .iov_len = box->n_bytes - done};
        struct iovec other = {.iov_base = (char *)(uintptr_t)box->address + done,
                              .iov_len = box->n_bytes - done};
        ssize_t n = process_vm_readv(box->pid, &own, 1, &other, 1, 0);

        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static bool step_send(struct ncclComm *comm, struct move *move)
{
    struct box *box = &comm->hall->boxes[comm->rank][move->peer];

    if (!move->is_posted && atomic_load(&box->posted) == atomic_load(&box->taken)) {
        box->address = move->at;
        box->n_bytes = move->n_bytes;
        box->pid = getpid();
        atomic_fetch_add(&box->posted, 1);
        move->is_posted = true;
    }
    move->is_done = move->is_posted && atomic_load(&box->posted) == atomic_load(&box->taken);
    return move->is_done;
}

static bool step_receive(struct ncclComm *comm, struct move *move)
{
    struct box *box = &comm->hall->boxes[move->peer][comm->rank];

    if (atomic_load(&box->posted) == atomic_load(&box->taken))
        return false;
    if (box->n_bytes != move->n_bytes) {
        fprintf(stderr, "fake nccl: rank %d expects %zu bytes of rank %d and gets %zu\n",
                comm->rank, move->n_bytes, move->peer, box->n_bytes);
        atomic_store(&comm->error, ncclInvalidUsage);
        return false;
    }
    if (!fetch(box, move->at))
        return false; /* the sender is dead */
    atomic_fetch_add(&box->taken, 1);
    move->is_done = true;
    return true;
}

/* Messages of a pair go in order: only the first unfinished one of each kind and peer moves. */
static bool is_next(const struct launch *launch, int k)
{
    for (int i = 0; i < k; i++)
        if (!launch->moves[i].is_done && launch->moves[i].peer == launch->moves[k].peer &&
            launch->moves[i].is_send == launch->moves[k].is_send)
            return false;
    return true;
}

static void meet(struct ncclComm *comm, int peer)
{
    if (peer != comm->rank && !comm->has_met[peer] && atomic_load(&is_sealed)) {
        fprintf(stderr, "fake nccl: rank %d speaks to rank %d for the first time\n", comm->rank,
                peer);
        atomic_store(&comm->error, ncclInvalidUsage);
    }
    comm->has_met[peer] = true;
}

static void run_launch(void *arg)
{
    struct launch *launch = arg;
    struct ncclComm *comm = launch->comm;
    int left = launch->n_moves;

    for (int k = 0; k < launch->n_moves; k++)
        meet(comm, launch->moves[k].peer);
    while ((left > 0 || launch->hangs) && !atomic_load(&comm->is_aborted)) {
        bool moved = false;

        for (int k = 0; k < launch->n_moves && !launch->hangs; k++) {
            struct move *move = &launch->moves[k];

            if (move->is_done || !is_next(launch, k))
                continue;
            if (move->is_send ? step_send(comm, move) : step_receive(comm, move)) {
                left--;
                moved = true;
            }
        }
        if (!moved)
            rest();
    }
    for (size_t i = 0; i < launch->n_sum; i++) {
        float sum = launch->parts[i];

        for (int r = 1; r < comm->size; r++)
            sum += launch->parts[(size_t)r * launch->n_sum + i];
        launch->sum[i] = sum;
    }
    free(launch->parts);
    free(launch);
}

/* ---- launching ---- */

static struct launch *new_launch(ncclComm_t comm, cudaStream_t stream)
{
    struct launch *launch = calloc(1, sizeof *launch);

    if (launch == NULL)
        abort();
    launch->comm = comm;
    launch->stream = stream;
    return launch;
}

static void add_move(struct launch *launch, bool is_send, int peer, const void *at, size_t n_bytes)
{
    if (launch->n_moves == MAX_MOVES)
        abort();
    launch->moves[launch->n_moves++] =
        (struct move){.is_send = is_send, .peer = peer, .at = fake_host(at), .n_bytes = n_bytes};
}

static ncclResult_t launch_later(struct launch *launch)
{
    struct ncclComm *comm = launch->comm;

    if (comm->waiting != NULL || !comm->is_connected || comm->is_finalizing) {
        fprintf(stderr, "fake nccl: rank %d calls before the last call was through\n", comm->rank);
        return ncclInvalidUsage;
    }
    launch->hangs = must_fail;
    must_fail = false;
    comm->waiting = launch;
    comm->polls = 0;
    return ncclInProgress;
}

static size_t size_of(ncclDataType_t type)
{
    return type == ncclFloat32 ? 4 : 1;
}

ncclResult_t ncclAllGather(const void *send, void *receive, size_t n, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    struct launch *launch = new_launch(comm, stream);
    size_t n_bytes = n * size_of(type);
    char *to = receive;

    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank && to + (size_t)r * n_bytes == (const char *)send)
            continue;
        add_move(launch, true, r, send, n_bytes);
        add_move(launch, false, r, to + (size_t)r * n_bytes, n_bytes);
    }
    return launch_later(launch);
}

ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t n, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    struct launch *launch = new_launch(comm, stream);
    const float *from = send;

    if (type != ncclFloat32 || op != ncclSum)
        return ncclInvalidArgument;
    launch->sum = fake_host(receive);
    launch->n_sum = n;
    launch->parts = malloc((size_t)comm->size * n * sizeof(float));
    if (launch->parts == NULL)
        abort();
    for (int r = 0; r < comm->size; r++) {
        add_move(launch, true, r, from + (size_t)r * n, n * sizeof(float));
        add_move(launch, false, r, launch->parts + (size_t)r * n, n * sizeof(float));
    }
    return launch_later(launch);
}

ncclResult_t ncclGroupStart(void)
{
    if (group != NULL)
        return ncclInvalidUsage;
    group = new_launch(NULL, NULL);
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    struct launch *launch = group;

    group = NULL;
    if (launch == NULL || launch->comm == NULL)
        return ncclInvalidUsage;
    return launch_later(launch);
}

static ncclResult_t add_to_group(bool is_send, const void *at, size_t n, ncclDataType_t type,
                                 int peer, ncclComm_t comm, cudaStream_t stream)
{
    /* Alone, a send blocks the queue until its receive, and so do the receives of the others. */
    if (group == NULL || (group->comm != NULL && group->comm != comm))
        return ncclInvalidUsage;
    group->comm = comm;
    group->stream = stream;
    add_move(group, is_send, peer, at, n * size_of(type));
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *at, size_t n, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return add_to_group(true, at, n, type, peer, comm, stream);
}

ncclResult_t ncclRecv(void *at, size_t n, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return add_to_group(false, at, n, type, peer, comm, stream);
}

/* ---- communicators ---- */

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static int n;

    if (is_faulty("no-id"))
        return ncclSystemError;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/dev/shm/fake-nccl-%d-%d", (int)getpid(), n);
    memcpy(made[n++ % NCCL_USES], id->internal, sizeof id->internal);
    int fd = open(id->internal, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0 || ftruncate(fd, sizeof(struct hall)) != 0)
        return ncclSystemError;
    close(fd);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm_out, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    struct ncclComm *comm = calloc(1, sizeof *comm);
    int fd = open(id.internal, O_RDWR | O_CLOEXEC);

    if (rank == 1 && is_faulty("die-in-init"))
        raise(SIGKILL);
    if (rank == 1 && is_faulty("fail-in-init"))
        return ncclSystemError;
    if (comm == NULL || fd < 0 || size > MAX_RANKS || config->blocking != 0)
        return ncclInvalidArgument;
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    comm->hall = mmap(NULL, sizeof(struct hall), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (comm->hall == MAP_FAILED)
        return ncclSystemError;
    comm->rank = rank;
    comm->size = size;
    memcpy(comm->path, id.internal, sizeof comm->path);
    atomic_fetch_add(&comm->hall->arrived, 1);
    *comm_out = comm;
    return ncclInProgress;
}

/* The state as of now; what waits goes to the queue when it has been asked for often enough. */
static ncclResult_t state_of(struct ncclComm *comm)
{
    if (atomic_load(&comm->error) != ncclSuccess)
        return (ncclResult_t)atomic_load(&comm->error);
    if (!comm->is_connected) {
        if (atomic_load(&comm->hall->arrived) < comm->size)
            return ncclInProgress;
        comm->is_connected = true;
        if (comm->rank == 0)
            unlink(comm->path);
    }
    if (comm->is_finalizing && atomic_load(&comm->hall->finalized) < comm->size)
        return ncclInProgress;
    if (comm->waiting != NULL && ++comm->polls < POLLS)
        return ncclInProgress;
    if (comm->waiting != NULL) {
        struct launch *launch = comm->waiting;

        comm->waiting = NULL;
        if (launch->hangs)
            atomic_store(&comm->error, ncclRemoteError);
        fake_enqueue((struct device *)(void *)launch->stream, run_launch, launch);
        return ncclSuccess; /* the error shows from the next question on */
    }
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    *error = state_of(comm);
    return ncclSuccess;
}

/* Neither frees: launches may still refer to the communicator. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    atomic_store(&comm->is_aborted, true);
    for (int use = 0; use < NCCL_USES; use++)
        unlink(made[use]);
    fake_drain();
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    if (comm->waiting != NULL)
        return ncclInvalidUsage;
    comm->is_finalizing = true;
    if (comm->rank == 1 && is_faulty("no-end"))
        return ncclInProgress;
    atomic_fetch_add(&comm->hall->finalized, 1);
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    if (!comm->is_finalizing)
        return ncclInvalidUsage;
    munmap(comm->hall, sizeof(struct hall));
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclRemoteError ? "remote process exited" : "some error";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "said by the fake";
}
