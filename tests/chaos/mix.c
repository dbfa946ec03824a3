/* tests/chaos/mix.c: see mix.h. */
#include "mix.h"

#include <string.h>

const char *const leaving_names[N_LEAVES] = {"stay", "body", "queue", "prefill", "decode", "bytes"};

static const char *const words[] = {
    "cache", "token",   "the",   "model", "a",  "story", "of",   "plugin", "river",
    "and",   "turbod",  "batch", "Lua",   "is", "small", "what", "kernel", "\\u00e9t\\u00e9",
    "1024",  "request", "\\n",   "why",
};
enum { N_WORDS = sizeof words / sizeof *words, BEGINNINGS = 6 };

/* n words, of which the first ones are those of one of a few beginnings. */
static void prose(text *t, uint64_t *rng, uint32_t n)
{
    uint64_t shared = 77 + upto(rng, BEGINNINGS);
    uint32_t same = upto(rng, 3) ? upto(rng, n + 1) : 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t w = upto(i < same ? &shared : rng, N_WORDS);
        text_printf(t, i ? " %s" : "%s", words[w]);
    }
}

/* Most answers end long before max_tokens and some never do: what the scheduler expects is wrong both ways,
 * so that memory runs out and requests are preempted. */
static void length(text *t, uint64_t *rng)
{
    static const char *const stops[] = {"[\".\",\"e\"]", "[\"the\",\" a\",\" \"]", "\"\\n\"",
                                        "[\"o\",\"token\"]"};
    uint32_t kind = upto(rng, 8);
    if (kind < 3)
        text_printf(t, ",\"max_tokens\":%u,\"stop\":%s", 150 + upto(rng, 100), stops[upto(rng, 4)]);
    else if (kind < 5)
        text_printf(t, ",\"max_tokens\":%u,\"ignore_eos\":true", 60 + upto(rng, 120));
    else if (kind < 7)
        text_printf(t, ",\"max_tokens\":%u", 1 + upto(rng, 60));
    else
        text_printf(t, ",\"max_tokens\":%u,\"ignore_eos\":true", 1 + upto(rng, 12));
}

static void sampling(text *t, uint64_t *rng, bool n_allowed, shot *s)
{
    static const char *const policies[] = {
        "\"greedy\"",
        "\"house\"",
        "\"lively\"",
        "\"think_budget\",\"policy_args\":{\"budget\":4}",
        "\"choice\",\"policy_args\":{\"options\":[\"yes\",\"no\"]}",
    };
    text_printf(t, ",\"seed\":%u,\"temperature\":%s", upto(rng, 1000),
                upto(rng, 2)   ? "0"
                : upto(rng, 2) ? "0.8"
                               : "1.3");
    if (!upto(rng, 4))
        text_printf(t, ",\"top_p\":0.9,\"repetition_penalty\":1.1");
    if (!upto(rng, 8))
        text_printf(t, ",\"policy\":%s", policies[upto(rng, sizeof policies / sizeof *policies)]);
    if (!upto(rng, 8))
        text_printf(t, ",\"priority\":%d", (int)upto(rng, 9) - 4);
    if (n_allowed && !upto(rng, 6)) {
        s->n = 2 + (int)upto(rng, 3);
        text_printf(t, ",\"n\":%d", s->n);
    }
    length(t, rng);
    if (s->stream)
        text_printf(t, ",\"stream\":true");
}

static uint32_t prompt_words(uint64_t *rng)
{
    static const uint32_t most[] = {1, 4, 20, 20, 60, 60, 120, 300};
    return 1 + upto(rng, most[upto(rng, 8)]);
}

static void completion(text *b, uint64_t *rng, shot *s)
{
    s->path = "/v1/completions";
    if (!upto(rng, 6)) {
        uint32_t n = prompt_words(rng);
        text_printf(b, "{\"prompt\":[1");
        for (uint32_t i = 0; i < n; i++)
            text_printf(b, ",%u", 10 + upto(rng, 2700));
        text_printf(b, "]");
    } else {
        text_printf(b, "{\"prompt\":\"");
        prose(b, rng, prompt_words(rng));
        text_printf(b, "\"");
    }
    if (!upto(rng, 5))
        text_printf(b, ",\"logprobs\":%u", upto(rng, 6));
    sampling(b, rng, true, s);
}

static void chat(text *b, uint64_t *rng, shot *s)
{
    uint32_t turns = upto(rng, 3);
    s->path = "/v1/chat/completions";
    text_printf(b, "{\"messages\":[");
    for (uint32_t i = 0; i < 2 * turns + 1; i++) {
        text_printf(b, "%s{\"role\":\"%s\",\"content\":\"", i ? "," : "",
                    i % 2 ? "assistant" : "user");
        prose(b, rng, 1 + upto(rng, 40));
        text_printf(b, "\"}");
    }
    text_printf(b, "]");
    sampling(b, rng, true, s);
}

