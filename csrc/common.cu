// Properties of the linked CUDA runtime, for error messages and `specserve doctor`.
#include "common.cuh"

extern "C" const char *specserve_error_string(int status)
{
    return cudaGetErrorString(static_cast<cudaError_t>(status));
}

extern "C" int specserve_runtime_version(void)
{
    int version = 0;
    return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}
