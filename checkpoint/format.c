#include "checkpoint/checkpoint_internal.h"

#include <inttypes.h>
#include <isa-l/crc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * COMMIT is one line of ASCII:
 *
 *   shoal-checkpoint 2 step 12000 manifest_bytes 41952 manifest_crc32c 5d2f0a11 attempt <uuid>
 *   crc32c 9b01c3fe\n          (one line)
 *
 * The last number is the crc32c of the bytes before " crc32c".  COMMIT is the last file that is
 * created in a step's directory, so a directory without it was never finished.
 */

enum { COMMIT_MAX_BYTES = 512 };

uint32_t ckpt_crc32c(uint32_t crc, const void *data, size_t n_bytes)
{
    /* isa-l takes an int and leaves both inversions to the caller; it only reads the bytes. */
    enum { CHUNK = 1 << 30 };
    unsigned char *p = (unsigned char *)(uintptr_t)data;

    crc = ~crc;
    while (n_bytes > 0) {
        size_t n = n_bytes < CHUNK ? n_bytes : CHUNK;

        crc = crc32_iscsi(p, (int)n, crc);
        p += n;
        n_bytes -= n;
    }
    return ~crc;
}

enum step_suffix ckpt_step_name_parse(const char *name, int64_t *step_out)
{
    static const char prefix[] = "step-";
    int64_t step = 0;
    const char *p = name + sizeof prefix - 1;
    int digits = 0;

    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return STEP_NOT_A_STEP;
    for (; *p >= '0' && *p <= '9'; p++, digits++) {
        if (digits >= 18)
            return STEP_NOT_A_STEP;
        step = step * 10 + (*p - '0');
    }
    if (digits < 12 || (digits > 12 && name[sizeof prefix - 1] == '0'))
        return STEP_NOT_A_STEP;
    *step_out = step;
    if (*p == '\0')
        return STEP_FINAL;
    if (strncmp(p, ".tmp-", 5) == 0)
        return STEP_TEMPORARY;
    if (strncmp(p, ".del-", 5) == 0)
        return STEP_DELETED;
    return STEP_NOT_A_STEP;
}

void ckpt_step_name(char out[CKPT_NAME_BYTES], int64_t step)
{
    snprintf(out, CKPT_NAME_BYTES, "step-%012" PRId64, step);
}

void ckpt_step_name_temporary(char out[CKPT_NAME_BYTES], int64_t step, const char *uuid)
{
    snprintf(out, CKPT_NAME_BYTES, "step-%012" PRId64 ".tmp-%.36s", step, uuid);
}

void ckpt_step_name_deleted(char out[CKPT_NAME_BYTES], int64_t step, const char *uuid)
{
    snprintf(out, CKPT_NAME_BYTES, "step-%012" PRId64 ".del-%.36s", step, uuid);
}

void ckpt_rank_file_name(char out[CKPT_NAME_BYTES], uint32_t rank)
{
    snprintf(out, CKPT_NAME_BYTES, "rank-%05" PRIu32 ".h5", rank);
}

size_t ckpt_commit_format(char *out, size_t out_bytes, const struct commit *c)
{
    int n = snprintf(out, out_bytes,
                     CKPT_FORMAT " %d step %" PRId64 " manifest_bytes %" PRIu64
                                 " manifest_crc32c %08" PRIx32 " attempt %.36s",
                     c->version, c->step, c->manifest_bytes, c->manifest_crc, c->attempt);
    uint32_t crc = ckpt_crc32c(0, out, (size_t)n);

    n += snprintf(out + n, out_bytes - (size_t)n, " crc32c %08" PRIx32 "\n", crc);
    return (size_t)n;
}

/* Does the checksum at the end fit what stands before it, of whatever version that is? */
static bool commit_is_intact(const char *text)
{
    const char *mark = strstr(text, " crc32c ");
    uint32_t crc;

    return mark != NULL && sscanf(mark, " crc32c %8" SCNx32, &crc) == 1 &&
           crc == ckpt_crc32c(0, text, (size_t)(mark - text));
}

