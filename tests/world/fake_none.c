#include "tests/world/fake_nccl.h"

/*
 * For builds without CUDA, where the fake device has no NCCL and staging is what is left, and for
 * workers that want the real one.
 */

void fake_nccl_install(void)
{
}

void fake_nccl_fail_next(void)
{
}

void fake_nccl_seal(void)
{
}
