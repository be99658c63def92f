#include "checkpoint/checkpoint_internal.h"
#include "runtime/base/log.h"
#include "runtime/base/pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * The root of a run's checkpoints.  One run writes to it: rank 0 holds flock on LOCK, which the
 * kernel releases when the process ends in whatever way, and LOCK's text says who holds it.
 */

enum { IO_DEPTH = 16, DEFAULT_STAGING = 8 << 20, MIN_STAGING = 2 * IO_ALIGN };

static shoal_status lock_taken(const char *path)
{
    char *holder = NULL;
    size_t n = 0;

    if (ckpt_fs_read_file(path, 1024, &holder, &n) == SHOAL_OK && n > 0 && holder[n - 1] == '\n')
        holder[n - 1] = '\0';
    fail(SHOAL_ERR_CANTCREATE, "%s: another run writes to this checkpoint root", path);
    if (holder != NULL && n > 0)
        fail_why(SHOAL_ERR_CANTCREATE, "it is locked by %s", holder);
    free(holder);
    return fail_hint(SHOAL_ERR_CANTCREATE, "stop that run, or give this one its own directory");
}

static shoal_status take_lock(struct ckpt_store *store)
{
    char path[CKPT_PATH_BYTES];
    char host[128] = "unknown";
    char text[256];

    SHOAL_TRY(ckpt_fs_join(path, sizeof path, store->root, CKPT_LOCK_FILE));

    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);

    if (fd < 0)
        return ckpt_fs_fail(SHOAL_ERR_CANTCREATE, path, "cannot create");
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        shoal_status status = errno == EWOULDBLOCK
                                  ? lock_taken(path)
                                  : ckpt_fs_fail(SHOAL_ERR_CANTCREATE, path, "cannot lock");
        close(fd);
        return status;
    }
    (void)gethostname(host, sizeof host - 1);

    int n = snprintf(text, sizeof text, "{\"host\": \"%s\", \"pid\": %ld, \"uuid\": \"%s\"}\n",
                     host, (long)getpid(), store->run_uuid);

    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n || fsync(fd) != 0) {
        ckpt_fs_fail(SHOAL_ERR_CANTCREATE, path, "cannot write");
        close(fd);
        return SHOAL_ERR_CANTCREATE;
    }
    store->lock_fd = fd;
    return SHOAL_OK;
}

/*
 * What a save will need at its end: found missing now, not after hours.  The probe is an HDF5
 * file, so that the library's memory is there from the start, too.
 */
static shoal_status try_write_and_rename(const struct ckpt_store *store)
{
    char name[CKPT_NAME_BYTES];
    char from[CKPT_PATH_BYTES];
    char to[CKPT_PATH_BYTES];
    char file[CKPT_PATH_BYTES];

    snprintf(name, sizeof name, ".probe-a-%.36s", store->run_uuid);
    SHOAL_TRY(ckpt_fs_join(from, sizeof from, store->root, name));
    snprintf(name, sizeof name, ".probe-b-%.36s", store->run_uuid);
    SHOAL_TRY(ckpt_fs_join(to, sizeof to, store->root, name));
    if (mkdir(from, 0777) != 0)
        return ckpt_fs_fail(SHOAL_ERR_CANTCREATE, store->root, "cannot create directories in it");
    SHOAL_TRY(ckpt_fs_join(file, sizeof file, from, "probe"));
    if (ckpt_h5_write_probe(file) != SHOAL_OK) {
        ckpt_fs_remove_dir(store->comm, 0, from);
        return fail_context(SHOAL_ERR_CANTCREATE, "checkpoint root %s", store->root);
    }
    if (rename(from, to) != 0) {
        ckpt_fs_fail(SHOAL_ERR_CANTCREATE, store->root, "cannot rename directories in it");
        ckpt_fs_remove_dir(store->comm, 0, from);
        return SHOAL_ERR_CANTCREATE;
    }
    return ckpt_fs_remove_dir(store->comm, 0, to);
}

