/* core/cli/bench_report.c: what a run under load came to: figures, a table, JSON. Main thread. */
#include <errno.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/cli.h"
#include "util/err.h"
#include "version.h"

#define LATE_MS 5.0 /* sends that are later than this say that the client was the limit */

static const double quantiles[] = {0.5, 0.9, 0.99, 1};
static const char *const quantile_names[] = {"p50", "p90", "p99", "max"};

/* Where a request's clock starts: when it should have left. */
static double start_of(const cli_load *l, const cli_shot *s)
{
    return l->concurrency ? s->sent : s->at;
}

static bool is_good(const cli_slo *slo, double ttft, double tpot, double e2e)
{
    return (!slo->ttft || ttft <= slo->ttft) && (!slo->itl || tpot <= slo->itl) &&
           (!slo->e2e || e2e <= slo->e2e);
}

static void take(cli_report *r, const cli_load *l, const cli_shot *s)
{
    double start = start_of(l, s), ttft = s->events ? s->first - start : 0;
    double e2e = s->end - start, tpot = 0;
    int32_t out = s->usage ? s->completion : s->events;
    r->in += s->usage ? s->prompt : s->n_in;
    r->out += out;
    r->cached += s->cached;
    r->events += (size_t)s->events;
    r->no_usage += !s->usage;
    r->wrong_in += s->usage && s->prompt != s->n_in;
    r->short_out += out < s->n_out;
    cli_samples_add(&r->e2e, e2e);
    if (s->events)
        cli_samples_add(&r->ttft, ttft);
    if (s->events > 1 && out > 1) {
        tpot = (s->last - s->first) / (out - 1);
        cli_samples_add(&r->tpot, tpot);
    }
    r->good += is_good(&r->slo, ttft, tpot, e2e);
}

void cli_report_make(cli_report *r, cli_load *l, const cli_slo *slo)
{
    double from = 1e300, to = 0;
    *r = (cli_report){.load = l, .slo = *slo};
    for (size_t i = 0; i < l->n; i++) {
        const cli_shot *s = &l->shots[i];
        r->kinds[s->outcome]++;
        if (s->outcome == CLI_SHOT_UNSENT)
            continue;
        r->sent++;
        from = s->sent < from ? s->sent : from;
        if (s->outcome != CLI_SHOT_OK)
            continue;
        to = s->end > to ? s->end : to;
        take(r, l, s);
    }
    r->span = to > from ? to - from : 0;
}

void cli_report_free(cli_report *r)
{
    cli_samples_free(&r->ttft);
    cli_samples_free(&r->e2e);
    cli_samples_free(&r->tpot);
}

static double per_second(const cli_report *r, double n)
{
    return r->span > 0 ? n / r->span : 0;
}

/* ---- table ------------------------------------------------------------------------------------------------ */

static void row(FILE *out, const char *name, cli_samples *s)
{
    fprintf(out, "  %-22s", name);
    if (!s->n) {
        fputs("         -\n", out);
        return;
    }
    for (size_t i = 0; i < 4; i++)
        fprintf(out, "%10.2f", cli_samples_quantile(s, quantiles[i]) * 1e3);
    fprintf(out, "%10.2f%9zu\n", cli_samples_mean(s) * 1e3, s->n);
}