static shoal_status commit_parse(const char *path, const char *text, struct commit *commit_out)
{
    struct commit c = {0};
    char again[COMMIT_MAX_BYTES];

    if (commit_is_intact(text) && sscanf(text, CKPT_FORMAT " %d", &c.version) == 1 &&
        c.version > CKPT_VERSION_MAJOR) {
        fail(SHOAL_ERR_CONFIG, "%s: format version %d, this program reads up to %d", path,
             c.version, CKPT_VERSION_MAJOR);
        return fail_hint(SHOAL_ERR_CONFIG,
                         "use the version of shoal that saved it, or a newer one");
    }
    if (sscanf(text,
               CKPT_FORMAT " %d step %" SCNd64 " manifest_bytes %" SCNu64
                           " manifest_crc32c %" SCNx32 " attempt %36s",
               &c.version, &c.step, &c.manifest_bytes, &c.manifest_crc, c.attempt) != 5)
        return fail(SHOAL_ERR_DATA, "%s: is not a commit record", path);
    /* One spelling only: whatever differs from what we would have written is damage. */
    ckpt_commit_format(again, sizeof again, &c);
    if (strcmp(again, text) != 0)
        return fail(SHOAL_ERR_DATA, "%s: its checksum does not match its text", path);
    if (c.step < 0 || strspn(c.attempt, "0123456789abcdef-") != strlen(c.attempt))
        return fail(SHOAL_ERR_DATA, "%s: is not a commit record", path);
    *commit_out = c;
    return SHOAL_OK;
}

shoal_status ckpt_commit_read(const char *dir, struct commit *commit_out)
{
    char path[CKPT_PATH_BYTES];
    enum fs_kind kind;
    char *text = NULL;
    size_t n = 0;

    SHOAL_TRY(ckpt_fs_join(path, sizeof path, dir, CKPT_COMMIT_FILE));
    SHOAL_TRY(ckpt_fs_look(path, &kind));
    if (kind == FS_ABSENT)
        return fail(SHOAL_ERR_DATA, "%s: has no " CKPT_COMMIT_FILE ", it was never finished", dir);
    SHOAL_TRY(ckpt_fs_need_file(path));
    SHOAL_TRY(ckpt_fs_read_file(path, COMMIT_MAX_BYTES - 1, &text, &n));

    shoal_status status = strlen(text) == n
                              ? commit_parse(path, text, commit_out)
                              : fail(SHOAL_ERR_DATA, "%s: is not a commit record", path);

    free(text);
    return status;
}

shoal_status ckpt_commit_check(const char *dir, struct commit *commit_out, char **image_out)
{
    char path[CKPT_PATH_BYTES];
    struct commit commit;
    char *image = NULL;
    size_t n = 0;

    SHOAL_TRY(ckpt_commit_read(dir, &commit));
    SHOAL_TRY(ckpt_fs_join(path, sizeof path, dir, CKPT_MANIFEST_FILE));
    SHOAL_TRY(ckpt_fs_need_file(path));
    SHOAL_TRY(ckpt_fs_read_file(path, CKPT_MANIFEST_MAX_BYTES, &image, &n));
    if (n != commit.manifest_bytes) {
        free(image);
        return fail(SHOAL_ERR_DATA, "%s: holds %zu bytes, " CKPT_COMMIT_FILE " says %" PRIu64, path,
                    n, commit.manifest_bytes);
    }

    uint32_t crc = ckpt_crc32c(0, image, n);

    if (crc != commit.manifest_crc) {
        free(image);
        return fail(SHOAL_ERR_DATA,
                    "%s: crc32c is %08" PRIx32 ", " CKPT_COMMIT_FILE " says %08" PRIx32, path, crc,
                    commit.manifest_crc);
    }
    *commit_out = commit;
    if (image_out != NULL)
        *image_out = image;
    else
        free(image);
    return SHOAL_OK;
}

bool ckpt_name_is_valid(const char *name, size_t field_bytes)
{
    size_t n = strnlen(name, field_bytes);

    if (n == 0 || n == field_bytes || strcmp(name, ".") == 0)
        return false;
    for (size_t i = 0; i < n; i++)
        if (name[i] == '/' || (unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
    return true;
}

void ckpt_fault(const char *point, int rank, int nth_save)
{
    const char *spec = getenv("SHOAL_CKPT_FAULT");
    char where[32];
    int at_rank = 0;
    int at_save = 1;

    if (spec == NULL || sscanf(spec, "%31[^:]:%d:%d", where, &at_rank, &at_save) < 2)
        return;
    if (strcmp(where, point) == 0 && at_rank == rank && at_save == nth_save)
        raise(SIGKILL);
}
