#include "tests/world/run.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* launch/jobs/shoal.sbatch with a stand-in for Slurm's commands. */

static char directory[] = "/tmp/shoal-jobs-XXXXXX";

static void command(const char *name, const char *body)
{
    char path[128];

    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *out = fopen(path, "w");
    cr_assert_not_null(out);
    fprintf(out, "#!/bin/sh\n%s\n", body);
    fclose(out);
    cr_assert_eq(chmod(path, 0755), 0);
}

static int run_job(const char *srun_body, char *output, size_t n_bytes)
{
    char path[4096];

    cr_assert_not_null(mkdtemp(directory));
    command("srun", srun_body);
    command("scontrol", "echo \"scontrol $*\"");
    snprintf(path, sizeof path, "%s:%s", directory, getenv("PATH"));
    setenv("PATH", path, 1);
    setenv("SLURM_JOB_ID", "42", 1);
    const char *argv[] = {SHOAL_SOURCE_DIR "/launch/jobs/shoal.sbatch", "run.yaml", "steps=7",
                          NULL};
    const int rc = run_command(argv, 20, output, n_bytes, NULL);
    snprintf(path, sizeof path, "rm -r %s", directory);
    cr_assert_eq(system(path), 0);
    return rc;
}

Test(jobs, a_run_that_saved_is_queued_again)
{
    char output[4096];

    cr_assert_eq(run_job("echo \"srun $*\"; exit 75", output, sizeof output), 75);
    cr_assert_not_null(strstr(output, "srun --mpi=pmi2 shoal train run.yaml steps=7"), "%s",
                       output);
    cr_assert_not_null(strstr(output, "scontrol requeue 42"), "%s", output);
}

Test(jobs, a_run_that_ended_or_failed_is_not)
{
    char output[4096];

    cr_assert_eq(run_job("exit 74", output, sizeof output), 74);
    cr_assert_null(strstr(output, "scontrol"), "%s", output);
}
