/* What several commands share. */
#include "launch/cli/cli_internal.h"

#include <stdlib.h>
#include <string.h>

shoal_status config_from_line(const struct command_line *line, const char *const *extra,
                              struct config **config_out)
{
    bool has_path = line->n_args > 0 && strchr(line->args[0], '=') == NULL;
    size_t n_args = (size_t)(line->n_args - has_path);
    size_t n_extra = 0;

    if (!has_path && line->command->min_args > 0)
        return fail_usage(line->command, "expected CONFIG before \"%.200s\"", line->args[0]);
    while (extra != NULL && extra[n_extra] != NULL)
        n_extra++;
    struct config *config = malloc(sizeof *config);
    const char **overrides = calloc(n_args + n_extra + 1, sizeof *overrides);
    shoal_status status;
    if (config == NULL || overrides == NULL) {
        status = fail(SHOAL_ERR_NOMEM, "config: cannot reserve %zu bytes", sizeof *config);
        goto err_free;
    }
    for (size_t i = 0; i < n_args; i++)
        overrides[i] = line->args[(size_t)has_path + i];
    for (size_t i = 0; i < n_extra; i++)
        overrides[n_args + i] = extra[i];
    SHOAL_TRY_GOTO(
        config_load(has_path ? line->args[0] : NULL, overrides, n_args + n_extra, config),
        err_free);
    free(overrides);
    *config_out = config;
    return SHOAL_OK;

err_free:
    free(overrides);
    free(config);
    return status;
}

shoal_status print_json(json_t *value)
{
    if (value == NULL)
        return fail(SHOAL_ERR_NOMEM, "json: cannot be built");
    int rc = json_dumpf(value, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    json_decref(value);
    putchar('\n');
    return rc == 0 ? SHOAL_OK : fail(SHOAL_ERR_IO, "stdout: cannot be written: %m");
}

void bytes_text(uint64_t n_bytes, char out[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)n_bytes;
    size_t unit = 0;

    while (value >= 1024 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1024;
        unit++;
    }
    snprintf(out, 32, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
}
