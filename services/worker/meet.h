/* Where the ranks of a group meet: a new folder inside --comm-store, agreed on by files.
 *
 * Ranks may be started again one by one, by whatever looks after them, and find the files of their
 * predecessors. So each draws a number when it starts; rank 0 proposes a folder to exactly those
 * numbers; and a rank goes there only when its own number is among them. All of a group get the
 * same folder, which no earlier group has used. */
#ifndef PHALANX_WORKER_MEET_H
#define PHALANX_WORKER_MEET_H

#include "common/err.h"

#include <stdint.h>

/* *folder (caller frees) exists and is empty but for what other ranks of this group wrote.
 * ERR_TIMEOUT names who is missing; ERR_PEER who was there but is dead or has gone on with an
 * earlier group, so that all have to be started again; ERR_IO when the store can not be written. */
int meet_in_store(const char *store, uint32_t rank, uint32_t size, double timeout_s, char **folder,
                  struct err *err);

#endif
