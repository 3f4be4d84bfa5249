/* Times llama.cpp through its C interface, as llama-bench does: random valid tokens, one warm-up run, no sampling.
 *
 *   llama_cpp MODEL THREADS PROMPT_TOKENS GEN_TOKENS DEPTH REPETITIONS     seconds of each run
 *   llama_cpp MODEL THREADS first-token TOKEN...                            load, evaluate, print the best next token
 *
 * One JSON object on standard output. Settings are llama.cpp's defaults: mmap, repacked weights, automatic flash
 * attention, f16 KV cache, micro-batch 512. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "llama.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static void die(const char *what) {
    fprintf(stderr, "llama_cpp: %s\n", what);
    exit(1);
}

static int number(const char *text) {
    char *end;
    long value = strtol(text, &end, 10);
    if (*text == 0 || *end != 0 || value < 0 || value > 1 << 30) die("arguments are numbers from 0");
    return (int)value;
}

static uint64_t state = 1;

/* SplitMix64. */
static llama_token random_token(int n_vocab) {
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (llama_token)((z ^ (z >> 31)) % (uint64_t)n_vocab);
}

static void decode(struct llama_context *ctx, llama_token *tokens, int count) {
    if (llama_decode(ctx, llama_batch_get_one(tokens, count)) != 0) die("llama_decode failed");
}

/* Evaluates `count` tokens behind those in the cache, in batches as llama-bench's. */
static void prompt(struct llama_context *ctx, int n_vocab, int count) {
    enum { BATCH = 2048 };
    static llama_token tokens[BATCH];
    while (count > 0) {
        int step = count < BATCH ? count : BATCH;
        for (int i = 0; i < step; i++) tokens[i] = random_token(n_vocab);
        decode(ctx, tokens, step);
        count -= step;
    }
    llama_synchronize(ctx);
}

static void generate(struct llama_context *ctx, int n_vocab, int count) {
    for (int i = 0; i < count; i++) {
        llama_token token = random_token(n_vocab);
        decode(ctx, &token, 1);
        llama_synchronize(ctx);
    }
}

/* The process's largest resident memory, mapped files included. */
static void print_peak_memory(void) {
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    unsigned long long kib;
    while (status != NULL && fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "VmHWM: %llu", &kib) == 1) printf(", \"peak_memory_bytes\": %llu", kib * 1024);
    if (status != NULL) fclose(status);
}

/* Takes the cache back to the first `depth` tokens. */
static void back_to(struct llama_context *ctx, int depth) {
    if (!llama_memory_seq_rm(llama_get_memory(ctx), 0, depth, -1)) die("the cache cannot go back");
}

static void repeat(struct llama_context *ctx, const char *name, int n_vocab, int count, int depth, int repetitions,
                   void (*run)(struct llama_context *, int, int)) {
    printf(", \"%s\": [", name);
    for (int r = 0; count > 0 && r <= repetitions; r++) {
        back_to(ctx, depth);
        double start = now();
        run(ctx, n_vocab, count);
        /* The first run warms up. */
        if (r > 0) printf("%s%.9f", r > 1 ? ", " : "", now() - start);
    }
    printf("]");
}

int main(int argc, char **argv) {
    double start = now();
    if (argc < 5) die("usage: MODEL THREADS PROMPT GEN DEPTH REPETITIONS, or MODEL THREADS first-token TOKEN...");
    int first_token = strcmp(argv[3], "first-token") == 0;
    if (!first_token && argc != 7) die("wanted PROMPT GEN DEPTH REPETITIONS");
    int threads = number(argv[2]);
    llama_log_set(quiet, NULL);
    llama_backend_init();

    struct llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers = 0;
    struct llama_model *model = llama_model_load_from_file(argv[1], mparams);
    if (model == NULL) die("the model cannot be loaded");
    int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));

    int n_prompt = 0, n_gen = 0, depth = 0, repetitions = 0;
    if (!first_token) {
        n_prompt = number(argv[3]);
        n_gen = number(argv[4]);
        depth = number(argv[5]);
        repetitions = number(argv[6]);
    }
    struct llama_context_params cparams = llama_context_default_params();
    int wanted = depth + (n_prompt > n_gen ? n_prompt : n_gen);
    /* First token: the context that moe-run allocates by default. */
    cparams.n_ctx = (uint32_t)(first_token ? 4096 : wanted);
    cparams.n_batch = 2048;
    cparams.n_ubatch = 512;
    cparams.n_threads = cparams.n_threads_batch = threads;
    struct llama_context *ctx = llama_init_from_model(model, cparams);
    if (ctx == NULL) die("the context cannot be made");
    printf("{\"load_seconds\": %.6f", now() - start);

    if (first_token) {
        int count = argc - 4;
        llama_token *tokens = malloc(sizeof *tokens * (size_t)count);
        if (tokens == NULL) die("no memory");
        for (int i = 0; i < count; i++) tokens[i] = number(argv[4 + i]);
        decode(ctx, tokens, count);
        const float *logits = llama_get_logits_ith(ctx, -1);
        int best = 0;
        for (int i = 1; i < n_vocab; i++)
            if (logits[i] > logits[best]) best = i;
        printf(", \"token\": %d, \"first_token_seconds\": %.6f", best, now() - start);
        free(tokens);
    } else {
        prompt(ctx, n_vocab, depth);
        repeat(ctx, "prompt_seconds", n_vocab, n_prompt, depth, repetitions, prompt);
        repeat(ctx, "generation_seconds", n_vocab, n_gen, depth, repetitions, generate);
    }
    print_peak_memory();
    printf("}\n");
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
