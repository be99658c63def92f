#include "runtime/data/data_internal.h"

#include <errno.h>
#include <fnmatch.h>
#include <fts.h>
#include <glob.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/*
 * From what the user wrote to a list of regular files.  The order decides which token is where, so
 * it depends on names alone: byte order of the paths within an item (never the locale's), items
 * as they were given.
 */

static shoal_status push(struct data_sources *sources, const char *path, const struct stat *st,
                         bool is_named)
{
    if (sources->n == sources->capacity) {
        size_t capacity = sources->capacity == 0 ? 16 : 2 * sources->capacity;
        struct data_source *items = realloc(sources->items, capacity * sizeof *items);

        if (items == NULL)
            return fail(SHOAL_ERR_NOMEM, "data: no memory for a list of %zu files", capacity);
        sources->items = items;
        sources->capacity = capacity;
    }

    char *copy = strdup(path);
    if (copy == NULL)
        return fail(SHOAL_ERR_NOMEM, "data: no memory for a list of %zu files", sources->n);
    sources->items[sources->n++] = (struct data_source){
        .path = copy,
        .n_bytes = (uint64_t)st->st_size,
        .device = st->st_dev,
        .inode = st->st_ino,
        .is_named = is_named,
    };
    return SHOAL_OK;
}

static shoal_status fail_missing(const char *key, const char *path, int error)
{
    char shown[DATA_SHOWN_BYTES];

    fail(SHOAL_ERR_NOINPUT, "%s: cannot open %s: %s", key, data_shown(path, shown),
         strerror(error));
    return fail_hint(SHOAL_ERR_NOINPUT, "check the path (relative ones start at the directory "
                                        "where the command runs) and its permissions");
}

/*
 * Match a relative path against a pattern, both cut at '/'.  "**" stands for any number of
 * directories, other components for exactly one name.
 */
static bool path_matches(const char *pattern, const char *path)
{
    char part[NAME_MAX + 1];
    char name[NAME_MAX + 1];
    size_t n_part = strcspn(pattern, "/");
    size_t n_name = strcspn(path, "/");
    const char *next_pattern = pattern + n_part + strspn(pattern + n_part, "/");
    const char *next_path = path + n_name + strspn(path + n_name, "/");

    if (n_part == 2 && memcmp(pattern, "**", 2) == 0) {
        if (*next_pattern == '\0')
            return true;
        return path_matches(next_pattern, path) ||
               (*next_path != '\0' && path_matches(pattern, next_path));
    }
    if (n_part > NAME_MAX || n_name > NAME_MAX)
        return false;
    memcpy(part, pattern, n_part);
    part[n_part] = '\0';
    memcpy(name, path, n_name);
    name[n_name] = '\0';
    if (fnmatch(part, name, FNM_PERIOD) != 0)
        return false;
    if (*next_pattern == '\0' || *next_path == '\0')
        return *next_pattern == *next_path;
    return path_matches(next_pattern, next_path);
}

/*
 * Add the regular files below `root`, those that match `pattern` if there is one.  Hidden names are
 * passed over; links to files are followed, links to directories are not (they may form cycles).
 */
static shoal_status walk(struct data_sources *sources, const char *key, const char *root,
                         const char *pattern)
{
    shoal_status status = SHOAL_OK;
    char *start = strdup(root);
    char *roots[] = {start, NULL};
    FTS *tree = NULL;
    FTSENT *entry;

    if (start == NULL)
        return fail(SHOAL_ERR_NOMEM, "data: no memory to list %s", root);
    tree = fts_open(roots, FTS_PHYSICAL | FTS_COMFOLLOW | FTS_NOCHDIR, NULL);
    if (tree == NULL) {
        status = fail_missing(key, root, errno);
        goto free_start;
    }

    while (status == SHOAL_OK && (errno = 0, entry = fts_read(tree)) != NULL) {
        struct stat linked;
        const struct stat *st = entry->fts_statp;
        const char *relative = entry->fts_path + strlen(root);

        if (entry->fts_level > 0 && entry->fts_name[0] == '.') {
            fts_set(tree, entry, FTS_SKIP);
            continue;
        }
        if (entry->fts_info == FTS_DNR || entry->fts_info == FTS_ERR || entry->fts_info == FTS_NS) {
            status = fail_missing(key, entry->fts_path, entry->fts_errno);
            continue;
        }
        if (entry->fts_info == FTS_SL && stat(entry->fts_path, &linked) == 0)
            st = &linked;
        else if (entry->fts_info != FTS_F)
            continue;
        relative += strspn(relative, "/");
        if (S_ISREG(st->st_mode) && (pattern == NULL || path_matches(pattern, relative)))
            status = push(sources, entry->fts_path, st, false);
    }
    if (status == SHOAL_OK && errno != 0)
        status = fail_missing(key, root, errno);

    fts_close(tree);
free_start:
    free(start);
    return status;
}

/* A path that exists: a file itself, a directory with all files below it. */
static shoal_status add_path(struct data_sources *sources, const char *key, const char *path,
                             const struct stat *st, bool is_named)
{
    char shown[DATA_SHOWN_BYTES];

    if (S_ISREG(st->st_mode))
        return push(sources, path, st, is_named);
    if (S_ISDIR(st->st_mode))
        return walk(sources, key, path, NULL);
    if (!is_named)
        return SHOAL_OK;
    fail(SHOAL_ERR_NOINPUT, "%s: %s is neither a regular file nor a directory", key,
         data_shown(path, shown));
    return fail_hint(SHOAL_ERR_NOINPUT, "save the stream to a file first: windows are read in "
                                        "random order");
}

static shoal_status add_glob(struct data_sources *sources, const char *key, const char *pattern)
{
    char shown[DATA_SHOWN_BYTES];
    shoal_status status = SHOAL_OK;
    glob_t matches;
    int result = glob(pattern, GLOB_ERR | GLOB_NOSORT, NULL, &matches);

    if (result == GLOB_NOMATCH)
        return SHOAL_OK;
    if (result == GLOB_NOSPACE)
        return fail(SHOAL_ERR_NOMEM, "data: no memory to expand %s", data_shown(pattern, shown));
    if (result != 0)
        return fail(SHOAL_ERR_NOINPUT, "%s: a directory of %s cannot be read", key,
                    data_shown(pattern, shown));

    for (size_t i = 0; i < matches.gl_pathc && status == SHOAL_OK; i++) {
        struct stat st;

        if (stat(matches.gl_pathv[i], &st) != 0)
            status = fail_missing(key, matches.gl_pathv[i], errno);
        else
            status = add_path(sources, key, matches.gl_pathv[i], &st, false);
    }
    globfree(&matches);
    return status;
}

/* A pattern with "**": walk from the deepest directory that is written without wildcards. */
static shoal_status add_tree_glob(struct data_sources *sources, const char *key,
                                  const char *pattern)
{
    size_t n_root = 0;
    struct stat st;

    for (size_t i = 0; i < strcspn(pattern, "*?["); i++)
        if (pattern[i] == '/')
            n_root = i + 1;

    char *root = n_root == 0 ? strdup(".") : strndup(pattern, n_root == 1 ? 1 : n_root - 1);
    if (root == NULL)
        return fail(SHOAL_ERR_NOMEM, "data: no memory to expand %s", pattern);

    shoal_status status = SHOAL_OK;
    if (stat(root, &st) != 0)
        status = fail_missing(key, root, errno);
    else
        status = walk(sources, key, root, pattern + n_root);
    free(root);
    return status;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct data_source *)a)->path, ((const struct data_source *)b)->path);
}

