/* shoal ckpt: look at checkpoints. */
#include "checkpoint/checkpoint.h"
#include "launch/cli/cli_internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- ls ---- */

static const char *state_name(enum ckpt_state state)
{
    switch (state) {
    case CKPT_COMPLETE:
        return "complete";
    case CKPT_TEMPORARY:
        return "temporary";
    case CKPT_DELETED:
        return "deleted";
    case CKPT_BROKEN:
        return "broken";
    case CKPT_UNREADABLE:
        return "unreadable";
    }
    return "unknown";
}

static json_t *real_json(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *groups_json(const struct ckpt_group *groups, size_t n)
{
    json_t *array = json_array();

    for (size_t i = 0; i < n; i++)
        json_array_append_new(
            array, json_pack("{s:s, s:s, s:s, s:i, s:I, s:I}", "kind", groups[i].kind, "type",
                             ckpt_type_name(groups[i].type), "codec", groups[i].codec, "tensors",
                             groups[i].n_tensors, "items", (json_int_t)groups[i].n_items, "bytes",
                             (json_int_t)groups[i].n_bytes));
    return array;
}

static json_t *entry_json(const struct ckpt_entry *entry)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:i, s:i, s:o, s:I, s:s, s:o}", "name", entry->name,
                     "state", state_name(entry->state), "step", (json_int_t)entry->step, "bytes",
                     (json_int_t)entry->n_bytes, "ranks", entry->world_size, "zero",
                     entry->zero_stage, "loss", real_json(entry->loss), "created_unix_ns",
                     (json_int_t)entry->created_unix_ns, "why", entry->why, "states",
                     groups_json(entry->groups, entry->n_groups));
}

/* The types of items that occur, each once: "f32", "f32+u8". */
static void types_text(const struct ckpt_entry *entry, char out[64])
{
    bool seen[CKPT_TYPE_COUNT] = {false};
    int n = 0;

    out[0] = '\0';
    for (size_t i = 0; i < entry->n_groups; i++)
        seen[entry->groups[i].type] = true;
    for (int t = 0; t < CKPT_TYPE_COUNT; t++)
        if (seen[t])
            n += snprintf(out + n, 64 - (size_t)n, "%s%s", n > 0 ? "+" : "",
                          ckpt_type_name((enum ckpt_type)t));
}

static void print_entry(const struct ckpt_entry *entry)
{
    char size[32];
    char when[32] = "";
    char types[64];
    struct tm local;
    time_t seconds = (time_t)(entry->created_unix_ns / 1000000000);

    if (entry->state != CKPT_COMPLETE) {
        printf("%-24s %-10s %s\n", entry->name, state_name(entry->state), entry->why);
        return;
    }
    bytes_text(entry->n_bytes, size);
    if (localtime_r(&seconds, &local) != NULL)
        strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &local);
    types_text(entry, types);
    printf("%-24s %-9s  step %-8" PRId64 " loss %-8.4f %10s  %d ranks, zero %d  %s  %s\n",
           entry->name, state_name(entry->state), entry->step, entry->loss, size, entry->world_size,
           entry->zero_stage, when, types);
}

static shoal_status run_ls(const struct command_line *line)
{
    struct ckpt_entry *entries;
    size_t n;
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(ckpt_list(line->args[0], &entries, &n));
    if (option_is_set(line, "json")) {
        json_t *array = json_array();

        for (size_t i = 0; i < n; i++)
            json_array_append_new(array, entry_json(&entries[i]));
        status = print_json(array);
    } else if (n == 0) {
        log_line("ckpt", "%s holds no checkpoints", line->args[0]);
    } else {
        for (size_t i = 0; i < n; i++)
            print_entry(&entries[i]);
    }
    free(entries);
    return status;
}

static const struct option ls_options[] = {
    {"json", 0, NULL, "a JSON array on stdout"},
    {.name = NULL},
};

static const struct command command_ls = {
    .path = "ckpt ls",
    .purpose = "List the checkpoints of a run, newest first.",
    .arguments = "RUN",
    .examples = {"shoal ckpt ls runs/shoal", "shoal ckpt ls runs/shoal --json"},
    .options = ls_options,
    .min_args = 1,
    .max_args = 1,
    .run = run_ls,
};

/* ---- show ---- */

/* A stored JSON text as JSON; what cannot be parsed is shown as text. */
static json_t *embedded_json(const char *text)
{
    json_t *value = text != NULL ? json_loads(text, 0, NULL) : NULL;

    if (value != NULL)
        return value;
    return text != NULL ? json_string(text) : json_null();
}

static json_t *tensors_json(const struct ckpt *ckpt)
{
    json_t *array = json_array();

    for (int i = 0; i < ckpt_tensor_count(ckpt); i++) {
        const struct tensor *tensor = ckpt_tensor(ckpt, i);
        json_t *shape = json_array();

        for (int d = 0; d < tensor->ndim; d++)
            json_array_append_new(shape, json_integer(tensor->shape[d]));
        json_array_append_new(array, json_pack("{s:s, s:o, s:I}", "name", tensor->name, "shape",
                                               shape, "elements", (json_int_t)tensor->n_elements));
    }
    return array;
}

static int64_t count_elements(const struct ckpt *ckpt)
{
    int64_t n = 0;

    for (int i = 0; i < ckpt_tensor_count(ckpt); i++)
        n += ckpt_tensor(ckpt, i)->n_elements;
    return n;
}

