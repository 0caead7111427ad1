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

struct service;
struct request;

/* One choice of a request: a sequence of the scheduler. */
struct sequence {
    uint64_t sid;
    struct request *request;
    uint32_t choice;
    struct detok detok;
    uint32_t completion_tokens;
    uint32_t scored; /* prompt tokens whose log probabilities are passed on */
    bool live;       /* the scheduler may still send tokens */
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
    struct replica *replica; /* NULL: not yet chosen */
    struct buf echo;         /* the prompt's text when it is to be echoed */
    uint32_t live;           /* sequences not yet ended */
    struct sequence *sequences;

    /* Encoding, on another thread until `encoding` is false again. */
    uv_work_t work;
    bool encoding, gone; /* gone: aborted while encoding */
    int status;
    struct err err;
    UT_hash_handle hh;
};

/* A copy of the message that lives as long as the request. NULL with err when it does not fit. */
struct request *request_new(const struct proto_header *header, const struct proto_generate *g,
                            struct err *err);
void request_free(struct request **self);

/* Fills prompt (and echo) from the request's text, ids or messages. Runs on any thread: touches
 * nothing but the request and the immutable tokenizer and chat. Errors are the client's fault. */
int request_encode(struct request *r, const struct tokenizer *t, const struct chat *chat,
                   struct err *err);

/* Sequences and their detokenizers, once the prompt is known. first_sid: the first one's id. */
void request_sequences(struct request *r, const struct tokenizer *t, uint64_t first_sid);

#endif
