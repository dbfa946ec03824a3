/* core/plugin/host.c: see host.h. The functions live where their subject lives. */
#include "plugin/host.h"

#include "util/log.h"
#include "weights/config.h"
#include "weights/weights.h"

static void host_log(int32_t level, const char *plugin_id, const char *text)
{
    turbod_log(level, "%s: %s", plugin_id, text);
}

static const turbo_host table = {
    .size = sizeof table,
    .abi = TURBO_HOST_ABI,
    .log = host_log,
    .cfg_int = turbod_host_cfg_int,
    .cfg_num = turbod_host_cfg_num,
    .cfg_bool = turbod_host_cfg_bool,
    .cfg_str = turbod_host_cfg_str,
    .cfg_has = turbod_host_cfg_has,
    .cfg_len = turbod_host_cfg_len,
    .linear = turbod_host_linear,
    .vector = turbod_host_vector,
    .rope = turbod_host_rope,
    .has_tensor = turbod_host_has_tensor,
    .file_read = turbod_host_file_read,
    .file_free = turbod_host_file_free,
    .json_open = turbod_host_json_open,
    .json_close = turbod_config_close,
    .cfg_key = turbod_host_cfg_key,
    .linear_rows = turbod_host_linear_rows,
    .vector_of = turbod_host_vector_of,
    .cfg_sub = turbod_host_cfg_sub,
    .cfg_file = turbod_host_cfg_file,
    .model_for = turbod_host_model_for,
    .weights_view = turbod_host_weights_view,
    .weights_beside = turbod_host_weights_beside,
    .experts = turbod_host_experts,
};

const turbo_host *turbod_host_table(void)
{
    return &table;
}