static shoal_status open_root(struct ckpt_store *store)
{
    SHOAL_TRY(ckpt_fs_make_dirs(store->root));
    SHOAL_TRY(ckpt_fs_uuid(store->run_uuid));
    SHOAL_TRY(take_lock(store));
    SHOAL_TRY(try_write_and_rename(store));
    return ckpt_store_collect(store);
}

/* Every rank must see rank 0's LOCK, else the ranks would write to different disks. */
static shoal_status see_root(const struct ckpt_store *store)
{
    char path[CKPT_PATH_BYTES];
    char *text = NULL;
    size_t n = 0;

    SHOAL_TRY(ckpt_fs_join(path, sizeof path, store->root, CKPT_LOCK_FILE));

    shoal_status status = ckpt_fs_read_file(path, 1024, &text, &n);
    bool same = status == SHOAL_OK && strstr(text, store->run_uuid) != NULL;

    free(text);
    if (same)
        return SHOAL_OK;
    fail(SHOAL_ERR_CANTCREATE, "checkpoint root %s: this rank does not see what rank 0 wrote there",
         store->root);
    return fail_hint(SHOAL_ERR_CANTCREATE,
                     "use an absolute path on a file system that all ranks share");
}

static shoal_status open_local(struct ckpt_store *store, const struct ckpt_store_params *params)
{
    void *staging = NULL;

    /* Room for "/step-N.tmp-<uuid>/rank-N.h5" behind the root. */
    if (strlen(params->root) + 2 * CKPT_NAME_BYTES > sizeof store->root)
        return fail(SHOAL_ERR_CANTCREATE, "checkpoint root %s: name is longer than %zu bytes",
                    params->root, sizeof store->root - 2 * CKPT_NAME_BYTES);
    memcpy(store->root, params->root, strlen(params->root) + 1);
    for (size_t n = strlen(store->root); n > 1 && store->root[n - 1] == '/'; n--)
        store->root[n - 1] = '\0';

    size_t bytes = params->staging_bytes > 0 ? params->staging_bytes : DEFAULT_STAGING;

    bytes = (bytes < MIN_STAGING ? MIN_STAGING : bytes) / IO_ALIGN * IO_ALIGN;
    SHOAL_TRY(io_engine_create(IO_DEPTH, false, &store->engine));
    SHOAL_TRY(pages_alloc("checkpoint staging", bytes, &staging));
    memset(staging, 0, bytes); /* touched now: a save must not grow the process */
    store->staging = staging;
    store->staging_bytes = bytes;
    return comm_rank(store->comm) == 0 ? open_root(store) : SHOAL_OK;
}

shoal_status ckpt_store_open(struct comm *comm, const struct ckpt_store_params *params,
                             struct ckpt_store **store_out)
{
    struct ckpt_store *store = calloc(1, sizeof *store);
    shoal_status status = SHOAL_OK;

    ckpt_h5_quiet();
    if (store == NULL) {
        status = fail(SHOAL_ERR_NOMEM, "checkpoint root %s: no memory", params->root);
    } else {
        *store = (struct ckpt_store){.comm = comm, .keep = params->keep, .lock_fd = -1};
        status = open_local(store, params);
    }
    SHOAL_TRY_GOTO(comm_agree(comm, status), err_close);
    SHOAL_TRY_GOTO(comm_broadcast(comm, 0, store->run_uuid, sizeof store->run_uuid), err_close);
    SHOAL_TRY_GOTO(comm_agree(comm, see_root(store)), err_close);
    *store_out = store;
    return SHOAL_OK;

err_close:
    ckpt_store_close(store);
    return status;
}

void ckpt_store_close(struct ckpt_store *store)
{
    if (store == NULL)
        return;
    /* LOCK stays as a file: removing it would let two runs lock two different files. */
    if (store->lock_fd >= 0)
        close(store->lock_fd);
    if (store->staging != NULL)
        pages_free(store->staging, store->staging_bytes);
    io_engine_destroy(store->engine);
    free(store);
}
