/* shoal version: what was built and what it runs on, for bug reports. */
#include "launch/cli/cli_internal.h"
#include "runtime/base/host.h"
#include "runtime/base/isa.h"

#ifdef __clang__
#define COMPILER __VERSION__ /* begins with its name */
#else
#define COMPILER "gcc " __VERSION__
#endif

static shoal_status run_version(const struct command_line *line)
{
    char cpu[128];

    host_cpu_name(cpu, sizeof cpu);
    if (!option_is_set(line, "json")) {
        printf("shoal %s  %s  %s\n", shoal_version(), COMPILER, isa_name(isa_best()));
        printf("%s, %d cores\n", cpu, host_cpus());
        return SHOAL_OK;
    }
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:s, s:i}", "version", shoal_version(), "compiler", COMPILER,
                  "isa", isa_name(isa_best()), "cpu", cpu, "cores", host_cpus());
    return print_json(object);
}

static const struct option options[] = {
    {"json", 0, NULL, "one JSON object on stdout"},
    {.name = NULL},
};

const struct command command_version = {
    .path = "version",
    .purpose = "Print the version, the compiler and the instruction set in use.",
    .examples = {"shoal version", "shoal version --json"},
    .options = options,
    .run = run_version,
};
