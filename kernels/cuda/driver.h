/* kernels/cuda/driver.h: the functions of the CUDA driver that the backend calls, as a table.
 *
 * The driver is opened at run time, so that one program starts with and without it; the toolkit's headers
 * are not needed: the few types and numbers below are those of cuda.h (tests/cuda/test_driver.c holds them
 * against it where it is there). Any thread. Must not know: kernels, models. */
#ifndef TURBOK_CUDA_DRIVER_H
#define TURBOK_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "turbo/plugin.h"

typedef uint64_t turbok_cu_ptr; /* an address in device memory; 0: none */
typedef struct turbok_cu_context *turbok_cu_context;
typedef struct turbok_cu_stream *turbok_cu_stream;
typedef struct turbok_cu_event *turbok_cu_event;
typedef struct turbok_cu_module *turbok_cu_module;
typedef struct turbok_cu_function *turbok_cu_function;
typedef struct turbok_cu_graph *turbok_cu_graph;
typedef struct turbok_cu_graph_exec *turbok_cu_graph_exec;

/* Results; 0 is success. */
enum {
    TURBOK_CU_INVALID = 1,
    TURBOK_CU_OUT_OF_MEMORY = 2,
    TURBOK_CU_NO_DEVICE = 100,
    TURBOK_CU_INVALID_DEVICE = 101,
    TURBOK_CU_NO_BINARY = 209,
    TURBOK_CU_BAD_PTX_VERSION = 222,
    TURBOK_CU_NOT_FOUND = 500,
    TURBOK_CU_NOT_READY = 600,
    TURBOK_CU_ILLEGAL_ADDRESS = 700,
    TURBOK_CU_LAUNCH_FAILED = 719,
};
/* Attributes of a device. */
enum {
    TURBOK_CU_ATTR_SM_COUNT = 16,
    TURBOK_CU_ATTR_L2_BYTES = 38,
    TURBOK_CU_ATTR_MAJOR = 75,
    TURBOK_CU_ATTR_MINOR = 76,
    TURBOK_CU_ATTR_SHARED_OPTIN = 97,
};
/* Of functions, streams, events, captures. */
enum {
    TURBOK_CU_FUNC_DYNAMIC_SHARED = 8,
    TURBOK_CU_STREAM_NON_BLOCKING = 1,
    TURBOK_CU_EVENT_NO_TIMING = 2,
    TURBOK_CU_CAPTURE_THREAD_LOCAL = 1,
    TURBOK_CU_HOST_PORTABLE = 1,
    /* Attribute of a launch: may begin before the kernel before it has ended. */
    TURBOK_CU_LAUNCH_PROGRAMMATIC = 6,
    TURBOK_CU_LAUNCH_CLUSTER = 4, /* blocks that run together, along x, y and z */
};
/* Of maps. */
enum { TURBOK_CU_MAP_16_BITS = 1, TURBOK_CU_MAP_SWIZZLE_128 = 3, TURBOK_CU_MAP_L2_256 = 3 };

typedef struct turbok_cu_launch_attr {
    int32_t id;
    char pad[4];
    union {
        char room[64];
        int32_t value;
        uint32_t cluster[3];
    } value;
} turbok_cu_launch_attr;

typedef struct turbok_cu_launch_config {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    turbok_cu_stream stream;
    turbok_cu_launch_attr *attrs;
    unsigned n_attrs;
} turbok_cu_launch_config;

typedef struct turbok_cu_update_info {
    int32_t result;
    void *error_node, *error_from;
} turbok_cu_update_info;

typedef struct turbok_cu_driver {
    void *library;
    int version; /* 12040 is CUDA 12.4 */
#define F(field, name, args) int(*field) args;
#include "cuda/driver.def"
#undef F
} turbok_cu_driver;

/* Opens the driver named by the environment variable TURBO_CUDA_DRIVER, else libcuda.so.1, and initialises
 * it. EUNSUPPORTED: there is none, it is too old or it sees no device; the text says which ("no CUDA
 * driver"). launch_ex and tensor_map may be NULL. */
turbo_status turbok_cu_driver_open(turbok_cu_driver *d, turbo_err *err);
void turbok_cu_driver_close(turbok_cu_driver *d); /* zeroed allowed */
/* Fills err with "WHAT: CUDA_ERROR_NAME (its text)"; OK for result 0. ENOMEM when memory ran out. */
turbo_status turbok_cu_result(const turbok_cu_driver *d, int result, const char *what,
                              turbo_err *err);

#endif
