#pragma once

#include "checkpoint/checkpoint.h"
#include "comm/comm.h"
#include "launch/train/train.h"
#include "models/model.h"
#include "optim/optim.h"
#include "runtime/base/exact_sum.h"
#include "runtime/base/pool.h"
#include "runtime/data/data.h"
#include "runtime/device/device.h"
#include "runtime/layout/layout.h"
#include "runtime/metrics/metrics.h"
#include "runtime/schedule/schedule.h"

#include <stdbool.h>
#include <stdint.h>

/*
 * The two structs to read first: `policy` is what the user chose, as numbers; `build` is what the
 * builder makes of it: slots and schedules.  `trainer` holds the living parts of a run.
 */

/* How a step is laid out over ranks and time.  Pure data: `shoal plan` makes one without a run. */
struct policy {
    int stage; /* ZeRO 0..3 as asked for */
    int n_ranks, rank;
    bool vertical; /* all microbatches of a unit before the next unit */
    enum recompute recompute;
    bool ring;
    enum dtype compute;
    int64_t B, T;          /* sequences per rank and microbatch, tokens per sequence */
    int64_t global;        /* sequences per step, over all ranks */
    int A;                 /* microbatches per rank and step */
    bool reduce_each;      /* gradients are reduced every microbatch, else once per step */
    int64_t sample_tokens; /* longest text that is sampled during training, 0: none */
    double grad_clip;      /* 0: off */

    /* The device (setup_device_policy). */
    bool separate; /* its memory is not the host's: slots on both sides, copies between them */
    enum comm_transport transport;
    bool prefetch; /* the next unit is gathered while one computes: two gather slots */

    /* Derived: one rank shards nothing, and needs no communication. */
    bool shards_params, shards_states;
    bool infer_only; /* no gradients and no optimizer state: sampling from a checkpoint */
};

/* Which global microbatch is the j-th of this rank: an aligned subtree of the summation tree. */
int64_t policy_microbatch(const struct policy *policy, int j);

/* Host scalars that operations read while a step runs. */
struct step_state {
    int64_t step;            /* 1-based */
    uint64_t first_sequence; /* of this step, counted over the run */
    float loss_scale;        /* 1 / target tokens of the global batch */
    int64_t position;        /* decode: of the token being fed */
    struct optim_step optim;
    struct exact_sum sums[2]; /* loss, squares of gradients: local, then global after NORM */
    int64_t stop_wanted;      /* local signal flag in, number of ranks that want to stop out */
    double loss, grad_norm;
    bool finite;
};

enum { SUM_LOSS, SUM_SQUARES };

/* Where a unit's gradient lives and how far its accumulation has come while building. */
struct grad_stream {
    int unit;                    /* whose flat space it has */
    bool tied;                   /* the head's contribution to the embedding */
    struct slot_ref result;      /* the shard's sum (all of it at one rank) */
    struct slot_ref buffers[64]; /* binary counter; buffers[0] ends with the sum */
    int levels[64];
    int depth;
    struct slot_ref full; /* reduce_each: what backward writes */
};

struct build {
    struct policy policy;
    const struct model *model;
    const struct layout *layout;
    const struct optim_setup *setup; /* NULL with infer_only */
    struct plan *plan;
    int n_units, n_blocks, embed, head;
    const char **unit_names;

    /* Per unit. */
    struct slot_ref
        *param; /* compute precision: whole unit, or the shard where params are sharded */
    struct slot_ref *master;       /* the shard, or all at stage 0: fp32 (part of `param` at fp32
                                    compute), or what the master codec keeps below bf16 */
    struct slot_ref *kinds;        /* optimizer state: [n_units * OPTIM_MAX_KINDS] */
    struct slot_ref *vectors;      /* of rules that need sums over tensors; on every rank */
    struct slot_ref *host_vectors; /* what is kept of them: vectors, or a slot in SPACE_HOST */
    struct slot_ref *full;         /* what compute reads: param, or the gather slot */
    struct grad_stream *streams;   /* n_units, and one more for tied models */
    int n_streams;

    /* Activations: [microbatch][...] as the order needs. */
    int n_live;                /* microbatches whose activations live at the same time */
    struct slot_ref *residual; /* [n_live][n_blocks + 1] */
    struct slot_ref *saved;    /* [n_live or 1][n_blocks or 1] */
    struct slot_ref *dx;       /* [n_live] */
    struct slot_ref tokens, targets, row_loss, scratch; /* [A] each but scratch */
    struct slot_ref window;                             /* one sequence, T + 1 tokens */
    struct slot_ref gather_embed, gather_ring[2];       /* neighbours in the ring with prefetch */
    struct slot_ref grad_all;                           /* stage 0's gathered gradient */
    struct slot_ref limbs, host_limbs;                  /* sums of statistics */
    struct slot_ref cache, decode_x[2], logits, decode_scratch, decode_token;

