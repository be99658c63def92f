#include "models/ops/cpu/amx.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include "models/ops/cpu/amx_pack.h"

#include <sys/syscall.h>
#include <unistd.h>

/*
 * Sizes that suit a second-level cache of 2 MiB: B packed, or part of it and what is unfinished, stay
 * in it (measured best on GPT-2's shapes, 2026-11-22).
 */
enum {
    K_WHOLE = 1024, /* up to here k is not cut */
    K_PART = 512,
    M_MAX = 1024,
    N_MAX = 384,
};

/* Steps begin .. end of a strip, at src for k = 0. */
struct packing {
    pack_fn *pack;
    const bf16_t *src;
    int64_t ld, step, count, k; /* step: elements from one step to the next */
    char *dst;
};

static inline void pack_step(const struct packing *p, int64_t s)
{
    const bf16_t *src = p->src + s * p->step;

    p->pack(src, p->ld, p->count, p->k - s * STEP, p->dst + s * STEP_BYTES);
    for (int64_t i = 0; i < BLOCK; i++)
        __builtin_prefetch(src + p->step + i * p->ld, 0, 2);
}

/* ---- what leaves ---- */

/* A finished block and its place in C; rows [row, rows) are still to be written. */
struct leaving {
    const struct matmul_data *data;
    const char *block;
    int64_t at, ldc, row, rows, j0;
    __mmask32 mask;
    bool is_f32, accumulate, passes_caches;
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

    for (int half = 0; half < 2; half++) {
        if (d->bias != NULL)
            v[half] =
                _mm512_add_ps(v[half], widen_half((const bf16_t *)d->bias + l->j0, l->mask, half));
        if (d->residual != NULL)
            v[half] = _mm512_add_ps(v[half], load_half(d->residual + at, l->mask, half));
        if (l->accumulate)
            v[half] = _mm512_add_ps(v[half], load_half((const float *)d->c + at, l->mask, half));
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

/* The intrinsics of gcc 12 do not say what memory they read and write. */
static inline void memory_barrier(const void *p)
{
    __asm__ volatile("" : : "r"(p) : "memory");
}

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static void configure_tiles(void)
{
    struct tile_config config = {.palette = 1};

    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = TILE;
    }
    memory_barrier(&config);
    _tile_loadconfig(&config);
}

/*
 * What the vector units do while the tiles multiply: rows of the block before leave, and strips of
 * A and B that come next are packed, one step of B each time and the steps [a_step, a_end) of A.
 */
struct meanwhile {
    struct leaving leaving;
    struct packing a, b;
    int64_t a_step, a_end;
    bool packs_b;
};

static inline void do_meanwhile(struct meanwhile *m, int64_t s)
{
    for (int i = 0; i < 2; i++)
        if (m->leaving.row < m->leaving.rows)
            leave_row(&m->leaving);
    if (m->packs_b)
        pack_step(&m->b, s);
    if (m->a_step < m->a_end)
        pack_step(&m->a, m->a_step++);
}

/* block [2][2] tiles = (zero, or what is there) + steps of a and b. */
static void multiply_block(int64_t steps, const char *a, const char *b, bool from_zero, char *block,
                           struct meanwhile *m)
{
    memory_barrier(block);
    if (from_zero) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, block, 64);
        _tile_loadd(1, block + TILE_BYTES, 64);
        _tile_loadd(2, block + 2 * TILE_BYTES, 64);
        _tile_loadd(3, block + 3 * TILE_BYTES, 64);
    }
    for (int64_t s = 0; s < steps; s++, a += STEP_BYTES, b += STEP_BYTES) {
        _tile_loadd(4, a, 64);
        _tile_stream_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_stream_loadd(7, b + TILE_BYTES, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + TILE_BYTES, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        do_meanwhile(m, s);
    }
    _tile_stored(0, block, 64);
    _tile_stored(1, block + TILE_BYTES, 64);
    _tile_stored(2, block + 2 * TILE_BYTES, 64);
    _tile_stored(3, block + 3 * TILE_BYTES, 64);
    memory_barrier(block);
    while (m->leaving.row < m->leaving.rows)
        leave_row(&m->leaving);
    while (m->a_step < m->a_end)
        pack_step(&m->a, m->a_step++);
}

/* ---- a product ---- */

/* B [k, n]; two strips of A; two blocks that leave; unfinished blocks where k is cut. */
struct amx_scratch {
    char *b, *a[2], *blocks[2], *unfinished;
};

