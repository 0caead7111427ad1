/* How far a long load is: on a terminal a bar that is redrawn in place, else one line at the end.
 */
#ifndef PHALANX_WORKER_PROGRESS_H
#define PHALANX_WORKER_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    const char *what;     /* borrowed */
    uint64_t total, done; /* bytes, or items */
    bool items;
    int64_t start_us, drawn_us;
    bool on, bar;
};

void progress_init(struct progress *p, const char *what, uint64_t total, bool on);
void progress_init_items(struct progress *p, const char *what, uint64_t total, bool on);
void progress_add(struct progress *p, uint64_t bytes);
void progress_end(struct progress *p);

#endif
