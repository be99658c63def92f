#include "launch/train/train_internal.h"

#include "runtime/base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What must be, or should be, the same on all ranks. */

/* Line of `text` that differs first from `other`, into out. */
static void first_difference(const char *text, const char *other, char *out, size_t n_bytes)
{
    while (*text != '\0' && *other != '\0') {
        size_t n = strcspn(text, "\n"), m = strcspn(other, "\n");
        if (n != m || memcmp(text, other, n) != 0) {
            snprintf(out, n_bytes, "\"%.*s\" here, \"%.*s\" on rank 0", (int)n, text, (int)m,
                     other);
            return;
        }
        text += n + (text[n] == '\n');
        other += m + (other[m] == '\n');
    }
    snprintf(out, n_bytes, "one is longer");
}

/* Rank 0's text, to be freed.  Collective. */
static shoal_status text_of_root(struct comm *comm, const char *mine, char **root_out)
{
    uint64_t length = strlen(mine) + 1;
    char *root = NULL;
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(comm_broadcast(comm, 0, &length, sizeof length));
    root = calloc(1, length);
    if (root == NULL)
        status = fail(SHOAL_ERR_NOMEM, "cannot allocate %llu bytes", (unsigned long long)length);
    SHOAL_TRY_GOTO(comm_agree(comm, status), err);
    if (comm_rank(comm) == 0)
        memcpy(root, mine, length);
    SHOAL_TRY_GOTO(comm_broadcast(comm, 0, root, length), err);
    *root_out = root;
    return SHOAL_OK;

err:
    free(root);
    return status;
}

shoal_status setup_agree_config(struct comm *comm, const struct config *config)
{
    shoal_status status = SHOAL_OK;
    uint64_t hash = config_hash(config), root_hash = hash;
    char *mine = NULL, *root = NULL, where[256];

    SHOAL_TRY(comm_agree(comm, config_to_yaml(config, &mine)));
    SHOAL_TRY_GOTO(comm_broadcast(comm, 0, &root_hash, sizeof root_hash), end);
    SHOAL_TRY_GOTO(text_of_root(comm, mine, &root), end);
    if (hash != root_hash) {
        first_difference(mine, root, where, sizeof where);
        status = fail(SHOAL_ERR_CONFIG, "config: differs from rank 0's: %s", where);
        fail_hint(status, "start every rank with the same file and the same KEY=VALUE words");
    }
    status = comm_agree(comm, status);

end:
    free(mine);
    free(root);
    return status;
}

static void write_choice(void *arg, enum op_class op_class, const char *line)
{
    (void)op_class;
    fprintf(arg, "%s\n", line);
}

/* Libraries and what they chose, a line each; to be freed. */
static shoal_status write_choices(const struct ops *ops, char **text_out)
{
    size_t n_bytes = 0;
    char *text = NULL;
    FILE *out = open_memstream(&text, &n_bytes);

    if (out == NULL)
        return fail(SHOAL_ERR_NOMEM, "ops: cannot write down their choices");
    fprintf(out, "%s\n", ops_describe(ops));
    ops_describe_choices(ops, write_choice, out);
    if (fclose(out) != 0) {
        free(text);
        return fail(SHOAL_ERR_NOMEM, "ops: cannot write down their choices");
    }
    *text_out = text;
    return SHOAL_OK;
}

shoal_status setup_compare_choices(struct comm *comm, const struct ops *ops)
{
    shoal_status status = SHOAL_OK;
    char *mine = NULL, *root = NULL, where[512];
    int64_t differ = 0;

    SHOAL_TRY(comm_agree(comm, write_choices(ops, &mine)));
    SHOAL_TRY_GOTO(text_of_root(comm, mine, &root), end);
    differ = strcmp(mine, root) != 0;
    if (differ) {
        first_difference(mine, root, where, sizeof where);
        log_rank_line("warn", "computes by other algorithms than rank 0: %s", where);
    }
    SHOAL_TRY_GOTO(comm_all_reduce_i64(comm, &differ, 1), end);
    if (differ > 0)
        log_line("warn",
                 "%lld of %d ranks compute by other algorithms than rank 0: losses depend on which "
                 "rank computes what, and repeat on the same machines in the same order only",
                 (long long)differ, comm_size(comm));

end:
    free(mine);
    free(root);
    return status;
}
