/* core/cli/bench_svg.c: line plots as SVG, no script, no font but the viewer's. Main thread. Must not know
 * what is plotted. */
#include <math.h>
#include <stdlib.h>

#include "cli/bench.h"

#define WIDTH 860
#define HEIGHT 300
#define LEFT 70
#define RIGHT 190
#define TOP 34
#define BOTTOM 46
#define MOST_POINTS 1500 /* a line; more are passed over evenly */

static const char *const colours[] = {"#1f6feb", "#d1242f", "#1a7f37", "#8250df",
                                      "#bf8700", "#57606a", "#bc4c00", "#0a7ea4"};

static void text(FILE *out, const char *s)
{
    for (; *s; s++) {
        switch (*s) {
        case '<': fputs("&lt;", out); break;
        case '>': fputs("&gt;", out); break;
        case '&': fputs("&amp;", out); break;
        case '"': fputs("&quot;", out); break;
        default: putc((unsigned char)*s < 32 ? ' ' : *s, out);
        }
    }
}

typedef struct axis {
    double lo, hi;
    bool log;
} axis;

/* 0..1 */
static double place(const axis *a, double v)
{
    if (a->log)
        return log(v / a->lo) / log(a->hi / a->lo);
    return (v - a->lo) / (a->hi - a->lo);
}

/* A step of 1, 2 or 5 times a power of ten that makes at most 8 ticks. */
static double tick_step(double range)
{
    double step = pow(10, floor(log10(range / 8)));
    while (range / step > 8) {
        double first = step / pow(10, floor(log10(step) + 1e-9));
        step *= first > 1.5 && first < 3 ? 2.5 : 2;
    }
    return step;
}

static void range_of(const cli_plot *p, axis *x, axis *y)
{
    *x = (axis){HUGE_VAL, -HUGE_VAL, p->log_x};
    *y = (axis){0, 0, false};
    for (int s = 0; s < p->n_series; s++)
        for (size_t i = 0; i < p->series[s].n; i++) {
            double vx = p->series[s].x[i], vy = p->series[s].y[i];
            if (p->log_x && vx <= 0)
                continue;
            x->lo = vx < x->lo ? vx : x->lo;
            x->hi = vx > x->hi ? vx : x->hi;
            y->hi = vy > y->hi ? vy : y->hi;
        }
    if (x->lo > x->hi)
        x->lo = x->hi = 1;
    if (x->hi <= x->lo)
        x->hi = x->lo > 0 ? x->lo * 1.1 : x->lo + 1;
    if (y->hi <= 0)
        y->hi = 1;
}

static void x_ticks(FILE *out, const axis *x, int y0)
{
    double step = x->log ? 1 : tick_step(x->hi - x->lo);
    double v = x->log ? pow(10, floor(log10(x->lo))) : ceil(x->lo / step) * step;
    for (int k = 0; v <= x->hi * (1 + 1e-9) && k < 60; k++) {
        double at = place(x, v);
        if (at >= -1e-9 && at <= 1 + 1e-9) {
            double px = LEFT + at * (WIDTH - LEFT - RIGHT);
            fprintf(out,
                    "<path d='M%.1f %dV%d' stroke='#ddd'/><text x='%.1f' y='%d' "
                    "text-anchor='middle'>%.4g</text>\n",
                    px, y0 + TOP, y0 + HEIGHT - BOTTOM, px, y0 + HEIGHT - BOTTOM + 16, v);
        }
        if (x->log) /* 1, 2, 5, 10 ... */
            v *= k % 3 == 1 ? 2.5 : 2;
        else
            v += step;
    }
}

static void y_ticks(FILE *out, const axis *y, int y0)
{
    double step = tick_step(y->hi - y->lo);
    for (double v = 0; v <= y->hi * (1 + 1e-9); v += step) {
        double py = y0 + HEIGHT - BOTTOM - place(y, v) * (HEIGHT - TOP - BOTTOM);
        fprintf(out,
                "<path d='M%d %.1fH%d' stroke='#ddd'/><text x='%d' y='%.1f' "
                "text-anchor='end'>%.4g</text>\n",
                LEFT, py, WIDTH - RIGHT, LEFT - 6, py + 4, v);
    }
}

static void line(FILE *out, const cli_series *s, const axis *x, const axis *y, int y0,
                 const char *colour)
{
    size_t every = s->n / MOST_POINTS + 1;
    fprintf(out, "<polyline fill='none' stroke='%s' stroke-width='1.6' points='", colour);
    for (size_t i = 0; i < s->n; i++) {
        if ((i % every && i + 1 != s->n) || (x->log && s->x[i] <= 0))
            continue;
        fprintf(out, "%.1f,%.1f ", LEFT + place(x, s->x[i]) * (WIDTH - LEFT - RIGHT),
                y0 + HEIGHT - BOTTOM - place(y, s->y[i]) * (HEIGHT - TOP - BOTTOM));
    }
    fputs("'/>\n", out);
}

