#include "tests/checkpoint/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * ckpt_world save ROOT STEP FIRST KEEP   save steps STEP - FIRST .. STEP through MPI
 * ckpt_world read ROOT STEP              every rank reads its own shard of ROOT; it must be STEP
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

int main(int argc, char **argv)
{
    struct comm_params params = {.timeout_s = 20};
    struct comm *comm = NULL;
    bool saving = argc == 6 && strcmp(argv[1], "save") == 0;

    if (!saving && (argc != 4 || strcmp(argv[1], "read") != 0))
        return 64;

    shoal_status status = comm_open(&params, &comm);

    if (status == SHOAL_OK) {
        status = saving ? save(comm, argv) : read_shard(comm, argv);
        if (status != SHOAL_OK)
            fprintf(stderr, "rank %d: %s\n", comm_rank(comm), shoal_last_error());
        comm_close(comm, status);
    }
    return shoal_exit_code(status);
}
