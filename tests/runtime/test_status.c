#include "runtime/base/status.h"

#include <criterion/criterion.h>
#include <string.h>

Test(status, keeps_three_lines_in_order)
{
    fail(SHOAL_ERR_DATA, "data/a.bin: header says %d tokens, file holds %d", 10, 9);
    fail_why(SHOAL_ERR_DATA, "the file is shorter than its header says");
    cr_assert_eq(fail_hint(SHOAL_ERR_DATA, "copy it again"), SHOAL_ERR_DATA);
    cr_assert_str_eq(shoal_last_error(), "data/a.bin: header says 10 tokens, file holds 9\n"
                                         "the file is shorter than its header says\n"
                                         "hint: copy it again");
}

Test(status, context_goes_before_the_first_line_and_leaves_the_others)
{
    fail(SHOAL_ERR_IO, "disk full");
    fail_hint(SHOAL_ERR_IO, "free some space");
    cr_assert_eq(fail_context(SHOAL_ERR_IO, "rank %d", 3), SHOAL_ERR_IO);
    cr_assert_str_eq(shoal_last_error(), "rank 3: disk full\nhint: free some space");
}

Test(status, a_new_failure_forgets_the_old_lines)
{
    fail(SHOAL_ERR_IO, "first");
    fail_why(SHOAL_ERR_IO, "because");
    fail(SHOAL_ERR_IO, "second");
    cr_assert_str_eq(shoal_last_error(), "second");
}

Test(status, an_adopted_message_keeps_its_lines)
{
    fail_adopt(SHOAL_ERR_IO, "rank 1: disk full\nonly 4 KiB left\nhint: free some space");
    fail_context(SHOAL_ERR_IO, "ckpt");
    cr_assert_str_eq(shoal_last_error(),
                     "ckpt: rank 1: disk full\nonly 4 KiB left\nhint: free some space");
    fail_adopt(SHOAL_ERR_IO, "what\nhint: do");
    fail_why(SHOAL_ERR_IO, "why");
    cr_assert_str_eq(shoal_last_error(), "what\nwhy\nhint: do");
}

Test(status, cuts_long_messages_instead_of_overflowing)
{
    char text[5000];

    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    fail(SHOAL_ERR_IO, "%s", text);
    fail_context(SHOAL_ERR_IO, "%s", text);
    cr_assert_lt(strlen(shoal_last_error()), 1000);
}

Test(status, every_code_has_the_exit_code_of_the_manual)
{
    const int expected[][2] = {
        {SHOAL_OK, 0},           {SHOAL_ERR_USAGE, 64},       {SHOAL_ERR_DATA, 65},
        {SHOAL_ERR_NOINPUT, 66}, {SHOAL_ERR_UNAVAILABLE, 69}, {SHOAL_ERR_INTERNAL, 70},
        {SHOAL_ERR_NOMEM, 71},   {SHOAL_ERR_CANTCREATE, 73},  {SHOAL_ERR_IO, 74},
        {SHOAL_ERR_STOPPED, 75}, {SHOAL_ERR_NONFINITE, 76},   {SHOAL_ERR_CONFIG, 78}};

    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        cr_assert_eq(shoal_exit_code((shoal_status)expected[i][0]), expected[i][1]);
}
