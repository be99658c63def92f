/* The executable: everything lives in libshoal. */
#include "runtime/shoal.h"

int main(int argc, char **argv)
{
    return shoal_main(argc, argv);
}