shoal_status data_sources_add(struct data_sources *sources, const char *key, const char *item)
{
    char shown[DATA_SHOWN_BYTES];
    size_t before = sources->n;
    bool is_pattern = strpbrk(item, "*?[") != NULL;
    struct stat st;

    /* A file whose name holds wildcards is taken at its word. */
    if (stat(item, &st) == 0) {
        SHOAL_TRY(add_path(sources, key, item, &st, true));
        is_pattern = false;
    } else if (!is_pattern)
        return fail_missing(key, item, errno);
    else if (strstr(item, "**") != NULL)
        SHOAL_TRY(add_tree_glob(sources, key, item));
    else
        SHOAL_TRY(add_glob(sources, key, item));

    if (sources->n == before) {
        fail(SHOAL_ERR_NOINPUT, is_pattern ? "%s: no file matches %s" : "%s: no file below %s", key,
             data_shown(item, shown));
        return fail_hint(SHOAL_ERR_NOINPUT, "hidden files are passed over; a/**/*.txt finds the "
                                            ".txt files below a at any depth");
    }
    qsort(sources->items + before, sources->n - before, sizeof *sources->items, by_path);
    return SHOAL_OK;
}

static int by_inode(const void *a, const void *b)
{
    const struct data_source *x = a;
    const struct data_source *y = b;

    if (x->device != y->device)
        return x->device < y->device ? -1 : 1;
    return (x->inode > y->inode) - (x->inode < y->inode);
}

shoal_status data_sources_hold_out(struct data_sources *train, const struct data_sources *val)
{
    char shown[DATA_SHOWN_BYTES];
    shoal_status status = SHOAL_OK;
    size_t n_kept = 0;
    struct data_source *sorted = malloc((val->n + 1) * sizeof *sorted);

    if (sorted == NULL)
        return fail(SHOAL_ERR_NOMEM, "data: no memory for a list of %zu files", val->n);
    memcpy(sorted, val->items, val->n * sizeof *sorted);
    qsort(sorted, val->n, sizeof *sorted, by_inode);

    for (size_t i = 0; i < train->n; i++) {
        struct data_source *source = &train->items[i];
        bool is_held_out = bsearch(source, sorted, val->n, sizeof *sorted, by_inode) != NULL;

        if (is_held_out && source->is_named && status == SHOAL_OK) {
            status = fail(SHOAL_ERR_CONFIG, "data.val: %s is in data.train, too",
                          data_shown(source->path, shown));
            fail_why(status, "a loss on text that was trained on says nothing");
            fail_hint(status, "hold out a part of it with data.val=0.5%%, or set data.val=none");
        }
        if (is_held_out && !source->is_named)
            free(source->path);
        else
            train->items[n_kept++] = *source;
    }
    train->n = n_kept;
    free(sorted);

    if (status == SHOAL_OK && n_kept == 0) {
        status = fail(SHOAL_ERR_CONFIG, "data.train: every file of it is in data.val, too");
        fail_hint(status, "hold out a part with data.val=0.5%%, or name other files");
    }
    return status;
}

void data_sources_fini(struct data_sources *sources)
{
    for (size_t i = 0; i < sources->n; i++)
        free(sources->items[i].path);
    free(sources->items);
    *sources = (struct data_sources){0};
}
