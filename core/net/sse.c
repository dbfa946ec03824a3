/* core/net/sse.c: server-sent events of a stream. Daemon thread, under exchange.mu.
 *
 * A chunk is written from a fixed prefix, not from a JSON tree. All that is new since the last call
 * goes into one chunk a choice, so a slow reader gets fewer, larger events and nothing piles up. */
#include <string.h>

#include "net/gen.h"
#include "util/utf8.h"

#define CHUNK_TEXT 8192  /* most text in one event */
#define FILL_BYTES 65536 /* a call stops behind this; the rest waits for the next */

static void build_prefix(turbod_gen *g)
{
    turbod_buf *b = &g->prefix;
    const char *model = g->x->svc->name;
    turbod_buf_init(b, 4096);
    turbod_buf_printf(b, "data: {\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":\"", g->id,
                      g->kind == FOR_CHAT ? "chat.completion.chunk" : "text_completion",
                      (long long)g->created);
    turbod_buf_json(b, model, strlen(model));
    turbod_buf_str(b, "\",\"choices\":[");
    if (b->failed)
        g->x->out.failed = true;
}

/* Opens a chunk up to the index of its choice. */
static void open_chunk(turbod_gen *g, int index)
{
    turbod_buf *o = &g->x->out;
    turbod_buf_add(o, g->prefix.ptr, g->prefix.len);
    turbod_buf_printf(o, "{\"index\":%d,", index);
}

static void close_chunk(turbod_gen *g)
{
    turbod_buf *o = &g->x->out;
    if (!g->warnings_sent && g->params.warnings.len) {
        turbod_buf_str(o, ",\"warnings\":[");
        turbod_buf_add(o, g->params.warnings.ptr, g->params.warnings.len);
        turbod_buf_str(o, "]");
    }
    g->warnings_sent = true;
    if (g->params.continuous_usage) {
        turbod_buf_str(o, ",\"usage\":");
        turbod_usage_so_far_json(o, g);
        turbod_buf_str(o, "}\n\n");
    } else {
        turbod_buf_str(o, g->params.include_usage ? ",\"usage\":null}\n\n" : "}\n\n");
    }
}

static void begin_choice(turbod_choice *c)
{
    turbod_gen *g = c->gen;
    turbod_buf *o = &g->x->out;
    c->role_sent = true;
    if (g->kind != FOR_CHAT && !g->params.return_ids)
        return;
    open_chunk(g, c->index);
    turbod_buf_str(o, g->kind == FOR_CHAT ? "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}"
                                          : "\"text\":\"\"");
    turbod_buf_str(o, ",\"logprobs\":null,\"finish_reason\":null");
    if (g->params.return_ids) {
        turbod_buf_str(o, ",\"prompt_token_ids\":");
        turbod_ids_json(o, g->prompts[c->prompt].ids, g->prompts[c->prompt].n);
    }
    turbod_buf_str(o, "}]");
    close_chunk(g);
}

/* How much of the new text goes into one event: never part of a character. */
static size_t text_part(const turbod_choice *c)
{
    size_t n = c->text.len - c->text_sent;
    if (n <= CHUNK_TEXT)
        return n;
    n = CHUNK_TEXT;
    while (n > CHUNK_TEXT - 4 && ((unsigned char)c->text.ptr[c->text_sent + n] & 0xC0) == 0x80)
        n--;
    return n;
}

static void text_chunk(turbod_choice *c)
{
    turbod_gen *g = c->gen;
    turbod_buf *o = &g->x->out;
    size_t part = text_part(c), records = turbod_choice_records(c);
    open_chunk(g, c->index);
    turbod_buf_str(o, g->kind == FOR_CHAT ? "\"delta\":{\"content\":\"" : "\"text\":\"");
    turbod_buf_json(o, c->text.len ? c->text.ptr + c->text_sent : "", part);
    turbod_buf_str(o, g->kind == FOR_CHAT ? "\"},\"logprobs\":" : "\",\"logprobs\":");
    if (g->params.s.n_logprobs >= 0 && records > c->records_sent)
        turbod_logprobs_json(o, c, c->records_sent, records);
    else
        turbod_buf_str(o, "null");
    turbod_buf_str(o, ",\"finish_reason\":null");
    if (g->params.return_ids) {
        turbod_buf_str(o, ",\"token_ids\":");
        turbod_choice_ids_json(o, c, c->records_sent, records);
    }
    turbod_buf_str(o, "}]");
    close_chunk(g);
    c->text_sent += part;
    c->records_sent = records;
}

static void end_chunk(turbod_choice *c)
{
    turbod_gen *g = c->gen;
    turbod_buf *o = &g->x->out;
    open_chunk(g, c->index);
    turbod_buf_str(o, g->kind == FOR_CHAT ? "\"delta\":{}" : "\"text\":\"\"");
    turbod_buf_str(o, ",\"logprobs\":null,");
    turbod_choice_end_json(o, c);
    turbod_buf_str(o, "}],\"timings\":");
    turbod_timings_json(o, &c->timings);
    close_chunk(g);
    c->end_sent = true;
}

static void usage_chunk(turbod_gen *g)
{
    turbod_buf *o = &g->x->out;
    turbod_buf_add(o, g->prefix.ptr, g->prefix.len);
    turbod_buf_str(o, "],\"usage\":");
    turbod_usage_json(o, g);
    turbod_buf_str(o, "}\n\n");
}

static bool fill_choice(turbod_choice *c)
{
    turbod_buf *o = &c->gen->x->out;
    if (!c->role_sent)
        begin_choice(c);
    /* Records wait for text, so that a token whose text is held back comes with it. */
    while (o->len < FILL_BYTES && !o->failed &&
           (c->text_sent < c->text.len ||
            (c->done && c->records_sent < turbod_choice_records(c))))
        text_chunk(c);
    bool rest = c->text_sent < c->text.len;
    if (c->done && !rest && !c->end_sent)
        end_chunk(c);
    return c->end_sent;
}

void turbod_sse_error(turbod_gen *g)
{
    turbod_buf *o = &g->x->out;
    bool lines = g->kind == FOR_INTERACTIVE;
    turbod_buf_str(o, lines ? "" : "data: ");
    turbod_error_json(o, g->fail_status, g->fail_code, NULL, g->fail_text);
    turbod_buf_str(o, lines ? "\n" : "\n\ndata: [DONE]\n\n");
    g->stream_over = true;
}

void turbod_sse_fill(turbod_gen *g)
{
    turbod_exchange *x = g->x;
    turbod_buf *o = &x->out;
    if (g->kind == FOR_INTERACTIVE) {
        turbod_interactive_fill(g);
        return;
    }
    if (g->stream_over)
        return;
    if (!g->prefix.ptr)
        build_prefix(g);
    if (g->fail_status) {
        turbod_sse_error(g);
        return;
    }
    bool all = true;
    for (int i = 0; i < g->n_choices; i++)
        all = fill_choice(&g->choices[i]) && all;
    if (all) {
        if (g->params.include_usage)
            usage_chunk(g);
        turbod_buf_str(o, "data: [DONE]\n\n");
        g->stream_over = true;
    } else if (x->ping && !o->len) {
        turbod_buf_str(o, ": ping\n\n");
    }
    x->ping = false;
}
