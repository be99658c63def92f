#include "runtime/device/cuda.h"

#include <cuda.h>
#include <stdlib.h>
#include <string.h>

/*
 * Kernels before their first use.
 *
 * By default CUDA loads a module, and each of its kernels, when it is first used ("Lazy Loading" in
 * NVIDIA's CUDA Programming Guide).  Loading may wait for all that runs in the context, and with it
 * for an NCCL kernel that waits for another rank, which may be loading, too.  So our own kernels are
 * loaded before anything is exchanged.  The driver's calls for that are those of 12.4; the runtime
 * finds them, so that nothing links to the driver.
 */

static struct device_cuda_module *modules;

void device_cuda_add_module(struct device_cuda_module *module)
{
    module->next = modules;
    modules = module;
}

static struct {
    __typeof__(cuFuncGetModule) *module_of;
    __typeof__(cuModuleGetFunctionCount) *count;
    __typeof__(cuModuleEnumerateFunctions) *enumerate;
    __typeof__(cuFuncLoad) *load;
} driver;

static shoal_status find(const char *name, void *call_out)
{
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    void *call = NULL;

#if CUDART_VERSION >= 12050
    SHOAL_TRY(cuda_check(
        cudaGetDriverEntryPointByVersion(name, &call, 12040, cudaEnableDefault, &found), name));
#else
    SHOAL_TRY(cuda_check(cudaGetDriverEntryPoint(name, &call, cudaEnableDefault, &found), name));
#endif
    if (found != cudaDriverEntryPointSuccess || call == NULL)
        return fail(SHOAL_ERR_UNAVAILABLE, "cuda: the driver is older than 12.4: it has no %s",
                    name);
    memcpy(call_out, &call, sizeof call);
    return SHOAL_OK;
}

static shoal_status find_calls(void)
{
    SHOAL_TRY(find("cuFuncGetModule", &driver.module_of));
    SHOAL_TRY(find("cuModuleGetFunctionCount", &driver.count));
    SHOAL_TRY(find("cuModuleEnumerateFunctions", &driver.enumerate));
    return find("cuFuncLoad", &driver.load);
}

/* A CUresult is the cudaError_t of the same number. */
static shoal_status driver_check(CUresult result, const char *what)
{
    return cuda_check((cudaError_t)result, what);
}

static shoal_status load_functions(CUmodule module)
{
    CUfunction *functions = NULL;
    unsigned n = 0;

    SHOAL_TRY(driver_check(driver.count(&n, module), "count kernels"));
    functions = calloc(n, sizeof(CUfunction));
    if (functions == NULL)
        return fail(SHOAL_ERR_NOMEM, "cuda: cannot list %u kernels", n);
    shoal_status status = driver_check(driver.enumerate(functions, n, module), "list kernels");
    for (unsigned i = 0; i < n && status == SHOAL_OK; i++)
        status = driver_check(driver.load(functions[i]), "load a kernel");
    free(functions);
    return status;
}

shoal_status device_cuda_load_modules(const struct device *device)
{
    SHOAL_TRY(device_cuda_use(device));
    SHOAL_TRY(find_calls());
    for (const struct device_cuda_module *m = modules; m != NULL; m = m->next) {
        cudaFunction_t anchor = NULL;
        CUmodule module = NULL;

        SHOAL_TRY(cuda_check(cudaGetFuncBySymbol(&anchor, m->anchor), "find a module of kernels"));
        SHOAL_TRY(driver_check(driver.module_of(&module, anchor), "find a module of kernels"));
        SHOAL_TRY(load_functions(module));
    }
    return SHOAL_OK;
}
