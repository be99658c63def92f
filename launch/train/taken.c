#include "launch/train/train_internal.h"

/*
 * What a device loses beside the plan: contexts, loaded kernels and handles, the transport's buffers.
 * No library tells it, so that it is measured as the device's free memory, while all ranks stand
 * still: ranks that share the device are in it together, and so are other processes.
 */

shoal_status taken_note(struct device *device, enum taken_by who, struct device_taken *taken)
{
    size_t left = 0, total = 0;

    SHOAL_TRY(device->ops->memory(device, &left, &total));
    const size_t before = who == TAKEN_BEFORE ? total : taken->left;

    taken->bytes[who] += (int64_t)before - (int64_t)left;
    taken->total = total;
    taken->left = left;
    return SHOAL_OK;
}

shoal_status train_taken_note(struct trainer *trainer, enum taken_by who)
{
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(comm_barrier(trainer->comm)); /* all have taken what they take */
    if (trainer->policy.separate)
        status = taken_note(trainer->device, who, &trainer->taken);
    return comm_agree(trainer->comm, status); /* none takes more before all have looked */
}

static void print_row(FILE *out, const char *name, int64_t bytes, const char *what)
{
    fprintf(out, "%-20s %12.2f  %s\n", name, (double)bytes / (1 << 20), what);
}

void taken_print(const struct device_taken *taken, const char *transport, FILE *out)
{
    fprintf(out, "%-20s %12s  measured as its free memory, of all its ranks\n", "MiB", "device");
    print_row(out, "before the run", taken->bytes[TAKEN_BEFORE],
              "the driver, contexts of processes, other processes");
    print_row(out, "driver and libraries", taken->bytes[TAKEN_BY_LIBRARIES],
              "kernels, handles, workspaces");
    if (transport != NULL)
        print_row(out, "transport", taken->bytes[TAKEN_BY_TRANSPORT], transport);
    print_row(out, "left", (int64_t)taken->left, "for the plan");
}

void taken_explain(const struct device_taken *taken, shoal_status status)
{
    const double gib = 1 << 30;

    fail_why(status,
             "%.2f GiB were taken before the run, %.2f by driver and libraries, %.2f by "
             "the transport",
             (double)taken->bytes[TAKEN_BEFORE] / gib,
             (double)taken->bytes[TAKEN_BY_LIBRARIES] / gib,
             (double)taken->bytes[TAKEN_BY_TRANSPORT] / gib);
}
