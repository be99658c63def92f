#include "runtime/device/device.h"
#include "tests/train/rig.h"
#include "tests/world/run.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

/* Bad input and broken worlds: the right exit code, a message that names the thing, in seconds. */

static const char *directory;

static void setup(void)
{
    directory = rig_directory();
}

static void teardown(void)
{
    rig_cleanup(directory);
}

TestSuite(faults, .init = setup, .fini = teardown);

static void expect(int ranks, const char *const *words, int code, const char *text)
{
    int rc = rig_train(directory, "run", ranks, words);

    cr_assert_eq(rc, code, "exit %d, want %d\n%s", rc, code, rig_log());
    cr_assert_not_null(strstr(rig_log(), text), "\"%s\" is not in\n%s", text, rig_log());
    cr_assert_not_null(strstr(rig_log(), "hint: "), "no hint\n%s", rig_log());
    cr_assert_lt(rig_seconds(), 30); /* it ends: no waiting for a time-out */
}

static void write_file(const char *name, const void *data, size_t n)
{
    char path[200];

    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *out = fopen(path, "w");
    cr_assert_not_null(out);
    fwrite(data, 1, n, out);
    fclose(out);
}

static const char *word(const char *key, const char *file)
{
    static char text[4][256];
    static int turn;
    char *out = text[turn++ % 4];

    snprintf(out, sizeof text[0], "%s=%s/%s", key, directory, file);
    return out;
}

Test(faults, missing_data_file)
{
    expect(2, (const char *[]){word("data.train", "absent.txt"), NULL}, 66, "absent.txt");
}

Test(faults, empty_data_file)
{
    write_file("empty.txt", "", 0);
    expect(2, (const char *[]){word("data.train", "empty.txt"), NULL}, 65, "empty.txt");
}

Test(faults, truncated_token_file)
{
    int32_t header[256] = {20240520, 1, 1000};
    char tokens[1024 + 500] = {0};

    memcpy(tokens, header, sizeof header);
    write_file("cut.bin", tokens, sizeof tokens);
    expect(2, (const char *[]){word("data.train", "cut.bin"), "data.tokenizer=none", NULL}, 65,
           "cut.bin");
}

Test(faults, token_id_beyond_the_vocabulary)
{
    uint16_t tokens[4096] = {0};

    tokens[3000] = 257;
    write_file("ids.bin", tokens, sizeof tokens);
    expect(2, (const char *[]){word("data.train", "ids.bin"), "data.tokenizer=none", NULL}, 65,
           "257");
}

Test(faults, sequence_longer_than_the_data)
{
    write_file("short.txt", "too short", 9);
    expect(2, (const char *[]){word("data.train", "short.txt"), NULL}, 65, "10 tokens");
}

Test(faults, global_batch_that_ranks_cannot_share)
{
    expect(2, (const char *[]){"batch.global=6", NULL}, 78, "batch.global");
}

Test(faults, heads_that_do_not_divide)
{
    expect(2, (const char *[]){"model.heads=5", NULL}, 78, "model.heads");
}

Test(faults, kv_heads_that_do_not_divide)
{
    expect(1, (const char *[]){"model.kv_heads=3", NULL}, 78, "model.kv_heads");
}

Test(faults, heads_that_attention_cannot_compute)
{
    const char *odd[] = {"model.hidden=36", "model.heads=4", "model.position=learned", NULL};
    const char *large[] = {"model.hidden=1032", "model.heads=4", NULL};

    expect(1, odd, 78, "model.head_size");
    expect(1, large, 78, "model.head_size");
}

Test(faults, an_epilogue_that_recomputation_cannot_repeat)
{
    expect(1, (const char *[]){"run.epilogue=full", NULL}, 78, "parallel.recompute: selective");
}

Test(faults, steps_of_more_tokens_than_can_be_summed)
{
    expect(1, (const char *[]){"batch.global_tokens=9007199254740992", NULL}, 78, "tokens a step");
    expect(1, (const char *[]){"batch.global=1048576", NULL}, 78, "microbatches per rank");
}

Test(faults, trace_that_cannot_be_written_is_found_before_the_first_step)
{
    expect(2, (const char *[]){word("log.trace", "absent/trace"), NULL}, 73, "absent/trace.rank");
    cr_assert_null(strstr(rig_log(), "step "), "%s", rig_log());
}

Test(faults, resuming_from_a_step_that_is_not_there)
{
    expect(2, (const char *[]){"checkpoint.resume=7", NULL}, 66, "step-000000000007");
    expect(2, (const char *[]){word("model.from", "absent"), NULL}, 66, "absent");
}

