#pragma once

#include "comm/comm.h"
#include "runtime/base/clock.h"

#include <limits.h>
#include <mpi.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

/*
 * Parts of the folder, from the ground up:
 *
 *   tree_sum.c, tree_sum_kernels.c   the fixed reduction tree
 *   memory.c      memory shared by the ranks of a host (memfd), and the futex
 *   control.c     the control area: barrier, board of failures, notes, call numbers
 *   wire.c        the communication thread: every MPI call between open and close
 *   links.c       datagrams between hosts: heartbeats and failures
 *   watchdog.c    the thread that notices dead and silent peers
 *   witness.c     the process that outlives a killed job long enough to say who died first
 *   window.c, bulk.c, small.c, ops.c what the header offers
 *   device.c, staged/, nccl/         memory of devices: transport_internal.h
 *   topology.c, comm.c, end.c        start, questions and end
 */

enum {
    NOTE_BYTES = 96,
    BOARD_TEXT_BYTES = 1024, /* travels in one datagram below the usual MTU */
    SLOT_BYTES = 64 * 1024,  /* small-message slot of a rank */
    HOST_NAME_BYTES = 64,
    MAX_ADDRESSES = 4,
    WIRE_JOBS = 2,                 /* pieces in flight */
    PIECE_BYTES = 4 * 1024 * 1024, /* of an exchange; larger pieces leave the L3 cache */
    CACHE_LINE = 64,
    PAGE_BYTES = 4096
};

/* ---- patience: waiting that survives being stopped ---- */

/*
 * Time spent waiting, where a gap in our own running counts as PATIENCE_GAP_S at most: a process
 * that was stopped and continued must not blame its peers for the time it slept itself.
 */
struct patience {
    double last, spent;
};

#define PATIENCE_GAP_S 0.5

static inline void patience_start(struct patience *patience)
{
    patience->last = clock_seconds();
    patience->spent = 0;
}

static inline double patience_spent(struct patience *patience)
{
    double now = clock_seconds();
    double gap = now - patience->last;

    patience->last = now;
    patience->spent += gap < PATIENCE_GAP_S ? gap : PATIENCE_GAP_S;
    return patience->spent;
}

/* ---- futex; `shared` words are met by several processes ---- */

/* Sleep while *word == value, at most timeout_s; may return early. */
void comm_futex_wait(_Atomic uint32_t *word, uint32_t value, double timeout_s, bool shared);
void comm_futex_wake_all(_Atomic uint32_t *word, bool shared);

static inline void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* ---- memory shared by the ranks of a host ---- */

struct shared_memory {
    char *base;
    size_t n_bytes;
    int fd;
};

/* Local rank 0 makes the memory; the others attach by its pid and descriptor. */
shoal_status comm_memory_make(const char *name, size_t n_bytes, struct shared_memory *memory_out);
shoal_status comm_memory_attach(const char *name, pid_t pid, int fd, size_t n_bytes,
                                struct shared_memory *memory_out);
void comm_memory_release(struct shared_memory *memory);

/* ---- control area ---- */

struct note {
    int64_t step;
    char what[NOTE_BYTES];
};

/*
 * One writer, many readers.  The writer fills the entry that is not shown and then
 * flips; a reader could see a torn text only if two notes were written while it copied one, and the
 * text serves messages alone.
 */
struct note_cell {
    _Atomic uint32_t current;
    struct note notes[2];
};

void comm_note_write(struct note_cell *cell, int64_t step, const char *what);
struct note comm_note_read(const struct note_cell *cell);

enum call_kind {
    CALL_NONE,
    CALL_ALL_GATHER,
    CALL_REDUCE_SCATTER,
    CALL_ALL_REDUCE,
    CALL_ALL_REDUCE_MAX,
    CALL_GATHER_BYTES,
    CALL_BROADCAST,
    CALL_BARRIER,
    CALL_CLOSE
};

/* What a rank entered: compared with the peers', so that a skipped or swapped call is an error. */
struct call {
    uint64_t number;
    uint64_t n;
    uint64_t issued; /* digest of the bulk operations put into the device's queue before */
    enum call_kind kind;
};

enum waiting { WAITING_NO, WAITING_LOCAL, WAITING_REMOTE };

