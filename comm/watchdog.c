#include "comm/comm_internal.h"
#include "runtime/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * The watchdog: one thread per rank that neither computes nor calls MPI (but for the last
 * MPI_Abort).
 *
 * - Dead ranks of this machine: their life pipe closes.  Under mpirun the launcher kills
 *   everyone at the same moment and the witness tells why; under launchers that let the
 *   others live, this is what ends them.
 * - Silent ranks of this host (stopped, or swapped out): their heartbeat stands still.
 * - Silent or failing hosts: the leader's links.
 *
 * What it finds goes to the board, which ends all waits.  A rank whose main thread has
 * not begun comm_close GRACE_S after that is ended here.
 */
#define GRACE_S 2.0

struct peer {
    uint64_t heartbeat;
    struct patience silence;
};

/* What an event of the epoll is about: a rank, or one of these. */
enum { EVENT_STOP = -1, EVENT_LINKS = -2 };

struct watchdog {
    struct comm *comm;
    pthread_t thread;
    _Atomic bool is_stopping;
    int stop_pipe[2];
    int epoll;          /* its ready list keeps the order of deaths */
    int (*lives)[2];    /* [size], -1: not watched */
    struct peer *peers; /* [local_size] */
    bool is_ending;
    struct patience grace;
};

static void last_place(const struct comm *comm, int rank, char *out, size_t n_bytes)
{
    int local = rank - leader_of(comm, comm->host);

    if (local < 0 || local >= comm->local_size) {
        snprintf(out, n_bytes, "an unknown place");
        return;
    }
    struct note note = comm_note_read(&comm->control_ranks[local].note);

    comm_describe_place(&note, atomic_load(&comm->control_ranks[local].calls), out, n_bytes);
}

static void report_death(struct comm *comm, int rank)
{
    char name[128], place[192], text[BOARD_TEXT_BYTES];

    comm_describe_rank(comm, rank, name, sizeof name);
    last_place(comm, rank, place, sizeof place);
    snprintf(text, sizeof text, "%s died; last at %s", name, place);
    comm_board_post_death(comm, rank, text);
}

/* Silence is told here and now: nobody else may get to. */
static void report_silence(struct comm *comm, int rank, const char *text)
{
    if (comm_board_post(comm, SHOAL_ERR_UNAVAILABLE, rank, text))
        comm_board_tell(comm);
}

static void check_peers(struct watchdog *watchdog)
{
    struct comm *comm = watchdog->comm;
    char name[128], place[192], text[BOARD_TEXT_BYTES];

    for (int l = 0; l < comm->local_size; l++) {
        struct peer *peer = &watchdog->peers[l];
        uint64_t heartbeat = atomic_load(&comm->control_ranks[l].heartbeat);
        int rank = leader_of(comm, comm->host) + l;

        if (l == comm->local_rank || heartbeat != peer->heartbeat) {
            peer->heartbeat = heartbeat;
            patience_start(&peer->silence);
            continue;
        }
        double silence = patience_spent(&peer->silence);
        if (silence <= comm->timeout_s)
            continue;
        comm_describe_rank(comm, rank, name, sizeof name);
        last_place(comm, rank, place, sizeof place);
        snprintf(text, sizeof text, "%s is silent for %.1f s; last at %s", name, silence, place);
        report_silence(comm, rank, text);
    }
}

static void check_hosts(struct comm *comm)
{
    char place[192], text[BOARD_TEXT_BYTES];
    /* A little later than the host's own ranks, who know which of them is silent. */
    int host = comm_links_silent_host(comm, comm->timeout_s + 3 * comm->heartbeat_s);

    if (host < 0)
        return;
    int leader = leader_of(comm, host);
    struct note note = comm_note_read(&comm->control_hosts[host].note);
    uint64_t calls = atomic_load(&comm->control_hosts[host].slowest_calls);

    comm_describe_place(&note, calls, place, sizeof place);
    snprintf(text, sizeof text, "host %d (%s, ranks %d to %d) is silent for %.1f s; last at %s",
             host, comm->ranks[leader].host_name, leader, leader + comm->local_size - 1,
             comm->timeout_s, place);
    report_silence(comm, leader, text);
}

/* Once the board is set the main thread must come to comm_close. */
static void check_grace(struct watchdog *watchdog)
{
    struct comm *comm = watchdog->comm;

    if (!comm_board_is_set(comm) || atomic_load(&comm->is_closing)) {
        watchdog->is_ending = false;
        return;
    }
    if (!watchdog->is_ending) {
        watchdog->is_ending = true;
        patience_start(&watchdog->grace);
    } else if (patience_spent(&watchdog->grace) > GRACE_S) {
        log_rank_line("failed", "did not stop within %.0f s of a failure elsewhere; ending the job",
                      GRACE_S);
        comm_board_tell(comm);
        comm_end_abort((shoal_status)comm->control->board.status);
    }
}