static void print_notes(cli_report *r, const cli_about *a, FILE *out)
{
    cli_load *l = r->load;
    if (a->clipped_in || a->clipped_out)
        fprintf(
            out,
            "CLIPPED to %d tokens of context: %zu prompts (%lld tokens less), %zu answers (%lld "
            "less)\n",
            a->context, a->clipped_in, (long long)a->lost_in, a->clipped_out,
            (long long)a->lost_out);
    if (a->dropped)
        fprintf(out, "DROPPED: %zu texts longer than the context\n", a->dropped);
    if (a->estimated)
        fprintf(out, "no /tokenize: lengths of the trace's texts are estimated, 4 bytes a token\n");
    if (r->no_usage)
        fprintf(out, "%zu answers told no usage: their events count as tokens\n", r->no_usage);
    if (r->wrong_in && !(a->format && !strcmp(a->format, "sharegpt")))
        fprintf(out, "%zu prompts had another length than asked for (counts above are usage's)\n",
                r->wrong_in);
    if (r->short_out)
        fprintf(out, "%zu answers ended before their length%s\n", r->short_out,
                a->ignore_eos ? "" : " (--ignore-eos, where the server knows it)");
    if (l->gap_zero)
        fprintf(out, "%zu of %zu gaps are 0: their events came in one read\n", l->gap_zero,
                l->gap.n);
    if (a->continuous_usage && !l->counted && l->gap.n)
        fprintf(out, "the server counts no tokens in its events: ITL is that between events\n");
    if (l->itl.lost || l->gap.lost || l->late.lost || l->pass.lost)
        fprintf(out, "WARNING: memory ran out; %zu samples are missing\n",
                l->itl.lost + l->gap.lost + l->late.lost + l->pass.lost);
    double late = cli_samples_quantile(&l->late, 0.99) * 1e3;
    double pass = cli_samples_quantile(&l->pass, 0.99) * 1e3;
    if (late > LATE_MS || pass > LATE_MS)
        fprintf(out,
                "WARNING: the client was late (see client above): it may be the limit, not the "
                "server\n");
}

static void print_kinds(const cli_report *r, FILE *out)
{
    const cli_load *l = r->load;
    int codes[8], n_codes = 0;
    fprintf(out, "requests: %zu sent, %zu ok", r->sent, r->kinds[CLI_SHOT_OK]);
    for (int k = CLI_SHOT_OK + 1; k < CLI_SHOT_KINDS; k++)
        if (r->kinds[k])
            fprintf(out, ", %zu %s", r->kinds[k], cli_outcome_name((cli_outcome)k));
    for (size_t i = 0; i < l->n && n_codes < 8; i++) {
        bool seen = l->shots[i].outcome != CLI_SHOT_STATUS;
        for (int k = 0; k < n_codes; k++)
            seen |= codes[k] == l->shots[i].status;
        if (!seen)
            codes[n_codes++] = l->shots[i].status;
    }
    for (int k = 0; k < n_codes; k++)
        fprintf(out, "%s%d", k ? " " : " (", codes[k]);
    fprintf(out, "%s\n", n_codes ? ")" : "");
    if (l->message[0])
        fprintf(out, "the first complaint: %s\n", l->message);
}

void cli_report_print(cli_report *r, const cli_about *a, FILE *out)
{
    cli_load *l = r->load;
    size_t ok = r->kinds[CLI_SHOT_OK];
    double p50 = cli_samples_quantile(&l->itl, 0.5), p99 = cli_samples_quantile(&l->itl, 0.99);
    fprintf(out, "%s at %s, /v1/%s; arrivals: %s", a->model, a->url,
            strcmp(a->endpoint, "chat") ? "completions" : "chat/completions", a->arrivals);
    if (a->trace)
        fprintf(out, "; trace %s (%s)", a->trace, a->format);
    putc('\n', out);
    print_kinds(r, out);
    fprintf(out,
            "tokens: %lld in (%lld cached), %lld out, in %zu events; %.1f s\n"
            "throughput: %.3f requests/s, %.1f tokens/s in, %.1f tokens/s out\n",
            (long long)r->in, (long long)r->cached, (long long)r->out, r->events, r->span,
            per_second(r, (double)ok), per_second(r, (double)r->in), per_second(r, (double)r->out));
    if (r->slo.ttft || r->slo.itl || r->slo.e2e)
        fprintf(out, "goodput: %zu of %zu requests met the bounds, %.4f; %.3f requests/s\n",
                r->good, r->sent, r->sent ? (double)r->good / (double)r->sent : 0,
                per_second(r, (double)r->good));
    fprintf(out, "  %-22s%10s%10s%10s%10s%10s%9s\n", "ms", "p50", "p90", "p99", "max", "mean", "n");
    row(out, "first token (TTFT)", &r->ttft);
    if (l->counted)
        row(out, "between tokens (ITL)", &l->itl);
    row(out, l->counted ? "between events" : "between events (ITL)", &l->gap);
    row(out, "a token, per request", &r->tpot);
    row(out, "end to end", &r->e2e);
    if (p50 > 0)
        fprintf(out, "  ITL p99 / p50: %.2f\n", p99 / p50);
    if (!l->concurrency)
        row(out, "client: late sends", &l->late);
    row(out, "client: loop turns", &l->pass);
    fprintf(out, "  client: %.3f s of CPU in %.1f s (%.1f %%), %.1f us an event, %.1f MB read\n",
            l->cpu, l->wall, l->wall > 0 ? 100 * l->cpu / l->wall : 0,
            r->events ? 1e6 * l->cpu / (double)r->events : 0, (double)l->bytes * 1e-6);
    print_notes(r, a, out);
}

