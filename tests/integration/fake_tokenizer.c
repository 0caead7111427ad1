/* Stands in for the tokenizer and everything behind it, so that the gateway can be tested alone:
 * binds the bus, answers every GENERATE by the rules below and prints what it was sent.
 *
 * usage: fake_tokenizer ENDPOINT [MAX_RUNNING]
 *
 * Choice c of a request gets the tokens "t0 ", "t1 ", ... (ids 100, 101, ...), one a millisecond,
 * max_tokens of them (8 when unlimited), from where GENERATE.resumed says. Those of a request in
 * PAUSE wait. Words in the prompt change that:
 *   @hang       no token ever        @fail=N     FAILED with status N
 *   @stop=N     FINISH_STOP after N  @error=N    FINISH_ERROR after N
 *   @burst=N    N tokens of 1,000 bytes each in every CHUNKS message
 *   @die=N      the process ends after N tokens, unless it was resumed
 *   @deaf       PAUSE is ignored
 *   @hostile    tokens of newlines, quotes and U+2028
 * SIGUSR1 turns "ready" off and on again. */
#include "common/mem.h"
#include "proto/bus.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROMPT_TOKENS 7
#define CACHED_TOKENS 3

struct run {
    struct run *next;
    uint64_t rid;
    uint32_t n, emitted, max, stop, error, die, burst;
    bool hang, hostile, deaf, paused;
    uint32_t got[128]; /* tokens that choices have from an earlier process; UINT32_MAX: ended */
    int64_t logprobs;
    char *echo; /* owned; NULL: none */
};

struct fake {
    uv_loop_t loop;
    uv_timer_t tick;
    uv_signal_t toggle, end;
    struct bus *bus;
    struct bus_peer *peer;
    struct run *runs;
    struct proto_state state;
};

static uint32_t word_value(const char *text, const char *word)
{
    const char *at = strstr(text, word);

    return at ? (uint32_t)strtoul(at + strlen(word), NULL, 10) : 0;
}

static void say(const struct proto_header *header, const void *message)
{
    struct buf line = {0};

    proto_dump(header, message, &line);
    printf("%s\n", line.data ? line.data : "");
    fflush(stdout);
    buf_fini(&line);
}

static void send_state(struct fake *f)
{
    if (f->peer && bus_send(f->peer, PROTO_STATE, 0, &f->state, NULL))
        fprintf(stderr, "STATE was not sent\n");
}

static void on_generate(struct fake *f, uint64_t rid, const struct proto_generate *g)
{
    struct run *run = mem_zalloc(sizeof *run);
    char *text = proto_strdup(g->text);
    uint32_t status = word_value(text, "@fail=");
    struct proto_failed failed = {.status = status,
                                  .message = proto_str("scripted failure"),
                                  .param = proto_str("prompt"),
                                  .code = proto_str("scripted")};

    run->rid = rid;
    run->n = g->n;
    run->max = g->sampling.max_tokens ? g->sampling.max_tokens : 8;
    run->stop = word_value(text, "@stop=");
    run->error = word_value(text, "@error=");
    run->die = g->resumed_count ? 0 : word_value(text, "@die=");
    run->burst = word_value(text, "@burst=");
    run->hang = strstr(text, "@hang") != NULL;
    run->deaf = strstr(text, "@deaf") != NULL;
    run->hostile = strstr(text, "@hostile") != NULL;
    run->logprobs = g->sampling.logprobs;
    for (uint32_t i = 0; i < g->resumed_count; i++)
        run->got[g->resumed[i].choice] = g->resumed[i].ended ? UINT32_MAX : g->resumed[i].ids_count;
    run->echo = g->echo ? text : NULL;
    if (!g->echo)
        free(text);
    if (status) {
        (void)bus_send(f->peer, PROTO_FAILED, rid, &failed, NULL);
        free(run->echo);
        free(run);
        return;
    }
    run->next = f->runs;
    f->runs = run;
}

static void run_pause(struct fake *f, uint64_t rid, bool paused)
{
    for (struct run *run = f->runs; run; run = run->next)
        if (run->rid == rid)
            run->paused = paused && !run->deaf;
}

static void run_drop(struct fake *f, uint64_t rid)
{
    for (struct run **at = &f->runs; *at; at = &(*at)->next) {
        struct run *run = *at;

        if (run->rid != rid)
            continue;
        *at = run->next;
        free(run->echo);
        free(run);
        return;
    }
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    struct fake *f = ctx;

    (void)peer;
    say(header, message);
    if (header->type == PROTO_GENERATE)
        on_generate(f, header->id, message);
    else if (header->type == PROTO_ABORT)
        run_drop(f, header->id);
    else if (header->type == PROTO_PAUSE)
        run_pause(f, header->id, ((const struct proto_pause *)message)->paused);
}

static void on_up(void *ctx, struct bus_peer *peer)
{
    struct fake *f = ctx;
    uint64_t buckets[3] = {1, 2, 0};
    struct proto_stat stats[] = {
        {.name = proto_str("kv_pages_free"), .value = 42},
        {.name = proto_str("step_time_seconds"),
         .value = 1.5,
         .buckets = buckets,
         .buckets_count = 3},
        {.name = proto_str("no_such_metric"), .value = 1},
    };
    struct proto_source source = {
        .name = proto_str("scheduler-0"), .stats = stats, .stats_count = 3};
    struct proto_stats message = {.sources = &source, .sources_count = 1};

    f->peer = peer;
    send_state(f);
    (void)bus_send(peer, PROTO_STATS, 0, &message, NULL);
}

