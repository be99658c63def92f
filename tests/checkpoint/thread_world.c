#include "tests/checkpoint/thread_world.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { MAX_RANKS = 8, SLOT_BYTES = 1 << 16, MESSAGE_BYTES = 1024 };

struct shared {
    int n;
    pthread_barrier_t barrier;
    shoal_status statuses[MAX_RANKS];
    char messages[MAX_RANKS][MESSAGE_BYTES];
    char slots[MAX_RANKS][SLOT_BYTES];
};

struct comm {
    int rank;
    struct shared *shared;
    world_fn *fn;
    void *arg;
    shoal_status status;
    char message[MESSAGE_BYTES];
};

static void *rank_main(void *arg)
{
    struct comm *comm = arg;

    comm->status = comm->fn(comm, comm->arg);
    snprintf(comm->message, sizeof comm->message, "%s",
             comm->status == SHOAL_OK ? "" : shoal_last_error());
    return NULL;
}

shoal_status world_run(int n, world_fn *fn, void *arg)
{
    static struct shared shared;
    static struct comm ranks[MAX_RANKS];
    pthread_t threads[MAX_RANKS];

    if (n > MAX_RANKS)
        return fail(SHOAL_ERR_INTERNAL, "test world of %d ranks", n);
    shared.n = n;
    pthread_barrier_init(&shared.barrier, NULL, (unsigned)n);
    for (int r = 0; r < n; r++) {
        ranks[r] = (struct comm){.rank = r, .shared = &shared, .fn = fn, .arg = arg};
        pthread_create(&threads[r], NULL, rank_main, &ranks[r]);
    }
    for (int r = 0; r < n; r++)
        pthread_join(threads[r], NULL);
    pthread_barrier_destroy(&shared.barrier);
    if (ranks[0].status != SHOAL_OK)
        fail_adopt(ranks[0].status, ranks[0].message);
    return ranks[0].status;
}

int comm_rank(const struct comm *comm)
{
    return comm->rank;
}

int comm_size(const struct comm *comm)
{
    return comm->shared->n;
}

static _Atomic int n_notes;

void comm_note(struct comm *comm, int64_t step, const char *what)
{
    (void)comm;
    (void)step;
    (void)what;
    n_notes++;
}

int world_notes(void)
{
    return n_notes;
}

shoal_status comm_all_gather_bytes(struct comm *comm, const void *in, size_t n_bytes, void *out)
{
    struct shared *s = comm->shared;

    memcpy(s->slots[comm->rank], in, n_bytes);
    pthread_barrier_wait(&s->barrier);
    for (int r = 0; r < s->n; r++)
        memcpy((char *)out + (size_t)r * n_bytes, s->slots[r], n_bytes);
    pthread_barrier_wait(&s->barrier);
    return SHOAL_OK;
}

shoal_status comm_broadcast(struct comm *comm, int root, void *data, size_t n_bytes)
{
    struct shared *s = comm->shared;

    if (comm->rank == root)
        memcpy(s->slots[root], data, n_bytes);
    pthread_barrier_wait(&s->barrier);
    memcpy(data, s->slots[root], n_bytes);
    pthread_barrier_wait(&s->barrier);
    return SHOAL_OK;
}

shoal_status comm_agree(struct comm *comm, shoal_status status)
{
    struct shared *s = comm->shared;
    shoal_status agreed = SHOAL_OK;

    s->statuses[comm->rank] = status;
    if (status != SHOAL_OK)
        snprintf(s->messages[comm->rank], MESSAGE_BYTES, "%s", shoal_last_error());
    pthread_barrier_wait(&s->barrier);
    for (int r = s->n - 1; r >= 0; r--)
        if (s->statuses[r] != SHOAL_OK) {
            agreed = s->statuses[r];
            fail_adopt(agreed, s->messages[r]);
            fail_context(agreed, "rank %d (test)", r);
        }
    pthread_barrier_wait(&s->barrier);
    return agreed;
}
