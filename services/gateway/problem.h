/* What is wrong with a request, as the client is told. */
#ifndef PHALANX_GATEWAY_PROBLEM_H
#define PHALANX_GATEWAY_PROBLEM_H

#include "common/buf.h"

struct problem {
    int status;        /* HTTP status; 0: no problem */
    char message[768]; /* names field, value and limit */
    char param[128];   /* field at fault, or empty */
    char code[64];     /* "model_not_found", ... or empty */
};

/* Fills p and returns -1. code and param may be NULL. Text from strangers is cut, never a format.
 */
int problem_set(struct problem *p, int status, const char *code, const char *param, const char *fmt,
                ...) __attribute__((format(printf, 5, 6)));

/* Appends {"error":{"message","type","param","code"}}. */
void problem_render(const struct problem *p, struct buf *out);

#endif