struct control_rank {
    _Alignas(CACHE_LINE) _Atomic uint64_t heartbeat; /* counts up while the process runs */
    _Atomic uint64_t progress;                       /* notes and calls so far */
    _Atomic uint64_t calls;                          /* collective calls entered */
    _Atomic uint64_t arrivals;                       /* local barriers entered */
    _Atomic uint64_t issued;                         /* bulk operations put into a device's queue */
    _Atomic uint32_t waiting;                        /* enum waiting */
    _Atomic uint32_t is_closing;
    struct call call[2]; /* by parity of the number: a peer is at most one call ahead */
    struct note_cell note;
};

/* What the leader has heard of another host. */
struct control_host {
    _Alignas(CACHE_LINE) _Atomic uint64_t progress;
    _Atomic int32_t slowest_rank;
    _Atomic uint64_t slowest_calls;
    _Atomic uint32_t is_closing; /* all its ranks have come to comm_close */
    struct note_cell note;       /* of the slowest rank */
};

enum board_state { BOARD_EMPTY, BOARD_WRITING, BOARD_SET };

/* Whether a line about the failure has been printed on this host. */
enum board_line { LINE_NONE, LINE_ON_ITS_WAY, LINE_TOLD };

/* The first failure of the run that this host has learned of; never cleared. */
struct board {
    _Atomic uint32_t state;
    int32_t status, rank;
    bool is_death;         /* of a rank that has a witness, which tells it */
    _Atomic uint32_t line; /* enum board_line */
    char text[BOARD_TEXT_BYTES];
};

struct control {
    _Alignas(CACHE_LINE) _Atomic uint32_t arrived;    /* total arrivals, modulo 2^32 */
    _Alignas(CACHE_LINE) _Atomic uint32_t generation; /* barriers completed; the futex word */
    _Alignas(CACHE_LINE) struct board board;
};

/* ---- ranks ---- */

struct host_address {
    uint32_t address, mask; /* network byte order */
};

/* What every rank tells all others at start. */
struct rank_entry {
    int32_t node;  /* lowest rank on the same machine */
    int32_t group; /* within the machine, when it is cut for tests */
    int32_t node_rank, node_ranks;
    int32_t pid;
    int32_t life_fd; /* reading end of a pipe that only this rank can write; closes with it */
    int32_t has_witness;
    int32_t n_addresses;
    struct host_address addresses[MAX_ADDRESSES];
    uint16_t port; /* network byte order */
    char host_name[HOST_NAME_BYTES];
};

/* The process that names the rank that died first; fd -1: none. */
struct witness {
    int fd; /* of the socket to it */
    pid_t pid;
    int life[2]; /* this rank's own pipe, never written */
};

struct wire;
struct links;
struct watchdog;
struct transport;
struct staged;
struct nccl;

/* Memory of this rank's device: own part, shared part, scratch. */
struct device_memory {
    char *own, *shared, *scratch;
    size_t n_bytes, own_bytes, shared_bytes, scratch_bytes;
};

struct comm {
    double timeout_s, heartbeat_s;
    bool ring;
    int rank, size;
    int local_rank, local_size; /* local_size is a power of two if host_count > 1 */
    int host, host_count;       /* rank = host * local_size + local_rank */
    struct rank_entry *ranks;   /* [size] */
    uint64_t token;             /* of this run: datagrams of others are ignored */
    char library[64];

    MPI_Comm world; /* all ranks */
    MPI_Comm local; /* the ranks of this host; used while opening only */
    MPI_Comm cross; /* the ranks with this local rank, one of each host */

    struct shared_memory control_memory;
    struct control *control;
    struct control_rank *control_ranks; /* [local_size] */
    struct control_host *control_hosts; /* [host_count] */
    char *slots;                        /* [local_size][2][SLOT_BYTES] */
    struct control_rank *self;
    int spins; /* of the barrier, before it sleeps */

    enum comm_transport wanted;
    const struct transport *transport; /* never NULL */
    struct device *device;             /* NULL: the host */
    struct device_memory on_device;
    int device_ranks;
    struct staged *staged;
    struct nccl *nccl;
    uint64_t issued_digest;

    struct shared_memory window;
    size_t window_own_bytes, window_shared_bytes; /* rounded to pages */

    struct wire *wire;         /* NULL when all ranks are on one host */
    struct links *links;       /* NULL when all ranks are on one host */
    struct watchdog *watchdog; /* NULL with a single rank */
    struct witness witness;
    _Atomic bool is_closing;

    struct pool *pool;
    const float **inputs; /* [max(local_size, host_count)] of a tree sum */
    char *staging;        /* WIRE_JOBS x (send, receive) pieces; NULL on one host */
    size_t staging_bytes;
    int32_t *verdicts; /* [size], for comm_agree */
    struct comm_ledger ledger;
};

