#pragma once

/*
 * Shoal: distributed training of language models, in C.
 *
 * This is the installed header, the whole public interface of libshoal.  The
 * `shoal` command is a thin wrapper around shoal_main(); programs that want to
 * look into a checkpoint use the shoal_checkpoint_* calls.
 *
 * Threading: calls may be made from any thread; shoal_last_error() is per
 * thread.  Nothing here calls exit() or prints, except shoal_main().
 */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SHOAL_API __attribute__((visibility("default")))

/* What went wrong, and what the caller can do about it.  0 is success. */
typedef enum shoal_status {
    SHOAL_OK = 0,
    SHOAL_ERR_USAGE = -1,       /* wrong command line; fix the call (exit 64) */
    SHOAL_ERR_DATA = -2,        /* data or checkpoint content is bad (65) */
    SHOAL_ERR_NOINPUT = -3,     /* an input file is missing or unreadable (66) */
    SHOAL_ERR_UNAVAILABLE = -4, /* a peer, device or transport is gone; run again (69) */
    SHOAL_ERR_INTERNAL = -5,    /* a bug in Shoal (70) */
    SHOAL_ERR_NOMEM = -6,       /* memory of some tier is exhausted (71) */
    SHOAL_ERR_CANTCREATE = -7,  /* an output cannot be created (73) */
    SHOAL_ERR_IO = -8,          /* I/O error or disk full (74) */
    SHOAL_ERR_STOPPED = -9,     /* stopped on request, checkpoint saved; run again (75) */
    SHOAL_ERR_NONFINITE = -10,  /* loss or gradients are not finite and the config says stop (76) */
    SHOAL_ERR_CONFIG = -11,     /* the configuration is wrong (78) */
} shoal_status;

/* The process exit code of a status, as listed above. */
SHOAL_API int shoal_exit_code(shoal_status status);

/*
 * The calling thread's last failure: up to three lines, separated by '\n':
 * what failed, why, and what to do next.  Valid until the thread's next failure.
 */
SHOAL_API const char *shoal_last_error(void);

/* "0.1.0" */
SHOAL_API const char *shoal_version(void);

/* Run the command line `shoal ...`; returns the process exit code. */
SHOAL_API int shoal_main(int argc, char **argv);

/*
 * Checkpoints, opened read-only in one process; any world size may have written
 * them.  `path` is a step directory, or a run or checkpoint root (the newest
 * complete step is taken).
 */
struct shoal_checkpoint;

struct shoal_tensor_info {
    const char *name; /* valid while the checkpoint is open */
    int ndim;
    int64_t shape[4];
    int64_t n_elements;
};

SHOAL_API shoal_status shoal_checkpoint_open(const char *path,
                                             struct shoal_checkpoint **checkpoint_out);
SHOAL_API void shoal_checkpoint_close(struct shoal_checkpoint *checkpoint);
SHOAL_API int64_t shoal_checkpoint_step(const struct shoal_checkpoint *checkpoint);
SHOAL_API int shoal_checkpoint_tensor_count(const struct shoal_checkpoint *checkpoint);
SHOAL_API shoal_status shoal_checkpoint_tensor_info(const struct shoal_checkpoint *checkpoint,
                                                    int index, struct shoal_tensor_info *info_out);

/*
 * Read n elements starting at `begin` of tensor `index` and state `kind`
 * ("master", "exp_avg", ...) as fp32 into the caller's buffer.  Every byte that
 * is used is checked against its checksum.
 */
SHOAL_API shoal_status shoal_checkpoint_read(struct shoal_checkpoint *checkpoint, int index,
                                             const char *kind, int64_t begin, int64_t n,
                                             float *out);

#ifdef __cplusplus
}
#endif
