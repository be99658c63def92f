#include "models/ops/cpu/amx.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include "models/ops/cpu/amx_pack.h"

#include <sys/syscall.h>
#include <unistd.h>

/*
 * Sizes that suit caches of 48 KiB and 2 MiB (measured best on GPT-2's shapes, 2026-11-22).  What lies
 * beyond them comes at a tenth of their speed, and only evenly: hence the fetching below.
 */
enum {
    K_SLAB = 384,   /* so long a strip of A stays in the first cache */
    K_PART = 1024,  /* and so long strips of B, packed, in the second */
    K_TURNED = 352, /* the same where k of A are rows, which may lie a page apart */
    M_MAX = 1024,
    N_MAX = 384,
};

/* ---- what leaves ---- */

/* A finished block and its place in C; rows [row, rows) are still to be written. */
struct leaving {
    const struct matmul_data *data;
    const float *added; /* the residual, C itself, or NULL */
    const char *block;
    int64_t at, ldc, row, rows, j0;
    __mmask32 mask;
    bool is_f32, passes_caches;
};

static inline __m512 load_half(const float *p, __mmask32 mask, int half)
{
    return _mm512_maskz_loadu_ps((__mmask16)(mask >> (16 * half)), p + 16 * half);
}

static inline __m512 widen_half(const bf16_t *p, __mmask32 mask, int half)
{
    __m256i h = _mm256_maskz_loadu_epi16((__mmask16)(mask >> (16 * half)), p + 16 * half);

    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* The next row of C = block + what is to be added. */
static inline void leave_row(struct leaving *l)
{
    const struct matmul_data *d = l->data;
    const int64_t i = l->row++;
    const int64_t at = l->at + i * l->ldc;
    const char *tiles = l->block + i / TILE * 2 * TILE_BYTES + i % TILE * 64;
    __m512 v[2] = {_mm512_load_ps(tiles), _mm512_load_ps(tiles + TILE_BYTES)};

    if (l->added != NULL) { /* to the next block */
        __builtin_prefetch(l->added + at + BLOCK);
        __builtin_prefetch(l->added + at + BLOCK + TILE);
    }
    for (int half = 0; half < 2; half++) {
        if (d->bias != NULL)
            v[half] =
                _mm512_add_ps(v[half], widen_half((const bf16_t *)d->bias + l->j0, l->mask, half));
        if (l->added != NULL)
            v[half] = _mm512_add_ps(v[half], load_half(l->added + at, l->mask, half));
        float *c = (float *)d->c + at + 16 * half;
        if (l->passes_caches && (uintptr_t)c % 64 == 0)
            _mm512_stream_ps(c, v[half]);
        else if (l->is_f32)
            _mm512_mask_storeu_ps(c, (__mmask16)(l->mask >> (16 * half)), v[half]);
    }
    if (!l->is_f32)
        _mm512_mask_storeu_epi16((bf16_t *)d->c + at, l->mask,
                                 (__m512i)_mm512_cvtne2ps_pbh(v[1], v[0]));
}

/* ---- the inner loop ---- */

/*
 * What the vector units do while the tiles multiply a block: rows of the block before leave, the next
 * strip of A is packed, the one after it fetched, and the sums to go on with come nearer.
 */
struct meanwhile {
    struct leaving leaving;
    struct packing a;
    int64_t a_step, a_end;
    struct fetching fetching;
    const char *unfinished; /* the next block's; NULL: none */
    int64_t per_step;       /* rows to leave */
};

static inline void do_meanwhile(struct meanwhile *m)
{
    for (int64_t i = m->per_step; i > 0; i--) {
        if (m->leaving.row < m->leaving.rows)
            leave_row(&m->leaving);
        if (m->unfinished != NULL) {
            __builtin_prefetch(m->unfinished, 0, 3);
            __builtin_prefetch(m->unfinished + 64, 0, 3);
            m->unfinished += 128;
        }
    }
    fetch_lines(&m->fetching);
    if (m->a_step < m->a_end)
        pack_step(&m->a, m->a_step++);
}

static void finish_meanwhile(struct meanwhile *m)
{
    while (m->leaving.row < m->leaving.rows)
        leave_row(&m->leaving);
    while (m->a_step < m->a_end)
        pack_step(&m->a, m->a_step++);
}

/* A strip of A: bytes to the next row, tile and step. */
struct strip {
    const char *p;
    int64_t row, tile, step;
};

/* out [2][2] tiles = (zero, or in) + steps of a and b. */
static void multiply_block(int64_t steps, struct strip a, const char *b, const char *in, char *out,
                           struct meanwhile *m)
{
    tiles_barrier();
    if (in == NULL) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, in, 64);
        _tile_loadd(1, in + TILE_BYTES, 64);
        _tile_loadd(2, in + 2 * TILE_BYTES, 64);
        _tile_loadd(3, in + 3 * TILE_BYTES, 64);
    }
    for (int64_t s = 0; s < steps; s++, a.p += a.step, b += STEP_BYTES) {
        _tile_loadd(4, a.p, a.row);
        _tile_stream_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_stream_loadd(7, b + TILE_BYTES, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a.p + a.tile, a.row);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        do_meanwhile(m);
    }
    _tile_stored(0, out, 64);
    _tile_stored(1, out + TILE_BYTES, 64);
    _tile_stored(2, out + 2 * TILE_BYTES, 64);
    _tile_stored(3, out + 3 * TILE_BYTES, 64);
    tiles_barrier();
    finish_meanwhile(m);
}

