/* core/cli/plan_svg.c: a plan as a picture: what lies in memory, and tokens a second over the batch. Plain
 * SVG 1.1 without scripts or outside references. Main thread. */
#include <math.h>
#include <string.h>

#include "cli/plan.h"

#define WIDTH 960
#define HEIGHT 680
#define LEFT 70.0
#define RIGHT 930.0
#define BAR_TOP 92.0
#define BAR_HEIGHT 46.0
#define PLOT_TOP 300.0
#define PLOT_BOTTOM 620.0
#define MOST_BATCH 4096.0

static const char *const colors[TURBOD_MEM_SWAP] = {
    "#2f5d8a", "#5b8db8", "#8fb8d8", "#c9772c", "#e3a857", "#f0d090",
    "#777777", "#a05a8a", "#c89ab8", "#3b8a5a", "#8cc7a1",
};

/* Text with what XML reserves escaped; control characters are left out. */
static void text(FILE *out, double x, double y, const char *attributes, const char *s)
{
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, attributes);
    for (; *s; s++) {
        const char *e = *s == '<' ? "&lt;" : *s == '>' ? "&gt;" : *s == '&' ? "&amp;" : NULL;
        if (e)
            fputs(e, out);
        else if ((unsigned char)*s >= 0x20)
            putc(*s, out);
    }
    fputs("</text>\n", out);
}

static void line(FILE *out, double x1, double y1, double x2, double y2, const char *attributes)
{
    fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1, y1, x2, y2,
            attributes);
}

static void box(FILE *out, double x, double y, double w, double h, const char *fill)
{
    fprintf(out, "<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\" fill=\"%s\"/>\n", x, y,
            w, h, fill);
}

/* ---- memory ----------------------------------------------------------------------------------------- */

static const char *size_text(double bytes, char t[48])
{
    if (bytes >= 0x1p30)
        snprintf(t, 48, "%.2f GiB", bytes / 0x1p30);
    else if (bytes >= 0x1p20)
        snprintf(t, 48, "%.1f MiB", bytes / 0x1p20);
    else
        snprintf(t, 48, "%.1f KiB", bytes / 0x1p10);
    return t;
}

static void legend(FILE *out, int place, const char *color, const char *name, double bytes)
{
    char label[128], size[48];
    double x = LEFT + (place % 4) * 218, y = BAR_TOP + BAR_HEIGHT + 38 + place / 4 * 24;
    snprintf(label, sizeof label, "%s %s", name, size_text(bytes, size));
    box(out, x, y - 11, 13, 13, color);
    text(out, x + 20, y, "class=\"s\"", label);
}

static void draw_memory(const cli_plan *p, FILE *out)
{
    double bytes[TURBOD_MEM_SWAP] = {0}, total = 0, scale, x = LEFT;
    char label[200], a[48], b[48];
    for (int k = 0; k < TURBOD_MEM_SWAP; k++) {
        bytes[k] = p->model                  ? (double)p->plan.bytes[k]
                   : k == TURBOD_MEM_WEIGHTS ? p->roof.weights
                                             : 0;
        total += bytes[k];
    }
    scale = (RIGHT - LEFT) / fmax(fmax(total, p->memory), 1);
    box(out, LEFT, BAR_TOP, fmax(total, p->memory) * scale, BAR_HEIGHT, "#eeeeee");
    int place = 0;
    for (int k = 0; k < TURBOD_MEM_SWAP; k++) {
        if (!(bytes[k] > 0))
            continue;
        box(out, x, BAR_TOP, bytes[k] * scale, BAR_HEIGHT, colors[k]);
        legend(out, place++, colors[k], turbod_mem_names[k], bytes[k]);
        x += bytes[k] * scale;
    }
    if (p->memory > total)
        legend(out, place, "#eeeeee", "left", p->memory - total);
    if (p->memory > 0) {
        double at = LEFT + p->memory * scale;
        line(out, at, BAR_TOP - 8, at, BAR_TOP + BAR_HEIGHT + 8,
             "stroke=\"#b02020\" stroke-width=\"2\"");
        snprintf(label, sizeof label, "memory: %s of %s free%s", size_text(total, a),
                 size_text(p->memory, b), p->fits ? "" : " - does not fit");
    } else {
        snprintf(label, sizeof label, "memory: %s", size_text(total, a));
    }
    text(out, LEFT, BAR_TOP - 14, "class=\"h\"", label);
}

/* ---- roofline --------------------------------------------------------------------------------------- */

typedef struct plot {
    double low, high; /* tokens a second at the bottom and the top */
} plot;

static double plot_x(double batch)
{
    return LEFT + (RIGHT - LEFT) * log(batch) / log(MOST_BATCH);
}

static double plot_y(const plot *q, double rate)
{
    return PLOT_BOTTOM - (PLOT_BOTTOM - PLOT_TOP) * log(rate / q->low) / log(q->high / q->low);
}

static double rate_at(const cli_plan *p, double batch, double len)
{
    return batch / turbod_roof_step(&p->roof, batch, len).seconds;
}

