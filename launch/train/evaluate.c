#include "launch/train/train_internal.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Validation loss and sampled text.  All ranks take part: stage 3 gathers its units here too. */

/* Ask all ranks whether one was told to stop; a collective, so that all leave together. */
static shoal_status poll_stop(struct trainer *trainer, bool *stop_out)
{
    int64_t wanted = signals_wanted() != 0;

    SHOAL_TRY(comm_all_reduce_i64(trainer->comm, &wanted, 1));
    *stop_out = wanted > 0;
    return SHOAL_OK;
}

/* Windows first .. first + B - 1 of the held-out split; those at or past `end` are ignored. */
static void fill_windows(struct trainer *trainer, uint64_t first, uint64_t end)
{
    const struct build *build = trainer->build;
    int64_t T = build->policy.T;
    int32_t *tokens = plan_ref(build->plan, build->host_tokens);
    int32_t *targets = plan_ref(build->plan, build->host_targets);
    int32_t *window = plan_ref(build->plan, build->window);

    for (int64_t i = 0; i < build->policy.B; i++) {
        uint64_t index = first + (uint64_t)i;
        bool real = index < end;
        data_window(trainer->data, DATA_VAL, real ? index : 0, window);
        for (int64_t t = 0; t < T; t++) {
            tokens[i * T + t] = window[t];
            targets[i * T + t] = real ? window[t + 1] : -1;
        }
    }
}

shoal_status evaluate_loss(struct trainer *trainer, int64_t step, bool *stop_out)
{
    const struct policy *policy = &trainer->policy;
    uint64_t B = (uint64_t)policy->B, ranks = (uint64_t)policy->n_ranks;
    uint64_t wanted = (uint64_t)trainer->config->eval.batches * B;
    uint64_t held_out = data_info(trainer->data).n_windows[DATA_VAL];
    uint64_t end = wanted < held_out ? wanted : held_out;
    const double *row_loss = plan_ref(trainer->build->plan, trainer->build->host_row_loss);
    struct exact_sum sum;
    double start = clock_seconds();

    *stop_out = false;
    if (end == 0)
        return SHOAL_OK;
    comm_note(trainer->comm, step, "evaluating");
    exact_sum_clear(&sum);
    for (uint64_t first = 0; first < end; first += B * ranks) {
        fill_windows(trainer, first + (uint64_t)policy->rank * B, end);
        SHOAL_TRY(exec_run(trainer->eval));
        for (int64_t i = 0; i < policy->B * policy->T; i++)
            exact_sum_add(&sum, row_loss[i]);
        SHOAL_TRY(poll_stop(trainer, stop_out));
        if (*stop_out)
            return SHOAL_OK;
    }
    SHOAL_TRY(
        comm_all_reduce_i64(trainer->comm, (int64_t *)(void *)&sum, sizeof sum / sizeof(int64_t)));
    double loss = exact_sum_value(&sum) / ((double)end * (double)policy->T);
    trainer->val_loss = loss;
    log_line("eval", "%-8lld val %.4f  ppl %.4g  (%llu windows, %.1f s)", (long long)step, loss,
             exp(loss), (unsigned long long)end, clock_seconds() - start);
    if (trainer->metrics == NULL)
        return SHOAL_OK;
    metrics_begin(trainer->metrics, step);
    metrics_text(trainer->metrics, "event", "eval");
    metrics_number(trainer->metrics, "val_loss", loss);
    metrics_integer(trainer->metrics, "windows", (int64_t)end);
    metrics_number(trainer->metrics, "seconds", clock_seconds() - start);
    return metrics_end_event(trainer->metrics);
}

/* Feed one token at `position`; the logits of the next one are then in their slot. */
static shoal_status feed(struct trainer *trainer, int32_t token, int64_t position)
{
    int32_t *input = plan_ref(trainer->build->plan, trainer->build->host_token);

    *input = token;
    trainer->state.position = position;
    return exec_run(trainer->decode);
}

/* Bytes as they are, but nothing that could steer a terminal. */
static size_t append_token(int32_t token, char *text, size_t n, size_t n_bytes)
{
    bool plain = token == '\n' || token == '\t' || (token >= ' ' && token < 256 && token != 127);

    if (n + 2 > n_bytes)
        return n;
    text[n] = (char)(plain ? token : '?');
    text[n + 1] = '\0';
    return n + 1;
}

shoal_status generate(struct trainer *trainer, const struct generation *generation, char *text_out,
                      size_t n_bytes, bool *stop_out)
{
    const struct build *build = trainer->build;
    int64_t V = model_config(trainer->model)->vocab, limit = build->policy.sample_tokens;
    const float *logits = plan_ref(build->plan, build->host_logits);
    void *scratch = plan_ptr(build->plan, build->host_logits.slot, (size_t)V * sizeof(float));
    const unsigned char *prompt = (const unsigned char *)generation->prompt;
    int64_t n_prompt = (int64_t)strlen(generation->prompt), position = 0;
    size_t n = 0;

    *stop_out = false;
    text_out[0] = '\0';
    /* A text begins after the end of another: that is what the model saw in training. */
    int32_t token = BYTE_TOKENIZER_END < V ? BYTE_TOKENIZER_END : 0;
    for (int64_t i = 0; i < n_prompt + generation->n_tokens && position < limit; i++, position++) {
        SHOAL_TRY(feed(trainer, token, position));
        token = i < n_prompt ? prompt[i]
                             : model_sample(logits, V, generation->temperature, generation->top_p,
                                            generation->seed,
                                            generation->stream * 0x100000u + (uint64_t)i, scratch);
        if (i >= n_prompt && token == BYTE_TOKENIZER_END)
            break;
        n = append_token(token, text_out, n, n_bytes);
        if (trainer->comm == NULL)
            continue;
        SHOAL_TRY(poll_stop(trainer, stop_out));
        if (*stop_out)
            break;
    }
    return SHOAL_OK;
}

/* Lines of a sample are indented, so that they cannot be taken for log lines. */
static void log_sample(int64_t step, const char *text)
{
    char label[32];

    snprintf(label, sizeof label, "%-8lld", (long long)step);
    for (const char *line = text; line != NULL;) {
        const char *end = strchr(line, '\n');
        int n = end == NULL ? (int)strlen(line) : (int)(end - line);
        log_line(line == text ? "sample" : "", "%s| %.*s", line == text ? label : "        ", n,
                 line);
        line = end == NULL ? NULL : end + 1;
    }
}

shoal_status evaluate_samples(struct trainer *trainer, int64_t step, bool *stop_out)
{
    const struct config *config = trainer->config;
    char text[CONFIG_TEXT + 8192]; /* the longest prompt and eval.sample_tokens */

    *stop_out = false;
    comm_note(trainer->comm, step, "sampling");
    for (int i = 0; i < config->eval.sample_prompts.n && !*stop_out; i++) {
        struct generation generation = {.prompt = config->eval.sample_prompts.items[i],
                                        .n_tokens = config->eval.sample_tokens,
                                        .temperature = config->eval.sample_temperature,
                                        .top_p = config->eval.sample_top_p,
                                        .seed = config->run.seed,
                                        .stream = (uint64_t)step};
        SHOAL_TRY(generate(trainer, &generation, text, sizeof text, stop_out));
        log_sample(step, text);
        if (trainer->metrics == NULL)
            continue;
        metrics_begin(trainer->metrics, step);
        metrics_text(trainer->metrics, "event", "sample");
        metrics_text(trainer->metrics, "text", text);
        SHOAL_TRY(metrics_end_event(trainer->metrics));
    }
    return SHOAL_OK;
}
