#include "comm/comm_internal.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/*
 * The bounded end.  MPI_Finalize of MPICH 4.0 can hang between hosts (a rank in the launcher's
 * barrier does not progress its connections), and MPI_Abort may hang as well; a job
 * must not stay for that.  This is the one place of the library that ends the process, and only
 * when the alternative is to hang.
 */

static volatile sig_atomic_t alarm_exit_code;

static void exit_on_alarm(int signal_number)
{
    (void)signal_number;
    _exit(alarm_exit_code);
}

/* In `seconds` the process ends with this code, whatever hangs. */
static void arm_alarm(int exit_code, unsigned seconds)
{
    struct sigaction action = {.sa_handler = exit_on_alarm};
    sigset_t set;

    alarm_exit_code = exit_code;
    sigaction(SIGALRM, &action, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    alarm(seconds);
}

/*
 * mpirun reads a rank's pipe and its request to abort in one loop, in any order; whoever asks after
 * the pipe is empty is asking later.
 */
void comm_end_flush(void)
{
    const struct timespec nap = {.tv_nsec = 1000 * 1000};
    struct patience patience;
    struct stat info;
    int n_unread = 0;

    if (fstat(STDERR_FILENO, &info) != 0 || !S_ISFIFO(info.st_mode))
        return;
    patience_start(&patience);
    while (ioctl(STDERR_FILENO, FIONREAD, &n_unread) == 0 && n_unread > 0 &&
           patience_spent(&patience) < FLUSH_LIMIT_S)
        nanosleep(&nap, NULL);
}

_Noreturn void comm_end_abort(shoal_status status)
{
    int exit_code = shoal_exit_code(status);

    comm_end_flush();
    arm_alarm(exit_code, 1);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

/*
 * Between machines MPICH's own MPI_Finalize hangs about every second time over TCP (4.0.2).  What
 * the launcher needs of it, to accept our exit code, is one exchange of words (PMI-1: mpirun of
 * MPICH); all traffic is over and the processes end anyway, so that is all we do.
 */
static bool say_goodbye(double limit_s)
{
    static const char finalize[] = "cmd=finalize\n";
    const char *pmi = getenv("PMI_FD");
    char answer[64];

    if (pmi == NULL)
        return false;
    int fd = atoi(pmi);
    struct pollfd entry = {.fd = fd, .events = POLLIN};

    if (write(fd, finalize, sizeof finalize - 1) != (ssize_t)sizeof finalize - 1)
        return false;
    if (poll(&entry, 1, (int)(limit_s * 1e3)) == 1)
        (void)!read(fd, answer, sizeof answer);
    shutdown(fd, SHUT_RDWR);
    return true;
}

struct guard {
    struct comm *comm;
    pthread_t thread;
    _Atomic uint32_t is_done;
    shoal_status status;
    double limit_s;
};

static void *guard_main(void *arg)
{
    struct guard *guard = arg;
    struct patience patience;

    patience_start(&patience);
    while (atomic_load(&guard->is_done) == 0) {
        comm_futex_wait(&guard->is_done, 0, 0.1, false);
        if (patience_spent(&patience) > guard->limit_s && atomic_load(&guard->is_done) == 0) {
            if (guard->comm->control != NULL)
                comm_board_tell(guard->comm);
            _exit(shoal_exit_code(guard->status)); /* MPI_Abort no longer works in there */
        }
    }
    return NULL;
}

void comm_end_finalize(struct comm *comm, shoal_status status, double limit_s)
{
    if (!is_one_machine(comm) && say_goodbye(limit_s))
        return;

    struct guard guard = {.comm = comm, .status = status, .limit_s = limit_s};
    shoal_status started = comm_thread_start("shoal-end", &guard.thread, guard_main, &guard);

    MPI_Finalize();
    if (started != SHOAL_OK)
        return;
    atomic_store(&guard.is_done, 1);
    comm_futex_wake_all(&guard.is_done, false);
    pthread_join(guard.thread, NULL);
}

shoal_status comm_thread_start(const char *name, pthread_t *thread_out, void *(*fn)(void *),
                               void *arg)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(thread_out, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return fail(SHOAL_ERR_UNAVAILABLE, "thread %s: %s", name, strerror(error));
    pthread_setname_np(*thread_out, name);
    return SHOAL_OK;
}