    /* What host code fills and reads: the slots above, or slots of their own in SPACE_HOST. */
    struct slot_ref host_tokens, host_targets, host_row_loss, host_logits, host_token;
    struct slot_ref squares, host_squares; /* a struct exact_sum; only with separate memory */
};

/* What the makers of operations need of the run; NULL members in a dry plan. */
struct build_env {
    struct comm *comm;
    struct ops *ops;
    struct pool *pool;
    const struct data *data;
    struct step_state *state;
    struct device *device;
};

/* Reserve every slot of a run.  `ops` only sizes scratch. */
shoal_status build_create(const struct policy *policy, const struct model *model,
                          const struct ops *ops, const struct optim_setup *setup,
                          struct build **build_out);
void build_destroy(struct build *build);

/* One optimizer step; forward only over one microbatch; one generated token. */
shoal_status build_step(struct build *build, const struct build_env *env,
                        struct schedule **sched_out);
shoal_status build_eval(struct build *build, const struct build_env *env,
                        struct schedule **sched_out);
shoal_status build_decode(struct build *build, const struct build_env *env,
                          struct schedule **sched_out);

/* Operations that belong to the trainer itself (train_ops.c). */
shoal_status train_op_data(struct schedule *sched, const struct build *build,
                           const struct build_env *env, int j);
shoal_status train_op_norm(struct schedule *sched, const struct build *build,
                           const struct build_env *env);

/*
 * build_host.c: the host's side of a device with memory of its own.  The makers of copies append
 * nothing where the host's slots are the device's.
 */
shoal_status build_host_slots(struct build *build);
shoal_status train_op_copy(struct schedule *sched, const struct build *build,
                           const struct build_env *env, enum op_kind kind, struct slot_ref from,
                           struct slot_ref to, size_t n_bytes);
/* The first `rows` tokens and targets to the device; losses of rows back. */
shoal_status train_op_tokens(struct schedule *sched, const struct build *build,
                             const struct build_env *env, int64_t rows);
shoal_status train_op_losses(struct schedule *sched, const struct build *build,
                             const struct build_env *env, int64_t rows);
/* Squares of all gradients, made on the device and added on the host. */
shoal_status train_op_squares(struct schedule *sched, const struct build *build,
                              const struct build_env *env, struct exact_sum *squares);

/* Elements of the rank's shard of a unit's gradient that count for the norm. */
size_t build_norm_elements(const struct build *build, int unit);

/* Where (rank) elements of a unit are owned: the shard, or everything where states are whole. */
struct shard build_owned(const struct build *build, int unit);

/* The slice of a unit that this rank stores in checkpoints; the same for every stage. */
struct shard build_stored(const struct build *build, int unit);

/* The part of a unit's weights in compute precision that this rank updates: those it owns. */
struct slot_ref build_own_param(const struct build *build, int unit);

size_t build_unit_elements(const struct build *build, int unit); /* padded: ranks * shard */
size_t build_shard_elements(const struct build *build, int unit);

/* ---- a run ---- */

struct trainer;

/* Who took memory of the device before the plan's is asked for. */
enum taken_by {
    TAKEN_BEFORE, /* the driver and contexts, this process' too, and all else on the device */
    TAKEN_BY_LIBRARIES,
    TAKEN_BY_TRANSPORT,
    TAKEN_COUNT
};

/* Measured as the device's free memory. */
struct device_taken {
    int64_t bytes[TAKEN_COUNT]; /* below 0 where another process gave more back */
    size_t left, total;         /* at the last measurement */
};

/* A piece of weights that rest in another form than fp32, or of their average. */
struct weights_view {
    const struct trainer *trainer;
    int tensor;
    int64_t begin; /* of the piece */
    bool average;
};

/* What this rank stores (`stored`) or must load (all that it owns), as pieces of tensors. */
struct state_pieces {
    struct ckpt_piece *pieces;
    size_t n;
    struct weights_view *views;
};

