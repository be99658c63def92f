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
    cr_assert_eq(device_open("auto", 0, &device), SHOAL_OK);
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
    device->ops->expose(device, QUEUE_COMPUTE, true);
    memset(b, 1, N);
    device->ops->expose(device, QUEUE_COMPUTE, false);
    device->ops->free(device, b, N);
    device_close(device);
}

/* Under the address sanitizer a fault is a report and not a signal. */
#ifndef __SANITIZE_ADDRESS__

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
    device->ops->expose(device, QUEUE_COMPUTE, true);
    *(volatile char *)memory = 1;
    device->ops->expose(device, QUEUE_COMPUTE, false);
    *(volatile char *)memory = 2;
}

#endif

/* ---- on a GPU ---- */

static struct device *open_cuda(void)
{
    struct device *device = NULL;

    if (strcmp(device_auto_name(), "cuda") != 0)
        cr_skip_test("no CUDA device");
    cr_assert_eq(device_open("cuda", 0, &device), SHOAL_OK, "%s", shoal_last_error());
    return device;
}

enum { BIG = 64 << 20 };

/* Through four copies in four queues that wait for each other, and back. */
Test(device, cuda_queues_wait_for_events_of_each_other)
{
    struct device *device = open_cuda();
    const struct device_ops *ops = device->ops;
    struct device_event *events[QUEUE_COUNT], *last = NULL;
    void *in = NULL, *out = NULL, *on_device[3];
    double seconds = 0;

    cr_assert(ops->separate && device_has_queues(device));
    cr_assert_eq(ops->host_alloc(device, "in", BIG, &in), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(ops->host_alloc(device, "out", BIG, &out), SHOAL_OK);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(ops->alloc(device, "test", BIG, &on_device[i]), SHOAL_OK);
        cr_assert_eq(ops->zero(device, on_device[i], BIG), SHOAL_OK);
    }
    for (int i = 0; i < BIG; i++)
        ((unsigned char *)in)[i] = (unsigned char)((unsigned)i * 2654435761u >> 24);
    const enum device_queue order[] = {QUEUE_H2D, QUEUE_COMPUTE, QUEUE_COMM, QUEUE_D2H};
    void *places[] = {in, on_device[0], on_device[1], on_device[2], out};
    for (int i = 0; i < QUEUE_COUNT; i++) {
        cr_assert_eq(ops->event_create(device, &events[i]), SHOAL_OK);
        if (last != NULL)
            cr_assert_eq(ops->event_wait(device, last, order[i]), SHOAL_OK);
        cr_assert_eq(ops->copy_async(device, order[i], places[i + 1], places[i], BIG), SHOAL_OK);
        cr_assert_eq(ops->event_record(device, events[i], order[i]), SHOAL_OK);
        last = events[i];
    }
    cr_assert_eq(ops->event_sync(device, last), SHOAL_OK);
    cr_assert_eq(memcmp(in, out, BIG), 0);
    cr_assert_eq(ops->event_seconds(device, events[0], last, &seconds), SHOAL_OK);
    cr_assert(seconds > 0 && seconds < 10, "%g", seconds);
    for (int i = 0; i < QUEUE_COUNT; i++)
        ops->event_destroy(device, events[i]);
    for (int i = 0; i < 3; i++)
        ops->free(device, on_device[i], BIG);
    ops->host_free(device, in, BIG);
    ops->host_free(device, out, BIG);
    device_close(device);
}

Test(device, cuda_copies_from_any_memory_and_tells_what_is_free)
{
    struct device *device = open_cuda();
    const struct device_ops *ops = device->ops;
    char in[N], out[N];
    void *memory = NULL, *none = &memory;
    size_t before = 0, after = 0, total = 0;

    cr_assert_eq(ops->memory(device, &before, &total), SHOAL_OK);
    cr_assert_eq(ops->alloc(device, "big", BIG, &memory), SHOAL_OK);
    cr_assert_eq(ops->memory(device, &after, &total), SHOAL_OK);
    cr_assert(after + BIG <= before && before <= total);
    memset(in, 42, sizeof in);
    cr_assert_eq(ops->copy(device, (char *)memory + 8, in, N), SHOAL_OK);
    cr_assert_eq(ops->copy(device, (char *)memory + BIG - N, (char *)memory + 8, N), SHOAL_OK);
    cr_assert_eq(ops->copy(device, out, (char *)memory + BIG - N, N), SHOAL_OK);
    cr_assert_eq(memcmp(in, out, N), 0);
    cr_assert_eq(ops->alloc(device, "huge", total + BIG, &none), SHOAL_ERR_NOMEM);
    cr_assert_eq(none, (void *)&memory);
    cr_assert_not_null(strstr(shoal_last_error(), "huge"), "%s", shoal_last_error());
    cr_assert_not_null(strstr(ops->describe(device), "SMs"));
    ops->free(device, memory, BIG);
    device_close(device);
}
