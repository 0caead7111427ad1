/* The table of paths. */
#ifndef PHALANX_GATEWAY_ROUTES_H
#define PHALANX_GATEWAY_ROUTES_H

#include "services/gateway/conn.h"

struct route {
    const char *path;
    bool below;   /* "/v1/models/": everything that begins with it */
    bool is_open; /* needs no key */
    int method;   /* HTTP_GET (HEAD comes with it) or HTTP_POST */
    void (*handle)(struct conn *c, const char *rest); /* rest: the path behind a `below` row */
};

/* Looks at a head before its body is read. 0, or -1 with the problem (and for 405 the Allow line
 * in allow). */
int routes_check(struct conn *c, struct problem *problem, const char **allow);

/* Answers the connection's request, now or later. */
void routes_dispatch(struct conn *c);

/* route_*.c */
void route_completions(struct conn *c, const char *rest);
void route_chat(struct conn *c, const char *rest);
void route_generate(struct conn *c, const char *rest);
void route_models(struct conn *c, const char *rest);
void route_model(struct conn *c, const char *rest);
void route_health(struct conn *c, const char *rest);
void route_live(struct conn *c, const char *rest);
void route_health_generate(struct conn *c, const char *rest);
void route_metrics(struct conn *c, const char *rest);
void route_flush_cache(struct conn *c, const char *rest);
void route_version(struct conn *c, const char *rest);

#endif