static json_t *ckpt_json(const struct ckpt *ckpt, const struct ckpt_group *groups, size_t n_groups,
                         bool tensors)
{
    const struct ckpt_meta *meta = ckpt_meta(ckpt);
    json_t *kinds = json_array();

    for (int i = 0; i < ckpt_kind_count(ckpt); i++)
        json_array_append_new(kinds, json_string(ckpt_kind(ckpt, i)));
    json_t *object = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:o, s:s, s:s, s:I, s:o, s:o, s:o, s:o, s:o}", "path",
        ckpt_path(ckpt), "step", (json_int_t)meta->step, "sequences",
        (json_int_t)meta->consumed_sequences, "tokens", (json_int_t)meta->consumed_tokens, "seed",
        (json_int_t)meta->seed, "loss", real_json(meta->loss), "run_uuid", meta->run_uuid,
        "optimizer", meta->optimizer, "parameters", (json_int_t)count_elements(ckpt), "kinds",
        kinds, "states", groups_json(groups, n_groups), "model", embedded_json(meta->model_json),
        "optimizer_state", embedded_json(meta->optimizer_json), "topology",
        embedded_json(meta->topology_json));
    if (object != NULL && tensors)
        json_object_set_new(object, "tensors", tensors_json(ckpt));
    return object;
}

static void print_tensors(const struct ckpt *ckpt)
{
    for (int i = 0; i < ckpt_tensor_count(ckpt); i++) {
        const struct tensor *tensor = ckpt_tensor(ckpt, i);
        char shape[64];
        size_t n = 0;

        shape[0] = '\0';
        for (int d = 0; d < tensor->ndim && n < sizeof shape; d++)
            n += (size_t)snprintf(shape + n, sizeof shape - n, "%s%" PRId64, d > 0 ? " x " : "",
                                  tensor->shape[d]);
        printf("  %-48s %s\n", tensor->name, shape);
    }
}

static void print_groups(const struct ckpt_group *groups, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char size[32];

        bytes_text(groups[i].n_bytes, size);
        printf("  %-23s %-4s %-15s %10s  %" PRId64 " items of %d tensor%s\n", groups[i].kind,
               ckpt_type_name(groups[i].type), groups[i].codec, size, groups[i].n_items,
               groups[i].n_tensors, groups[i].n_tensors == 1 ? "" : "s");
    }
}

static void print_ckpt(const struct ckpt *ckpt, const struct ckpt_group *groups, size_t n_groups,
                       bool tensors)
{
    const struct ckpt_meta *meta = ckpt_meta(ckpt);

    printf("path       %s\n", ckpt_path(ckpt));
    printf("step       %" PRId64 ", loss %.6f\n", meta->step, meta->loss);
    printf("consumed   %" PRIu64 " sequences, %" PRIu64 " tokens\n", meta->consumed_sequences,
           meta->consumed_tokens);
    printf("run        %s, seed %" PRIu64 "\n", meta->run_uuid, meta->seed);
    printf("model      %d tensors, %" PRId64 " parameters\n", ckpt_tensor_count(ckpt),
           count_elements(ckpt));
    printf("optimizer  %s; state:", meta->optimizer);
    for (int i = 0; i < ckpt_kind_count(ckpt); i++)
        printf(" %s", ckpt_kind(ckpt, i));
    putchar('\n');
    print_groups(groups, n_groups);
    if (tensors)
        print_tensors(ckpt);
}

static shoal_status show(const struct command_line *line, struct ckpt *ckpt)
{
    bool tensors = option_is_set(line, "tensors");
    struct ckpt_group *groups = NULL;
    size_t n_groups = 0;
    shoal_status status = SHOAL_OK;
    char hex[33];

    if (option_is_set(line, "hash")) {
        SHOAL_TRY(ckpt_hash(ckpt, option_text(line, "kind"), hex));
        printf("%s\n", hex);
        return SHOAL_OK;
    }
    SHOAL_TRY(ckpt_groups(ckpt, &groups, &n_groups));
    if (option_is_set(line, "json"))
        status = print_json(ckpt_json(ckpt, groups, n_groups, tensors));
    else
        print_ckpt(ckpt, groups, n_groups, tensors);
    free(groups);
    return status;
}

static shoal_status run_show(const struct command_line *line)
{
    struct ckpt *ckpt;

    if (option_is_set(line, "kind") && !option_is_set(line, "hash"))
        return fail_usage(line->command, "option --kind is for --hash");
    SHOAL_TRY(ckpt_open(line->args[0], &ckpt));
    shoal_status status = show(line, ckpt);
    ckpt_close(ckpt);
    return status;
}

static const struct option show_options[] = {
    {"tensors", 0, NULL, "also list the tensors"},
    {"hash", 0, NULL, "only a hash of the content, the same for every number of ranks"},
    {"kind", 0, "KIND", "with --hash: only this state, such as master or exp_avg"},
    {"json", 0, NULL, "one JSON object on stdout"},
    {.name = NULL},
};

static const struct command command_show = {
    .path = "ckpt show",
    .purpose = "Show what a checkpoint holds.",
    .arguments = "RUN",
    .notes = "RUN is a run directory, a checkpoint root (the newest step is taken) or one step's\n"
             "directory.",
    .examples = {"shoal ckpt show runs/shoal --tensors", "shoal ckpt show --hash runs/shoal"},
    .options = show_options,
    .min_args = 1,
    .max_args = 1,
    .run = run_show,
};

static const struct command *const commands[] = {&command_ls, &command_show, NULL};

const struct command command_ckpt = {
    .path = "ckpt",
    .purpose = "Look at checkpoints.",
    .commands = commands,
};
