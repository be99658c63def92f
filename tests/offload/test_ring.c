#include "offload/offload.h"
#include "offload/offload_internal.h"

#include <criterion/criterion.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What the engine does when the kernel does not take a request. */

enum { PAGE = 4096, PAGES = 8 };

static int fail_submits; /* so many more */

/* In place of the library's. */
int io_uring_submit(struct io_uring *ring)
{
    int (*real)(struct io_uring *) =
        (int (*)(struct io_uring *))dlsym(RTLD_NEXT, "io_uring_submit");

    if (fail_submits > 0) {
        fail_submits--;
        return -ENOMEM;
    }
    return real(ring);
}

static void write_page(struct io_file *file, char *buffer, int page, char value, shoal_status want)
{
    memset(buffer + page * PAGE, value, PAGE);
    cr_assert_eq(io_write(file, buffer + page * PAGE, PAGE, (uint64_t)(page * PAGE)), want);
}

Test(ring, a_request_that_was_not_taken_is_not_done_later)
{
    char path[] = "/tmp/shoal-test-ring-XXXXXX", got[PAGES * PAGE];
    char *buffer = aligned_alloc(PAGE, PAGES * PAGE);
    struct io_engine *engine = NULL;
    struct io_file *file = NULL;

    cr_assert_not_null(buffer);
    close(mkstemp(path));
    cr_assert_eq(io_engine_create(2, false, &engine), SHOAL_OK);
    if (!engine->uring)
        cr_skip_test("no io_uring here");
    cr_assert_eq(io_file_open(engine, path, true, &file), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(ftruncate(file->fd, PAGES * PAGE), 0);
    for (int page = 0; page < 4; page += 2) {
        fail_submits = 1;
        write_page(file, buffer, page, 'a', SHOAL_ERR_IO);
        cr_assert_not_null(strstr(shoal_last_error(), "Cannot allocate memory"), "%s",
                           shoal_last_error());
        cr_assert_eq(io_wait(engine), SHOAL_ERR_IO);
        write_page(file, buffer, page + 1, 'b', SHOAL_OK);
        cr_assert_eq(io_wait(engine), SHOAL_OK, "%s", shoal_last_error());
    }
    for (int page = 4; page < PAGES; page++)
        write_page(file, buffer, page, 'c', SHOAL_OK);
    cr_assert_eq(io_wait(engine), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(engine->in_flight, 0);
    cr_assert_eq(pread(file->fd, got, sizeof got, 0), (ssize_t)sizeof got);
    for (int page = 0; page < PAGES; page++)
        cr_expect_eq(got[page * PAGE],
                     page >= 4       ? 'c'
                     : page % 2 == 1 ? 'b'
                                     : '\0',
                     "page %d", page);
    io_file_close(file);
    io_engine_destroy(engine);
    unlink(path);
    free(buffer);
}