struct trainer {
    const struct config *config;
    struct model_config model_config;
    struct policy policy;
    struct comm *comm;
    struct device *device;
    struct pool *pool;
    struct ops *ops;
    struct model *model;
    struct data *data;
    struct metrics *metrics; /* rank 0 */
    struct optim_setup *optim;
    struct lr_params lr;
    struct build *build;
    struct schedule *step, *eval, *decode;
    struct step_state state;
    struct ckpt_store *store;
    struct state_pieces pieces; /* what this rank saves */
    void *memory;               /* SPACE_PRIVATE */
    void *host_memory;          /* SPACE_HOST */
    struct device_taken taken;  /* of a device with memory of its own */
    uint64_t library_bytes;     /* what the libraries take for a moment in a matmul */
    uint64_t peak_bytes;        /* most of the process' own pages after a step or a save */
    uint64_t base_bytes;        /* of the process and its libraries, without the plan's memory */
    uint64_t consumed_sequences, consumed_tokens;
    int64_t first_step;           /* steps done before this process */
    int64_t saved_step;           /* of the newest checkpoint, -1: none */
    int64_t updates;              /* optimizer updates applied: steps less the skipped ones */
    struct optim_average average; /* of these */
    double last_loss, val_loss;
    double start_seconds; /* clock at process start of the run */
    char run_uuid[40];
    char *config_yaml, *model_json;
};

/*
 * trainer.c: a run's parts, in the order of opening; train_close undoes all of them and returns how
 * the run ended (comm_close).  The first two and train_close are Collective.
 */
shoal_status train_open(const struct config *config, struct trainer **trainer_out);
shoal_status train_open_compute(struct trainer *trainer);
shoal_status train_build(struct trainer *trainer);
shoal_status train_one_step(struct trainer *trainer, int64_t step, double *lr_out);
shoal_status train_close(struct trainer *trainer, shoal_status status);

/* setup.c: from config to policy and parts. */
shoal_status setup_model_config(const struct config *config, struct model_config *out);
shoal_status setup_policy(const struct config *config, const struct model_config *model,
                          int n_ranks, int rank, struct policy *out);
/* What follows from the device: `separate` memory, and queues beside each other. */
void setup_device_policy(const struct config *config, bool separate, bool queues,
                         struct policy *out);
enum comm_transport setup_transport(const struct config *config);
shoal_status setup_data(const struct config *config, const struct model_config *model,
                        struct data **data_out);
shoal_status setup_optimizer(const struct config *config, const struct layout *layout,
                             struct optim_setup **optim_out, struct lr_params *lr_out);
int setup_threads(const struct config *config, const struct comm *comm);

/* Positions that a text takes: its end token, prompt and continuation, or all that the model has. */
int64_t setup_sample_tokens(const struct model_config *model, size_t n_prompt, int n_tokens);

/* agree.c.  A configuration that is not rank 0's is an error.  Collective. */
shoal_status setup_agree_config(struct comm *comm, const struct config *config);
/* Algorithms of libraries that are not rank 0's, as on other GPUs, are a warning.  Collective. */
shoal_status setup_compare_choices(struct comm *comm, const struct ops *ops);

/* device.c: the device of a run, and what it must be told around work outside of schedules. */
shoal_status train_device_open(struct trainer *trainer);
/* The transport between the ranks' devices.  Collective. */
shoal_status train_device_connect(struct trainer *trainer);
/* Ops for a device; NULL: the host. */
shoal_status train_device_ops(const struct config *config, struct device *device, struct pool *pool,
                              struct ops **ops_out);
/* What run.device means for a plan, on this machine. */
bool train_device_is_cuda(const struct config *config);
/* Ops are called directly: between the two they may touch the device's memory; all done at end. */
void train_device_begin(struct trainer *trainer);
shoal_status train_device_end(struct trainer *trainer, shoal_status status);
shoal_status train_device_sync(struct trainer *trainer);

/*
 * taken.c.  What the device lost since the last note, or was without at the first, becomes `who`'s.
 * The second measures a run's device, if it has memory of its own, while no rank takes any: Collective.
 */
shoal_status taken_note(struct device *device, enum taken_by who, struct device_taken *taken);
shoal_status train_taken_note(struct trainer *trainer, enum taken_by who);
/* The rows; `transport` NULL: none was opened. */
void taken_print(const struct device_taken *taken, const char *transport, FILE *out);
/* The same as the reason of the thread's last failure. */
void taken_explain(const struct device_taken *taken, shoal_status status);

/* memory.c: the plan's memory, its table and the comparison at the end. */
shoal_status train_memory_warm_up(struct trainer *trainer);
/* The rank's private memory, and the host's beside it; and that with the window.  The second is
 * Collective. */