static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct fake *f = ctx;

    (void)peer;
    (void)reason;
    f->peer = NULL;
    while (f->runs)
        run_drop(f, f->runs->rid);
}

/* The text of one token; lives until the next call. */
static struct proto_str token_text(const struct run *run, uint32_t index)
{
    static char text[1024];

    if (run->burst)
        (void)snprintf(text, sizeof text, "%-999u ", index);
    else if (run->hostile)
        (void)snprintf(text, sizeof text, "\n\"\\\r\ndata: x\n\n\xe2\x80\xa8");
    else
        (void)snprintf(text, sizeof text, "t%u ", index);
    return proto_str(text);
}

static void choice_send(struct fake *f, const struct run *run, uint32_t choice)
{
    uint32_t index = run->emitted, id = 100 + index;
    struct proto_alternative top[20];
    struct proto_str text = token_text(run, index);
    struct proto_logprob lp = {.id = id, .logprob = -0.5, .text = text, .top = top};
    struct proto_chunk chunk = {.rid = run->rid,
                                .choice = choice,
                                .ids = &id,
                                .ids_count = 1,
                                .stop_id = -1,
                                .prompt_tokens = PROMPT_TOKENS,
                                .completion_tokens = index + 1,
                                .cached_tokens = CACHED_TOKENS};
    struct proto_chunks message = {.chunks = &chunk, .chunks_count = 1};
    struct buf whole = {0};

    for (uint32_t k = 0; run->logprobs > 0 && k < (uint32_t)run->logprobs; k++)
        top[k] = (struct proto_alternative){
            .id = id + k, .logprob = -0.5 - k, .text = k ? proto_str("other") : text};
    lp.top_count = run->logprobs > 0 ? (uint32_t)run->logprobs : 0;
    if (run->logprobs >= 0) {
        chunk.logprobs = &lp;
        chunk.logprobs_count = 1;
    }
    if (run->echo && !index)
        buf_puts(&whole, run->echo);
    buf_append(&whole, text.data, text.len);
    chunk.text = (struct proto_str){whole.data, whole.len};
    if (index + 1 == run->error) {
        chunk.finish = FINISH_ERROR;
    } else if (index + 1 == run->stop) {
        chunk.finish = FINISH_STOP;
        chunk.stop_text = proto_str("END");
    } else if (index + 1 == run->max) {
        chunk.finish = FINISH_LENGTH;
    }
    (void)bus_send(f->peer, PROTO_CHUNKS, 0, &message, NULL);
    buf_fini(&whole);
}

static bool run_over(const struct run *run)
{
    return run->emitted == run->max || (run->stop && run->emitted == run->stop) ||
           (run->error && run->emitted == run->error);
}

static void on_tick(uv_timer_t *timer)
{
    struct fake *f = timer->data;

    for (struct run *run = f->runs, *next; run && f->peer; run = next) {
        uint32_t burst = run->burst ? run->burst : 1;

        next = run->next;
        for (uint32_t i = 0; i < burst && !run->hang && !run->paused && !run_over(run); i++) {
            for (uint32_t c = 0; c < run->n; c++)
                if (run->emitted >= run->got[c])
                    choice_send(f, run, c);
            run->emitted++;
        }
        if (run->die && run->emitted == run->die)
            _Exit(0);
        if (run_over(run))
            run_drop(f, run->rid);
    }
}

static void on_toggle(uv_signal_t *handle, int number)
{
    struct fake *f = handle->data;

    (void)number;
    f->state.ready = !f->state.ready;
    f->state.reason = proto_str(f->state.ready ? "" : "recovering");
    send_state(f);
}

static void on_end(uv_signal_t *handle, int number)
{
    (void)number;
    uv_stop(handle->loop);
}

int main(int argc, char **argv)
{
    static struct fake fake;
    struct err err = {0};
    struct bus_config config = {
        .loop = &fake.loop,
        .role = "tokenizer",
        .name = "tokenizer-0",
        .endpoint = argc > 1 ? argv[1] : "",
        .accepts = "gateway",
        .on = {.on_up = on_up, .on_message = on_message, .on_down = on_down},
        .ctx = &fake,
    };

    fake.state = (struct proto_state){.ready = true,
                                      .vocab_size = 1000,
                                      .context_length = 4096,
                                      .page_size = 16,
                                      .num_pages = 64,
                                      .tp_size = 1,
                                      .device = proto_str("null")};
    fake.state.max_running = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 16;
    (void)uv_loop_init(&fake.loop);
    (void)uv_timer_init(&fake.loop, &fake.tick);
    (void)uv_signal_init(&fake.loop, &fake.toggle);
    (void)uv_signal_init(&fake.loop, &fake.end);
    fake.tick.data = fake.toggle.data = fake.end.data = &fake;
    if (bus_bind(&config, &fake.bus, &err)) {
        fprintf(stderr, "fake_tokenizer: %s\n", err.msg);
        return 1;
    }
    (void)uv_timer_start(&fake.tick, on_tick, 1, 1);
    (void)uv_signal_start(&fake.toggle, on_toggle, SIGUSR1);
    (void)uv_signal_start(&fake.end, on_end, SIGTERM);
    (void)uv_run(&fake.loop, UV_RUN_DEFAULT);
    _Exit(0); /* what the kernel frees anyway */
}
