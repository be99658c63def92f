#include "launch/train/train_internal.h"

#include "runtime/base/host.h"
#include "runtime/base/log.h"

#include <stdio.h>
#include <string.h>

/* What people see: the banner and the step line; the same figures go to metrics.jsonl. */

/* 1234567 -> "1.23 M" */
static const char *human(double n, char out[24])
{
    static const char *const units[] = {"", " k", " M", " B", " T"};
    int i = 0;

    while (n >= 1000 && i < 4) {
        n /= 1000;
        i++;
    }
    snprintf(out, 24, i == 0 ? "%.0f%s" : "%.2f%s", n, units[i]);
    return out;
}

static void duration(double seconds, char out[24])
{
    long s = (long)(seconds + 0.5);

    if (s >= 3600)
        snprintf(out, 24, "%ldh%02ldm", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(out, 24, "%ldm%02lds", s / 60, s % 60);
    else
        snprintf(out, 24, "%lds", s);
}

static void report_batch(const struct trainer *trainer)
{
    const struct policy *policy = &trainer->policy;

    log_line("batch", "micro %lld x accum %d x ranks %d x seq %lld = %lld tokens/step",
             (long long)policy->B, policy->A, policy->n_ranks, (long long)policy->T,
             (long long)(policy->global * policy->T));
    log_line("plan", "zero %d  order %s  recompute %s  reduction %s  compute %s  %d threads/rank",
             policy->stage, policy->vertical ? "vertical" : "horizontal",
             recompute_name(policy->recompute), policy->ring ? "ring" : "tree",
             policy->compute == DTYPE_BF16 ? "bf16" : "fp32", pool_size(trainer->pool));
    if (policy->ring && policy->n_ranks > 1)
        log_line("warn", "reduction ring: the transport's own order of sums; losses may differ "
                         "between stages and world sizes");
    if (policy->n_ranks > 1 &&
        ((policy->n_ranks & (policy->n_ranks - 1)) != 0 || (policy->A & (policy->A - 1)) != 0))
        log_line("plan", "ranks and microbatches are not both powers of two: losses are the same "
                         "for every stage, but not for other world sizes");
}

/* What attention runs on is said always, the algorithms of products with --verbose. */
static void report_choice(void *arg, enum op_class op_class, const char *line)
{
    (void)arg;
    if (op_class == OP_CLASS_ATTENTION)
        log_line("ops", "%s", line);
    else
        log_verbose("ops", "%s", line);
}

void report_banner(const struct trainer *trainer)
{
    const struct model_config *model = &trainer->model_config;
    struct data_info info = data_info(trainer->data);
    char cpu[128], n[24], m[24];

    host_cpu_name(cpu, sizeof cpu);
    log_line("shoal", "%s  %s  %s", shoal_version(), comm_library(trainer->comm),
             ops_describe(trainer->ops));
    log_line("ranks", "%d x %s on %d host%s", trainer->policy.n_ranks, cpu,
             comm_host_count(trainer->comm), comm_host_count(trainer->comm) == 1 ? "" : "s");
    if (trainer->policy.separate)
        log_line("device", "%s, transport %s", trainer->device->ops->describe(trainer->device),
                 comm_transport_name(trainer->policy.transport));
    ops_describe_choices(trainer->ops, report_choice, NULL);
    log_line("model", "%s params  %d layers  hidden %d  heads %d/%d  ffn %d  vocab %d%s",
             human((double)model_layout(trainer->model)->n_parameters, n), model->layers,
             model->hidden, model->heads, model->kv_heads, model->ffn, model->vocab,
             model->tied ? "  tied" : "");
    report_batch(trainer);
    train_memory_log_plan(trainer);
    log_line("data", "%llu files, %llu documents (%s), %s tokens to train on, %s held out",
             (unsigned long long)info.n_files, (unsigned long long)info.n_documents,
             data_format_name(info.format), human((double)info.n_tokens[DATA_TRAIN], n),
             human((double)info.n_tokens[DATA_VAL], m));
    log_line("run", "saving to %s", trainer->config->run.out);
}

static double model_flops_utilization(const struct trainer *trainer, double tokens_per_second)
{
    double peak = trainer->config->log.peak_tflops * 1e12 * trainer->policy.n_ranks;

    if (peak <= 0)
        return -1;
    return tokens_per_second * model_flops_per_token(trainer->model, trainer->policy.T) / peak;
}

shoal_status report_step(struct trainer *trainer, int64_t step, int64_t n_steps, double seconds,
                         double lr)
{
    const struct step_state *state = &trainer->state;
    double tokens = (double)trainer->policy.global * (double)trainer->policy.T;
    double per_second = seconds > 0 ? tokens * (double)n_steps / seconds : 0;
    double mfu = model_flops_utilization(trainer, per_second);
    double step_seconds = seconds / (double)n_steps;
    double data = exec_kind_seconds(trainer->step, OP_DATA);
    double comm = exec_lane_seconds(trainer->step, LANE_COMM);
    double span = exec_span_seconds(trainer->step), exposed = exec_exposed_seconds(trainer->step);
    uint64_t memory = host_resident_bytes();
    char rate[24], eta[24], mfu_text[48];

    duration((double)(trainer->config->steps - step) * step_seconds, eta);
    if (mfu >= 0)
        snprintf(mfu_text, sizeof mfu_text, "%.1f%% of %.3g TF", 100 * mfu,
                 trainer->config->log.peak_tflops);
    else
        snprintf(mfu_text, sizeof mfu_text, "n/a");
    log_line("step",
             "%5lld/%lld  loss %.4f  gnorm %.3f  lr %.2e  tok/s %s  mfu %s  mem %.0fM  data "
             "%.1f%%  comm %.1f%%  eta %s",
             (long long)step, (long long)trainer->config->steps, state->loss, state->grad_norm, lr,
             human(per_second, rate), mfu_text, (double)memory / (1 << 20),
             100 * data / (step_seconds > 0 ? step_seconds : 1),
             100 * exposed / (span > 0 ? span : 1), eta);
    if (trainer->metrics == NULL)
        return SHOAL_OK;
    metrics_begin(trainer->metrics, step);
    metrics_integer(trainer->metrics, "tokens", (int64_t)trainer->consumed_tokens);
    metrics_number(trainer->metrics, "loss", state->loss);
    metrics_number(trainer->metrics, "grad_norm", state->grad_norm);
    metrics_number(trainer->metrics, "lr", lr);
    metrics_number(trainer->metrics, "tok_s", per_second);
    if (mfu >= 0)
        metrics_number(trainer->metrics, "mfu", mfu);
    metrics_integer(trainer->metrics, "mem_host", (int64_t)memory);
    metrics_number(trainer->metrics, "t_step", step_seconds);
    metrics_number(trainer->metrics, "t_data", data);
    metrics_number(trainer->metrics, "t_comm", comm);
    metrics_number(trainer->metrics, "exposed_comm", span > 0 ? exposed / span : 0);
    struct comm_ledger ledger = comm_ledger_read(trainer->comm);
    metrics_integer(trainer->metrics, "gather_calls", (int64_t)ledger.all_gather_calls);
    metrics_integer(trainer->metrics, "gather_bytes", (int64_t)ledger.all_gather_bytes);
    metrics_integer(trainer->metrics, "reduce_calls", (int64_t)ledger.reduce_scatter_calls);
    metrics_integer(trainer->metrics, "reduce_bytes", (int64_t)ledger.reduce_scatter_bytes);
    return metrics_end(trainer->metrics);
}
