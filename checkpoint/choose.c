#include "checkpoint/checkpoint_internal.h"
#include "runtime/base/log.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/*
 * Which checkpoint a path means.  A step that is damaged or incomplete gives way to the one before
 * it.  A step that cannot be checked does not: it may be whole, and a run that went on from an
 * older one would do again, and save over, what it holds.
 */

/* Into out[CKPT_PATH_BYTES], without slashes at the end; leaves room for the names below it. */
static shoal_status trim(const char *path, char *out)
{
    size_t n = strlen(path);

    while (n > 1 && path[n - 1] == '/')
        n--;
    if (n + CKPT_NAME_BYTES > CKPT_PATH_BYTES)
        return fail(SHOAL_ERR_NOINPUT, "%s: path is too long", path);
    memcpy(out, path, n);
    out[n] = '\0';
    return SHOAL_OK;
}

shoal_status ckpt_root_of(const char *path, char out[CKPT_PATH_BYTES])
{
    char inner[CKPT_PATH_BYTES];
    enum fs_kind kind;

    SHOAL_TRY(trim(path, out));
    SHOAL_TRY(ckpt_fs_look(out, &kind));
    if (kind != FS_DIRECTORY)
        return fail(SHOAL_ERR_NOINPUT, "%s: %s", out,
                    kind == FS_ABSENT ? "does not exist" : "is not a directory");
    SHOAL_TRY(ckpt_fs_join(inner, sizeof inner, out, "checkpoints"));
    SHOAL_TRY(ckpt_fs_look(inner, &kind));
    if (kind == FS_DIRECTORY)
        strcpy(out, inner);
    return SHOAL_OK;
}

static int newest_first(const void *pa, const void *pb)
{
    int64_t a = *(const int64_t *)pa;
    int64_t b = *(const int64_t *)pb;

    return a > b ? -1 : a < b;
}

shoal_status ckpt_steps(const char *root, int64_t **steps_out, size_t *n_out)
{
    struct dirent **entries = NULL;
    int n = scandir(root, &entries, NULL, NULL);

    if (n < 0)
        return ckpt_fs_refused(root, "cannot list");

    int64_t *steps = calloc((size_t)n + 1, sizeof *steps);
    size_t n_steps = 0;

    for (int i = 0; i < n; i++) {
        int64_t step;

        if (steps != NULL && ckpt_step_name_parse(entries[i]->d_name, &step) == STEP_FINAL)
            steps[n_steps++] = step;
        free(entries[i]);
    }
    free(entries);
    if (steps == NULL)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory to list it", root);
    qsort(steps, n_steps, sizeof *steps, newest_first);
    *steps_out = steps;
    *n_out = n_steps;
    return SHOAL_OK;
}

static shoal_status step_path(const char *root, int64_t step, char out[CKPT_PATH_BYTES])
{
    char name[CKPT_NAME_BYTES];

    ckpt_step_name(name, step);
    return ckpt_fs_join(out, CKPT_PATH_BYTES, root, name);
}

shoal_status ckpt_newest_step(const char *path, int64_t *step_out)
{
    char root[CKPT_PATH_BYTES];
    int64_t *steps = NULL;
    int64_t found = -1;
    size_t n = 0;
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(ckpt_root_of(path, root));
    SHOAL_TRY(ckpt_steps(root, &steps, &n));
    for (size_t i = 0; i < n && found < 0 && status == SHOAL_OK; i++) {
        char step[CKPT_PATH_BYTES];
        struct commit commit;

        status = step_path(root, steps[i], step);
        if (status == SHOAL_OK)
            status = ckpt_commit_read(step, &commit);
        if (status == SHOAL_OK)
            found = steps[i];
        else if (status == SHOAL_ERR_DATA)
            status = SHOAL_OK;
    }
    free(steps);
    SHOAL_TRY(status);
    *step_out = found;
    return SHOAL_OK;
}

/* A step directory is known by its name, or by its COMMIT when it was renamed. */
static shoal_status is_step_dir(const char *path, bool *yes_out)
{
    const char *base = strrchr(path, '/') != NULL ? strrchr(path, '/') + 1 : path;
    char commit[CKPT_PATH_BYTES];
    enum fs_kind kind = FS_DIRECTORY;
    int64_t step;

    if (ckpt_step_name_parse(base, &step) == STEP_NOT_A_STEP) {
        SHOAL_TRY(ckpt_fs_join(commit, sizeof commit, path, CKPT_COMMIT_FILE));
        SHOAL_TRY(ckpt_fs_look(commit, &kind));
    }
    *yes_out = kind != FS_ABSENT;
    return SHOAL_OK;
}

/* `steps` of root, newest first, at least one. */
static shoal_status open_newest(struct comm *comm, const char *root, const int64_t *steps, size_t n,
                                struct ckpt **ckpt_out)
{
    shoal_status status = SHOAL_OK;

