/* tests/cuda/test_driver.c: numbers and layouts of driver.h against cuda.h of the toolkit, where it is there (else 77: skipped). The
 * comparison is the compiler's. */
#include "cuda/driver.h"
#include "cuda/kernels.h"

#include <stdio.h>

#if __has_include(<cuda.h>)
#include <cuda.h>

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours " is " #theirs)
SAME(TURBOK_CU_INVALID, CUDA_ERROR_INVALID_VALUE);
SAME(TURBOK_CU_OUT_OF_MEMORY, CUDA_ERROR_OUT_OF_MEMORY);
SAME(TURBOK_CU_NO_DEVICE, CUDA_ERROR_NO_DEVICE);
SAME(TURBOK_CU_INVALID_DEVICE, CUDA_ERROR_INVALID_DEVICE);
SAME(TURBOK_CU_NO_BINARY, CUDA_ERROR_NO_BINARY_FOR_GPU);
SAME(TURBOK_CU_BAD_PTX_VERSION, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
SAME(TURBOK_CU_NOT_FOUND, CUDA_ERROR_NOT_FOUND);
SAME(TURBOK_CU_NOT_READY, CUDA_ERROR_NOT_READY);
SAME(TURBOK_CU_ILLEGAL_ADDRESS, CUDA_ERROR_ILLEGAL_ADDRESS);
SAME(TURBOK_CU_LAUNCH_FAILED, CUDA_ERROR_LAUNCH_FAILED);
SAME(TURBOK_CU_ATTR_SM_COUNT, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME(TURBOK_CU_ATTR_L2_BYTES, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
SAME(TURBOK_CU_ATTR_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(TURBOK_CU_ATTR_MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(TURBOK_CU_ATTR_SHARED_OPTIN, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
SAME(TURBOK_CU_FUNC_DYNAMIC_SHARED, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
SAME(TURBOK_CU_STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING);
SAME(TURBOK_CU_EVENT_NO_TIMING, CU_EVENT_DISABLE_TIMING);
SAME(TURBOK_CU_CAPTURE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
SAME(TURBOK_CU_HOST_PORTABLE, CU_MEMHOSTALLOC_PORTABLE);
SAME(TURBOK_CU_LAUNCH_PROGRAMMATIC, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
SAME(TURBOK_CU_LAUNCH_CLUSTER, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
SAME(TURBOK_CU_MAP_16_BITS, CU_TENSOR_MAP_DATA_TYPE_UINT16);
SAME(TURBOK_CU_MAP_SWIZZLE_128, CU_TENSOR_MAP_SWIZZLE_128B);
SAME(TURBOK_CU_MAP_L2_256, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);

#define PLACE(ours, a, theirs, b) SAME(offsetof(ours, a), offsetof(theirs, b))
SAME(sizeof(turbok_cu_launch_attr), sizeof(CUlaunchAttribute));
PLACE(turbok_cu_launch_attr, id, CUlaunchAttribute, id);
PLACE(turbok_cu_launch_attr, value, CUlaunchAttribute, value);
SAME(sizeof(turbok_cu_launch_config), sizeof(CUlaunchConfig));
PLACE(turbok_cu_launch_config, grid_x, CUlaunchConfig, gridDimX);
PLACE(turbok_cu_launch_config, block_z, CUlaunchConfig, blockDimZ);
PLACE(turbok_cu_launch_config, shared_bytes, CUlaunchConfig, sharedMemBytes);
PLACE(turbok_cu_launch_config, stream, CUlaunchConfig, hStream);
PLACE(turbok_cu_launch_config, attrs, CUlaunchConfig, attrs);
PLACE(turbok_cu_launch_config, n_attrs, CUlaunchConfig, numAttrs);
SAME(sizeof(turbok_cu_map), sizeof(CUtensorMap));
_Static_assert(_Alignof(turbok_cu_map) >= 64, "cuTensorMapEncodeTiled asks for it");
SAME(sizeof(turbok_cu_ptr), sizeof(CUdeviceptr));

int main(void)
{
    printf("driver.h agrees with cuda.h %d\n", CUDA_VERSION);
    return 0;
}
#else
int main(void)
{
    printf("SKIP: no cuda.h to compare driver.h with\n");
    return 77;
}
#endif
