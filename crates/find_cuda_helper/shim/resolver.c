/* Opens libcuda.so.1 when the first driver function is called.
 *
 * The build script puts `cuda_shim_names` in front of this text and assembles one
 * trampoline per name, which jumps through `cuda_shim_table`. An entry points at the
 * resolver until its function is called once. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum { CUDA_SHIM_NO_DEVICE = 100, CUDA_SHIM_NOT_FOUND = 500 };

extern void *cuda_shim_table[];
static void *cuda_shim_handle;
static pthread_once_t cuda_shim_once = PTHREAD_ONCE_INIT;

static void cuda_shim_open(void) { cuda_shim_handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); }

static int cuda_shim_no_driver(void) { return CUDA_SHIM_NO_DEVICE; }
static int cuda_shim_no_symbol(void) { return CUDA_SHIM_NOT_FOUND; }

/* cust formats every error through these two and panics when they fail. */
static int cuda_shim_error_string(int code, const char **out)
{
    (void)code;
    if (out) *out = "the CUDA driver library libcuda.so.1 is not installed";
    return 0;
}

int cuda_shim_driver_present(void)
{
    pthread_once(&cuda_shim_once, cuda_shim_open);
    return cuda_shim_handle != 0;
}

__attribute__((visibility("hidden"))) void *cuda_shim_resolve(long index)
{
    const char *name = cuda_shim_names[index];
    pthread_once(&cuda_shim_once, cuda_shim_open);
    void *function = 0;
    if (cuda_shim_handle) {
        function = dlsym(cuda_shim_handle, name);
        if (!function) function = (void *)cuda_shim_no_symbol;
    } else if (!strcmp(name, "cuGetErrorString") || !strcmp(name, "cuGetErrorName")) {
        function = (void *)cuda_shim_error_string;
    } else {
        function = (void *)cuda_shim_no_driver;
    }
    __atomic_store_n(&cuda_shim_table[index], function, __ATOMIC_RELEASE);
    return function;
}
