#include "tests/gpu/emulate/races.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, SLOTS = 1 << 16, MOST_NAMED = 64 };

/* Some lanes of one warp; several warps of one block; several blocks. */
enum { LANES = UINT32_MAX, WARPS = UINT32_MAX, BLOCKS = UINT32_MAX };

/* Who accessed a byte, and when.  `life` is the launch, or the block for its shared memory. */
struct access {
    uint32_t life, block, warp, thread;
    uint32_t block_syncs, warp_syncs;
};

enum kind { READ, WRITE, ATOMIC, KINDS };

/* The accesses of each kind that no later one of that kind is ordered behind. */
struct byte {
    struct access last[KINDS];
};

static struct page {
    uintptr_t number; /* 0: free */
    struct byte *bytes;
} pages[SLOTS];

static unsigned n_races, n_named;

/* ---- memory ---- */

static struct byte *bytes_of(uintptr_t number)
{
    static struct page *latest = pages;
    size_t slot = number * 0x9e3779b97f4a7c15u >> 48;

    if (latest->number == number)
        return latest->bytes;
    for (size_t tried = 0; tried < SLOTS; tried++, slot = (slot + 1) % SLOTS) {
        struct page *page = &pages[slot];
        if (page->number == 0) {
            page->number = number;
            page->bytes = mmap(NULL, PAGE * sizeof *page->bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            emulate_expect(page->bytes != MAP_FAILED, "races: no memory");
        }
        if (page->number == number) {
            latest = page;
            return page->bytes;
        }
    }
    emulate_expect(false, "races: too many pages");
    return NULL;
}

/* The block's own: dynamic shared memory, and the program's data, where its static arrays are. */
static bool is_shared(uintptr_t address)
{
    extern char __data_start, _end;
    const uintptr_t dynamic = (uintptr_t)emulate_shared;

    return (address >= dynamic && address < dynamic + EMULATE_SHARED_MAX) ||
           (address >= (uintptr_t)&__data_start && address < (uintptr_t)&_end);
}

/* ---- order ---- */

static bool ordered(const struct access *before, const struct access *after)
{
    if (before->life != after->life)
        return true;
    if (before->block != after->block)
        return false;
    if (before->block_syncs != after->block_syncs || before->thread == after->thread)
        return true;
    return before->warp == after->warp && before->warp_syncs != after->warp_syncs;
}

/* Both were concurrent: what is ordered behind the union is ordered behind each. */
static void unite(struct access *kept, const struct access *other)
{
    if (kept->block != other->block) {
        kept->block = BLOCKS;
    } else if (kept->warp != other->warp) {
        kept->warp = WARPS;
        kept->thread = LANES;
    } else {
        kept->thread = LANES;
    }
}

static void name_race(enum kind before, enum kind after, const struct access *first,
                      const struct access *second, const void *place)
{
    static const char *const NAMES[KINDS] = {"read", "write", "atomic"};
    static const void *named[MOST_NAMED];
    extern char __executable_start;

    for (unsigned i = 0; i < n_named; i++)
        if (named[i] == place)
            return;
    n_races++;
    if (n_named == MOST_NAMED)
        return;
    named[n_named++] = place;
    fprintf(stderr,
            "emulated kernel \"%s\": %s and %s of the same byte race: block %d, thread %d, then "
            "block %u, thread %u; the latter at +0x%zx\n",
            emulate_now.what, NAMES[before], NAMES[after], (int)first->block, (int)first->thread,
            second->block, second->thread, (size_t)((const char *)place - &__executable_start));
}

static void access_byte(struct byte *byte, enum kind kind, const struct access *now,
                        const void *place)
{
    for (enum kind k = 0; k < KINDS; k++) {
        const struct access *before = &byte->last[k];
        const bool may_meet = (k == READ && kind == READ) || (k == ATOMIC && kind == ATOMIC);
        if (!may_meet && !ordered(before, now))
            name_race(k, kind, before, now, place);
    }
    if (ordered(&byte->last[kind], now))
        byte->last[kind] = *now;
    else
        unite(&byte->last[kind], now);
}

static void access_range(enum kind kind, const void *p, size_t n_bytes, const void *place)
{
    const uintptr_t first = (uintptr_t)p;
    const struct emulate_moment *m = &emulate_now;

    if (!m->in_kernel || (first >= m->stack && first < m->stack + EMULATE_STACK))
        return;
    const bool shared = is_shared(first);
    const struct access now = {.life = shared ? m->block_life : m->launch,
                               .block = m->block,
                               .warp = m->thread / EMULATE_WARP,
                               .thread = m->thread,
                               .block_syncs = m->block_syncs,
                               .warp_syncs = m->warp_syncs};
    for (uintptr_t at = first; at < first + n_bytes; at++)
        access_byte(&bytes_of(at / PAGE)[at % PAGE], kind, &now, place);
}

unsigned emulate_races(void)
{
    const unsigned found = n_races;

    n_races = 0;
    n_named = 0;
    return found;
}

/* A program that does not ask fails. */
__attribute__((destructor)) static void end(void)
{
    if (n_races > 0)
        _exit(1);
}

/* ---- what the compiler calls ---- */

#define PLACE __builtin_return_address(0)

#define ACCESSES(n)                                                                                \
    void __tsan_read##n(void *p);                                                                  \
    void __tsan_write##n(void *p);                                                                 \
    void __tsan_unaligned_read##n(void *p);                                                        \
    void __tsan_unaligned_write##n(void *p);                                                       \
    void __tsan_volatile_read##n(void *p);                                                         \
    void __tsan_volatile_write##n(void *p);                                                        \
    void __tsan_read##n(void *p)                                                                   \
    {                                                                                              \
        access_range(READ, p, n, PLACE);                                                           \
    }                                                                                              \
    void __tsan_write##n(void *p)                                                                  \
    {                                                                                              \
        access_range(WRITE, p, n, PLACE);                                                          \
    }                                                                                              \
    void __tsan_unaligned_read##n(void *p)                                                         \
    {                                                                                              \
        access_range(READ, p, n, PLACE);                                                           \
    }                                                                                              \
    void __tsan_unaligned_write##n(void *p)                                                        \
    {                                                                                              \
        access_range(WRITE, p, n, PLACE);                                                          \
    }                                                                                              \
    void __tsan_volatile_read##n(void *p)                                                          \
    {                                                                                              \
        access_range(ATOMIC, p, n, PLACE);                                                         \
    }                                                                                              \
    void __tsan_volatile_write##n(void *p)                                                         \
    {                                                                                              \
        access_range(ATOMIC, p, n, PLACE);                                                         \
    }

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_init(void);
void __tsan_func_entry(void *caller);
void __tsan_func_exit(void);
void __tsan_read_range(void *p, size_t n_bytes);
void __tsan_write_range(void *p, size_t n_bytes);

void __tsan_init(void)
{
}

void __tsan_func_entry(void *caller)
{
    (void)caller;
}

void __tsan_func_exit(void)
{
}

void __tsan_read_range(void *p, size_t n_bytes)
{
    access_range(READ, p, n_bytes, PLACE);
}

void __tsan_write_range(void *p, size_t n_bytes)
{
    access_range(WRITE, p, n_bytes, PLACE);
}

/* For what clang knows as these, and for all copies of kernels (cuda_runtime.h). */
void *__tsan_memcpy(void *to, const void *from, size_t n_bytes);
void *__tsan_memset(void *to, int value, size_t n_bytes);

void *__tsan_memcpy(void *to, const void *from, size_t n_bytes)
{
    access_range(READ, from, n_bytes, PLACE);
    access_range(WRITE, to, n_bytes, PLACE);
    return memcpy(to, from, n_bytes);
}

void *__tsan_memset(void *to, int value, size_t n_bytes)
{
    access_range(WRITE, to, n_bytes, PLACE);
    return memset(to, value, n_bytes);
}

void *emulate_atomic_copy(void *to, const void *from, size_t n_bytes)
{
    access_range(ATOMIC, from, n_bytes, PLACE);
    access_range(ATOMIC, to, n_bytes, PLACE);
    return memcpy(to, from, n_bytes);
}