Test(faults, empty_output_directory)
{
    expect(1, (const char *[]){"run.out=", NULL}, 78, "run.out: is empty");
}

Test(faults, texts_end_where_the_positions_do)
{
    char run[200];
    const char *words[] = {"eval.sample_every=2", "eval.sample_tokens=100",
                           "eval.sample_prompts=[\"fish\"]", NULL};

    cr_assert_eq(rig_train(directory, "run", 2, rig_words(rig_llama, words)), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "| fish"), "%s", rig_log());
    snprintf(run, sizeof run, "%s/run", directory);
    const char *const sample[] = {"sample", run, "--tokens", "500", NULL};
    cr_assert_eq(rig_shoal(sample), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "32 positions"), "%s", rig_log());
}

/* Prompts are bytes: with ids of 64 tokens a letter would be read behind the embedding's end. */
Test(faults, vocabularies_smaller_than_bytes_give_no_samples)
{
    uint16_t tokens[4096] = {0};
    char run[200];
    const char *words[] = {word("data.train", "ids.bin"), "model.vocab=64", "eval.sample_every=1",
                           "eval.sample_prompts=[\"fish\"]", NULL};

    write_file("ids.bin", tokens, sizeof tokens);
    cr_assert_eq(rig_train(directory, "run", 1, rig_words(rig_llama, words)), 0, "%s", rig_log());
    cr_assert_null(strstr(rig_log(), "sample  "), "%s", rig_log());
    snprintf(run, sizeof run, "%s/run", directory);
    const char *const sample[] = {"sample", run, "--prompt", "fish", NULL};
    cr_assert_eq(rig_shoal(sample), 65, "%s", rig_log());
}

Test(faults, output_directory_that_cannot_be_made)
{
    write_file("file", "x", 1);
    expect(2, (const char *[]){word("run.out", "file/below"), NULL}, 73, "file/below");
}

Test(faults, another_device)
{
    if (strcmp(device_auto_name(), "cuda") == 0)
        cr_skip_test("this machine has a GPU");
    expect(1, (const char *[]){"run.device=cuda", NULL}, 69, "cuda");
}

Test(faults, config_that_differs_between_ranks)
{
    char config[200], data[200], out[200], output[16384];
    const char *shoal = SHOAL_BUILD_DIR "/bin/shoal";

    snprintf(config, sizeof config, "%s/tiny.yaml", directory);
    snprintf(data, sizeof data, "data.train=%s/data.txt", directory);
    snprintf(out, sizeof out, "run.out=%s/run", directory);
    const char *argv[] = {"mpirun",
                          "-n",
                          "1",
                          shoal,
                          "train",
                          config,
                          data,
                          out,
                          ":",
                          "-n",
                          "1",
                          shoal,
                          "train",
                          config,
                          data,
                          out,
                          "optimizer.lr=1e-4",
                          NULL};
    int rc = run_command(argv, 30, output, sizeof output, NULL);
    cr_assert_eq(rc, 78, "exit %d\n%s", rc, output);
    cr_assert_not_null(strstr(output, "lr"), "%s", output);
    cr_assert_not_null(strstr(output, "rank 1"), "%s", output);
}

Test(faults, rank_killed_is_named_and_all_end)
{
    setenv("SHOAL_FAULT", "kill:3:1", 1);
    int rc = rig_train(directory, "run", 4, (const char *[]){"steps=50", NULL});
    unsetenv("SHOAL_FAULT");
    cr_assert_neq(rc, 0);
    cr_assert_not_null(strstr(rig_log(), "rank 1"), "%s", rig_log());
    cr_assert_lt(rig_seconds(), 30);
}

Test(faults, rank_stopped_is_named_and_all_end)
{
    setenv("SHOAL_FAULT", "stop:3:1", 1);
    int rc = rig_train(directory, "run", 4, (const char *[]){"steps=50", "comm.timeout=2", NULL});
    unsetenv("SHOAL_FAULT");
    cr_assert_eq(rc, 69, "exit %d\n%s", rc, rig_log());
    cr_assert_not_null(strstr(rig_log(), "rank 1"), "%s", rig_log());
    cr_assert_lt(rig_seconds(), 30);
}

