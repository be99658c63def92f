#include "comm/comm_internal.h"
#include "runtime/base/log.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/*
 * The control area: a small block that the ranks of a host share, in this order:
 * struct control, control_rank[local_size], control_host[host_count], slots.
 */

/* A sleeping waiter looks around this often, should a wake-up be lost with its sender. */
#define WAIT_SLICE_S 0.05

size_t comm_control_bytes(int local_size, int host_count)
{
    return sizeof(struct control) + (size_t)local_size * sizeof(struct control_rank) +
           (size_t)host_count * sizeof(struct control_host) + (size_t)local_size * 2 * SLOT_BYTES;
}

void comm_control_bind(struct comm *comm)
{
    char *base = comm->control_memory.base;

    comm->control = (struct control *)base;
    base += sizeof(struct control);
    comm->control_ranks = (struct control_rank *)base;
    base += (size_t)comm->local_size * sizeof(struct control_rank);
    comm->control_hosts = (struct control_host *)base;
    base += (size_t)comm->host_count * sizeof(struct control_host);
    comm->slots = base;
    comm->self = &comm->control_ranks[comm->local_rank];
}

/* ---- notes and descriptions ---- */

void comm_note_write(struct note_cell *cell, int64_t step, const char *what)
{
    uint32_t next = 1 - atomic_load_explicit(&cell->current, memory_order_relaxed);
    struct note *note = &cell->notes[next];

    note->step = step;
    snprintf(note->what, sizeof note->what, "%s", what);
    atomic_store_explicit(&cell->current, next, memory_order_release);
}

struct note comm_note_read(const struct note_cell *cell)
{
    uint32_t current = atomic_load_explicit(&cell->current, memory_order_acquire);
    struct note note = cell->notes[current & 1];

    note.what[NOTE_BYTES - 1] = '\0';
    return note;
}

void comm_describe_rank(const struct comm *comm, int rank, char *out, size_t n_bytes)
{
    snprintf(out, n_bytes, "rank %d (pid %d, %s)", rank, (int)comm->ranks[rank].pid,
             comm->ranks[rank].host_name);
}

void comm_describe_place(const struct note *note, uint64_t calls, char *out, size_t n_bytes)
{
    snprintf(out, n_bytes, "step %lld, %s, collective call %llu", (long long)note->step,
             note->what[0] != '\0' ? note->what : "no note yet", (unsigned long long)calls);
}

void comm_describe_call(const struct call *call, char *out, size_t n_bytes)
{
    static const char *const names[] = {
        [CALL_NONE] = "no call",
        [CALL_ALL_GATHER] = "all-gather",
        [CALL_REDUCE_SCATTER] = "reduce-scatter",
        [CALL_ALL_REDUCE] = "all-reduce",
        [CALL_ALL_REDUCE_MAX] = "all-reduce of maxima",
        [CALL_GATHER_BYTES] = "gather of bytes",
        [CALL_BROADCAST] = "broadcast",
        [CALL_BARRIER] = "barrier",
        [CALL_CLOSE] = "the end of the run",
    };
    unsigned kind = (unsigned)call->kind;

    snprintf(out, n_bytes, "%s (call %llu, n = %llu)",
             kind < sizeof names / sizeof names[0] ? names[kind] : "unknown call",
             (unsigned long long)call->number, (unsigned long long)call->n);
}

struct call comm_call_now(const struct comm *comm)
{
    return comm->self->call[atomic_load_explicit(&comm->self->calls, memory_order_relaxed) & 1];
}

uint64_t comm_progress_of_all(const struct comm *comm)
{
    uint64_t sum = 0;

    for (int l = 0; l < comm->local_size; l++)
        sum += atomic_load_explicit(&comm->control_ranks[l].progress, memory_order_relaxed);
    for (int h = 0; h < comm->host_count; h++)
        sum += atomic_load_explicit(&comm->control_hosts[h].progress, memory_order_relaxed);
    return sum;
}

/* ---- board ---- */

/* How this host comes to know of a failure. */
enum source { FROM_HERE, FROM_ANOTHER_HOST, FROM_A_DEATH };

/* The lowest rank of a machine keeps its witness. */
static bool has_witness(const struct comm *comm, int rank)
{
    return comm->ranks[comm->ranks[rank].node].has_witness;
}

