#pragma once

/*
 * Shoal: distributed training of language models, in C.
 *
 * This is the installed header, the whole public interface of libshoal.  The
 * `shoal` command is a thin wrapper around shoal_main(); programs that want to
 * look into a checkpoint use the shoal_checkpoint_* calls, and those that want
 * an optimizer for their own tensors the shoal_optim_* calls.
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

/*
 * Optimizers on the caller's memory: the rules, state codecs and master weights
 * of `shoal train`, one tensor at a time and with the same bytes.
 *
 *     struct shoal_optim_params params = {
 *         .size = sizeof params, .rule = "adamw", .n_elements = n,
 *         .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
 *     struct shoal_optim *optim = NULL;
 *     if (shoal_optim_create(&params, &optim) != SHOAL_OK) ...
 *     void *states[] = {zeros of shoal_optim_state_bytes(optim, 0) bytes, ...};
 *     for (int64_t step = 1;; step++) {
 *         struct shoal_optim_update update = {
 *             .size = sizeof update, .step = step, .lr = 3e-4,
 *             .grad = grad, .master = weights, .states = states};
 *         if (shoal_optim_step(optim, &update) != SHOAL_OK) ...
 *     }
 *
 * Structs that the caller fills begin with their size and may grow: members that
 * an older caller does not know count as zero.  A newer caller's members that
 * this library does not know must be zero, else the call is SHOAL_ERR_USAGE.
 *
 * Ownership: all buffers are the caller's and are touched during calls only.  An
 * optimizer allocates when it is created and never again.
 * Threading: one call at a time per optimizer and per thread set.
 * Bits depend on neither the number of threads nor the CPU.
 */
struct shoal_optim;

/* Threads that optimizers can share, sleeping between steps. */
struct shoal_threads;

/* n_threads in 1 .. 1024, with the one that calls.  Destroy the optimizers on it first; NULL is allowed. */
SHOAL_API shoal_status shoal_threads_create(int n_threads, struct shoal_threads **threads_out);
SHOAL_API void shoal_threads_destroy(struct shoal_threads *threads);

/* Numbers are taken as they stand: a beta or weight decay of 0 is 0.  Text is copied. */
struct shoal_optim_params {
    size_t size;                   /* sizeof(struct shoal_optim_params) */
    const char *rule;              /* optimizer.name of docs/config.md; NULL: adamw */
    const char *state;             /* optimizer.state, for this tensor whatever it is; NULL: fp32 */
    const char *master;            /* precision.master; NULL: fp32 */
    int64_t n_elements;            /* of the tensor */
    int64_t rows, cols;            /* of a matrix, row-major; 0, 0: one dimension */
    const char *role;              /* as in optimizer.groups; adam_mini needs one */
    int heads, kv_heads;           /* of the role qkv: rows of queries, then keys, then values */
    int head_size;                 /* rows of one head */
    uint64_t key;                  /* tells tensors apart in stochastic rounding (bf16sr) */
    struct shoal_threads *threads; /* borrowed; NULL: the calling thread works alone */

    double beta1, beta2;
    double eps;          /* 0: weights whose gradients were all zero become NaN */
    double weight_decay; /* of this tensor */
    double momentum;     /* sgd */
    double beta3, alpha; /* ademamix; came: beta3, 0 is 0.9999 */
    int64_t slow_warmup_steps;
    double gamma;          /* mars */
    double clip_threshold; /* adafactor, came; 0: 1 */
    int nesterov;          /* flags: 0 or 1 */
    int scale_parameter;
    int relative_step;
    int cautious;
    int tensor_clip;
};

/*
 * SHOAL_ERR_CONFIG: a name, a number or a combination that no run could have.
 * SHOAL_ERR_USAGE: the call itself is wrong.
 */
SHOAL_API shoal_status shoal_optim_create(const struct shoal_optim_params *params,
                                          struct shoal_optim **optim_out);
