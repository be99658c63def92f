/* The `shoal` command: the top of the command table, and the one place that reports a failure. */
#include "launch/cli/cli_internal.h"

#include <stdlib.h>

static const struct command *const commands[] = {
    &command_train,  &command_sample, &command_plan,    &command_ckpt, &command_data,
    &command_config, &command_bench,  &command_version, &command_help, NULL,
};

const struct command command_shoal = {
    .path = "",
    .purpose = "Shoal: distributed training of language models.",
    .notes = "Exit codes: 0 done, 64 usage, 65 bad data or checkpoint, 66 input missing,\n"
             "69 a peer or device is gone, 70 a bug, 71 out of memory, 73 cannot create output,\n"
             "74 I/O error or disk full, 75 stopped on request (checkpoint saved, run again),\n"
             "76 loss not finite, 78 config error.",
    .examples = {"shoal config new > run.yaml", "mpirun -n 2 shoal train run.yaml steps=100"},
    .commands = commands,
};

const char *shoal_version(void)
{
    return SHOAL_VERSION;
}

/*
 * This process's rank before MPI starts, from the launcher's environment.  Usage and config errors
 * are found alike on every rank, so only rank 0 speaks.
 */
static int launcher_rank(void)
{
    static const char *const names[] = {"PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK",
                                        "SLURM_PROCID"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *text = getenv(names[i]);

        if (text != NULL)
            return atoi(text);
    }
    return 0;
}

static shoal_status run_line(int rank, int argc, char **argv)
{
    struct command_line line;

    SHOAL_TRY(command_line_parse(argc, argv, &line));
    log_init(rank, line.level);
    if (line.help)
        help_print(line.command, stdout);
    else
        SHOAL_TRY(line.command->run(&line));
    if (fflush(stdout) != 0 || ferror(stdout))
        return fail(SHOAL_ERR_IO, "stdout: cannot be written: %m");
    return SHOAL_OK;
}

int shoal_main(int argc, char **argv)
{
    int rank = launcher_rank();

    setvbuf(stdout, NULL, _IOLBF, 0); /* under mpirun stdout is a pipe */
    log_init(rank, LOG_NORMAL);
    shoal_status status = run_line(rank, argc, argv);
    int exit_code = shoal_exit_code(status);
    if (status != SHOAL_OK && rank == 0)
        log_failure(exit_code);
    return exit_code;
}
