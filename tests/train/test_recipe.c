#include "tests/train/rig.h"
#include "tests/world/run.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * nanoGPT's laptop recipe on Shakespeare's characters reaches the validation loss that its README
 * gives, 1.88 (karpathy/nanoGPT, README, "I only have a macbook").  The text is the user's:
 * SHOAL_SHAKESPEARE names it.
 */
Test(recipe, long_shakespeare_characters_reach_the_published_loss, .timeout = 7200)
{
    const char *text = getenv("SHOAL_SHAKESPEARE");
    static char output[1 << 20];
    char data[512], out[128];
    double loss = 99;

    if (!rig_is_long() || text == NULL)
        cr_skip_test("only with --long and SHOAL_SHAKESPEARE=FILE");
    const char *directory = rig_directory();
    snprintf(data, sizeof data, "data.train=%s", text);
    snprintf(out, sizeof out, "run.out=%s/run", directory);
    const char *argv[] = {SHOAL_BUILD_DIR "/bin/shoal",
                          "train",
                          SHOAL_SOURCE_DIR "/launch/configs/shakespeare-char.yaml",
                          data,
                          out,
                          NULL};
    int rc = run_command(argv, 7000, output, sizeof output, NULL);
    cr_assert_eq(rc, 0, "exit %d\n%s", rc, output);
    for (char *p = strstr(output, " val "); p != NULL; p = strstr(p + 1, " val "))
        loss = strtod(p + 5, NULL);
    cr_assert_leq(loss, 1.88, "validation loss %f", loss);
    rig_cleanup(directory);
}
