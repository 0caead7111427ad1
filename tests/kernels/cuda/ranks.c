#include "tests/kernels/cuda/ranks.h"

#include "tests/meet_folder.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int gpus_count(void)
{
    int status = 0;
    pid_t pid = fork();

    if (pid == 0) {
        int count = 0;

        _exit(cudaGetDeviceCount(&count) == cudaSuccess ? count : 0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return 0;
    return WEXITSTATUS(status);
}

static int rank_main(const struct ops_config *config, rank_body *body)
{
    float inv_freq[32] = {1.0f};
    const struct ops_model model = {
        .layers = 1,
        .hidden = 128,
        .heads = 1,
        .kv_heads = 1,
        .head_dim = 64,
        .intermediate = 128,
        .vocab_size = 256,
        .vocab_count = 256,
        .norm_eps = 1e-6f,
        .attention_scale = 1.0f,
        .rope_inv_freq = inv_freq,
        .rope_scale = 1.0f,
    };
    struct err err = {0};
    struct device *d;
    int rc = phalanx_backend()->device_open(config, &model, &d, &err);

    if (rc) {
        (void)fprintf(stderr, "rank %u: %s\n", config->rank, err.msg);
        return 1;
    }
    d->type = HALF_BF16;
    rc = body(d);
    phalanx_backend()->device_close(&d);
    return rc;
}

int ranks_run(uint32_t ranks, const struct ops_config *config, unsigned limit_s, rank_body *body)
{
    return ranks_start(ranks, config, limit_s, NULL, body);
}

int ranks_start(uint32_t ranks, const struct ops_config *config, unsigned limit_s,
                rank_start *start, rank_body *body)
{
    char store[] = "/tmp/phalanx-ranks-XXXXXX";
    pid_t pids[PEERS_MAX];
    int failed = 0;

    if (!mkdtemp(store))
        return (int)ranks;
    (void)fflush(stdout);
    for (uint32_t r = 0; r < ranks; r++) {
        pids[r] = fork();
        if (pids[r] == 0) {
            struct ops_config mine = *config;
            struct meet_folder meet;
            int rc;

            (void)alarm(limit_s);
            mine.rank = mine.device_index = r;
            mine.tp_size = ranks;
            mine.comm_meet = meet_folder_init(&meet, store, r, ranks, limit_s);
            rc = start ? start(&mine) : rank_main(&mine, body);
            (void)fflush(stdout);
            _exit(rc ? 1 : 0);
        }
    }
    for (uint32_t r = 0; r < ranks; r++) {
        int status = 0;

        if (pids[r] < 0 || waitpid(pids[r], &status, 0) != pids[r] || status) {
            (void)fprintf(stderr, "rank %u ended with status %x\n", r, (unsigned)status);
            failed++;
        }
    }
    meet_folder_remove(store);
    return failed;
}