/*
 * How long a wait lasts.  Longer than the silence that the watchdogs allow, so that a silent rank
 * or host is named as such and not as one that does not arrive.
 */
static inline double wait_limit_s(const struct comm *comm)
{
    return comm->timeout_s + 10 * comm->heartbeat_s;
}

static inline bool is_leader(const struct comm *comm)
{
    return comm->local_rank == 0;
}

static inline bool is_one_machine(const struct comm *comm)
{
    return comm->ranks == NULL || comm->ranks[comm->rank].node_ranks == comm->size;
}

static inline int leader_of(const struct comm *comm, int host)
{
    return host * comm->local_size;
}

static inline char *slot_of(const struct comm *comm, int local_rank)
{
    size_t parity = atomic_load_explicit(&comm->self->calls, memory_order_relaxed) & 1;

    return comm->slots + ((size_t)local_rank * 2 + parity) * SLOT_BYTES;
}

/* Where the part of a rank of this host begins in the window. */
static inline char *window_own(const struct comm *comm, int local_rank)
{
    return comm->window.base + comm->window_shared_bytes +
           (size_t)local_rank * comm->window_own_bytes;
}

/* ---- topology.c ---- */

/* Fill ranks, local and host numbers and the communicators.  Collective, uses MPI. */
shoal_status comm_topology_discover(struct comm *comm, int ranks_per_host, uint16_t port);
shoal_status comm_mpi_check(int error, const char *what);

/*
 * comm_agree for the start, by MPI itself; needs rank and size alone: the failure of the lowest
 * failing rank is that of all.  Collective.
 */
shoal_status comm_mpi_agree(const struct comm *comm, shoal_status status);

/* ---- control.c ---- */

/* Bytes of the control area for these sizes; comm_control_bind points the comm into it. */
size_t comm_control_bytes(int local_size, int host_count);
void comm_control_bind(struct comm *comm);

/*
 * Enter a collective call: number it and show it to the peers; then the caller may
 * fill its slot, and comm_call_meet waits for the ranks of the host and compares.
 */
void comm_call_enter(struct comm *comm, enum call_kind kind, size_t n);
shoal_status comm_call_meet(struct comm *comm);
shoal_status comm_local_barrier(struct comm *comm);

/*
 * Record a failure for everyone; the first one wins and gets true.  Wakes the waiting ranks.  With
 * several machines it is told at once: the launcher may kill the others before they learn of it.
 */
bool comm_board_post(struct comm *comm, shoal_status status, int rank, const char *text);

/* The same for a failure that another host has posted. */
void comm_board_adopt(struct comm *comm, shoal_status status, int rank, const char *text);
bool comm_board_is_set(const struct comm *comm);
void comm_board_post_death(struct comm *comm, int rank, const char *text);

/*
 * Print the failure, unless another rank of this host has: for those who end the process or know
 * of a rank that can print nothing, so that main's own line may never come.  When this returns the
 * line has left the rank that prints it (comm_end_flush).
 */
void comm_board_tell(struct comm *comm);

/* SHOAL_OK, or the failure on the board as the thread's own. */
shoal_status comm_board_check(const struct comm *comm);

/* All ranks of this host have come to comm_close. */
bool comm_is_closing_here(const struct comm *comm);

/* Sum of the notes and calls of every rank that this one can see. */
uint64_t comm_progress_of_all(const struct comm *comm);

/* "rank 3 (pid 4711, node1)" and "step 5, forward block.2, collective call 17". */
void comm_describe_rank(const struct comm *comm, int rank, char *out, size_t n_bytes);
void comm_describe_place(const struct note *note, uint64_t calls, char *out, size_t n_bytes);

/* The call this rank is in, e.g. "all-gather of 4096 elements (call 17)". */
void comm_describe_call(const struct call *call, char *out, size_t n_bytes);
struct call comm_call_now(const struct comm *comm);

/* ---- bulk.c: the algorithms on the host's window ---- */

shoal_status comm_host_all_gather(struct comm *comm, const void *shard, void *full,
                                  size_t shard_bytes);
shoal_status comm_host_reduce_scatter(struct comm *comm, const float *full, float *out, size_t n);

/* Byte offset of [p, p + n_bytes) in a part of the window (NULL: none), or an error. */
shoal_status comm_window_offset(const char *what, const void *p, size_t n_bytes, const void *part,
                                size_t part_bytes, size_t *offset_out);

/* ---- wire.c ---- */

