/* Inside of the scheduler's process: service.c has the process and the tokenizers, ranks.c the
 * workers, their steps and their epochs, control.c the link to the launcher. */
#ifndef PHALANX_SCHEDULER_SERVICE_PRIVATE_H
#define PHALANX_SCHEDULER_SERVICE_PRIVATE_H

#include "proto/bus.h"
#include "services/scheduler/clients.h"
#include "services/scheduler/core.h"
#include "services/scheduler/deadline.h"
#include "services/scheduler/gather.h"
#include "services/scheduler/group.h"
#include "services/scheduler/report.h"
#include "services/scheduler/service.h"
#include "services/scheduler/watchdog.h"

#include <uv.h>

struct service {
    const struct service_config *config;
    uv_loop_t loop;
    uv_timer_t timer;
    uv_idle_t idle;
    uv_signal_t sigterm, sigint, sigusr1;
    struct bus *tokenizers;
    struct bus *workers;
    struct bus *control;       /* NULL: there is no launcher */
    struct bus_peer *launcher; /* NULL: not connected */
    struct bus_peer *ranks[GROUP_RANKS_MAX];
    struct group group;
    struct gather gather;
    struct deadline deadline;
    int64_t oldest_us; /* since then the ranks have had nothing before the oldest step */
    struct clients clients;
    struct report report;
    struct watchdog watchdog;
    struct scheduler *core; /* NULL until all ranks were loaded once */
    bool ready;             /* steps can be sent */
    bool was_ready;
    int64_t lost_us; /* when the ranks were */
    bool ending;
    int status;
    struct err *err;
};

/* ---- service.c ---- */

/* The process ends; s->err says why. Only the first failure counts. */
void service_fail(struct service *s);
bool service_failed(const struct service *s);

/* Plans when everything that came in this turn of the loop has been admitted: one step takes all.
 */
void service_plan_soon(struct service *s);

/* Tells the tokenizers and the launcher whether there are ranks. */
void service_send_states(struct service *s);

/* Why there are none; "" when there are. */
const char *service_reason(const struct service *s);

/* Tells the owners of sequences that can not go on. */
void service_send_failures(struct service *s, const struct scheduler_failure *failed,
                           uint32_t count);

/* ---- ranks.c ---- */

int ranks_bind(struct service *s, const struct bus_config *shared, struct err *err);

/* Plans and sends as many steps as may be in flight. */
void ranks_send_steps(struct service *s);

/* Ends the group when its ranks take too long to meet; says now and then who is missing. */
void ranks_check_meeting(struct service *s, int64_t now_us);

/* Ends the group when its oldest step takes too long. */
void ranks_check_deadline(struct service *s, int64_t now_us);

/* The epoch before `next` is over, with all its ranks: others are waited for.
 * s->err says why. */
void ranks_lost(struct service *s, uint64_t next);

/* ---- control.c ---- */

int control_connect(struct service *s, const struct bus_config *shared, struct err *err);

/* How this replica is doing, for the launcher if there is one. */
void control_status(struct service *s);

/* Tells the launcher, if there is one, that the ranks of that epoch are lost. */
void control_group_down(struct service *s, uint64_t epoch, const char *reason);

#endif
