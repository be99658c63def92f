/*
 * shoal bench: measurements.  A benchmark is a file bench_<name>.c with a `const struct command
 * command_bench_<name>`, declared and listed here.
 */
#include "launch/cli/cli_internal.h"

extern const struct command command_bench_comm, command_bench_gemm, command_bench_optim,
    command_bench_step;

static const struct command *const commands[] = {&command_bench_step, &command_bench_gemm,
                                                 &command_bench_comm, &command_bench_optim, NULL};

const struct command command_bench = {
    .path = "bench",
    .purpose = "Measure this machine and parts of Shoal.",
    .commands = commands,
};
