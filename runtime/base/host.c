#include "runtime/base/host.h"

#include <inttypes.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE_BYTES = 512, PATH_BYTES = 4096 };

/* Copy what follows "key<blanks>:" in a file of /proc; false if there is no such line. */
static bool proc_field(const char *path, const char *key, char *out, size_t n_bytes)
{
    char line[LINE_BYTES];
    bool found = false;
    FILE *file = fopen(path, "re");

    if (file == NULL)
        return false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        const size_t key_bytes = strlen(key);

        if (strncmp(line, key, key_bytes) != 0)
            continue;
        const char *rest = line + key_bytes + strspn(line + key_bytes, " \t");
        if (*rest != ':')
            continue;
        rest += 1 + strspn(rest + 1, " \t");
        snprintf(out, n_bytes, "%.*s", (int)strcspn(rest, "\n"), rest);
        found = true;
    }
    fclose(file);
    return found;
}

/* A "Key:   123 kB" line in bytes; 0 if there is none. */
static uint64_t proc_kib_field(const char *path, const char *key)
{
    char text[LINE_BYTES];
    uint64_t kib = 0;

    if (proc_field(path, key, text, sizeof text) && sscanf(text, "%" SCNu64, &kib) == 1)
        return kib * 1024;
    return 0;
}

int host_cpus(void)
{
    /* The kernel refuses a mask that is smaller than its own: grow until it fits. */
    for (int n = 1024; n <= 1 << 20; n *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)n);
        const size_t n_bytes = CPU_ALLOC_SIZE((size_t)n);

        if (set == NULL)
            break;
        const bool known = sched_getaffinity(0, n_bytes, set) == 0;
        const int count = known ? CPU_COUNT_S(n_bytes, set) : 0;
        CPU_FREE(set);
        if (known)
            return count;
    }
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

uint64_t host_resident_bytes(void)
{
    return proc_kib_field("/proc/self/status", "VmRSS");
}

uint64_t host_anonymous_resident_bytes(void)
{
    return proc_kib_field("/proc/self/status", "RssAnon");
}

uint64_t host_peak_resident_bytes(void)
{
    return proc_kib_field("/proc/self/status", "VmHWM");
}

/* The number in <cgroup>/<file>; `otherwise` if it is "max" or cannot be read. */
static uint64_t cgroup_number(const char *cgroup, const char *file_name, uint64_t otherwise)
{
    char path[PATH_BYTES];
    uint64_t value = otherwise;

    if (snprintf(path, sizeof path, "/sys/fs/cgroup%s/%s", cgroup, file_name) >= (int)sizeof path)
        return otherwise;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return otherwise;
    if (fscanf(file, "%" SCNu64, &value) != 1)
        value = otherwise;
    fclose(file);
    return value;
}

/* Bytes of cached files in a group: they count as used, but make room when memory is wanted. */
static uint64_t cgroup_cache_bytes(const char *cgroup)
{
    char path[PATH_BYTES];
    char line[LINE_BYTES];
    uint64_t sum = 0;

    if (snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.stat", cgroup) >= (int)sizeof path)
        return 0;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    while (fgets(line, sizeof line, file) != NULL) {
        uint64_t n_bytes;

        if (sscanf(line, "active_file %" SCNu64, &n_bytes) == 1 ||
            sscanf(line, "inactive_file %" SCNu64, &n_bytes) == 1)
            sum += n_bytes;
    }
    fclose(file);
    return sum;
}

/*
 * Containers and batch systems bound a process by control groups (version 2), where any group up
 * to the root may hold the limit.  Lowers *total and *available to the tightest of them.
 */
static void apply_cgroup_limits(uint64_t *total, uint64_t *available)
{
    char cgroup[PATH_BYTES - 64];

    /* The line reads "0::/a/b/c". */
    if (!proc_field("/proc/self/cgroup", "0", cgroup, sizeof cgroup) || strncmp(cgroup, ":/", 2))
        return;
    memmove(cgroup, cgroup + 1, strlen(cgroup));

    for (char *end = cgroup + strlen(cgroup); end != NULL; end = strrchr(cgroup, '/')) {
        *end = '\0';
        const uint64_t limit = cgroup_number(cgroup, "memory.max", UINT64_MAX);
        const uint64_t charged = cgroup_number(cgroup, "memory.current", 0);
        const uint64_t cached = cgroup_cache_bytes(cgroup);
        const uint64_t used = charged > cached ? charged - cached : 0;
        const uint64_t rest = limit > used ? limit - used : 0;

        *total = limit < *total ? limit : *total;
        *available = rest < *available ? rest : *available;
    }
}

uint64_t host_memory_bytes(void)
{
    uint64_t total = proc_kib_field("/proc/meminfo", "MemTotal");
    uint64_t available = UINT64_MAX;

    apply_cgroup_limits(&total, &available);
    return total;
}

uint64_t host_memory_available_bytes(void)
{
    uint64_t total = UINT64_MAX;
    uint64_t available = proc_kib_field("/proc/meminfo", "MemAvailable");

    apply_cgroup_limits(&total, &available);
    return available;
}

void host_cpu_name(char *out, size_t n_bytes)
{
    if (!proc_field("/proc/cpuinfo", "model name", out, n_bytes))
        snprintf(out, n_bytes, "unknown CPU");
}