SHOAL_API void shoal_optim_destroy(struct shoal_optim *optim); /* NULL is allowed */

/*
 * What the optimizer keeps between steps: states of elements ("exp_avg"), their
 * scales ("exp_avg.scale"), and vectors of rules over sums ("avg_sq_row").
 * Each is a buffer of so many bytes, all zero before step 1.  Names are valid
 * as long as the optimizer; beyond the last they are NULL and sizes 0.
 */
SHOAL_API int shoal_optim_state_count(const struct shoal_optim *optim);
SHOAL_API const char *shoal_optim_state_name(const struct shoal_optim *optim, int index);
SHOAL_API size_t shoal_optim_state_bytes(const struct shoal_optim *optim, int index);

/*
 * Bytes of `master` below: the fp32 weights, or what the master codec keeps
 * beside the bf16 weights (0: nothing).  Bytes of scratch, which holds nothing
 * between steps: optimizers may share one buffer of the largest size.
 */
SHOAL_API size_t shoal_optim_master_bytes(const struct shoal_optim *optim);
SHOAL_API size_t shoal_optim_scratch_bytes(const struct shoal_optim *optim);

/* Put fp32 weights into the form the optimizer keeps, and back; bf16sr rounds to nearest here. */
SHOAL_API shoal_status shoal_optim_set_weights(const struct shoal_optim *optim,
                                               const float *weights, void *master, uint16_t *param);
SHOAL_API shoal_status shoal_optim_get_weights(const struct shoal_optim *optim, const void *master,
                                               const uint16_t *param, float *weights);

struct shoal_optim_update {
    size_t size;         /* sizeof(struct shoal_optim_update) */
    int64_t step;        /* 1-based */
    double lr;           /* of this step */
    float grad_scale;    /* factor of the gradient, of clipping; 0: 1 */
    int grad_is_bf16;    /* grad is uint16_t[n_elements]; 0: float */
    double grad_squares; /* sum of squares of all gradients of the model before grad_scale, for
                            rules over sums; less than this tensor's (0): this tensor's */
    uint64_t seed;       /* of the run, for stochastic rounding */
    const void *grad;
    void *master;         /* shoal_optim_master_bytes, updated; NULL if that is 0 */
    uint16_t *param;      /* bf16 weights; with fp32 a rounded copy of master, or NULL */
    void *const *states;  /* shoal_optim_state_count pointers, updated; NULL if that is 0 */
    void *scratch;        /* shoal_optim_scratch_bytes, aligned to 8; NULL if that is 0 */
    double average_share; /* schedule_free: the square of the largest rate so far, over the sum of
                             this over all steps so far; 0: 1 / step, as with one rate */
};

/*
 * One update.  Nothing has changed if it fails: SHOAL_ERR_USAGE, or SHOAL_ERR_NONFINITE from a
 * rule over sums (adam_mini, adafactor, came, or with cautious or tensor_clip) if the gradient is
 * not finite; the other rules let a NaN through to the elements it concerns.  States and fp32
 * buffers are aligned to 4 bytes, bf16 and 16-bit ones to 2; none overlap.
 */
SHOAL_API shoal_status shoal_optim_step(struct shoal_optim *optim,
                                        const struct shoal_optim_update *update);

/*
 * The weights to use: what shoal_optim_get_weights gives, but with schedule_free the average of
 * which the weights that are trained are only the point of the next gradient.
 */
SHOAL_API shoal_status shoal_optim_get_average(const struct shoal_optim *optim, const void *master,
                                               const uint16_t *param, void *const *states,
                                               float *weights);

/*
 * Sum of squares of a gradient: added over all tensors, the global norm's square.  Infinite or
 * NaN if an element is not finite.
 */
SHOAL_API shoal_status shoal_optim_grad_squares(const struct shoal_optim *optim, const void *grad,
                                                int grad_is_bf16, double *squares_out);

#ifdef __cplusplus
}
#endif