enum { A_BYTES = K_WHOLE * BLOCK * 2, B_BYTES = 1 << 20 };

/* k is cut where a strip would be too long; what is unfinished stays in the cache. */
static int64_t part_of(int64_t k)
{
    const int64_t parts = k <= K_WHOLE ? 1 : (k + K_PART - 1) / K_PART;

    return ((k + parts - 1) / parts + STEP - 1) / STEP * STEP;
}

void amx_cut(const struct matmul_shape *s, int64_t *m_out, int64_t *n_out)
{
    *m_out = M_MAX;
    *n_out = B_BYTES / (2 * part_of(s->k)) / BLOCK * BLOCK;
    if (*n_out > N_MAX)
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
    return B_BYTES + 2 * A_BYTES + 2 * BLOCK_BYTES + (size_t)M_MAX * N_MAX * sizeof(float);
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

static struct packing packing_of_b(const struct part *p, int64_t j)
{
    const struct matmul_shape *s = p->s;
    const bool turned = s->kind == MATMUL_NT;
    const bf16_t *b = p->d->b;

    return (struct packing){.pack = turned ? pack_rows_turned : pack_columns,
                            .src = turned ? b + j * BLOCK * s->ldb + p->k0
                                          : b + p->k0 * s->ldb + j * BLOCK,
                            .ld = s->ldb,
                            .step = turned ? STEP : STEP * s->ldb,
                            .count = s->n - j * BLOCK,
                            .k = p->k,
                            .dst = p->w.b + j * p->steps * STEP_BYTES};
}

static struct leaving leaving_of(const struct part *p, int64_t i, int64_t j, const char *block)
{
    const struct matmul_shape *s = p->s;
    const int64_t rows = s->m - i * BLOCK;

    return (struct leaving){.data = p->d,
                            .block = block,
                            .at = i * BLOCK * s->ldc + j * BLOCK,
                            .ldc = s->ldc,
                            .rows = rows < BLOCK ? rows : BLOCK,
                            .j0 = j * BLOCK,
                            .mask = first(s->n - j * BLOCK),
                            .is_f32 = s->out == DTYPE_F32,
                            .accumulate = s->accumulate && p->d->residual == NULL,
                            .passes_caches = s->out == DTYPE_F32 && !s->accumulate &&
                                             p->d->residual == NULL && s->n - j * BLOCK >= BLOCK};
}

/* Block (i, j) and, meanwhile, what m says and the next strips. */
static void multiply_at(const struct part *p, int64_t i, int64_t j, struct meanwhile *m)
{
    const int64_t index = i * p->n_blocks + j;
    const bool is_whole = p->is_first && p->is_last;
    char *block = is_whole ? p->w.blocks[index % 2] : p->w.unfinished + index * BLOCK_BYTES;

    m->packs_b = i == 0 && j + 1 < p->n_blocks;
    if (m->packs_b)
        m->b = packing_of_b(p, j + 1);
    if (i + 1 < p->m_blocks) {
        m->a = packing_of_a(p, i + 1);
        m->a_step = j * p->steps / p->n_blocks;
        m->a_end = (j + 1) * p->steps / p->n_blocks;
    }
    multiply_block(p->steps, p->w.a[i % 2], p->w.b + j * p->steps * STEP_BYTES, p->is_first, block,
                   m);
    if (p->is_last)
        m->leaving = leaving_of(p, i, j, block);
}

static void multiply_part(const struct part *p)
{
    struct meanwhile m = {0};
    const struct packing a = packing_of_a(p, 0);
    const struct packing b = packing_of_b(p, 0);

    for (int64_t s = 0; s < p->steps; s++) {
        pack_step(&a, s);
        pack_step(&b, s);
    }
    for (int64_t i = 0; i < p->m_blocks; i++)
        for (int64_t j = 0; j < p->n_blocks; j++)
            multiply_at(p, i, j, &m);
    while (m.leaving.row < m.leaving.rows)
        leave_row(&m.leaving);
}

static int64_t blocks_of(int64_t n, int64_t by)
{
    return (n + by - 1) / by;
}

void amx_product(const struct matmul_shape *s, const struct matmul_data *data, void *scratch)
{
    const int64_t k_part = part_of(s->k);

    configure_tiles();
    for (int64_t k0 = 0; k0 < s->k; k0 += k_part) {
        const int64_t k = k0 + k_part < s->k ? k_part : s->k - k0;
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
    _tile_release();
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
