#pragma once

#include <sys/types.h>

/*
 * System calls that fail on purpose.  Linking faults.c puts its open, stat, scandir, pread, fsync
 * and fdatasync in place of the C library's; they are those, but for what the calling thread asked for:
 * so one rank of a thread_world fails alone.  What goes through io_uring is not seen (SHOAL_IO=sync).
 */
struct fault {
    const char *call;   /* "open", ...; NULL: none fails */
    const char *ending; /* of the path, or of the file that the descriptor is of */
    int error;
    int n_times;  /* then the call works again */
    int n_before; /* calls that work first */
};

/* For the calling thread. */
void fault_set(struct fault fault);
int fault_hits(void); /* since fault_set */

/* The calling thread finds `to` where others find `from`, and below it; NULL: what is there. */
void fault_redirect(const char *from, const char *to);
