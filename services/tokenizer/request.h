/* Requests and their sequences inside the tokenizer process. */
#ifndef PHALANX_TOKENIZER_REQUEST_H
#define PHALANX_TOKENIZER_REQUEST_H

#include "proto/bus.h"
#include "services/tokenizer/chat.h"
#include "services/tokenizer/detok.h"
#include "services/tokenizer/replicas.h"
#include "services/tokenizer/tokenizer.h"

#include <uthash.h>
#include <uv.h>

#define COUNT(NAME, high, what) NAME = (high),
enum request_limit {
#include "proto/limits.def"
};

struct service;
struct request;

/* One choice of a request: a sequence of the scheduler. */
struct sequence {
    uint64_t sid;
    struct request *request;
    uint32_t choice;
    struct detok detok;
    struct ids ids;  /* its tokens so far: what another scheduler goes on from */
    uint32_t scored; /* prompt tokens whose log probabilities are passed on */
    bool live;       /* the scheduler may still send tokens */
    bool ended;      /* its last chunk is out */
    UT_hash_handle hh;
};

struct request_key {
    struct bus_peer *gateway;
    uint64_t rid;
};

struct request {
    struct service *service;
    struct request_key key;
    struct proto_generate generate; /* its arrays and strings point into `arena` */
    struct buf copy;                /* the encoded GENERATE */
    struct proto_arena arena;
    struct detok_stop *stops;
    struct ids prompt;
    struct replica *replica; /* NULL: not chosen; once opened it waits for one */
    struct buf echo;         /* the prompt's text when it is to be echoed */
    bool paused;             /* its reader is behind */
    bool opened;             /* its sequences have ids */
    uint32_t open;           /* sequences not yet ended */
    struct sequence *sequences;

    /* Encoding, on another thread until `encoding` is false again. */
    uv_work_t work;
    bool encoding, gone; /* gone: ended while encoding */
    int status;
    struct err err;
    UT_hash_handle hh;
};

/* A copy of the message that lives as long as the request. NULL with err when it does not fit. */
struct request *request_new(const struct proto_header *header, const struct proto_generate *g,
                            struct err *err);
void request_free(struct request **self);

/* From the request's text, ids or messages: the prompt, its sequences (without ids yet) and where
 * those stand that another tokenizer had begun. Runs on any thread: touches nothing but the request
 * and the immutable tokenizer and chat. Errors are the client's fault, but for ERR_INTERNAL. */
int request_encode(struct request *r, const struct tokenizer *t, const struct chat *chat,
                   struct err *err);

#endif
