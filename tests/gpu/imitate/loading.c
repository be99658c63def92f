/*
 * Loading of kernels: the driver's calls and the runtime's way to them.  Loaded kernels take memory.
 * SHOAL_IMITATE_LAZY: a kernel that is launched before it was loaded ends the program.
 */
#include "tests/gpu/emulate/emulate.h"
#include "tests/gpu/imitate/imitate.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

enum { FUNCTION_BYTES = 64 << 10 };

__attribute__((constructor)) static void read_environment(void)
{
    emulate_lazy = getenv("SHOAL_IMITATE_LAZY") != NULL;
}

static bool fails(void)
{
    return imitate.fail_driver > 0 && --imitate.fail_driver == 0;
}

/* A module is itself, its first function and its anchor; a function of it is the address of `loaded`. */
cudaError_t cudaGetFuncBySymbol(cudaFunction_t *function, const void *symbol)
{
    *function = (cudaFunction_t)(uintptr_t)symbol;
    return fails() ? cudaErrorInvalidDeviceFunction : cudaSuccess;
}

static CUresult module_of(CUmodule *module, CUfunction function)
{
    *module = (CUmodule)(void *)function;
    return fails() ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

/* Kernels that are not emulated have nothing to load. */
static CUresult count_functions(unsigned *count, CUmodule module)
{
    *count = emulate_module_at(module) == NULL ? 0 : EMULATE_FUNCTIONS;
    return fails() ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

static CUresult list_functions(CUfunction *functions, unsigned n, CUmodule module)
{
    struct emulate_module *m = emulate_module_at(module);

    for (unsigned i = 0; m != NULL && i < n && i < EMULATE_FUNCTIONS; i++)
        functions[i] = (CUfunction)(void *)&m->loaded[i];
    return fails() ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

static CUresult load_function(CUfunction function)
{
    bool *loaded = (bool *)(void *)function;

    if (fails())
        return imitate.driver_error == 0 ? CUDA_ERROR_INVALID_HANDLE
                                         : (CUresult)imitate.driver_error;
    emulate_allocated += *loaded ? 0 : FUNCTION_BYTES;
    *loaded = true;
    return CUDA_SUCCESS;
}

static cudaError_t entry_point(const char *symbol, void **call,
                               enum cudaDriverEntryPointQueryResult *result)
{
    static const struct {
        const char *name;
        void (*call)(void);
    } calls[] = {{"cuFuncGetModule", (void (*)(void))module_of},
                 {"cuModuleGetFunctionCount", (void (*)(void))count_functions},
                 {"cuModuleEnumerateFunctions", (void (*)(void))list_functions},
                 {"cuFuncLoad", (void (*)(void))load_function}};

    *call = NULL;
    *result = cudaDriverEntryPointSymbolNotFound;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (strcmp(calls[i].name, symbol) != 0 || imitate.old_driver)
            continue;
        memcpy(call, &calls[i].call, sizeof *call);
        *result = cudaDriverEntryPointSuccess;
    }
    return fails() ? cudaErrorInvalidValue : cudaSuccess;
}

#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **call, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result)
{
    (void)flags;
    return version == 12040 ? entry_point(symbol, call, result) : cudaErrorInvalidValue;
}
#else
cudaError_t cudaGetDriverEntryPoint(const char *symbol, void **call, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult *result)
{
    (void)flags;
    return entry_point(symbol, call, result);
}
#endif
