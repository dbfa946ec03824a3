/* tests/abi/rows.c: opens plugin folders and prints one line a plugin, for refuse.sh; then asks the
 * registry for things, so that the answers can be seen too. */
#include <stdio.h>
#include <string.h>

#include "plugin/registry.h"
#include "util/log.h"
#include "weights/config.h"

int main(int argc, char **argv)
{
    turbod_registry *r = NULL;
    turbo_err err = {{0}};
    turbod_log_level(TURBO_LOG_ERROR);
    if (argc != 2)
        return 64;
    if (turbod_registry_open(argv[1], &r, &err)) {
        printf("error %s\n", err.text);
        return 1;
    }
    for (size_t i = 0; i < turbod_registry_count(r); i++) {
        turbod_plugin_row row;
        turbod_registry_row(r, i, &row);
        const char *slash = strrchr(row.path, '/');
        if (row.refused)
            printf("refused %s: %s\n", slash + 1, row.refused);
        else
            printf("loaded %s: %s, %s\n", slash + 1, row.id, row.offers);
    }
    const turbo_sampler_vtbl *good = turbod_registry_sampler(r, "good");
    printf("sampler good: %s\n", good ? good->id : "none");
    static const char text[] =
        "{\"architectures\":[\"FrobnicatorForCausalLM\"],\"model_type\":\"frob\"}";
    turbo_config *c = NULL;
    const turbo_model_vtbl *m = NULL;
    if (!turbod_config_parse(text, sizeof text - 1, "config.json", &c, &err)) {
        turbo_status st = turbod_registry_model_for(r, c, &m, &err);
        printf("model_for: %d %s\n", st, st ? err.text : m->id);
    }
    turbod_config_close(c);
    turbod_registry_close(r);
    return 0;
}