/* ---- JSON --------------------------------------------------------------------------------------------------- */

static void json_text(FILE *out, const char *key, const char *v)
{
    fprintf(out, "\"%s\":", key);
    if (v)
        cli_put_json(out, v, strlen(v));
    else
        fputs("null", out);
    putc(',', out);
}

static void json_samples(FILE *out, const char *key, cli_samples *s)
{
    fprintf(out, "\"%s\":{\"n\":%zu", key, s->n);
    for (size_t i = 0; i < 4 && s->n; i++)
        fprintf(out, ",\"%s\":%.6f", quantile_names[i],
                cli_samples_quantile(s, quantiles[i]) * 1e3);
    fprintf(out, ",\"mean\":%.6f},\n", cli_samples_mean(s) * 1e3);
}

static void json_run(const cli_about *a, FILE *out)
{
    char machine[200], date[32];
    cli_machine(machine, sizeof machine);
    cli_today(date);
    json_text(out, "client", turbod_version());
    json_text(out, "date", date);
    json_text(out, "client_machine", machine);
    json_text(out, "url", a->url);
    json_text(out, "model", a->model);
    json_text(out, "endpoint", a->endpoint);
    json_text(out, "trace", a->trace);
    json_text(out, "trace_format", a->format);
    json_text(out, "arrivals", a->arrivals);
    fprintf(out,
            "\"rate\":%g,\"speed\":%g,\"concurrency\":%d,\"context\":%d,\"ignore_eos\":%s,\"seed\":"
            "%llu,"
            "\n\"clipped\":{\"prompts\":%zu,\"prompt_tokens\":%lld,\"answers\":%zu,"
            "\"answer_tokens\":%lld,\"dropped\":%zu},\n",
            a->rate, a->speed, a->concurrency, a->context, a->ignore_eos ? "true" : "false",
            (unsigned long long)a->seed, a->clipped_in, (long long)a->lost_in, a->clipped_out,
            (long long)a->lost_out, a->dropped);
}

static void json_shot(FILE *out, const cli_load *l, const cli_shot *s)
{
    double start = start_of(l, s);
    fprintf(out, "{\"at_s\":%.6f,\"late_ms\":%.3f,\"outcome\":\"%s\",\"status\":%d", start,
            (s->sent - start) * 1e3, cli_outcome_name(s->outcome), s->status);
    if (s->events)
        fprintf(out, ",\"ttft_ms\":%.3f,\"worst_gap_ms\":%.3f", (s->first - start) * 1e3,
                s->worst_gap * 1e3);
    fprintf(out,
            ",\"e2e_ms\":%.3f,\"asked_in\":%d,\"asked_out\":%d,\"in\":%d,\"out\":%d,\"cached\":%d,"
            "\"events\":%d}",
            (s->end - start) * 1e3, s->n_in, s->n_out, s->prompt, s->completion, s->cached,
            s->events);
}