shoal_status train_memory_alloc(struct trainer *trainer, const char *name);
shoal_status train_memory_take(struct trainer *trainer);
/* Once everything is open, and the plan's memory touched: what remains is the process itself. */
void train_memory_note_base(struct trainer *trainer);
/* After a step or a save. */
void train_memory_sample(struct trainer *trainer);
void train_memory_release(struct trainer *trainer);
/* What the transport makes of the window's slots. */
struct comm_memory train_memory_window(const struct build *build, int ranks_per_host);
void train_memory_log_plan(const struct trainer *trainer);
void train_memory_print_table(const struct build *build, int ranks_per_host, FILE *out);
shoal_status train_memory_log_measured(struct trainer *trainer);

/* weights.c: master weights as fp32, whatever they rest as. */

/* Elements [begin, begin + n) of a tensor that this rank owns, to or from memory. */
shoal_status weights_move(const struct trainer *trainer, int tensor, int64_t begin, size_t n,
                          float *x, bool to_memory);

/* Put x, the elements [range) of a unit, where they belong; padding is skipped. */
shoal_status weights_store_range(const struct trainer *trainer, int unit, struct shard range,
                                 float *x);

/*
 * average.c: rules that train other weights than those to use.  Between enter and leave compute
 * reads the average; training weights are the same bits after.  Without such a rule nothing is done.
 * Both are Collective and take no memory.
 */
shoal_status average_enter(struct trainer *trainer);
shoal_status average_leave(struct trainer *trainer);
bool average_is_used(const struct trainer *trainer);

/* The average of elements [begin, begin + n) of a tensor that this rank owns, not in between. */
shoal_status average_read(const struct trainer *trainer, int tensor, int64_t begin, size_t n,
                          float *x);

/* Let a piece of weights go through weights_move or average_read; the view outlives the piece. */
void weights_view_piece(struct weights_view *view, struct ckpt_piece *piece);

/*
 * pieces.c.  "master" are the weights to use.  Where a rule averages, those that are trained are a
 * state of their own, and all that is loaded to go on.
 */
#define STATE_TRAINED "y"
shoal_status state_pieces(struct trainer *trainer, bool stored, struct state_pieces *out);
void state_pieces_free(struct state_pieces *pieces);

/* Type, length, range and codec of a piece of codes, or of their scales, for elements [part). */
void piece_codes(const struct optim_codec *codec, bool rank1, int64_t n_elements, struct shard part,
                 struct ckpt_piece *piece);
void piece_scales(const struct optim_codec *codec, int64_t n_elements, struct shard part,
                  struct ckpt_piece *piece);
void piece_codec_name(const struct optim_codec *codec, char out[CKPT_CODEC_BYTES]);

/*
 * convert.c: read the states whose codec in the checkpoint is another, decode them and encode them
 * anew; their pieces are taken out of `pieces`.  *n_out: how many states.
 */
shoal_status state_convert(struct trainer *trainer, struct ckpt *ckpt, struct state_pieces *pieces,
                           size_t *n_out);

/* state.c: weights and optimizer state in and out. */
shoal_status state_init(struct trainer *trainer);
shoal_status state_resume(struct trainer *trainer);
shoal_status state_publish(struct trainer *trainer);
/* Each rank's part of the weights that compute reads to the others, where they are shared. */
shoal_status state_publish_shards(struct trainer *trainer);
shoal_status state_save(struct trainer *trainer, int64_t step);

/* evaluate.c: validation loss and sampled text; *stop_out when a rank was asked to stop. */
shoal_status evaluate_loss(struct trainer *trainer, int64_t step, bool *stop_out);
shoal_status evaluate_samples(struct trainer *trainer, int64_t step, bool *stop_out);

/* Text that follows a prompt. */
struct generation {
    const char *prompt;
    int n_tokens;
    double temperature, top_p;
    uint64_t seed, stream; /* stream: step, so that samples of a run differ */
};
shoal_status generate(struct trainer *trainer, const struct generation *generation, char *text_out,
                      size_t n_bytes, bool *stop_out);

/* report.c */
void report_banner(const struct trainer *trainer);
shoal_status report_step(struct trainer *trainer, int64_t step, int64_t n_steps, double seconds,
                         double lr);

/* signals.c: SIGTERM, SIGUSR1 and SIGINT ask for a stop; a second SIGINT leaves at once. */
void signals_install(void);
int signals_wanted(void); /* the signal number, 0: none */

/*
 * Test hook: SHOAL_FAULT=WHAT:STEP:RANK, before that step on that rank: kill, stop and term raise
 * SIGKILL, SIGSTOP, SIGTERM; nan returns true: the rank's gradients are to be NaN.
 */
bool fault_point(int64_t step, int rank);

/* WHAT is look: SIGTERM once the validation and samples after that step have begun. */
void fault_point_look(int64_t step, int rank);