/* Gradients of one rank become NaN at step 3, in every stage and precision. */
Test(faults, gradients_that_are_not_finite_stop_with_76)
{
    setenv("SHOAL_FAULT", "nan:3:1", 1);
    for (int stage = 0; stage <= 3; stage++) {
        char zero[32];
        snprintf(zero, sizeof zero, "parallel.zero=%d", stage);
        expect(2, rig_words(rig_gpt, (const char *[]){zero, NULL}), 76, "step 3");
        expect(2, rig_words(rig_llama, (const char *[]){zero, "precision.compute=bf16", NULL}), 76,
               "not finite");
    }
    unsetenv("SHOAL_FAULT");
}

Test(faults, a_skipped_step_leaves_weights_and_state_untouched)
{
    setenv("SHOAL_FAULT", "nan:3:1", 1);
    for (int stage = 0; stage <= 3; stage++) {
        char zero[32], path[200], before[256];
        const char *words[] = {zero, "optimizer.on_nonfinite=skip", "checkpoint.every=1",
                               "checkpoint.keep=0", NULL};
        const char *const show[] = {"ckpt", "show", "--hash", path, NULL};

        snprintf(zero, sizeof zero, "parallel.zero=%d", stage);
        cr_assert_eq(rig_train(directory, "run", 2, rig_words(rig_gpt, words)), 0, "%s", rig_log());
        cr_assert_not_null(strstr(rig_log(), "weights untouched"), "%s", rig_log());
        snprintf(path, sizeof path, "%s/run/checkpoints/step-%012d", directory, 2);
        cr_assert_eq(rig_shoal(show), 0, "%s", rig_log());
        snprintf(before, sizeof before, "%s", rig_log());
        snprintf(path, sizeof path, "%s/run/checkpoints/step-%012d", directory, 3);
        cr_assert_eq(rig_shoal(show), 0, "%s", rig_log());
        cr_assert_str_eq(before, rig_log());
        snprintf(path, sizeof path, "%s/run", directory);
        rig_cleanup(path);
    }
    unsetenv("SHOAL_FAULT");
}

static void newest_file(char path[256])
{
    snprintf(path, 256, "%s/run/checkpoints/step-%012d/rank-00001.h5", directory, 4);
}

Test(faults, checkpoint_with_a_flipped_bit)
{
    char path[256];
    unsigned char byte = 0;

    cr_assert_eq(rig_train(directory, "run", 2, rig_llama), 0, "%s", rig_log());
    newest_file(path);
    int fd = open(path, O_RDWR);
    cr_assert_geq(fd, 0, "%s", path);
    off_t middle = lseek(fd, 0, SEEK_END) * 3 / 4;
    cr_assert_eq(pread(fd, &byte, 1, middle), 1);
    byte ^= 0x10;
    cr_assert_eq(pwrite(fd, &byte, 1, middle), 1);
    close(fd);
    expect(2, rig_words(rig_llama, (const char *[]){"steps=6", NULL}), 65, "rank-00001.h5");
}

Test(faults, checkpoint_cut_short_falls_back_to_the_one_before)
{
    char path[256];
    const char *words[] = {"checkpoint.every=2", NULL};

    cr_assert_eq(rig_train(directory, "run", 2, rig_words(rig_llama, words)), 0, "%s", rig_log());
    newest_file(path);
    cr_assert_eq(truncate(path, 1000), 0);
    cr_assert_eq(rig_train(directory, "run", 2, rig_words(rig_llama, words)), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "continuing after step 2"), "%s", rig_log());
}

Test(faults, checkpoint_of_another_model)
{
    cr_assert_eq(rig_train(directory, "run", 2, rig_llama), 0, "%s", rig_log());
    expect(2, rig_words(rig_llama, (const char *[]){"model.hidden=64", "steps=6", NULL}), 65,
           "another model");
}

Test(faults, disk_full_while_saving_leaves_the_last_checkpoint)
{
    char small[128], out[160], hash[256];

    snprintf(small, sizeof small, "%s/small", directory);
    cr_assert_eq(mkdir(small, 0755), 0);
    if (mount("tmpfs", small, "tmpfs", 0, "size=1m") != 0)
        cr_skip_test("cannot mount a tmpfs here");
    snprintf(out, sizeof out, "run.out=%s/run", small);
    const char *words[] = {out, "steps=6", "checkpoint.every=1", "checkpoint.keep=0", NULL};
    int rc = rig_train(directory, "run", 2, rig_words(rig_llama, words));
    int shown =
        rig_shoal((const char *[]){"ckpt", "show", "--hash", out + strlen("run.out="), NULL});
    snprintf(hash, sizeof hash, "%s", rig_log());
    umount(small);
    cr_assert_eq(rc, 74, "exit %d", rc);
    cr_assert_eq(shown, 0, "%s", hash);
}