static void plot(FILE *out, const cli_plot *p, int y0)
{
    axis x, y;
    range_of(p, &x, &y);
    fprintf(out, "<text x='%d' y='%d' font-weight='bold'>", LEFT, y0 + 20);
    text(out, p->title);
    fputs("</text>\n", out);
    x_ticks(out, &x, y0);
    y_ticks(out, &y, y0);
    for (int s = 0; s < p->n_series; s++) {
        const char *colour = colours[s % 8];
        line(out, &p->series[s], &x, &y, y0, colour);
        fprintf(out, "<text x='%d' y='%d' fill='%s'>", WIDTH - RIGHT + 12, y0 + TOP + 14 + 18 * s,
                colour);
        text(out, p->series[s].name);
        fputs("</text>\n", out);
    }
    fprintf(out, "<text x='%d' y='%d' text-anchor='middle'>", (LEFT + WIDTH - RIGHT) / 2,
            y0 + HEIGHT - 8);
    text(out, p->x_name);
    fprintf(out, "</text>\n<text transform='translate(16 %d) rotate(-90)' text-anchor='middle'>",
            y0 + (TOP + HEIGHT - BOTTOM) / 2);
    text(out, p->y_name);
    fputs("</text>\n", out);
}

void cli_svg(FILE *out, const char *title, const cli_plot *plots, int n)
{
    fprintf(
        out,
        "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' font-family='sans-serif' "
        "font-size='12'>\n<rect width='100%%' height='100%%' fill='white'/>\n"
        "<text x='%d' y='22' font-size='14'>",
        WIDTH, 36 + n * HEIGHT, LEFT);
    text(out, title);
    fputs("</text>\n", out);
    for (int i = 0; i < n; i++)
        plot(out, &plots[i], 36 + i * HEIGHT);
    fputs("</svg>\n", out);
}

/* ---- of a run under load ------------------------------------------------------------------------------------- */

/* Sorted samples in ms, and the share that is at most as large. */
static cli_series cdf(cli_samples *s, const char *name, double **x, double **y)
{
    (void)cli_samples_quantile(s, 0.5); /* sorts */
    *x = calloc(s->n + 1, sizeof **x);
    *y = calloc(s->n + 1, sizeof **y);
    size_t n = *x && *y ? s->n : 0;
    for (size_t i = 0; i < n; i++) {
        (*x)[i] = s->v[i] * 1e3;
        (*y)[i] = (double)(i + 1) / (double)n;
    }
    return (cli_series){name, *x, *y, n};
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* How many requests run, at each begin and end of one. */
static cli_series running(const cli_load *l, double **x, double **y)
{
    double *ends = calloc(l->n + 1, sizeof *ends);
    size_t n = 0, at = 0, b = 0, e = 0;
    *x = calloc(2 * l->n + 1, sizeof **x);
    *y = calloc(2 * l->n + 1, sizeof **y);
    if (!*x || !*y || !ends) {
        free(ends);
        return (cli_series){"running", *x, *y, 0};
    }
    for (size_t i = 0; i < l->n; i++)
        if (l->shots[i].outcome != CLI_SHOT_UNSENT)
            ends[n++] = l->shots[i].end;
    qsort(ends, n, sizeof *ends, by_value);
    while (b < n || e < n) { /* requests leave in the order of the list */
        bool begins = b < n && l->shots[b].sent <= ends[e];
        (*x)[at] = begins ? l->shots[b].sent : ends[e];
        b += begins;
        e += !begins;
        (*y)[at++] = (double)(b - e);
    }
    free(ends);
    return (cli_series){"running", *x, *y, at};
}

void cli_report_svg(cli_report *r, const cli_about *a, FILE *out)
{
    double *m[6] = {0};
    cli_series first = cdf(&r->ttft, "TTFT", &m[0], &m[1]);
    cli_series gaps = cdf(&r->load->itl, "ITL", &m[2], &m[3]);
    cli_series runs = running(r->load, &m[4], &m[5]);
    cli_plot plots[] = {
        {"Time to the first token", "ms", "share of requests", &first, 1, true},
        {"Time between events", "ms", "share of gaps", &gaps, 1, true},
        {"Requests running", "s", "requests", &runs, 1, false},
    };
    char title[400];
    snprintf(title, sizeof title, "%s, %s%s%s", a->model, a->arrivals, a->trace ? ", trace " : "",
             a->trace ? a->format : "");
    cli_svg(out, title, plots, 3);
    for (int i = 0; i < 6; i++)
        free(m[i]);
}
