#include "comm/comm_internal.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

/* The lowest descriptor that is free. */
static int next_descriptor(void)
{
    int fd = dup(STDERR_FILENO);

    close(fd);
    return fd;
}

Test(watchdog, without_descriptors_refuses_and_closes_only_its_own)
{
    struct comm comm = {.size = 3, .local_size = 3};
    struct watchdog *watchdog = NULL;
    struct rlimit limit;

    cr_assert_eq(dup2(STDERR_FILENO, STDIN_FILENO), STDIN_FILENO); /* whoever runs this: open */
    int before = next_descriptor();

    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    /* Enough for its pipe, not for its epoll. */
    limit.rlim_cur = (rlim_t)before + 2;
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    shoal_status status = comm_watchdog_create(&comm, &watchdog);

    limit.rlim_cur = limit.rlim_max;
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    cr_assert_eq(status, SHOAL_ERR_NOMEM);
    cr_expect_null(watchdog);
    cr_expect_neq(fcntl(STDIN_FILENO, F_GETFD), -1, "standard input was closed");
    cr_expect_eq(next_descriptor(), before);
}