    for (size_t i = 0; i < n; i++) {
        char path[CKPT_PATH_BYTES];

        SHOAL_TRY(step_path(root, steps[i], path));
        status = ckpt_open_step(comm, path, ckpt_out);
        if (status == SHOAL_OK)
            return SHOAL_OK;
        if (status != SHOAL_ERR_DATA) {
            fail_why(status,
                     "step %" PRId64 " could not be checked and may be whole: no older one is "
                     "taken in its place",
                     steps[i]);
            return status == SHOAL_ERR_CONFIG
                       ? status
                       : fail_hint(status, "try again when it can be read, or give the directory "
                                           "of an older step");
        }

        const char *why = shoal_last_error();

        log_line("ckpt", "step %" PRId64 " is broken and skipped: %.*s", steps[i],
                 (int)strcspn(why, "\n"), why);
    }
    status = fail_context(status, "%s: no step is whole, the oldest one", root);
    return fail_hint(status, "`shoal ckpt ls` shows why each step is broken");
}

/* ckpt_open; *is_none_out, set also after a failure: there is no checkpoint at all. */
static shoal_status open_path(struct comm *comm, const char *path, bool *is_none_out,
                              struct ckpt **ckpt_out)
{
    char root[CKPT_PATH_BYTES];
    enum fs_kind kind;
    bool is_step = false;
    int64_t *steps = NULL;
    size_t n = 0;

    ckpt_h5_quiet();
    *is_none_out = false;
    SHOAL_TRY(trim(path, root));
    SHOAL_TRY(ckpt_fs_look(root, &kind));
    *is_none_out = kind == FS_ABSENT;
    if (kind == FS_DIRECTORY)
        SHOAL_TRY(is_step_dir(root, &is_step));
    if (is_step) {
        shoal_status status = ckpt_open_step(comm, root, ckpt_out);

        return status == SHOAL_ERR_DATA
                   ? fail_hint(status, "give the directory above it to take the newest whole step")
                   : status;
    }
    SHOAL_TRY(ckpt_root_of(path, root));
    SHOAL_TRY(ckpt_steps(root, &steps, &n));
    *is_none_out = n == 0;

    shoal_status status = n == 0 ? fail(SHOAL_ERR_NOINPUT, "%s: holds no checkpoint", root)
                                 : open_newest(comm, root, steps, n, ckpt_out);

    free(steps);
    return status;
}

shoal_status ckpt_open(const char *path, struct ckpt **ckpt_out)
{
    bool is_none;

    return open_path(NULL, path, &is_none, ckpt_out);
}

/* Open what rank 0 found whole, and see that it is the same here. */
static shoal_status open_chosen(struct comm *comm, const char *path, const char *attempt,
                                struct ckpt **ckpt_out)
{
    struct ckpt *ckpt = NULL;

    ckpt_h5_quiet();

    shoal_status status = ckpt_open_step(comm, path, &ckpt);

    if (status == SHOAL_OK && strcmp(ckpt->commit.attempt, attempt) != 0) {
        status = fail(SHOAL_ERR_DATA, "%s: is of attempt %s here, rank 0 sees attempt %s", path,
                      ckpt->commit.attempt, attempt);
        ckpt_close(ckpt);
    }
    if (status == SHOAL_ERR_DATA) {
        /* Not damage: somebody has just read it whole. */
        status = SHOAL_ERR_IO;
        fail_why(status, "rank 0 finds a whole checkpoint there");
        return fail_hint(status, "use an absolute path on a file system that all ranks share");
    }
    SHOAL_TRY(status);
    *ckpt_out = ckpt;
    return SHOAL_OK;
}

shoal_status ckpt_open_all(struct comm *comm, const char *path, bool is_optional,
                           struct ckpt **ckpt_out)
{
    struct {
        char path[CKPT_PATH_BYTES]; /* empty: there is none */
        char attempt[CKPT_UUID_BYTES];
    } chosen = {"", ""};
    struct ckpt *ckpt = NULL;
    bool is_none = false;
    shoal_status status = SHOAL_OK;

    if (comm_rank(comm) == 0) {
        status = open_path(comm, path, &is_none, &ckpt);
        if (is_none && is_optional)
            status = SHOAL_OK;
    }
    if (ckpt != NULL) {
        memcpy(chosen.path, ckpt->path, sizeof chosen.path);
        memcpy(chosen.attempt, ckpt->commit.attempt, sizeof chosen.attempt);
    }
    SHOAL_TRY_GOTO(comm_agree(comm, status), err_close);
    SHOAL_TRY_GOTO(comm_broadcast(comm, 0, &chosen, sizeof chosen), err_close);
    if (comm_rank(comm) != 0 && chosen.path[0] != '\0')
        status = open_chosen(comm, chosen.path, chosen.attempt, &ckpt);
    SHOAL_TRY_GOTO(comm_agree(comm, status), err_close);
    *ckpt_out = ckpt;
    return SHOAL_OK;

err_close:
    ckpt_close(ckpt);
    return status;
}
