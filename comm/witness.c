#include "comm/comm_internal.h"
#include "runtime/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/*
 * The witness: a small process per machine that names the rank that died first.
 *
 * The launcher learns of a death in the same microseconds as the other ranks do, and its answer is
 * SIGKILL to all of them; a thread of a rank loses that race about every second time.  A
 * process in a session of its own is not among those killed.  It watches the lives of
 * all ranks in one epoll, whose ready list keeps the order of the deaths, writes one line about
 * the first and ends.  It never outlives the ranks.
 *
 * It is forked before MPI starts (afterwards a fork would take pages away from registered
 * memory) and told the process ids through a socket, its standard input:
 * one struct briefing, its ranks, and at the end of a good run one byte.
 */
struct briefing {
    int32_t n_ranks;
    int32_t control_pid, control_fd; /* where the control area can be opened */
    int32_t local_size, host_count;  /* of which these follow: */
    int32_t first_rank;              /* first rank of that host */
    char host_name[HOST_NAME_BYTES];
};

struct suspect {
    int32_t rank, pid, life_fd;
};

#define REAP_LIMIT_S 1.0

static bool read_all(int fd, void *data, size_t n_bytes)
{
    char *to = data;

    while (n_bytes > 0) {
        ssize_t n = read(fd, to, n_bytes);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        to += n;
        n_bytes -= (size_t)n;
    }
    return true;
}

/* Not files_write_all: write(2) to a witness that has ended would raise SIGPIPE. */
static bool send_all(int fd, const void *data, size_t n_bytes)
{
    const char *from = data;

    while (n_bytes > 0) {
        ssize_t n = send(fd, from, n_bytes, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        from += n;
        n_bytes -= (size_t)n;
    }
    return true;
}

static void add_event(int epoll, int fd, int about)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = about};

    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

void comm_watch_life(int epoll, pid_t pid, int life_fd, int about, int fds_out[2])
{
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)pid, life_fd);
    fds_out[0] = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    /* Without pidfds (Linux < 5.3) the pipe alone must do. */
    fds_out[1] = (int)syscall(SYS_pidfd_open, pid, 0);
    for (int i = 0; i < 2; i++)
        if (fds_out[i] >= 0)
            add_event(epoll, fds_out[i], about);
}

/* ---- in the witness ---- */

static void report_first(const struct comm *comm, const struct briefing *briefing,
                         const struct suspect *suspect)
{
    char place[192] = "", when[32];
    int local = suspect->rank - briefing->first_rank;
    struct timespec now;
    struct tm calendar;

    if (comm->control != NULL && local >= 0 && local < comm->local_size) {
        const struct control_rank *rank = &comm->control_ranks[local];
        struct note note = comm_note_read(&rank->note);

        memcpy(place, "; last at ", 11);
        comm_describe_place(&note, atomic_load(&rank->calls), place + 10, sizeof place - 10);
    }
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &calendar);
    strftime(when, sizeof when, "%H:%M:%S", &calendar);
    /* The time tells which death was the first when several machines report. */
    log_line("failed", "rank %d (pid %d, %s) died, the first on this machine, at %s.%03ld%s",
             suspect->rank, suspect->pid, briefing->host_name, when, now.tv_nsec / 1000000, place);
}