static void session(text *b, uint64_t *rng, shot *s)
{
    s->path = "/v1/chat/interactive";
    s->session = true;
    s->ndjson = s->stream;
    text_printf(b, "{\"session_id\":%u,\"interactive_mode\":%s,\"prompt\":\"", upto(rng, 12),
                upto(rng, 4) ? "true" : "false");
    prose(b, rng, 1 + upto(rng, 30));
    text_printf(b, "\"");
    sampling(b, rng, false, s);
}

/* What must be refused, and is no error of the server. */
static void nonsense(text *b, uint64_t *rng, shot *s)
{
    static const char *const bodies[] = {
        "{\"prompt\":",
        "{\"prompt\":\"a\",\"max_tokens\":-1",
        "{\"prompt\":\"a\",\"n\":99",
        "[1",
        "{\"prompt\":\"a\",\"temperature\":1e999",
        "{\"prompt\":[5000000]",
        "{\"prompt\":\"a\",\"policy\":\"x\"",
        "{\"prompt\":\"a\",\"max_tokens\":100000",
    };
    s->path = "/v1/completions";
    s->bad = true;
    s->stream = false;
    text_printf(b, "%s", bodies[upto(rng, sizeof bodies / sizeof *bodies)]);
}

static void begin(shot *s)
{
    text keep = s->bytes;
    *s = (shot){.bytes = keep, .witness = -1, .n = 1};
    s->bytes.n = 0;
}

static void wrap(shot *s, const text *body)
{
    text_printf(&s->bytes,
                "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                "Content-Length: %zu\r\n\r\n",
                s->path, body->n);
    text_add(&s->bytes, body->p, body->n);
}

static void plan_leave(shot *s, uint64_t *rng)
{
    s->keep = upto(rng, 3) == 0;
    if (upto(rng, 100) >= 28) /* some answers are complete before: a fifth of all really leaves */
        return;
    s->leave = (leaving)(1 + upto(rng, N_LEAVES - 1));
    s->how = (way)upto(rng, 3);
    switch (s->leave) {
    case LEAVES_BODY: s->at = upto(rng, (uint32_t)s->bytes.n); break;
    case LEAVES_PREFILL: s->at = upto(rng, 40); break;
    case LEAVES_DECODE: s->at = 1 + upto(rng, s->stream ? 30 : 60); break;
    case LEAVES_BYTES: s->at = 1 + upto(rng, 3000); break;
    default: break;
    }
}

void mix_shot(shot *s, uint64_t seed, uint64_t number)
{
    static text body;
    uint64_t rng = seed * 0x2545f4914f6cdd1du + number;
    mix64(&rng);
    if (!upto(&rng, 12)) {
        mix_witness(s, (int)upto(&rng, N_WITNESSES));
        return;
    }
    begin(s);
    body.n = 0;
    s->stream = upto(&rng, 2);
    uint32_t kind = upto(&rng, 20);
    if (kind < 9)
        completion(&body, &rng, s);
    else if (kind < 14)
        chat(&body, &rng, s);
    else if (kind < 19)
        session(&body, &rng, s);
    else
        nonsense(&body, &rng, s);
    if (body.p[0] == '{' && body.p[body.n - 1] != ':')
        text_add(&body, "}", 1);
    wrap(s, &body);
    plan_leave(s, &rng);
}

/* Greedy and sampled, streamed and not, short and long, with ids and log probabilities. */
void mix_witness(shot *s, int which)
{
    static text body;
    static const char *const tails[N_WITNESSES] = {
        ",\"temperature\":0,\"max_tokens\":40,\"ignore_eos\":true,\"logprobs\":3,\"return_token_"
        "ids\":true}",
        ",\"temperature\":0.8,\"seed\":7,\"n\":2,\"max_tokens\":24,\"logprobs\":0,\"return_token_"
        "ids\":true}",
        ",\"temperature\":0,\"max_tokens\":60,\"return_token_ids\":true,\"stream\":true}",
        ",\"temperature\":0,\"max_tokens\":30,\"ignore_eos\":true,\"logprobs\":0,\"return_token_"
        "ids\":true}",
        ",\"temperature\":0,\"max_tokens\":80,\"ignore_eos\":true,\"logprobs\":1,\"return_token_"
        "ids\":true}",
    };
    uint64_t rng = 4000 + (uint64_t)which;
    begin(s);
    body.n = 0;
    s->witness = which;
    s->n = which == 1 ? 2 : 1;
    s->stream = which == 2;
    if (which == 2) {
        s->path = "/v1/chat/completions";
        text_printf(&body,
                    "{\"messages\":[{\"role\":\"user\",\"content\":\"Tell me a short story.\"}]");
    } else {
        s->path = "/v1/completions";
        text_printf(&body, "{\"prompt\":\"");
        prose(&body, &rng, which == 3 ? 150 : which == 4 ? 3 : 25);
        text_printf(&body, "\"");
    }
    text_printf(&body, "%s", tails[which]);
    wrap(s, &body);
}
