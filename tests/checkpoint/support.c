#include "tests/checkpoint/support.h"

#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const test_kinds[TEST_KINDS] = {"master", "exp_avg", "exp_avg_sq"};

static void add(struct layout *layout, const char *name, enum tensor_role role, int64_t rows,
                int64_t columns)
{
    struct tensor t = {.role = role, .ndim = columns > 0 ? 2 : 1, .shape = {rows, columns}};

    snprintf(t.name, sizeof t.name, "%s", name);
    if (layout_add_tensor(layout, &t) != SHOAL_OK)
        abort();
}

struct layout *test_layout(bool big)
{
    struct layout *layout = NULL;

    if (layout_create(&layout) != SHOAL_OK || layout_add_unit(layout, "embed") != SHOAL_OK)
        abort();
    add(layout, "wte.weight", ROLE_EMBEDDING, 331, 64);
    if (layout_add_unit(layout, "block.0") != SHOAL_OK)
        abort();
    add(layout, "h.0.ln_1.weight", ROLE_NORM, 64, 0);
    add(layout, "h.0.attn.c_attn.weight", ROLE_QKV, 192, 64);
    add(layout, "h.0.attn.c_attn.bias", ROLE_BIAS, 192, 0);
    if (big)
        add(layout, "h.0.mlp.c_fc.weight", ROLE_UP, 1500, 1501);
    if (layout_add_unit(layout, "head") != SHOAL_OK)
        abort();
    add(layout, "ln_f.weight", ROLE_NORM, 1, 0);
    return layout;
}

float test_value(int tensor, int kind, int64_t element, int64_t step)
{
    uint64_t x = (uint64_t)element * 0x9e3779b97f4a7c15u + (uint64_t)tensor * 1000003u +
                 (uint64_t)kind * 7919u + (uint64_t)step * 104729u;

    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9u;
    return (float)(x >> 40) * 0x1p-24f - 0.5f;
}

struct state {
    struct ckpt_piece *pieces;
    size_t n;
    float *data;
};

/* This rank's pieces with room for their data, cut after `chunk` elements. */
static struct state state_create(const struct layout *layout, int rank, int n_ranks, int64_t chunk)
{
    struct state s = {0};
    size_t capacity = 1 << 14;
    size_t elements = 0;

    s.pieces = calloc(capacity, sizeof *s.pieces);
    for (int i = 0; i < layout->n_tensors; i++) {
        const struct tensor *t = &layout->tensors[i];
        struct shard part = layout_tensor_part(t, layout_shard(layout, t->unit, rank, n_ranks));

        for (int k = 0; k < TEST_KINDS; k++)
            for (int64_t at = part.begin; at < part.end;) {
                int64_t end = chunk > 0 && at + chunk < part.end ? at + chunk : part.end;
                struct ckpt_piece *p = &s.pieces[s.n++];

                if (s.n == capacity)
                    abort();
                *p = (struct ckpt_piece){.tensor = i, .begin = at, .end = end};
                snprintf(p->kind, sizeof p->kind, "%s", test_kinds[k]);
                /* Offsets are kept in the pointer until the memory is there. */
                elements += (size_t)(end - at);
                at = end;
            }
    }
    /* On a page, so that some pieces go to disk without a copy. */
    s.data = aligned_alloc(4096, (elements * sizeof(float) / 4096 + 1) * 4096);
    for (size_t i = 0, at = 0; i < s.n; i++) {
        s.pieces[i].data = s.data + at;
        at += (size_t)(s.pieces[i].end - s.pieces[i].begin);
    }
    return s;
}

static void state_destroy(struct state *s)
{
    free(s->pieces);
    free(s->data);
}

static int kind_number(const char *kind)
{
    for (int k = 0; k < TEST_KINDS; k++)
        if (strcmp(test_kinds[k], kind) == 0)
            return k;
    return -1;
}

static void state_fill(struct state *s, int64_t step)
{
    for (size_t i = 0; i < s->n; i++) {
        const struct ckpt_piece *p = &s->pieces[i];
        float *data = p->data;

        for (int64_t e = p->begin; e < p->end; e++)
            data[e - p->begin] = test_value(p->tensor, kind_number(p->kind), e, step);
    }
}