static void watch(const struct comm *comm, const struct briefing *briefing,
                  const struct suspect *suspects)
{
    enum { FROM_PARENT = -1 };
    int fds[2], n_watched = 0;
    int epoll = epoll_create1(0);
    struct epoll_event event;
    char byte;

    add_event(epoll, STDIN_FILENO, FROM_PARENT);
    for (int i = 0; i < briefing->n_ranks; i++) {
        comm_watch_life(epoll, suspects[i].pid, suspects[i].life_fd, i, fds);
        n_watched += fds[0] >= 0 || fds[1] >= 0;
    }
    for (;;) {
        int n = epoll_wait(epoll, &event, 1, -1);

        if (n < 0 && errno != EINTR)
            return; /* no epoll: better no witness than one that stays */
        if (n != 1)
            continue;
        if (event.data.fd == FROM_PARENT && read(STDIN_FILENO, &byte, 1) == 1)
            return; /* a good end */
        if (event.data.fd == FROM_PARENT) {
            if (n_watched == 0)
                return; /* they were gone already: no event would end this */
            epoll_ctl(epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
            continue; /* our parent died: not necessarily as the first */
        }
        /* With another failure on the board the run was ending already, and it has been told. */
        if (comm->control == NULL || !comm_board_is_set(comm) || comm->control->board.is_death)
            report_first(comm, briefing, &suspects[event.data.fd]);
        return;
    }
}

static void witness_main(void)
{
    struct briefing briefing;
    struct comm comm = {.size = 0};

    /* Its line counts on every machine and in a quiet run, too. */
    log_init(0, LOG_NORMAL);
    if (!read_all(STDIN_FILENO, &briefing, sizeof briefing))
        return;
    struct suspect *suspects = calloc((size_t)briefing.n_ranks, sizeof *suspects);

    if (suspects == NULL ||
        !read_all(STDIN_FILENO, suspects, (size_t)briefing.n_ranks * sizeof *suspects))
        return;
    comm.local_size = briefing.local_size;
    comm.host_count = briefing.host_count;
    if (comm_memory_attach("shoal-control", briefing.control_pid, briefing.control_fd,
                           comm_control_bytes(comm.local_size, comm.host_count),
                           &comm.control_memory) == SHOAL_OK)
        comm_control_bind(&comm);
    watch(&comm, &briefing, suspects);
}

/* ---- in the ranks ---- */

static void start(struct witness *witness)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
        return;
    witness->pid = fork();
    if (witness->pid == 0) {
        setsid();
        prctl(PR_SET_NAME, "shoal-witness");
        dup2(ends[0], STDIN_FILENO);
        /* Keep nothing of the launcher's but stderr: it waits for its pipes to close. */
        dup2(STDERR_FILENO, STDOUT_FILENO);
        closefrom(3); /* also where the kernel has no close_range (Linux < 5.9) */
        witness_main();
        _exit(0);
    }
    close(ends[0]);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    witness->fd = ends[1];
    if (witness->pid < 0)
        comm_witness_dismiss(witness);
}

void comm_witness_begin(struct witness *witness, bool is_wanted)
{
    *witness = (struct witness){.fd = -1, .pid = -1, .life = {-1, -1}};
    if (is_wanted)
        start(witness);
    /* Made after the fork, so that this process alone holds the writing end. */
    if (pipe2(witness->life, O_CLOEXEC) != 0)
        witness->life[0] = witness->life[1] = -1;
}

void comm_witness_end(struct witness *witness)
{
    comm_witness_dismiss(witness);
    for (int i = 0; i < 2; i++)
        if (witness->life[i] >= 0)
            close(witness->life[i]);
}

void comm_witness_brief(struct witness *witness, const struct comm *comm)
{
    const struct rank_entry *self = &comm->ranks[comm->rank];
    struct briefing briefing = {.n_ranks = self->node_ranks,
                                .control_pid = getpid(),
                                .control_fd = comm->control_memory.fd,
                                .local_size = comm->local_size,
                                .host_count = comm->host_count,
                                .first_rank = leader_of(comm, comm->host)};

    if (witness->fd < 0)
        return;
    if (self->node_rank != 0) {
        comm_witness_dismiss(witness);
        return;
    }
    memcpy(briefing.host_name, self->host_name, sizeof briefing.host_name);
    send_all(witness->fd, &briefing, sizeof briefing);
    for (int r = 0; r < comm->size; r++)
        if (comm->ranks[r].node == self->node) {
            struct suspect suspect = {
                .rank = r, .pid = comm->ranks[r].pid, .life_fd = comm->ranks[r].life_fd};

            send_all(witness->fd, &suspect, sizeof suspect);
        }
}

/* It may be writing its line still; a stopped one must not hold up the end of the run. */
static void reap(pid_t pid)
{
    const struct timespec nap = {.tv_nsec = 1000 * 1000};
    double begin = clock_seconds();

    while (waitpid(pid, NULL, WNOHANG) == 0) {
        if (clock_seconds() - begin > REAP_LIMIT_S)
            kill(pid, SIGKILL);
        nanosleep(&nap, NULL);
    }
}

void comm_witness_dismiss(struct witness *witness)
{
    if (witness->fd < 0)
        return;
    send_all(witness->fd, "", 1);
    close(witness->fd);
    if (witness->pid > 0)
        reap(witness->pid);
    witness->fd = -1;
    witness->pid = -1;
}