/* ---- a product ---- */

/* B, packed; two strips of A; two blocks that leave; blocks whose sums are unfinished. */
struct amx_scratch {
    char *b, *a[2], *blocks[2], *unfinished;
};

enum {
    A_BYTES = K_PART * BLOCK * 2,
    B_BYTES = K_PART * N_MAX * 2,
    UNFINISHED_BYTES = M_MAX * N_MAX * 4,
};

static int64_t part_of(const struct matmul_shape *s)
{
    const int64_t parts = blocks_of(s->k, s->kind == MATMUL_TN ? K_TURNED : K_PART);

    return blocks_of(blocks_of(s->k, parts), STEP) * STEP;
}

void amx_cut(const struct matmul_shape *s, int64_t *m_out, int64_t *n_out)
{
    (void)s;
    *m_out = M_MAX;
    *n_out = N_MAX;
}

static struct amx_scratch cut_scratch(void *scratch)
{
    char *b = scratch;
    char *a = b + B_BYTES;
    char *blocks = a + 2 * A_BYTES;

    return (struct amx_scratch){.b = b,
                                .a = {a, a + A_BYTES},
                                .blocks = {blocks, blocks + BLOCK_BYTES},
                                .unfinished = blocks + 2 * BLOCK_BYTES};
}

size_t amx_scratch_bytes(void)
{
    return B_BYTES + 2 * A_BYTES + 2 * BLOCK_BYTES + UNFINISHED_BYTES;
}

/* One part of k of a product. */
struct part {
    const struct matmul_shape *s;
    const struct matmul_data *d;
    struct amx_scratch w;
    int64_t k0, k, steps, m_blocks, n_blocks;
    bool is_first, is_last;
};

static struct packing packing_of_a(const struct part *p, int64_t i)
{
    const struct matmul_shape *s = p->s;
    const bool turned = s->kind == MATMUL_TN;
    const bf16_t *a = p->d->a;

    return (struct packing){.pack = turned ? pack_columns_turned : pack_rows,
                            .src = turned ? a + p->k0 * s->lda + i * BLOCK
                                          : a + i * BLOCK * s->lda + p->k0,
                            .ld = s->lda,
                            .step = turned ? STEP * s->lda : STEP,
                            .count = s->m - i * BLOCK,
                            .k = p->k,
                            .dst = p->w.a[i % 2]};
}

/* Along few rows at a time, which the hardware foresees. */
static void pack_b(const struct part *p)
{
    const struct matmul_shape *s = p->s;
    const bf16_t *b = p->d->b;
    char *dst = p->w.b;

    if (s->kind == MATMUL_NT) {
        b += p->k0;
        for (int64_t j = 0; j < 2 * p->n_blocks; j++)
            for (int64_t x = 0; x < p->steps; x++)
                pack_rows_turned(b + j * TILE * s->ldb + x * STEP, s->ldb, s->n - j * TILE,
                                 p->k - x * STEP,
                                 dst + (j / 2 * p->steps + x) * STEP_BYTES + j % 2 * TILE_BYTES);
    } else {
        b += p->k0 * s->ldb;
        for (int64_t x = 0; x < p->steps; x++)
            for (int64_t j = 0; j < p->n_blocks; j++)
                pack_columns(b + x * STEP * s->ldb + j * BLOCK, s->ldb, s->n - j * BLOCK,
                             p->k - x * STEP, dst + (j * p->steps + x) * STEP_BYTES);
    }
}

/*
 * A whole strip is read where it lies if its rows are lines of the first cache, and so far apart that
 * not more of them want the same place than there are ways.
 */
static bool lies_in_tiles(const struct part *p, int64_t i)
{
    const int64_t row_lines = p->s->lda / STEP;

    return p->s->kind != MATMUL_TN && (i + 1) * BLOCK <= p->s->m && p->k % STEP == 0 &&
           (uintptr_t)p->d->a % 64 == 0 && p->s->lda % STEP == 0 && row_lines % 16 != 0;
}

static struct strip strip_of(const struct part *p, int64_t i)
{
    const struct packing a = packing_of_a(p, i);

    if (!lies_in_tiles(p, i))
        return (struct strip){.p = a.dst, .row = 64, .tile = TILE_BYTES, .step = STEP_BYTES};
    return (struct strip){
        .p = (const char *)a.src, .row = a.ld * 2, .tile = TILE * a.ld * 2, .step = 64};
}

static struct fetching fetching_of(const struct part *p, int64_t i)
{
    const struct packing a = packing_of_a(p, i);
    const bool turned = p->s->kind == MATMUL_TN;