/* The first death ends the run; there is nothing to watch for afterwards. */
static void stop_watching_lives(struct watchdog *watchdog)
{
    for (int r = 0; r < watchdog->comm->size; r++)
        for (int i = 0; i < 2; i++)
            if (watchdog->lives[r][i] >= 0) {
                close(watchdog->lives[r][i]); /* leaves the epoll */
                watchdog->lives[r][i] = -1;
            }
}

static void handle_event(struct watchdog *watchdog, int about)
{
    if (about == EVENT_LINKS)
        comm_links_receive(watchdog->comm);
    if (about < 0)
        return;
    /* Ranks may leave while this one is closing. */
    if (!atomic_load(&watchdog->comm->is_closing))
        report_death(watchdog->comm, about);
    stop_watching_lives(watchdog);
}

static void *watchdog_main(void *arg)
{
    struct watchdog *watchdog = arg;
    struct comm *comm = watchdog->comm;
    int period_ms = (int)(comm->heartbeat_s * 1e3);
    struct epoll_event event;
    double next = 0;

    while (!atomic_load(&watchdog->is_stopping)) {
        if (epoll_wait(watchdog->epoll, &event, 1, period_ms) == 1)
            handle_event(watchdog, event.data.fd);
        /* Datagrams and deaths wake us early; the heartbeat keeps its own pace. */
        if (clock_seconds() < next)
            continue;
        next = clock_seconds() + 0.9 * comm->heartbeat_s;
        atomic_fetch_add(&comm->self->heartbeat, 1);
        if (!atomic_load(&comm->is_closing))
            check_peers(watchdog);
        if (comm->links != NULL && is_leader(comm)) {
            comm_links_send(comm);
            if (!atomic_load(&comm->is_closing))
                check_hosts(comm);
        }
        check_grace(watchdog);
    }
    return NULL;
}

static void release(struct watchdog *watchdog)
{
    if (watchdog->lives != NULL)
        stop_watching_lives(watchdog);
    if (watchdog->epoll >= 0)
        close(watchdog->epoll);
    close(watchdog->stop_pipe[0]);
    close(watchdog->stop_pipe[1]);
    free(watchdog->lives);
    free(watchdog->peers);
    free(watchdog);
}

static void add_event(const struct watchdog *watchdog, int fd, int about)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = about};

    epoll_ctl(watchdog->epoll, EPOLL_CTL_ADD, fd, &event);
}

static void add_events(struct watchdog *watchdog)
{
    const struct comm *comm = watchdog->comm;

    add_event(watchdog, watchdog->stop_pipe[0], EVENT_STOP);
    if (comm->links != NULL && is_leader(comm))
        add_event(watchdog, comm_links_descriptor(comm->links), EVENT_LINKS);
    for (int r = 0; r < comm->size; r++) {
        const struct rank_entry *peer = &comm->ranks[r];

        if (r != comm->rank && peer->node == comm->ranks[comm->rank].node)
            comm_watch_life(watchdog->epoll, peer->pid, peer->life_fd, r, watchdog->lives[r]);
    }
}

shoal_status comm_watchdog_create(struct comm *comm, struct watchdog **watchdog_out)
{
    struct watchdog *watchdog = calloc(1, sizeof *watchdog);
    shoal_status status;

    if (watchdog == NULL)
        return fail(SHOAL_ERR_NOMEM, "watchdog: out of memory");
    watchdog->comm = comm;
    if (pipe2(watchdog->stop_pipe, O_CLOEXEC) != 0) {
        free(watchdog);
        return fail(SHOAL_ERR_UNAVAILABLE, "watchdog: pipe: %s", strerror(errno));
    }
    watchdog->epoll = epoll_create1(EPOLL_CLOEXEC);
    watchdog->lives = malloc((size_t)comm->size * sizeof *watchdog->lives);
    if (watchdog->lives != NULL)
        memset(watchdog->lives, 0xff, (size_t)comm->size * sizeof *watchdog->lives); /* all -1 */
    watchdog->peers = calloc((size_t)comm->local_size, sizeof *watchdog->peers);
    if (watchdog->epoll < 0 || watchdog->lives == NULL || watchdog->peers == NULL) {
        status = fail(SHOAL_ERR_NOMEM, "watchdog: out of memory or descriptors");
        goto err_release;
    }
    for (int l = 0; l < comm->local_size; l++)
        patience_start(&watchdog->peers[l].silence);
    add_events(watchdog);
    SHOAL_TRY_GOTO(comm_thread_start("shoal-watch", &watchdog->thread, watchdog_main, watchdog),
                   err_release);
    *watchdog_out = watchdog;
    return SHOAL_OK;

err_release:
    release(watchdog);
    return status;
}

void comm_watchdog_destroy(struct watchdog *watchdog)
{
    if (watchdog == NULL)
        return;
    atomic_store(&watchdog->is_stopping, true);
    (void)!write(watchdog->stop_pipe[1], "", 1);
    pthread_join(watchdog->thread, NULL);
    release(watchdog);
}
