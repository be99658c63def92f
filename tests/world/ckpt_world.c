#include "tests/checkpoint/items.h"
#include "tests/checkpoint/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/*
 * ckpt_world save ROOT STEP FIRST KEEP   save steps STEP - FIRST .. STEP through MPI
 * ckpt_world read ROOT STEP              every rank reads its own shard of ROOT; it must be STEP
 * ckpt_world open ROOT STEP              all open the newest step of ROOT; it must be STEP
 * ckpt_world save-items ROOT STEP        the same with items of every type, from device memory ...
 * ckpt_world read-items ROOT STEP        ... to host memory
 *
 * SHOAL_TEST_STARVED=RANK: that rank has no file descriptor left when it opens.
 *
 * Exit code 0: done and right; the status's exit code: refused; 1: wrong values.
 */

static shoal_status save(struct comm *comm, char **argv)
{
    struct layout *layout = test_layout(true);
    struct job job = {.root = argv[2],
                      .layout = layout,
                      .step = atol(argv[3]),
                      .first_save = atoi(argv[4]),
                      .keep = atoi(argv[5]),
                      .chunk = 100000};
    shoal_status status = job_save(comm, &job);

    layout_destroy(layout);
    return status;
}

static shoal_status read_shard(struct comm *comm, char **argv)
{
    struct layout *layout = test_layout(true);
    int64_t step = -1;
    int64_t wrong = -1;
    shoal_status status = read_back(argv[2], layout, comm_size(comm), &step, &wrong);

    if (status == SHOAL_OK && (wrong != 0 || step != atol(argv[3])))
        status = fail(SHOAL_ERR_DATA, "step %ld, %ld wrong elements", (long)step, (long)wrong);
    layout_destroy(layout);
    return comm_agree(comm, status);
}

/* From now on this process can open nothing. */
static void starve(void)
{
    struct rlimit limit;
    int next = dup(STDERR_FILENO);

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = (rlim_t)next;
    setrlimit(RLIMIT_NOFILE, &limit);
    close(next);
}

static shoal_status open_all(struct comm *comm, char **argv)
{
    const char *starved = getenv("SHOAL_TEST_STARVED");
    struct ckpt *ckpt = NULL;

    if (starved != NULL && atoi(starved) == comm_rank(comm))
        starve();
    SHOAL_TRY(ckpt_open_all(comm, argv[2], true, &ckpt));

    int64_t step = ckpt != NULL ? ckpt_meta(ckpt)->step : -1;

    ckpt_close(ckpt);
    return step == atol(argv[3]) ? SHOAL_OK : fail(SHOAL_ERR_DATA, "step %ld", (long)step);
}

static shoal_status save_items(struct comm *comm, char **argv)
{
    struct layout *layout = items_layout(true);
    struct items_job job = {
        .root = argv[2], .layout = layout, .step = atol(argv[3]), .chunk = 77777, .device = true};
    shoal_status status = items_save(comm, &job);

    layout_destroy(layout);
    return status;
}

static shoal_status read_items(struct comm *comm, char **argv)
{
    struct layout *layout = items_layout(true);
    int64_t step = -1;
    int64_t wrong = -1;
    shoal_status status = items_read_back(argv[2], layout, comm_size(comm), false, &step, &wrong);

    if (status == SHOAL_OK && (wrong != 0 || step != atol(argv[3])))
        status = fail(SHOAL_ERR_DATA, "step %ld, %ld wrong bytes", (long)step, (long)wrong);
    layout_destroy(layout);
    return comm_agree(comm, status);
}

typedef shoal_status job_fn(struct comm *comm, char **argv);

/* What argv[1] names, or NULL. */
static job_fn *find_job(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "save") == 0)
        return save;
    if (argc != 4)
        return NULL;
    if (strcmp(argv[1], "read") == 0)
        return read_shard;
    if (strcmp(argv[1], "open") == 0)
        return open_all;
    if (strcmp(argv[1], "save-items") == 0)
        return save_items;
    return strcmp(argv[1], "read-items") == 0 ? read_items : NULL;
}

int main(int argc, char **argv)
{
    struct comm_params params = {.timeout_s = 20};
    struct comm *comm = NULL;
    job_fn *job = find_job(argc, argv);

    if (job == NULL)
        return 64;

    shoal_status status = comm_open(&params, &comm);

    if (status == SHOAL_OK) {
        status = job(comm, argv);
        if (status != SHOAL_OK)
            fprintf(stderr, "rank %d: %s\n", comm_rank(comm), shoal_last_error());
        status = comm_close(comm, status);
    }
    return shoal_exit_code(status);
}
