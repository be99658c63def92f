#pragma once

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/*
 * Config: one key table makes the YAML parser, the KEY=VALUE overrides, the defaults, ranges,
 * `--help`, the commented `config new` and docs/config.md.
 *
 * Layers, later wins: defaults < file < KEY=VALUE.  Unknown key, wrong type, out of range,
 * duplicate key: SHOAL_ERR_CONFIG with file:line:column (or "command line"), the nearest key and
 * what was expected.
 *
 * Integers may be written 1_000_000, numbers 1e-4, booleans true/false/yes/no/on/off; JSON files
 * work too.  Read-only after loading, hence thread-safe.
 */

enum {
    CONFIG_TEXT = 512,    /* bytes of a text with its final zero */
    CONFIG_LIST = 64,     /* items of a list */
    CONFIG_MAX_KEYS = 96, /* rows of the key table */
};

struct config_list {
    int n;
    char items[CONFIG_LIST][CONFIG_TEXT];
};

struct config {
    struct {
        char out[CONFIG_TEXT];
        uint64_t seed;
        int threads; /* per rank; 0: cores / ranks of the host */
        bool bind;   /* bind threads to cores */
        char device[16];
        char attention[8]; /* auto | cudnn | own */
        char epilogue[8];  /* bias | full */
        bool graphs;
    } run;
    struct {
        char preset[64];        /* "": sizes by hand */
        char from[CONFIG_TEXT]; /* checkpoint to take the model and weights from; "": none */
        int layers, hidden, heads, kv_heads, ffn, vocab; /* 0: from the preset */
        char norm[16], position[16], mlp[16];            /* "auto": from the preset */
        char tied[8];                                    /* "auto", "true", "false" */
    } model;
    struct {
        struct config_list train;
        char val[CONFIG_TEXT];
        char format[16];
        char tokenizer[CONFIG_TEXT];
        int64_t seq_len;
    } data;
    struct {
        int64_t micro, global, global_tokens; /* sequences; global_tokens 0: unused */
    } batch;
    struct {
        char name[32];
        double lr, min_lr;
        int64_t warmup_steps;
        char schedule[16];
        double betas[2];
        double eps, weight_decay;
        double momentum;
        bool nesterov;
        double beta3, alpha;
        int64_t slow_warmup_steps;
        double gamma;
        bool cautious, tensor_clip;
        double clip_threshold;
        bool scale_parameter, relative_step;
        double grad_clip;
        char on_nonfinite[8]; /* stop | skip */
        char state[16];       /* codec of the optimizer state */
        struct config_list groups;
    } optimizer;
    struct {
        char compute[8], master[16], grads[8];
        bool tf32;
    } precision;
    struct {
        int zero;
        char order[16];
        char recompute[16];
        char reduction[8];
        char prefetch[8]; /* auto | on | off */
    } parallel;
    struct {
        double timeout_s, heartbeat_s;
        int ranks_per_host;
        char transport[8]; /* auto | mpi | staged | nccl */
    } comm;
    struct {
        int64_t every; /* steps; 0: only at the end */
        int keep;
        char resume[CONFIG_TEXT]; /* auto | never | PATH | STEP */
        bool convert;             /* state of another codec is decoded and encoded anew */
    } checkpoint;
    struct {
        int64_t every, batches, sample_every;
        struct config_list sample_prompts;
        int sample_tokens;
        double sample_temperature, sample_top_p;
    } eval;
    struct {
        int64_t every;
        double peak_tflops;      /* for MFU; 0: unknown, MFU prints n/a */
        char trace[CONFIG_TEXT]; /* file for the last step's trace; "": none */
    } log;
    int64_t steps;

    /* Where values came from, by row of the key table; for config_write. */
    char source[CONFIG_TEXT]; /* the file or text that was loaded; "": none */
    int origin[CONFIG_MAX_KEYS];
};

/* struct config's `origin`; a positive value is a line of `source`. */
enum { CONFIG_ORIGIN_DEFAULT = 0, CONFIG_ORIGIN_COMMAND_LINE = -1 };

/*
 * Load `path` (NULL: defaults only) and apply n overrides "KEY=VALUE".  Checks every key by
 * itself; relations between keys are the trainer's.  The struct is large: keep it on the heap.
 * A file that cannot be read is SHOAL_ERR_NOINPUT, an override without '=' SHOAL_ERR_USAGE.
 */
shoal_status config_load(const char *path, const char *const *overrides, size_t n,
                         struct config *config_out);

/* Load from a text instead of a file (a checkpoint's config); `name` appears in errors. */
shoal_status config_load_text(const char *name, const char *text, const char *const *overrides,
                              size_t n, struct config *config_out);

/*
 * The resolved config as YAML, each value with its origin as a comment (default, file:line,
 * command line).  SHOAL_ERR_IO when `out` cannot be written.
 */
shoal_status config_write(const struct config *config, FILE *out);

/*
 * The YAML that config_load parsed to get here: canonical text without comments.  Loading it
 * gives the same values.  Caller frees.
 */
shoal_status config_to_yaml(const struct config *config, char **yaml_out);

/*
 * XXH3-64 over the canonical text of the keys that must be equal on all ranks (all but
 * rank-local ones); 0 when memory is exhausted.
 */
uint64_t config_hash(const struct config *config);

enum config_type {
    CONFIG_STRING,
    CONFIG_INT,
    CONFIG_REAL,
    CONFIG_BOOL,
    CONFIG_CHOICE,
    CONFIG_STRINGS, /* a text or a list of texts: struct config_list */
    CONFIG_REALS,   /* a list with one number per element of the field */
};

/* One row of the key table, for documentation and completion. */
struct config_key {
    const char *path; /* "optimizer.lr" */
    enum config_type type;
    size_t offset;        /* in struct config */
    size_t n_bytes;       /* of the field: width of integers, capacity of texts */
    const char *fallback; /* default, as it would be written in a file */
    double min, max;      /* numbers, both included */
    const char *choices;  /* "a|b|c" */
    const char *unit;     /* "steps", "s"; NULL: none */
    bool rank_local;      /* may differ between ranks */
    const char *also; /* space-separated names that other trainers use, for suggestions; or NULL */
    const char *help; /* one sentence */
};

const struct config_key *config_keys(size_t *n_out);

/* The row called `path`, or NULL. */
const struct config_key *config_find(const char *path);

/* The key's current value, as it would be written in a file, into out (cut to n_bytes). */
void config_value_text(const struct config *config, const struct config_key *key, char *out,
                       size_t n_bytes);

/* "integer in 0 .. 3", "cosine | linear | constant | wsd": what the key accepts, into out. */
void config_expected_text(const struct config_key *key, char *out, size_t n_bytes);

/* Nearest key to a wrong one, or NULL when nothing is near. */
const char *config_nearest(const char *path);

/*
 * Nearest of a space-separated list of words, or NULL; into out.  Distance is Levenshtein's, a
 * swap of neighbours counts once, and at most 1/3 of the longer word's length is near.
 */
const char *nearest_word(const char *word, const char *words, char *out, size_t n_bytes);

/* Commented YAML with every key at its default; `preset` sets model.preset and fitting sizes. */
shoal_status config_print_new(const char *preset, FILE *out);

/* docs/config.md. */
void config_print_reference(FILE *out);
