#include "services/worker/progress.h"

#include "common/clock.h"
#include "common/log.h"

#include <stdio.h>
#include <unistd.h>

#define BAR_WIDTH 30
#define REDRAW_US 100000

void progress_init(struct progress *p, const char *what, uint64_t total, bool on)
{
    *p = (struct progress){.what = what, .total = total, .on = on};
    p->start_us = clock_mono_us();
    p->bar = on && isatty(STDERR_FILENO);
}

void progress_init_items(struct progress *p, const char *what, uint64_t total, bool on)
{
    progress_init(p, what, total, on);
    p->items = true;
}

static double progress_speed(const struct progress *p, int64_t now_us)
{
    int64_t us = now_us > p->start_us ? now_us - p->start_us : 1;

    return (double)p->done / (double)us / 1e3; /* GB/s */
}

static void progress_draw(struct progress *p, int64_t now_us)
{
    double part = p->total ? (double)p->done / (double)p->total : 1;
    int filled = (int)(part * BAR_WIDTH);
    char line[160];
    char state[64];
    int n;

    if (p->items)
        (void)snprintf(state, sizeof state, "%llu/%llu", (unsigned long long)p->done,
                       (unsigned long long)p->total);
    else
        (void)snprintf(state, sizeof state, "%3d%% %.2f GB/s", (int)(part * 100),
                       progress_speed(p, now_us));
    n = snprintf(line, sizeof line, "\r%s [%.*s%*s] %s ", p->what, filled,
                 "##############################", BAR_WIDTH - filled, "", state);

    if (n > 0 && write(STDERR_FILENO, line, (size_t)n) < 0)
        p->bar = false;
    p->drawn_us = now_us;
}

void progress_add(struct progress *p, uint64_t bytes)
{
    int64_t now_us;

    p->done += bytes;
    if (!p->bar)
        return;
    now_us = clock_mono_us();
    if (now_us - p->drawn_us >= REDRAW_US)
        progress_draw(p, now_us);
}

void progress_end(struct progress *p)
{
    int64_t now_us = clock_mono_us();

    if (!p->on)
        return;
    if (p->bar) {
        progress_draw(p, now_us);
        (void)!write(STDERR_FILENO, "\n", 1);
        return;
    }
    if (p->items)
        log_say("%s: %llu in %.2f s", p->what, (unsigned long long)p->done,
                (double)(now_us - p->start_us) / 1e6);
    else
        log_say("%s: %.1f MB at %.2f GB/s", p->what, (double)p->done / 1e6,
                progress_speed(p, now_us));
}
