/* core/cli/run.c: turbo run: one prompt, one answer. Main thread. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "util/err.h"

static const cli_flag flags[] = {
    CLI_SAMPLING_FLAGS,
    {"prompt", CLI_TEXT, "TEXT", "The prompt. Default: --file, else standard input.", 0, 0},
    {"file", CLI_TEXT, "FILE", "Reads the prompt from a file; - is standard input.", 0, 0},
    {"prompt-ids", CLI_TEXT, "1,4,7", "The prompt as token ids; no template, no bos is added.", 0,
     0},
    {"ids", CLI_SWITCH, "", "Prints the token ids of the answer instead of its text.", 0, 0},
    {"system", CLI_TEXT, "TEXT", "System message before the prompt.", 0, 0},
    {"image", CLI_TEXT, "FILE", "A JPEG or PNG picture that the prompt is about.", 0, 0},
    {"raw", CLI_SWITCH, "", "Continues the prompt as plain text instead of answering it as a chat.",
     0, 0},
    {"stop", CLI_MULTI, "TEXT", "Ends the answer before this text; may be given several times.", 0,
     0},
    {"ignore-eos", CLI_SWITCH, "", "Goes on until --max-tokens.", 0, 0},
    {"json", CLI_SWITCH, "", "Prints one JSON object at the end instead of a stream.", 0, 0},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

static turbo_status prompt_ids(cli_args *a, turbod_service *s, const turbod_buf *text,
                               int32_t **ids, size_t *n, turbod_slots *slots, turbo_err *err)
{
    const char *given = cli_text(a, "prompt-ids"), *system = cli_text(a, "system");
    if (given)
        return cli_parse_ids(given, ids, n, err);
    if (cli_given(a, "raw"))
        return turbod_service_encode(s, text->ptr, text->len, true, false, ids, n, err);
    turbod_message m[2];
    turbod_image *image = NULL;
    size_t n_m = 0, at = 0;
    turbod_render_opts opts = {.add_generation_prompt = true};
    if (system)
        m[n_m++] =
            (turbod_message){.role = "system", .content = system, .content_len = strlen(system)};
    turbo_status st = TURBO_OK;
    if (cli_given(a, "image"))
        st = cli_read_image(s, cli_text(a, "image"), &image, err);
    m[n_m++] = (turbod_message){.role = "user",
                                .content = text->ptr,
                                .content_len = text->len,
                                .images = &image,
                                .image_at = &at,
                                .n_images = image != NULL};
    if (!st)
        st = turbod_service_prompt(s, m, n_m, &opts, ids, n, slots, err);
    turbod_image_release(image);
    return st;
}

static void print_json(const cli_answer *an, const int32_t *prompt, size_t n_prompt)
{
    fputs("{\"text\":", stdout);
    cli_put_json(stdout, an->text.ptr, an->text.len);
    fputs(",\"ids\":[", stdout);
    for (size_t i = 0; i < an->n_ids; i++)
        printf("%s%d", i ? "," : "", an->ids[i]);
    fputs("],\"prompt_ids\":[", stdout);
    for (size_t i = 0; i < n_prompt; i++)
        printf("%s%d", i ? "," : "", prompt[i]);
    printf("],\"finish_reason\":\"%s\",\"seed\":%llu,\"prompt_tokens\":%d,\"completion_tokens\":%d,"
           "\"prompt_ms\":%.3f,\"predicted_ms\":%.3f,\"tokens_per_second\":%.2f}\n",
           an->finish == TURBOD_FINISH_STOP ? "stop" : "length", (unsigned long long)an->seed,
           an->timings.prompt_n, an->timings.predicted_n, an->timings.prompt_ms,
           an->timings.predicted_ms, cli_rate(&an->timings));
}

/* Chat requests end at the template's stop tokens too. */
static turbo_status answer(cli_args *a, turbod_service *s, const turbod_buf *text, turbo_err *err)
{
    int32_t *ids = NULL;
    size_t n = 0;
    cli_answer an = {0};
    bool json = cli_given(a, "json"), ids_only = cli_given(a, "ids");
    bool chat = !cli_given(a, "raw") && !cli_given(a, "prompt-ids");
    turbod_slots slots = {0};
    turbo_status st = prompt_ids(a, s, text, &ids, &n, &slots, err);
    if (st)
        return st;
    if (n > INT32_MAX) {
        turbod_slots_free(&slots);
        free(ids);
        return turbod_err(err, TURBO_ELIMIT, "the prompt is too long");
    }
    turbod_request_spec spec = {.prompt = ids,
                                .n_prompt = (int32_t)n,
                                .images = slots.v,
                                .n_images = (int32_t)slots.n,
                                .ignore_eos = cli_given(a, "ignore-eos")};
    if (chat && !spec.ignore_eos) {
        spec.stop_ids = s->stop_ids;
        spec.n_stop_ids = s->n_stop_ids;
    }
    turbod_policy_result steered;
    st = cli_sampling(a, s, &spec, &steered, err);
    if (!st) {
        st = cli_generate(s, &spec, json || ids_only ? NULL : stdout, &an, err);
        if (!json) {
            for (size_t i = 0; ids_only && i < an.n_ids; i++)
                printf("%s%d", i ? "," : "", an.ids[i]);
            putchar('\n');
            fflush(stdout);
            fprintf(stderr, "%d prompt tokens in %.0f ms, %d tokens, %.1f tokens/s\n",
                    an.timings.prompt_n, an.timings.prompt_ms, an.timings.predicted_n,
                    cli_rate(&an.timings));
        } else if (!st) {
            print_json(&an, ids, n);
        }
        cli_answer_free(&an);
    }
    turbod_slots_free(&slots);
    turbod_policy_result_free(&steered);
    free(ids);
    return st;
}

