#include "runtime/device/device.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { N = 10000 };

static struct device *open_remote(void)
{
    struct device *device = NULL;

    setenv("SHOAL_TEST_DEVICE", "remote", 1);
    cr_assert_eq(device_open("cpu", 0, &device), SHOAL_OK);
    cr_assert_str_eq(device->ops->name, "remote");
    return device;
}

Test(device, cpu_memory_is_host_memory_without_queues)
{
    struct device *device = NULL;
    void *memory = NULL;
    size_t left = 0, total = 0;

    cr_assert_eq(device_open("cpu", 0, &device), SHOAL_OK);
    cr_assert_not(device_is_separate(device));
    cr_assert_not(device_has_queues(device));
    cr_assert_eq(device->ops->alloc(device, "test", N, &memory), SHOAL_OK);
    memset(memory, 3, N);
    cr_assert_eq(device->ops->zero(device, memory, N), SHOAL_OK);
    cr_assert_eq(((char *)memory)[N - 1], 0);
    cr_assert_eq(device->ops->memory(device, &left, &total), SHOAL_OK);
    cr_assert(left > 0 && left <= total);
    device->ops->free(device, memory, N);
    device_close(device);
}

Test(device, auto_is_what_device_auto_name_says)
{
    struct device *device = NULL;

    cr_assert_eq(device_open("auto", 0, &device), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_str_eq(device->ops->name, device_auto_name());
    device_close(device);
}

Test(device, cuda_without_a_gpu_is_unavailable_and_says_what_to_do)
{
    struct device *device = (struct device *)&device;

    if (strcmp(device_auto_name(), "cuda") == 0)
        cr_skip_test("this machine has a GPU");
    cr_assert_eq(device_open("cuda", 0, &device), SHOAL_ERR_UNAVAILABLE);
    cr_assert_eq((void *)device, (void *)&device);
    cr_assert_not_null(strstr(shoal_last_error(), "device cuda: not available"));
    cr_assert_not_null(strstr(shoal_last_error(), "run.device=auto"));
}

Test(device, an_unknown_name_is_refused)
{
    struct device *device = NULL;

    cr_assert_eq(device_open("abacus", 0, &device), SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(), "abacus"));
}

Test(device, remote_memory_holds_what_copies_bring)
{
    struct device *device = open_remote();
    char in[N], out[N];
    void *a = NULL, *b = NULL;

    for (int i = 0; i < N; i++)
        in[i] = (char)(i * 7);
    cr_assert_eq(device->ops->alloc(device, "a", N, &a), SHOAL_OK);
    cr_assert_eq(device->ops->alloc(device, "b", N, &b), SHOAL_OK);
    cr_assert_eq(device->ops->copy(device, a, in, N), SHOAL_OK);
    cr_assert_eq(device_copy(device, QUEUE_COMPUTE, b, a, N), SHOAL_OK);
    cr_assert_eq(device_copy(device, QUEUE_D2H, out, b, N), SHOAL_OK);
    cr_assert_eq(memcmp(in, out, N), 0);
    cr_assert_eq(device->ops->zero(device, (char *)b + 100, 100), SHOAL_OK);
    cr_assert_eq(device->ops->copy(device, out, b, N), SHOAL_OK);
    memset(in + 100, 0, 100);
    cr_assert_eq(memcmp(in, out, N), 0);
    device->ops->free(device, a, N);
    device->ops->expose(device, true);
    memset(b, 1, N);
    device->ops->expose(device, false);
    device->ops->free(device, b, N);
    device_close(device);
}

Test(device, remote_memory_faults_when_host_code_reads_it, .signal = SIGSEGV)
{
    struct device *device = open_remote();
    void *memory = NULL;

    cr_assert_eq(device->ops->alloc(device, "a", N, &memory), SHOAL_OK);
    cr_assert_eq(device->ops->zero(device, memory, N), SHOAL_OK);
    cr_assert_neq(*(volatile char *)memory, 1);
}

Test(device, remote_memory_faults_after_an_operation, .signal = SIGSEGV)
{
    struct device *device = open_remote();
    void *memory = NULL;

    cr_assert_eq(device->ops->alloc(device, "a", N, &memory), SHOAL_OK);
    device->ops->expose(device, true);
    *(volatile char *)memory = 1;
    device->ops->expose(device, false);
    *(volatile char *)memory = 2;
}
