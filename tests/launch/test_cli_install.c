#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* What others get: the library's symbols and the installed tree. */

TestSuite(cli_install, .timeout = 120);

static void command_is_good(const char *command)
{
    int state = system(command);

    cr_assert(WIFEXITED(state) && WEXITSTATUS(state) == 0, "%s", command);
}

Test(cli_install, the_library_shows_only_its_public_symbols)
{
    FILE *names = popen("nm -D --defined-only " SHOAL_BUILD_DIR "/lib/libshoal.so", "r");
    char line[512];
    int n = 0;

    cr_assert_not_null(names);
    while (fgets(line, sizeof line, names) != NULL) {
        const char *name = strrchr(line, ' ');

        cr_assert_not_null(name);
        cr_assert_eq(strncmp(name + 1, "shoal_", 6), 0, "exported: %s", line);
        n++;
    }
    cr_assert_eq(pclose(names), 0);
    cr_assert_geq(n, 10);
}

Test(cli_install, an_installed_tree_works_from_any_place)
{
    char dir[] = "/tmp/shoal_install_XXXXXX";
    char command[1024];

    cr_assert_not_null(mkdtemp(dir));
    snprintf(command, sizeof command,
             "cmake --install " SHOAL_BUILD_DIR " --prefix %s/a > /dev/null && mv %s/a %s/b", dir,
             dir, dir);
    command_is_good(command);
    snprintf(command, sizeof command,
             "cd %s/b && bin/shoal version > /dev/null && ls lib*/libshoal.so lib*/*/libshoal.so "
             "2> /dev/null | grep -q libshoal && "
             "bin/shoal config check share/shoal/configs/quickstart.yaml > /dev/null && "
             "echo '#include <shoal.h>' | cc -Iinclude -fsyntax-only -xc -",
             dir);
    command_is_good(command);
    snprintf(command, sizeof command, "rm -r %s", dir);
    command_is_good(command);
}
