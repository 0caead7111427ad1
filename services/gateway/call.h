/* A generating request while it runs: its prompts on the bus, its choices, its answer. */
#ifndef PHALANX_GATEWAY_CALL_H
#define PHALANX_GATEWAY_CALL_H

#include "services/gateway/conn.h"
#include "services/gateway/params.h"

#include <sys/queue.h>

struct dialect;

#define CALL_LISTS 4

/* What a choice has produced: of a stream since its last event (or since its start where events
 * are cumulative), otherwise since its start. */
struct call_choice {
    struct buf text;
    struct buf ids;               /* "5,17,3" */
    struct buf lists[CALL_LISTS]; /* log probabilities as the dialect writes them */
    uint32_t finish;              /* enum proto_finish */
    uint32_t tokens;              /* so far */
    uint32_t prompt_seen;         /* tokens of the prompt with log probabilities */
    uint32_t chars;               /* code points of the tokens' texts with log probabilities */
    int64_t stop_id;              /* -1: none */
    char *stop_text;              /* owned; NULL: none */
    int64_t last_us;              /* of its last token; 0: none yet */
    uint8_t *seen;                /* owned; all its ids since its start, as LEB128, */
    uint32_t seen_len, seen_cap, seen_count;
    uint64_t text_bytes; /* and how much text there was */
    bool begun;          /* a first event was written */
    bool held;           /* something is not written yet */
    bool ended;
};

/* One prompt. */
struct call_part {
    uint64_t rid;              /* on the bus; 0: over, or it waits for a tokenizer */
    struct backend_link *link; /* while rid is not 0: who has it */
    char *message;             /* owned; the encoded GENERATE, until it is over */
    size_t message_len;
    uint32_t replays; /* how often it was sent again */
    uint32_t prompt_tokens, cached_tokens;
    uint32_t open; /* choices not ended */
};

struct call {
    struct gateway *gw;
    struct conn *conn;
    const struct dialect *dialect;
    char id[48];
    bool stream, include_usage, logprobs, return_ids;
    bool listed;  /* /generate: the answer is a list */
    bool begun;   /* the stream's head is out */
    bool paused;  /* the reader is behind: choices hold what they got */
    bool behind;  /* likewise, and the tokenizer was told to pause */
    bool waiting; /* in gw->waiting: some part waits for a tokenizer */
    bool queued;  /* likewise, from its start on: in gw->queued_count */
    TAILQ_ENTRY(call) waiting_at;
    uint32_t n;
    uint32_t parts_count, choices_count;
    uint32_t open; /* choices not ended */
    struct call_part *parts;
    struct call_choice *choices; /* part * n + i */
    struct buf head;             /* what every event begins with, made by the dialect */
    size_t held_bytes;           /* of a paused stream */
    int64_t created_s;
    int64_t started_us, deadline_us, first_us;
};

/* How an endpoint reads requests and writes answers. */
struct dialect {
    struct params_kind params;
    const char *id_prefix;
    bool cumulative; /* events repeat everything */
    bool probe;      /* /health_generate: short deadline, failures are 503 */
    void (*open)(struct call *call, const char *model, const char *fingerprint); /* fills head */
    /* Appends to the choice's lists. */
    void (*logprobs)(const struct call *call, struct call_choice *choice,
                     const struct proto_logprob *logprobs, uint32_t count);
    /* Likewise the prompt's tokens, from choice->prompt_seen on. NULL: never asked for. */
    void (*prompt_logprobs)(const struct call *call, struct call_choice *choice,
                            const struct proto_logprob *logprobs, uint32_t count);
    /* Appends the events for what the choice holds. */
    void (*event)(const struct call *call, uint32_t index, struct buf *out);
    void (*tail)(const struct call *call, struct buf *out);
    void (*result)(const struct call *call, struct buf *out);
    /* What openai_result() can not know: text and log probabilities of a choice. */
    void (*choice)(const struct call *call, const struct call_choice *choice, struct buf *out);
};

extern const struct dialect dialect_chat, dialect_completions, dialect_generate;

/* The whole handler of a generating endpoint: reads the body, refuses or starts. */
void call_serve(struct conn *c, const struct dialect *dialect);

/* Sends the prompts; params' memory may go afterwards. Refuses on the connection itself. */
void call_start(struct conn *c, const struct dialect *dialect, struct params *params);

/* Events. After each the call may be gone. */
void call_chunk(struct call *call, uint32_t part, const struct proto_chunk *chunk, int64_t now_us);
void call_fail(struct call *call, const struct problem *problem);
void call_resume(struct call *call); /* the reader took what waited */
void call_expire(struct call *call);

/* Its tokenizer is gone: what that had is sent to another, or waits. The call may be gone. */
void call_lost(struct call *call, const struct backend_link *link);

/* Sends a part for the first time, or lets it wait. -1 with the problem. */
int call_send(struct call *call, const struct params *params, uint32_t index,
              struct problem *problem);
/* A tokenizer is ready: sends all that waits. */
void calls_resume(struct gateway *gw);
void call_wait_end(struct call *call);

/* The tokenizer knows no more of that prompt: it may be sent again, or it is over. */
void call_part_unlink(struct call *call, uint32_t index);
void call_part_over(struct call *call, uint32_t index);

/* Tells the tokenizers that nobody waits any more. */
void call_abort_parts(struct call *call, const char *why);

/* Has the tokens of a stream pause when the kernel takes no more of it and some bytes wait here,
 * and go on when it has taken all: a reader that keeps up costs no message. */
void call_pace(struct call *call);

/* The client went away: no answer. */
void call_cancel(struct call *call, const char *why);

/* Parts without sockets, for the renderers and their tests. */
void call_init(struct call *call, const struct dialect *dialect, const struct params *params,
               const char *id, const char *model, const char *fingerprint);
void call_fini(struct call *call);
/* The ids that a choice has brought so far, choice->seen_count of them; the caller frees them. */
uint32_t *call_choice_ids(const struct call_choice *choice);
void call_choice_add(struct call *call, uint32_t part, const struct proto_chunk *chunk);

#endif