static int64_t state_wrong(const struct state *s, int64_t step)
{
    int64_t wrong = 0;

    for (size_t i = 0; i < s->n; i++) {
        const struct ckpt_piece *p = &s->pieces[i];
        const float *data = p->data;

        for (int64_t e = p->begin; e < p->end; e++)
            wrong += data[e - p->begin] != test_value(p->tensor, kind_number(p->kind), e, step);
    }
    return wrong;
}

static struct ckpt_meta meta_of(int64_t step)
{
    return (struct ckpt_meta){.step = step,
                              .consumed_sequences = (uint64_t)step * 8,
                              .consumed_tokens = (uint64_t)step * 8192,
                              .data_fingerprint = 0x1234567890abcdefu,
                              .seed = 42,
                              .loss = 3.25,
                              .run_uuid = "run",
                              .optimizer = "adamw",
                              .conventions = "pytorch",
                              .config_yaml = "model: tiny\n",
                              .model_json = "{\"layers\": 1}",
                              .optimizer_json = "{}",
                              .topology_json = "{\"zero_stage\": 2}"};
}

shoal_status job_save(struct comm *comm, void *arg)
{
    struct job *job = arg;
    struct ckpt_store *store = NULL;
    struct ckpt_store_params params = {
        .root = job->root, .keep = job->keep, .staging_bytes = job->staging_bytes};
    struct ckpt_result result;
    shoal_status status = ckpt_store_open(comm, &params, &store);

    if (status != SHOAL_OK)
        return status;

    struct state s = state_create(job->layout, comm_rank(comm), comm_size(comm), job->chunk);

    for (int64_t step = job->step - job->first_save; step <= job->step && status == SHOAL_OK;
         step++) {
        struct ckpt_meta meta = meta_of(step);

        if (job->config_yaml != NULL)
            meta.config_yaml = job->config_yaml;
        state_fill(&s, step);
        status = ckpt_save(store, job->layout, s.pieces, s.n, &meta, &result);
    }
    if (comm_rank(comm) == 0 && status == SHOAL_OK)
        job->result = result;
    state_destroy(&s);
    ckpt_store_close(store);
    return status;
}

shoal_status read_back(const char *path, const struct layout *layout, int n_ranks,
                       int64_t *step_out, int64_t *n_wrong_out)
{
    struct ckpt *ckpt = NULL;
    int64_t wrong = 0;

    SHOAL_TRY(ckpt_open(path, &ckpt));

    int64_t step = ckpt_meta(ckpt)->step;
    shoal_status status = SHOAL_OK;

    for (int r = 0; r < n_ranks && status == SHOAL_OK; r++) {
        struct state s = state_create(layout, r, n_ranks, 5000);

        status = ckpt_read(ckpt, layout, s.pieces, s.n);
        if (status == SHOAL_OK)
            wrong += state_wrong(&s, step);
        state_destroy(&s);
    }
    ckpt_close(ckpt);
    if (status == SHOAL_OK) {
        *step_out = step;
        *n_wrong_out = wrong;
    }
    return status;
}

void make_root(char out[256])
{
    snprintf(out, 256, "/tmp/shoal-test-ckpt-XXXXXX");
    if (mkdtemp(out) == NULL)
        abort();
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void file_in_step(char out[512], const char *root, int64_t step, const char *name)
{
    snprintf(out, 512, "%s/step-%012" PRId64 "/%s", root, step, name);
}

void flip_bit(const char *path, long at, int bit)
{
    FILE *f = fopen(path, "r+");
    int c;

    fseek(f, at, SEEK_SET);
    c = fgetc(f);
    fseek(f, at, SEEK_SET);
    fputc(c ^ (1 << bit), f);
    fclose(f);
}

static void run_copy(const char *flags, const char *from, const char *to)
{
    char command[1200];

    snprintf(command, sizeof command, "cp %s '%s' '%s'", flags, from, to);
    if (system(command) != 0)
        abort();
}

void copy_file(const char *from, const char *to)
{
    run_copy("", from, to);
}

void copy_tree(const char *from, const char *to)
{
    run_copy("-rT", from, to);
}
