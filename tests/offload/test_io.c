#include "offload/offload.h"
#include "offload/offload_internal.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];
static char path[128];

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/shoal-test-io-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/file", dir);
    fclose(fopen(path, "w"));
}

static void teardown(void)
{
    unlink(path);
    rmdir(dir);
}

TestSuite(io, .init = setup, .fini = teardown);

static void open_both(bool sync, bool writable, struct io_engine **engine, struct io_file **file)
{
    cr_assert_eq(io_engine_create(4, sync, engine), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(io_file_open(*engine, path, writable, file), SHOAL_OK, "%s", shoal_last_error());
}

static void close_both(struct io_engine *engine, struct io_file *file)
{
    io_file_close(file);
    io_engine_destroy(engine);
}

static char *page_buffer(size_t n_bytes, unsigned seed)
{
    char *p = aligned_alloc(IO_ALIGN, (n_bytes / IO_ALIGN + 2) * IO_ALIGN);

    for (size_t i = 0; i < n_bytes + IO_ALIGN; i++)
        p[i] = (char)((i * 2654435761u + seed) >> 13);
    return p;
}

/* ---- the bytes arrive, whatever is aligned ---- */

struct shape {
    size_t offset, shift, n_bytes; /* in the file; of the buffer from a page; length */
    bool sync;
};

ParameterizedTestParameters(io, bytes_come_back_for_every_alignment)
{
    static struct shape shapes[64];
    const size_t sizes[] = {1, 4095, 4096, 4097, 100000, IO_PIECE_BYTES, 3 * IO_PIECE_BYTES + 777};
    size_t n = 0;

    for (int sync = 0; sync < 2; sync++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            shapes[n++] = (struct shape){0, 0, sizes[s], sync != 0};
            shapes[n++] = (struct shape){4096, 0, sizes[s], sync != 0};
            shapes[n++] = (struct shape){100, 100, sizes[s], sync != 0};
            shapes[n++] = (struct shape){100, 0, sizes[s], sync != 0};
        }
    return cr_make_param_array(struct shape, shapes, n);
}

ParameterizedTest(struct shape *s, io, bytes_come_back_for_every_alignment)
{
    struct io_engine *engine = NULL;
    struct io_file *file = NULL;
    char *out = page_buffer(s->n_bytes + s->shift, 1);
    char *in = page_buffer(s->n_bytes + s->shift, 2);
    uint64_t size = 0;

    open_both(s->sync, true, &engine, &file);
    cr_assert_str_eq(io_engine_name(engine), s->sync || !engine->uring ? "pwrite" : "io_uring");
    cr_assert_eq(io_write(file, out + s->shift, s->n_bytes, s->offset), SHOAL_OK);
    cr_assert_eq(io_wait(engine), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(io_file_sync(file), SHOAL_OK);
    cr_assert_eq(io_file_size(file, &size), SHOAL_OK);
    cr_assert_eq(size, s->offset + s->n_bytes);
    cr_assert_eq(io_read(file, in + s->shift, s->n_bytes, s->offset), SHOAL_OK);
    cr_assert_eq(io_wait(engine), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(memcmp(in + s->shift, out + s->shift, s->n_bytes), 0);
    free(in);
    free(out);
    close_both(engine, file);
}

Test(io, many_small_writes_beside_each_other_keep_their_bytes)
{
    struct io_engine *engine = NULL;
    struct io_file *file = NULL;
    char *out = page_buffer(300000, 3);
    char *in = page_buffer(300000, 4);

    open_both(false, true, &engine, &file);
    for (size_t at = 0; at < 300000; at += 1000)
        cr_assert_eq(io_write(file, out + at, 1000, at), SHOAL_OK);
    cr_assert_eq(io_wait(engine), SHOAL_OK);
    cr_assert_eq(io_read(file, in, 300000, 0), SHOAL_OK);
    cr_assert_eq(io_wait(engine), SHOAL_OK);
    cr_expect_eq(memcmp(in, out, 300000), 0);
    free(in);
    free(out);
    close_both(engine, file);
}

Test(io, the_environment_forces_the_loop_without_io_uring)
{
    struct io_engine *engine = NULL;

    setenv("SHOAL_IO", "sync", 1);
    cr_assert_eq(io_engine_create(4, false, &engine), SHOAL_OK);
    cr_expect_str_eq(io_engine_name(engine), "pwrite");
    io_engine_destroy(engine);
}

/* ---- failures name file, place and cause, and the engine goes on ---- */

struct mode {
    bool sync;
};

static struct mode modes[] = {{false}, {true}};

ParameterizedTestParameters(io, a_file_that_is_too_short_is_an_error_not_zeros)
{
    return cr_make_param_array(struct mode, modes, 2);
}

ParameterizedTest(struct mode *m, io, a_file_that_is_too_short_is_an_error_not_zeros)
{
    struct io_engine *engine = NULL;
    struct io_file *file = NULL;
    char *in = page_buffer(20000, 5);

    cr_assert_eq(truncate(path, 10000), 0);
    open_both(m->sync, false, &engine, &file);

    shoal_status status = io_read(file, in, 20000, 0);
    shoal_status waited = io_wait(engine);

    cr_expect(status == SHOAL_ERR_IO || waited == SHOAL_ERR_IO);
    cr_expect_neq(strstr(shoal_last_error(), "file ends at byte 10000"), NULL, "%s",
                  shoal_last_error());
    cr_expect_neq(strstr(shoal_last_error(), path), NULL);
    /* The failure is forgotten once it was reported. */
    cr_assert_eq(io_read(file, in, 10000, 0), SHOAL_OK);
    cr_expect_eq(io_wait(engine), SHOAL_OK, "%s", shoal_last_error());
    free(in);
    close_both(engine, file);
}

ParameterizedTestParameters(io, a_write_beyond_the_size_limit_is_continued_and_then_named)
{
    return cr_make_param_array(struct mode, modes, 2);
}

/* The kernel first writes up to the limit (a short write), then refuses the rest. */
ParameterizedTest(struct mode *m, io, a_write_beyond_the_size_limit_is_continued_and_then_named)
{
    struct io_engine *engine = NULL;
    struct io_file *file = NULL;
    struct rlimit limit = {.rlim_cur = 10000, .rlim_max = 10000};
    char *out = page_buffer(20000, 6);
    uint64_t size = 0;

    open_both(m->sync, true, &engine, &file);
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);

    shoal_status status = io_write(file, out, 20000, 0);
    shoal_status waited = io_wait(engine);

    cr_expect(status == SHOAL_ERR_IO || waited == SHOAL_ERR_IO);
    cr_expect_neq(strstr(shoal_last_error(), "File too large (errno 27)"), NULL, "%s",
                  shoal_last_error());
    cr_expect_neq(strstr(shoal_last_error(), "offset"), NULL);
    cr_assert_eq(io_file_size(file, &size), SHOAL_OK);
    cr_expect_leq(size, 10000);
    free(out);
    close_both(engine, file);
}

ParameterizedTestParameters(io, a_lost_descriptor_is_reported_once)
{
    return cr_make_param_array(struct mode, modes, 2);
}

ParameterizedTest(struct mode *m, io, a_lost_descriptor_is_reported_once)
{
    struct io_engine *engine = NULL;
    struct io_file *file = NULL;
    char *out = page_buffer(100, 7);

    open_both(m->sync, true, &engine, &file);

    int fd = file->fd;

    close(fd);

    shoal_status status = io_write(file, out, 100, 0);
    shoal_status waited = io_wait(engine);

    cr_expect(status == SHOAL_ERR_IO || waited == SHOAL_ERR_IO);
    cr_expect_neq(strstr(shoal_last_error(), "Bad file descriptor"), NULL, "%s",
                  shoal_last_error());
    cr_expect_eq(io_wait(engine), SHOAL_OK);
    file->fd = -1;
    free(out);
    close_both(engine, file);
}

Test(io, nothing_is_queued_after_a_failure_until_it_was_reported)
{
    struct io_engine *engine = NULL;
    struct io_file *file = NULL;
    char *in = page_buffer(IO_ALIGN, 8);

    open_both(true, false, &engine, &file);
    cr_expect_eq(io_read(file, in, 100, 0), SHOAL_ERR_IO);
    cr_expect_eq(io_read(file, in, 100, 50), SHOAL_ERR_IO);
    cr_expect_neq(strstr(shoal_last_error(), "byte 0,"), NULL, "the first failure counts: %s",
                  shoal_last_error());
    cr_expect_eq(io_wait(engine), SHOAL_ERR_IO);
    cr_expect_eq(io_wait(engine), SHOAL_OK);
    free(in);
    close_both(engine, file);
}

Test(io, a_full_disk_fails_the_reservation_and_leaves_the_file_as_it_was)
{
    struct io_engine *engine = NULL;
    struct io_file *file = NULL;
    char *out = NULL;
    uint64_t size = 0;

    if (mount("shoal-test", dir, "tmpfs", 0, "size=1m") != 0)
        cr_skip_test("mounting a tmpfs is not permitted here");
    fclose(fopen(path, "w"));
    open_both(false, true, &engine, &file);
    cr_assert_eq(truncate(path, 5000), 0);
    cr_expect_eq(io_file_reserve(file, 8 << 20), SHOAL_ERR_IO);
    cr_expect_neq(strstr(shoal_last_error(), "No space left"), NULL, "%s", shoal_last_error());
    cr_expect_neq(strstr(shoal_last_error(), "hint: free space"), NULL);
    cr_assert_eq(io_file_size(file, &size), SHOAL_OK);
    cr_expect_eq(size, 5000);

    /* And a write that meets the end of the disk says so. */
    out = page_buffer(4 << 20, 9);

    shoal_status status = io_write(file, out, 4 << 20, 0);
    shoal_status waited = io_wait(engine);

    cr_expect(status == SHOAL_ERR_IO || waited == SHOAL_ERR_IO);
    cr_expect_neq(strstr(shoal_last_error(), "No space left"), NULL, "%s", shoal_last_error());
    free(out);
    close_both(engine, file);
    umount(dir);
}

Test(io, a_missing_file_is_no_input_for_reading_and_an_io_error_for_writing)
{
    struct io_engine *engine = NULL;
    struct io_file *file = NULL;

    cr_assert_eq(io_engine_create(1, false, &engine), SHOAL_OK);
    cr_expect_eq(io_file_open(engine, "/nonexistent/x", false, &file), SHOAL_ERR_NOINPUT);
    cr_expect_eq(io_file_open(engine, "/nonexistent/x", true, &file), SHOAL_ERR_IO);
    cr_expect_null(file);
    cr_expect_eq(io_engine_create(0, false, &engine), SHOAL_ERR_INTERNAL);
    io_engine_destroy(engine);
    io_engine_destroy(NULL);
    io_file_close(NULL);
}