enum wire_kind {
    WIRE_ALL_TO_ALL,     /* n floats to and from each host */
    WIRE_ALL_GATHER,     /* n bytes from each host */
    WIRE_ALL_REDUCE,     /* sums of n int64 over hosts, in place in `receive` */
    WIRE_ALL_REDUCE_MAX, /* the largest instead */
    WIRE_BROADCAST,      /* n bytes in `receive` from host `root` */
    WIRE_BARRIER,        /* over hosts */
    WIRE_REDUCE_SCATTER, /* n floats per rank over the whole world, in the library's order */
};

struct wire_job {
    enum wire_kind kind;
    const void *send;
    void *receive;
    size_t n;
    int root;
};

shoal_status comm_wire_create(struct comm *comm, struct wire **wire_out);

/* Stop the thread; true if no operation was left unfinished. */
bool comm_wire_destroy(struct wire *wire);

/* Hand a job over; at most WIRE_JOBS may be unfinished.  All ranks post the same jobs in order. */
uint32_t comm_wire_post(struct wire *wire, const struct wire_job *job);

/* Wait until the job of this ticket is done; ends early as every wait does. */
shoal_status comm_wire_wait(struct comm *comm, uint32_t ticket);
shoal_status comm_wire_run(struct comm *comm, const struct wire_job *job);

/* ---- links.c ---- */

/* An unconnected datagram socket on a free port (network byte order). */
shoal_status comm_links_socket(int *fd_out, uint16_t *port_out);
int comm_links_addresses(struct host_address *out, int max);

/* Takes over the descriptor if it succeeds. */
shoal_status comm_links_create(struct comm *comm, int fd, struct links **links_out);
void comm_links_destroy(struct links *links);
int comm_links_descriptor(const struct links *links);

/* Tell the leaders of all other hosts where this host stands, and the board if it is set. */
void comm_links_send(struct comm *comm);

/* Take in what has arrived; the leader's watchdog only. */
void comm_links_receive(struct comm *comm);

/* Name the first host that was heard before and is silent for `timeout_s` now: -1 if none. */
int comm_links_silent_host(struct comm *comm, double timeout_s);

/* ---- watchdog.c ---- */

shoal_status comm_watchdog_create(struct comm *comm, struct watchdog **watchdog_out);
void comm_watchdog_destroy(struct watchdog *watchdog);

/* ---- witness.c ---- */

/* Before MPI starts.  Without a witness (fd -1) deaths are found by the watchdog alone. */
void comm_witness_begin(struct witness *witness, bool is_wanted);
void comm_witness_end(struct witness *witness);

/* Tell it whom to watch; a rank that is not the first of its machine dismisses it instead. */
void comm_witness_brief(struct witness *witness, const struct comm *comm);
void comm_witness_dismiss(struct witness *witness);

/*
 * Let `epoll` report `about` when this rank dies: by its life pipe, whose end closes before the
 * launcher can see anything, or else by a pidfd.  The two descriptors, or -1, go to fds_out.
 */
void comm_watch_life(int epoll, pid_t pid, int life_fd, int about, int fds_out[2]);

/* ---- end.c ---- */

/*
 * MPI_Finalize, or what stands for it between machines.  If it takes longer than limit_s the
 * process ends with the status's exit code.
 */
void comm_end_finalize(struct comm *comm, shoal_status status, double limit_s);

#define FLUSH_LIMIT_S 1.0

/*
 * Wait, for FLUSH_LIMIT_S at most, until the launcher has taken what this process wrote to stderr.
 * Its answer to MPI_Abort is to leave at once, with all that it has not read.
 */
void comm_end_flush(void);

/* End all processes of the run at once with this status's exit code; does not return. */
_Noreturn void comm_end_abort(shoal_status status);

/* Start a thread that takes no signals: handlers run in the program's own threads. */
shoal_status comm_thread_start(const char *name, pthread_t *thread_out, void *(*fn)(void *),
                               void *arg);

/* ---- tree sums ---- */

/*
 * out[begin + i] = tree sum over k < count of in[k][begin + i], i < n, in fp32.  The tree splits
 * `count` at the largest power of two below it.
 */
typedef void tree_sum_fn(const float *const *in, int count, size_t begin, size_t n, float *out);
tree_sum_fn comm_tree_sum_scalar, comm_tree_sum_avx2, comm_tree_sum_avx512;

/* The same for i < n, over the threads of the comm's pool. */
void comm_tree_sum(struct comm *comm, const float *const *in, int count, size_t n, float *out);

/* memcpy over the threads of the comm's pool. */
void comm_parallel_copy(struct comm *comm, void *to, const void *from, size_t n_bytes);