void cli_report_json(cli_report *r, const cli_about *a, FILE *out)
{
    cli_load *l = r->load;
    fputs("{", out);
    json_run(a, out);
    fprintf(out, "\"requests_sent\":%zu,\"outcomes\":{", r->sent);
    for (int k = 0; k < CLI_SHOT_KINDS; k++)
        fprintf(out, "%s\"%s\":%zu", k ? "," : "", cli_outcome_name((cli_outcome)k), r->kinds[k]);
    fputs("},", out);
    json_text(out, "first_complaint", l->message[0] ? l->message : NULL);
    fprintf(out,
            "\n\"tokens_in\":%lld,\"tokens_cached\":%lld,\"tokens_out\":%lld,\"events\":%zu,\"span_"
            "s\":%.6f,"
            "\"requests_per_s\":%.6f,\"tokens_in_per_s\":%.3f,\"tokens_out_per_s\":%.3f,\n",
            (long long)r->in, (long long)r->cached, (long long)r->out, r->events, r->span,
            per_second(r, (double)r->kinds[CLI_SHOT_OK]), per_second(r, (double)r->in),
            per_second(r, (double)r->out));
    if (r->slo.ttft || r->slo.itl || r->slo.e2e)
        fprintf(out,
                "\"slo_ms\":{\"ttft\":%g,\"itl\":%g,\"e2e\":%g},\"good\":%zu,\"goodput\":%.6f,\n",
                r->slo.ttft * 1e3, r->slo.itl * 1e3, r->slo.e2e * 1e3, r->good,
                r->sent ? (double)r->good / (double)r->sent : 0);
    json_samples(out, "ttft_ms", &r->ttft);
    json_samples(out, "itl_ms", &l->itl);
    json_samples(out, "gap_ms", &l->gap);
    json_samples(out, "tpot_ms", &r->tpot);
    json_samples(out, "e2e_ms", &r->e2e);
    json_samples(out, "client_late_ms", &l->late);
    json_samples(out, "client_turn_ms", &l->pass);
    fprintf(out,
            "\"tokens_counted\":%s,\"gap_same_read\":%zu,\"no_usage\":%zu,\"other_prompt_length\":%"
            "zu,\"short_answers\":%zu,"
            "\"client_cpu_s\":%.6f,\"wall_s\":%.6f,\"bytes\":%llu,\"interrupted\":%s,\"gone\":%s,\n"
            "\"requests\":[",
            l->counted ? "true" : "false", l->gap_zero, r->no_usage, r->wrong_in, r->short_out,
            l->cpu, l->wall, (unsigned long long)l->bytes, l->interrupted ? "true" : "false",
            l->gone ? "true" : "false");
    for (size_t i = 0, n = 0; i < l->n; i++) {
        if (l->shots[i].outcome == CLI_SHOT_UNSENT)
            continue;
        fputs(n++ ? ",\n" : "\n", out);
        json_shot(out, l, &l->shots[i]);
    }
    fputs("]}\n", out);
}

/* ---- files --------------------------------------------------------------------------------------------------- */

turbo_status cli_out_open(cli_out *o, const char *path, turbo_err *err)
{
    o->path = path;
    o->f = strcmp(path, "-") ? fopen(path, "we") : stdout;
    return o->f ? TURBO_OK : turbod_err(err, TURBO_EIO, "%s: %s", path, strerror(errno));
}

turbo_status cli_out_close(cli_out *o, turbo_err *err)
{
    bool bad = fflush(o->f) || ferror(o->f);
    if (o->f != stdout && fclose(o->f))
        bad = true;
    return bad ? turbod_err(err, TURBO_EIO, "%s: writing failed", o->path) : TURBO_OK;
}
