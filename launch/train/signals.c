#include "launch/train/train_internal.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t wanted;

static void on_signal(int signal_number)
{
    if (signal_number == SIGINT && wanted == SIGINT)
        _exit(128 + SIGINT);
    wanted = signal_number;
}

void signals_install(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

    wanted = 0;
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file size limit is an I/O error, not a death */
}

int signals_wanted(void)
{
    return wanted;
}

/* What SHOAL_FAULT names for this step and rank; "": nothing. */
static void fault_named(int64_t step, int rank, char what[8])
{
    const char *fault = getenv("SHOAL_FAULT");
    long long at = 0;
    int on = 0;

    if (fault == NULL || sscanf(fault, "%7[a-z]:%lld:%d", what, &at, &on) != 3 || at != step ||
        on != rank)
        what[0] = '\0';
}

void fault_point_look(int64_t step, int rank)
{
    char what[8];

    fault_named(step, rank, what);
    if (strcmp(what, "look") == 0)
        raise(SIGTERM);
}

bool fault_point(int64_t step, int rank)
{
    char what[8];

    fault_named(step, rank, what);
    if (what[0] == '\0' || strcmp(what, "look") == 0)
        return false;
    if (strcmp(what, "nan") == 0)
        return true;
    raise(strcmp(what, "kill") == 0 ? SIGKILL : strcmp(what, "term") == 0 ? SIGTERM : SIGSTOP);
    return false;
}