    return (struct fetching){.row = (const char *)a.src,
                             .row_bytes = a.ld * 2,
                             .rows = turned ? a.k : min(a.count, BLOCK),
                             .lines = turned ? 1 : p->steps,
                             .per_step = blocks_of(BLOCK, p->n_blocks)};
}

static struct leaving leaving_of(const struct part *p, int64_t i, int64_t j, const char *block)
{
    const struct matmul_shape *s = p->s;
    const float *added = p->d->residual;

    if (added == NULL && s->accumulate)
        added = p->d->c;
    return (struct leaving){.data = p->d,
                            .added = added,
                            .block = block,
                            .at = i * BLOCK * s->ldc + j * BLOCK,
                            .ldc = s->ldc,
                            .rows = min(s->m - i * BLOCK, BLOCK),
                            .j0 = j * BLOCK,
                            .mask = first(s->n - j * BLOCK),
                            .is_f32 = s->out == DTYPE_F32,
                            .passes_caches =
                                s->out == DTYPE_F32 && added == NULL && s->n - j * BLOCK >= BLOCK};
}

/* Strip i of C, a slab of k after the other; meanwhile the next strip of A is packed. */
static void multiply_strip(const struct part *p, int64_t i, struct meanwhile *m)
{
    const int64_t slabs = blocks_of(p->k, K_SLAB);
    const int64_t slab = blocks_of(p->steps, slabs);
    const int64_t all_blocks = slabs * p->n_blocks;
    const bool packs = i + 1 < p->m_blocks && !lies_in_tiles(p, i + 1);
    const bool is_whole = p->is_first && p->is_last;
    char *row = p->w.unfinished + (is_whole ? 0 : i * p->n_blocks * BLOCK_BYTES);
    struct strip a = strip_of(p, i);

    if (packs)
        m->a = packing_of_a(p, i + 1);
    if (i + 2 < p->m_blocks)
        m->fetching = fetching_of(p, i + 2);
    for (int64_t x = 0; x < all_blocks; x++) {
        const int64_t q = x / p->n_blocks;
        const int64_t j = x % p->n_blocks;
        const int64_t steps = min(slab, p->steps - q * slab);
        const bool begins = p->is_first && q == 0;
        const bool ends = p->is_last && q + 1 == slabs;
        char *block = row + j * BLOCK_BYTES;
        char *out = ends ? p->w.blocks[j % 2] : block;
        struct strip a_slab = a;

        a_slab.p += q * slab * a.step;
        m->a_step = packs ? x * p->steps / all_blocks : 0;
        m->a_end = packs ? (x + 1) * p->steps / all_blocks : 0;
        m->per_step = blocks_of(BLOCK, steps);
        m->unfinished = begins && ends ? NULL : row + (j + 1) % p->n_blocks * BLOCK_BYTES;
        multiply_block(steps, a_slab, p->w.b + (j * p->steps + q * slab) * STEP_BYTES,
                       begins ? NULL : block, out, m);
        if (ends)
            m->leaving = leaving_of(p, i, j, out);
    }
}

static void multiply_part(const struct part *p)
{
    struct meanwhile m = {.a = packing_of_a(p, 0)};

    pack_b(p);
    if (!lies_in_tiles(p, 0))
        m.a_end = p->steps;
    finish_meanwhile(&m);
    for (int64_t i = 0; i < p->m_blocks; i++)
        multiply_strip(p, i, &m);
    finish_meanwhile(&m);
}

void amx_product(const struct matmul_shape *s, const struct matmul_data *data, void *scratch)
{
    const int64_t k_part = part_of(s);

    tiles_begin();
    for (int64_t k0 = 0; k0 < s->k; k0 += k_part) {
        const int64_t k = min(k_part, s->k - k0);
        const struct part part = {.s = s,
                                  .d = data,
                                  .w = cut_scratch(scratch),
                                  .k0 = k0,
                                  .k = k,
                                  .steps = blocks_of(k, STEP),
                                  .m_blocks = blocks_of(s->m, BLOCK),
                                  .n_blocks = blocks_of(s->n, BLOCK),
                                  .is_first = k0 == 0,
                                  .is_last = k0 + k == s->k};
        multiply_part(&part);
    }
    tiles_end();
    _mm_sfence(); /* other threads may see what passed the caches */
}

/* The kernel grants the tiles' registers on request (Linux, Documentation/x86/xstate.rst). */
bool amx_is_usable(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

#else

bool amx_is_usable(void)
{
    return false;
}

void amx_cut(const struct matmul_shape *s, int64_t *m_out, int64_t *n_out)
{
    *m_out = s->m;
    *n_out = s->n;
}

size_t amx_scratch_bytes(void)
{
    return 0;
}

/* Unreachable: nothing was prepared to come here. */
void amx_product(const struct matmul_shape *s, const struct matmul_data *data, void *scratch)
{
    (void)s;
    (void)data;
    (void)scratch;
}

#endif
