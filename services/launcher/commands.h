/* Command lines and environments of children; starting one. */
#ifndef PHALANX_LAUNCHER_COMMANDS_H
#define PHALANX_LAUNCHER_COMMANDS_H

#include "common/err.h"
#include "common/options.h"
#include "services/launcher/model.h"
#include "services/launcher/rundir.h"
#include "services/launcher/supervise.h"

#include <stdint.h>

struct commands {
    const struct options *options;
    const struct model_ref *model;
    const struct rundir *run;
    char *bin; /* the folder of this executable and its siblings */
};

/* Finds the siblings of this executable; ERR_NOT_FOUND names the one that is missing. */
int commands_init(struct commands *c, const struct options *options, const struct model_ref *model,
                  const struct rundir *run, struct err *err);
void commands_fini(struct commands *c);

/* In /v1/models. */
const char *commands_served_name(const struct commands *c);

int commands_start_gateway(const struct commands *c, struct supervisor *s, int index,
                           struct err *err);
int commands_start_tokenizer(const struct commands *c, struct supervisor *s, int index,
                             struct err *err);
/* worker_endpoint: where it binds for its ranks. */
int commands_start_scheduler(const struct commands *c, struct supervisor *s, int replica,
                             const char *worker_endpoint, uint64_t epoch, struct err *err);
/* The gateway of a node that does not serve: it asks the launcher, at the place of a tokenizer. */
int commands_start_health(const struct commands *c, struct supervisor *s, struct err *err);

struct worker_place {
    int replica, rank;
    int number;           /* in its name */
    int first_device;     /* of rank 0; negative where rank 0 is on another node */
    const char *endpoint; /* of its scheduler */
    uint64_t epoch;
};
int commands_start_worker(const struct commands *c, struct supervisor *s,
                          const struct worker_place *place, struct err *err);

#endif
