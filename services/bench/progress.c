#include "services/bench/progress.h"

#include <stdio.h>
#include <string.h>

#define BAR_WIDTH 30

void progress_init(struct progress *p, bool on, size_t total)
{
    memset(p, 0, sizeof *p);
    p->on = on;
    p->total = total;
}

void progress_paint(struct progress *p, size_t finished, size_t failed, size_t running,
                    uint64_t chunks, int64_t now_us)
{
    size_t filled = p->total ? finished * BAR_WIDTH / p->total : 0;
    double seconds = (double)(now_us - p->painted_us) / 1e6;
    double rate = seconds > 0 ? (double)(chunks - p->chunks_before) / seconds : 0;
    char bar[BAR_WIDTH + 1];

    if (!p->on)
        return;
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', filled);
    bar[BAR_WIDTH] = '\0';
    (void)fprintf(stderr, "\r[%s] %zu/%zu, %zu running, %zu failed, %.0f chunks/s, %.0f s \033[K",
                  bar, finished, p->total, running, failed, rate, (double)now_us / 1e6);
    (void)fflush(stderr);
    p->chunks_before = chunks;
    p->painted_us = now_us;
}

void progress_end(struct progress *p)
{
    if (!p->on)
        return;
    (void)fputs("\r\033[K", stderr);
    (void)fflush(stderr);
}
