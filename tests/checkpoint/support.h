#pragma once

#include "checkpoint/checkpoint.h"
#include "tests/checkpoint/thread_world.h"

/*
 * What the checkpoint tests share: a small model, a state whose every element is a function of
 * (tensor, kind, element, step), a save and a read at any world size.
 */

/* `big`: with a tensor of more than one checksum block. */
struct layout *test_layout(bool big);

enum { TEST_KINDS = 3 };
extern const char *const test_kinds[TEST_KINDS];

float test_value(int tensor, int kind, int64_t element, int64_t step);

struct job {
    const char *root;
    const struct layout *layout;
    int64_t step;
    int keep;
    size_t staging_bytes;
    int64_t chunk;           /* cut pieces after so many elements; 0: not */
    int first_save;          /* saves before `step` with steps step-1, ...: 0 none */
    const char *config_yaml; /* NULL: a short one */
    struct ckpt_result result;
};

/* Open the store, save job->step (and step - 1 before it if first_save), close.  A world_fn. */
shoal_status job_save(struct comm *comm, void *job);

/* Save with n ranks; returns rank 0's status. */
static inline shoal_status save_with(int n_ranks, struct job *job)
{
    return world_run(n_ranks, job_save, job);
}

/*
 * Open `path` and read it back as n ranks would; every element must be test_value of the
 * checkpoint's step.  0: all equal.
 */
shoal_status read_back(const char *path, const struct layout *layout, int n_ranks,
                       int64_t *step_out, int64_t *n_wrong_out);

/* A fresh directory; removed by remove_tree. */
void make_root(char out[256]);
void remove_tree(const char *path);

/* root/step-N/name */
void file_in_step(char out[512], const char *root, int64_t step, const char *name);

void flip_bit(const char *path, long at, int bit);
void copy_file(const char *from, const char *to);
void copy_tree(const char *from, const char *to);