static void grid(FILE *out, const plot *q)
{
    char label[32];
    for (double b = 1; b <= MOST_BATCH; b *= 4) {
        snprintf(label, sizeof label, "%.0f", b);
        line(out, plot_x(b), PLOT_TOP, plot_x(b), PLOT_BOTTOM, "stroke=\"#e4e4e4\"");
        text(out, plot_x(b), PLOT_BOTTOM + 18, "class=\"s\" text-anchor=\"middle\"", label);
    }
    for (double r = pow(10, ceil(log10(q->low))); r <= q->high; r *= 10) {
        line(out, LEFT, plot_y(q, r), RIGHT, plot_y(q, r), "stroke=\"#e4e4e4\"");
        snprintf(label, sizeof label, r < 1 ? "%g" : "%.0f", r);
        text(out, LEFT - 8, plot_y(q, r) + 4, "class=\"s\" text-anchor=\"end\"", label);
    }
    line(out, LEFT, PLOT_TOP, LEFT, PLOT_BOTTOM, "stroke=\"#444444\"");
    line(out, LEFT, PLOT_BOTTOM, RIGHT, PLOT_BOTTOM, "stroke=\"#444444\"");
    text(out, (LEFT + RIGHT) / 2, PLOT_BOTTOM + 40, "class=\"s\" text-anchor=\"middle\"",
         "batch: sequences that decode together");
}

static void curve(FILE *out, const cli_plan *p, const plot *q, double len, const char *color)
{
    fputs("<polyline fill=\"none\" stroke-width=\"2.5\" stroke=\"", out);
    fprintf(out, "%s\" points=\"", color);
    for (double b = 1; b <= MOST_BATCH; b *= 1.0905077326652577) /* 8 points an octave */
        fprintf(out, "%.1f,%.1f ", plot_x(b), plot_y(q, rate_at(p, b, len)));
    fprintf(out, "%.1f,%.1f\"/>\n", plot_x(MOST_BATCH), plot_y(q, rate_at(p, MOST_BATCH, len)));
}

static void key(FILE *out, int row, const char *color, const char *label)
{
    double y = PLOT_BOTTOM - 52 + row * 20;
    line(out, RIGHT - 262, y - 4, RIGHT - 232, y - 4, color);
    text(out, RIGHT - 224, y, "class=\"s\"", label);
}

static void draw_roof(const cli_plan *p, FILE *out)
{
    double len = p->model ? (double)(p->in + p->out) : 0, ridge = turbod_roof_ridge(&p->roof);
    plot q = {rate_at(p, 1, len) / 2, rate_at(p, MOST_BATCH, 0) * 2};
    char label[256];
    snprintf(label, sizeof label, "decode, tokens a second: %s, %.3g TFLOP/s, %.4g GB/s", p->device,
             p->roof.flops * 1e-12, p->roof.bandwidth * 1e-9);
    text(out, LEFT, PLOT_TOP - 30, "class=\"h\"", label);
    grid(out, &q);
    curve(out, p, &q, 0, "#2f5d8a");
    key(out, 0, "stroke=\"#2f5d8a\" stroke-width=\"2.5\"", "linear layers: the roof");
    if (p->model) {
        curve(out, p, &q, len, "#3b8a5a");
        snprintf(label, sizeof label, "with attention at length %.0f", len);
        key(out, 1, "stroke=\"#3b8a5a\" stroke-width=\"2.5\"", label);
    }
    if (ridge > 1 && ridge < MOST_BATCH / 4) { /* room for the text behind the line */
        double x = plot_x(ridge);
        line(out, x, PLOT_TOP - 6, x, PLOT_BOTTOM,
             "stroke=\"#b02020\" stroke-width=\"1.5\" stroke-dasharray=\"6 4\"");
        snprintf(label, sizeof label, "compute-bound from batch %.0f", ceil(ridge));
        if (x > LEFT + 100)
            text(out, x - 8, PLOT_TOP + 2, "class=\"r\" text-anchor=\"end\"", "memory-bound");
        text(out, x + 8, PLOT_TOP + 2, "class=\"r\"", label);
    }
}

void cli_plan_svg(const cli_plan *p, FILE *out)
{
    char title[256];
    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" fill=\"#222222\">\n"
            "<style>.t{font-size:20px;font-weight:bold}.h{font-size:15px;font-weight:bold}"
            ".s{font-size:13px}.r{font-size:13px;fill:#b02020}</style>\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT);
    box(out, 0, 0, WIDTH, HEIGHT, "#ffffff");
    if (p->model)
        snprintf(title, sizeof title, "%s, %.3g G parameters%s", p->model->info.arch,
                 (double)p->model->weights.params * 1e-9, p->cpu ? "" : " (estimate)");
    else
        snprintf(title, sizeof title, "%.4g G parameters", p->nominal * 1e-9);
    text(out, LEFT, 40, "class=\"t\"", title);
    draw_memory(p, out);
    if (p->roof.params > 0)
        draw_roof(p, out);
    fputs("</svg>\n", out);
}
