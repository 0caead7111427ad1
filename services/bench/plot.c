#include "services/bench/plot.h"

#include <math.h>

#define WIDTH 900
#define HEIGHT 420
#define PANEL_WIDTH 370
#define PANEL_HEIGHT 280
#define PANEL_TOP 70
#define TICKS 6

struct panel {
    const char *title;
    double left;         /* of the picture */
    double x_max, y_max; /* in units of the data */
    struct buf *out;
};

static const struct {
    const char *name, *color, *dash;
} lines[] = {{"p50", "#1f6fb4", "none"}, {"p90", "#d97a1a", "6 3"}, {"p99", "#b3242a", "2 3"}};

double plot_step(double span, int parts)
{
    double power = pow(10, floor(log10(span / parts)));
    static const double steps[] = {1, 2, 5};

    for (int i = 0; i < 3; i++)
        if (steps[i] * power * parts >= span * (1 - 1e-9))
            return steps[i] * power;
    return 10 * power;
}

static double load_of(const struct bench_config *c, const struct report *reports, size_t run)
{
    if (!reports[run].completed)
        return INFINITY;
    if (c->swept == LOAD_CONCURRENCY)
        return bench_config_limit(c, run);
    return c->swept == LOAD_RATE ? bench_config_rate(c, run) : reports[run].offered_rate;
}

static double value_of(const struct report *p, int panel, int line)
{
    const struct summary *s = panel ? &p->tpot_ms : &p->ttft_ms;

    return line == 0 ? s->p50 : line == 1 ? s->p90 : s->p99;
}

static double panel_x(const struct panel *p, double x)
{
    return p->left + x / p->x_max * PANEL_WIDTH;
}

static double panel_y(const struct panel *p, double y)
{
    return PANEL_TOP + PANEL_HEIGHT - y / p->y_max * PANEL_HEIGHT;
}

/* Frame, grid, numbers at the axes. */
static void panel_frame(const struct panel *p, const char *x_title)
{
    double x_step = plot_step(p->x_max, TICKS), y_step = plot_step(p->y_max, TICKS);

    for (int i = 0; i * y_step <= p->y_max * (1 + 1e-9); i++)
        buf_printf(p->out,
                   "<path d=\"M%.1f %.1fh%d\" stroke=\"#ddd\"/>"
                   "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                   p->left, panel_y(p, i * y_step), PANEL_WIDTH, p->left - 6,
                   panel_y(p, i * y_step) + 4, i * y_step);
    for (int i = 0; i * x_step <= p->x_max * (1 + 1e-9); i++)
        buf_printf(p->out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n",
                   panel_x(p, i * x_step), PANEL_TOP + PANEL_HEIGHT + 18, i * x_step);
    buf_printf(p->out, "<path d=\"M%.1f %dv%dh%d\" stroke=\"#444\" fill=\"none\"/>\n", p->left,
               PANEL_TOP, PANEL_HEIGHT, PANEL_WIDTH);
    buf_printf(p->out, "<text x=\"%.1f\" y=\"%d\" font-weight=\"bold\">%s</text>\n", p->left,
               PANEL_TOP - 12, p->title);
    buf_printf(p->out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
               p->left + PANEL_WIDTH / 2.0, PANEL_TOP + PANEL_HEIGHT + 40, x_title);
}

/* The runs with a point, in the order of their load. */
static size_t order_runs(const struct bench_config *c, const struct report *reports, size_t count,
                         size_t *order)
{
    size_t n = 0;

    for (size_t i = 0; i < count; i++) {
        size_t at = n;

        if (isinf(load_of(c, reports, i)))
            continue;
        for (; at && load_of(c, reports, order[at - 1]) > load_of(c, reports, i); at--)
            order[at] = order[at - 1];
        order[at] = i;
        n++;
    }
    return n;
}

static void panel_draw(struct panel *p, int number, const struct bench_config *c,
                       const struct report *reports, const size_t *order, size_t count)
{
    static const char *const x_titles[] = {[LOAD_RATE] = "requests/s",
                                           [LOAD_CONCURRENCY] = "requests in flight, at most",
                                           [LOAD_SCALE] = "requests/s of the trace, mean"};

    p->x_max = p->y_max = 0;
    for (size_t i = 0; i < count; i++) {
        p->x_max = fmax(p->x_max, load_of(c, reports, order[i]));
        p->y_max = fmax(p->y_max, value_of(&reports[order[i]], number, 2));
    }
    p->x_max = p->x_max > 0 ? p->x_max * 1.05 : 1;
    p->y_max = p->y_max > 0 ? p->y_max * 1.08 : 1;
    panel_frame(p, x_titles[c->swept]);
    for (int line = 0; line < 3; line++) {
        const char *color = lines[line].color;

        buf_printf(p->out,
                   "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" "
                   "stroke-dasharray=\"%s\" points=\"",
                   color, lines[line].dash);
        for (size_t i = 0; i < count; i++)
            buf_printf(p->out, "%.1f,%.1f ", panel_x(p, load_of(c, reports, order[i])),
                       panel_y(p, value_of(&reports[order[i]], number, line)));
        buf_puts(p->out, "\"/>\n");
        for (size_t i = 0; i < count; i++)
            buf_printf(p->out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n",
                       panel_x(p, load_of(c, reports, order[i])),
                       panel_y(p, value_of(&reports[order[i]], number, line)), color);
    }
}

static void text_write(struct buf *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '<' || *text == '&')
            buf_puts(out, *text == '<' ? "&lt;" : "&amp;");
        else
            buf_putc(out, (char)((unsigned char)*text < 0x20 ? '?' : *text));
    }
}

void plot_write(const struct bench_config *c, const char *title, const struct report *reports,
                size_t count, struct buf *out)
{
    struct panel panels[2] = {{.title = "Time to first token (ms)", .left = 65, .out = out},
                              {.title = "Time per output token (ms)", .left = 510, .out = out}};
    size_t order[SWEEP_MAX];
    size_t points = order_runs(c, reports, count, order);

    buf_printf(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
               "font-family=\"sans-serif\" font-size=\"12\">\n"
               "<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n<text x=\"65\" y=\"26\" "
               "font-size=\"15\">",
               WIDTH, HEIGHT, WIDTH, HEIGHT);
    text_write(out, title);
    buf_puts(out, "</text>\n");
    for (int line = 0; line < 3; line++)
        buf_printf(out,
                   "<path d=\"M%d 22h26\" stroke=\"%s\" stroke-width=\"2\" "
                   "stroke-dasharray=\"%s\"/><text x=\"%d\" y=\"26\">%s</text>\n",
                   680 + line * 70, lines[line].color, lines[line].dash, 711 + line * 70,
                   lines[line].name);
    for (int i = 0; i < 2; i++)
        panel_draw(&panels[i], i, c, reports, order, points);
    buf_puts(out, "</svg>\n");
}
