/* Time in microseconds. Cores that must be simulated take `now_us` as a parameter instead. */
#ifndef PHALANX_COMMON_CLOCK_H
#define PHALANX_COMMON_CLOCK_H

#include <stdint.h>

int64_t clock_mono_us(void); /* since an arbitrary start; never goes back */
int64_t clock_wall_us(void); /* since 1970 (UTC) */

#endif