static bool post(struct comm *comm, shoal_status status, int rank, enum source source,
                 const char *text)
{
    struct board *board = &comm->control->board;
    uint32_t empty = BOARD_EMPTY;

    if (!atomic_compare_exchange_strong(&board->state, &empty, BOARD_WRITING))
        return false;
    board->status = status;
    board->rank = rank;
    board->is_death = source == FROM_A_DEATH && has_witness(comm, rank);
    /* The machine that it comes from has told it. */
    if (source == FROM_ANOTHER_HOST && !is_one_machine(comm))
        atomic_store(&board->line, LINE_TOLD);
    snprintf(board->text, sizeof board->text, "%s", text);
    atomic_store_explicit(&board->state, BOARD_SET, memory_order_release);
    comm_futex_wake_all(&comm->control->generation, true);
    /* Told before other machines learn of it, whose answer may be to end the run. */
    if (source != FROM_ANOTHER_HOST && !is_one_machine(comm))
        comm_board_tell(comm);
    if (comm->links != NULL)
        comm_links_send(comm);
    return true;
}

bool comm_board_post(struct comm *comm, shoal_status status, int rank, const char *text)
{
    return post(comm, status, rank, FROM_HERE, text);
}

void comm_board_adopt(struct comm *comm, shoal_status status, int rank, const char *text)
{
    post(comm, status, rank, FROM_ANOTHER_HOST, text);
}

void comm_board_post_death(struct comm *comm, int rank, const char *text)
{
    post(comm, SHOAL_ERR_UNAVAILABLE, rank, FROM_A_DEATH, text);
}

void comm_board_tell(struct comm *comm)
{
    const struct timespec nap = {.tv_nsec = 1000 * 1000};
    struct board *board = &comm->control->board;
    uint32_t none = LINE_NONE;
    struct patience patience;

    if (!comm_board_is_set(comm) || board->is_death)
        return;
    if (atomic_compare_exchange_strong(&board->line, &none, LINE_ON_ITS_WAY)) {
        log_rank_line("failed", "%s", board->text);
        comm_end_flush();
        atomic_store(&board->line, LINE_TOLD);
        return;
    }
    patience_start(&patience);
    while (atomic_load(&board->line) != LINE_TOLD && patience_spent(&patience) < 2 * FLUSH_LIMIT_S)
        nanosleep(&nap, NULL);
}

bool comm_board_is_set(const struct comm *comm)
{
    return atomic_load_explicit(&comm->control->board.state, memory_order_acquire) == BOARD_SET;
}

shoal_status comm_board_check(const struct comm *comm)
{
    if (!comm_board_is_set(comm))
        return SHOAL_OK;
    return fail_adopt((shoal_status)comm->control->board.status, comm->control->board.text);
}

bool comm_is_closing_here(const struct comm *comm)
{
    for (int l = 0; l < comm->local_size; l++)
        if (atomic_load(&comm->control_ranks[l].is_closing) == 0)
            return false;
    return true;
}

/* ---- calls ---- */

void comm_call_enter(struct comm *comm, enum call_kind kind, size_t n)
{
    struct control_rank *self = comm->self;
    uint64_t number = atomic_load_explicit(&self->calls, memory_order_relaxed) + 1;

    self->call[number & 1] =
        (struct call){.number = number, .kind = kind, .n = n, .issued = comm->issued_digest};
    atomic_store_explicit(&self->calls, number, memory_order_release);
    atomic_fetch_add_explicit(&self->progress, 1, memory_order_relaxed);
}

static shoal_status report_mismatch(struct comm *comm, int local_rank, const struct call *theirs)
{
    char rank[128], own[128], other[128], text[BOARD_TEXT_BYTES];
    struct call call = comm_call_now(comm);
    int peer = comm->rank - comm->local_rank + local_rank;

    comm_describe_rank(comm, peer, rank, sizeof rank);
    comm_describe_call(&call, own, sizeof own);
    comm_describe_call(theirs, other, sizeof other);
    if (call.number == theirs->number && call.kind == theirs->kind && call.n == theirs->n)
        snprintf(other, sizeof other, "it after other bulk operations on the device");
    snprintf(text, sizeof text,
             "collective calls differ: rank %d entered %s, %s entered %s\n"
             "a rank skipped a call or took another branch",
             comm->rank, own, rank, other);
    comm_board_post(comm, SHOAL_ERR_INTERNAL, comm->rank, text);
    SHOAL_TRY(comm_board_check(comm));
    return fail_adopt(SHOAL_ERR_INTERNAL, text);
}