static int run(cli_args *a)
{
    turbo_err err = {{0}};
    turbod_service s;
    turbod_buf text;
    turbo_status st = TURBO_OK;
    int sources = cli_given(a, "prompt") + cli_given(a, "file") + cli_given(a, "prompt-ids");
    if (sources > 1)
        return cli_usage("give one of --prompt, --file and --prompt-ids");
    if (cli_given(a, "prompt-ids") && (cli_given(a, "raw") || cli_given(a, "system")))
        return cli_usage("--prompt-ids is the whole prompt; --raw and --system do not go with it");
    if (cli_given(a, "raw") && cli_given(a, "system"))
        return cli_usage("--system needs a chat; it does not go with --raw");
    if (cli_given(a, "image") && (cli_given(a, "raw") || cli_given(a, "prompt-ids")))
        return cli_usage("--image needs a chat; it does not go with --raw and --prompt-ids");
    turbod_buf_init(&text, 0);
    if (cli_given(a, "prompt")) {
        const char *p = cli_text(a, "prompt");
        turbod_buf_init(&text, strlen(p) + 1);
        turbod_buf_str(&text, p);
    } else if (!cli_given(a, "prompt-ids")) {
        if (!cli_given(a, "file") && isatty(STDIN_FILENO))
            fputs("Type the prompt, then Ctrl-D.\n", stderr);
        st = cli_read_text(cli_text(a, "file"), &text, &err);
    }
    if (!st)
        st = cli_open_model(a, &s, !cli_given(a, "raw") && !cli_given(a, "prompt-ids"), &err);
    if (!st) {
        cli_catch_interrupts(); /* before that Ctrl-C ends the program at once */
        st = answer(a, &s, &text, &err);
        turbod_service_close(&s);
    }
    turbod_buf_free(&text);
    return st ? cli_fail(st, &err) : 0;
}

const cli_cmd cli_run = {
    .name = "run",
    .words = "MODEL [--prompt TEXT | --file FILE | --prompt-ids IDS] [flags]",
    .summary = "Answers one prompt and prints the answer as it is made.",
    .about = "The prompt is put to a chat model by its template; --raw continues it as plain text. "
             "At the\n"
             "end the speed goes to standard error. Ctrl-C ends the answer.\n",
    .flags = flags,
    .keys =
        "model chat_template plugin_path policies default_policy log_level model_format quantize "
        "allow_nonfinite engine",
    .min_words = 0,
    .max_words = 1,
    .run = run,
};