shoal_status comm_call_meet(struct comm *comm)
{
    struct call own = comm_call_now(comm);

    SHOAL_TRY(comm_local_barrier(comm));
    for (int l = 0; l < comm->local_size; l++) {
        struct call other = comm->control_ranks[l].call[own.number & 1];

        if (other.number != own.number || other.kind != own.kind || other.n != own.n ||
            other.issued != own.issued)
            return report_mismatch(comm, l, &other);
    }
    return SHOAL_OK;
}

/* ---- barrier ---- */

/* Ranks of this host that have not entered the barrier that this rank waits in. */
static bool is_missing(const struct comm *comm, int local_rank)
{
    return atomic_load(&comm->control_ranks[local_rank].arrivals) <
           atomic_load(&comm->self->arrivals);
}

/* Someone on this host waits for another host: that rank knows more and will report. */
static bool is_waiting_remote(const struct comm *comm)
{
    for (int l = 0; l < comm->local_size; l++)
        if (is_missing(comm, l) && atomic_load(&comm->control_ranks[l].waiting) == WAITING_REMOTE)
            return true;
    return false;
}

static shoal_status report_missing(struct comm *comm)
{
    char ranks[256] = "", places[512] = "", name[128], place[192], call_text[128];
    char text[BOARD_TEXT_BYTES];
    size_t n_ranks = 0, n_places = 0;
    struct call call = comm_call_now(comm);

    for (int l = 0; l < comm->local_size; l++) {
        if (!is_missing(comm, l))
            continue;
        struct note note = comm_note_read(&comm->control_ranks[l].note);

        comm_describe_rank(comm, comm->rank - comm->local_rank + l, name, sizeof name);
        comm_describe_place(&note, atomic_load(&comm->control_ranks[l].calls), place, sizeof place);
        if (n_ranks < sizeof ranks)
            n_ranks += (size_t)snprintf(ranks + n_ranks, sizeof ranks - n_ranks, "%s%s",
                                        n_ranks == 0 ? "" : ", ", name);
        if (n_places < sizeof places)
            n_places += (size_t)snprintf(places + n_places, sizeof places - n_places,
                                         "%srank %d was last at %s", n_places == 0 ? "" : "; ",
                                         comm->rank - comm->local_rank + l, place);
    }
    comm_describe_call(&call, call_text, sizeof call_text);
    snprintf(text, sizeof text, "%s did not arrive at %s within %.1f s\n%s", ranks, call_text,
             wait_limit_s(comm), places);
    comm_board_post(comm, SHOAL_ERR_UNAVAILABLE, comm->rank, text);
    SHOAL_TRY(comm_board_check(comm));
    return fail_adopt(SHOAL_ERR_UNAVAILABLE, text);
}

static shoal_status barrier_wait(struct comm *comm, uint32_t generation)
{
    struct control *control = comm->control;
    struct patience patience;
    uint64_t progress = 0;

    for (int i = 0; i < comm->spins; i++) {
        if (atomic_load_explicit(&control->generation, memory_order_acquire) != generation)
            return SHOAL_OK;
        cpu_pause();
    }
    patience_start(&patience);
    for (;;) {
        comm_futex_wait(&control->generation, generation, WAIT_SLICE_S, true);
        if (atomic_load_explicit(&control->generation, memory_order_acquire) != generation)
            return SHOAL_OK;
        SHOAL_TRY(comm_board_check(comm));
        uint64_t now = comm_progress_of_all(comm);
        if (now != progress || is_waiting_remote(comm))
            patience_start(&patience);
        progress = now;
        if (patience_spent(&patience) > wait_limit_s(comm))
            return report_missing(comm);
    }
}

shoal_status comm_local_barrier(struct comm *comm)
{
    struct control *control = comm->control;
    uint32_t generation = atomic_load_explicit(&control->generation, memory_order_relaxed);

    SHOAL_TRY(comm_board_check(comm));
    atomic_fetch_add(&comm->self->arrivals, 1);
    uint32_t arrived = atomic_fetch_add(&control->arrived, 1) + 1;
    if (arrived == (generation + 1) * (uint32_t)comm->local_size) {
        atomic_store_explicit(&control->generation, generation + 1, memory_order_release);
        if (comm->local_size > 1)
            comm_futex_wake_all(&control->generation, true);
        return SHOAL_OK;
    }
    atomic_store_explicit(&comm->self->waiting, WAITING_LOCAL, memory_order_relaxed);
    shoal_status status = barrier_wait(comm, generation);
    atomic_store_explicit(&comm->self->waiting, WAITING_NO, memory_order_relaxed);
    return status;
}
