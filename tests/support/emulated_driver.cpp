// As much of the CUDA driver as the project asks for, on a CPU: PyCUDA and cuda-bindings run on it as they are.
//
// Memory of the device is memory of the process, streams do at once what they are given, and a module is the path of a
// library that g++ made of the kernels. What a driver refuses, this refuses too: calls without a current context,
// memory that nobody allocated, events that are asked for a time they do not keep.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

enum Status { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500 };
const unsigned DISABLE_TIMING = 2;
const int MAJOR = 75, MINOR = 76, COMPUTE_CAPABILITY[] = {8, 9};
const std::size_t TOTAL = std::size_t(1) << 32, ALIGNMENT = 256;

using Work = std::function<void()>;
struct Context { int users = 0; };
struct Graph { std::vector<Work> work; };
struct Stream { Graph* captured = nullptr; };
struct Event { unsigned flags; bool recorded = false; std::chrono::steady_clock::time_point time; };
struct Module { void* library; };

std::recursive_mutex mutex;
std::map<std::uintptr_t, std::size_t> memory;  // of the device
Context context;
thread_local std::vector<Context*> current;

bool has_context() { return !current.empty(); }

bool is_allocated(std::uintptr_t address, std::size_t size) {
    std::lock_guard<std::recursive_mutex> guard(mutex);
    auto after = memory.upper_bound(address);
    if (after == memory.begin()) return false;
    auto [begin, length] = *--after;
    return address + size <= begin + length;
}

int enqueue(Stream* stream, Work work) {
    if (!has_context()) return INVALID_CONTEXT;
    if (stream == nullptr) return INVALID_HANDLE;  // the default stream, which the project never uses
    if (stream->captured) {
        stream->captured->work.push_back(work);
    } else {
        work();
    }
    return OK;
}

}  // namespace

API cuInit(unsigned) { return OK; }
API cuDriverGetVersion(int* version) { *version = 13000; return OK; }
API cuGetErrorString(int status, const char** text) {
    static const std::map<int, const char*> texts = {{OK, "no error"}, {INVALID_VALUE, "invalid argument"},
        {OUT_OF_MEMORY, "out of memory"}, {INVALID_CONTEXT, "invalid device context"},
        {INVALID_HANDLE, "invalid resource handle"}, {NOT_FOUND, "named symbol not found"}};
    auto found = texts.find(status);
    *text = found == texts.end() ? "unknown error" : found->second;
    return OK;
}
API cuGetErrorName(int status, const char** text) { return cuGetErrorString(status, text); }

API cuDeviceGetCount(int* count) { *count = 1; return OK; }
API cuDeviceGet(int* device, int index) { *device = index; return index == 0 ? OK : INVALID_VALUE; }
API cuDeviceGetName(char* name, int size, int) { std::strncpy(name, "Emulated GPU", size); return OK; }
API cuDeviceTotalMem_v2(std::size_t* bytes, int) { *bytes = TOTAL; return OK; }
API cuDeviceComputeCapability(int* major, int* minor, int) {
    *major = COMPUTE_CAPABILITY[0];
    *minor = COMPUTE_CAPABILITY[1];
    return OK;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute == MAJOR ? COMPUTE_CAPABILITY[0] : attribute == MINOR ? COMPUTE_CAPABILITY[1] : 1;
    return OK;
}
API cuDevicePrimaryCtxRetain(Context** retained, int) { *retained = &context; ++context.users; return OK; }
API cuDevicePrimaryCtxRelease_v2(int) { --context.users; return OK; }

API cuCtxPushCurrent_v2(Context* pushed) { current.push_back(pushed); return OK; }
API cuCtxPopCurrent_v2(Context** popped) {
    if (!has_context()) return INVALID_CONTEXT;
    if (popped) *popped = current.back();
    current.pop_back();
    return OK;
}
API cuCtxGetCurrent(Context** found) { *found = has_context() ? current.back() : nullptr; return OK; }
API cuCtxGetDevice(int* device) { *device = 0; return has_context() ? OK : INVALID_CONTEXT; }
API cuCtxSynchronize() { return has_context() ? OK : INVALID_CONTEXT; }

API cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    if (!has_context()) return INVALID_CONTEXT;
    std::size_t used = 0;
    for (auto [address, size] : memory) used += size;
    *free = TOTAL - used;
    *total = TOTAL;
    return OK;
}
API cuMemAlloc_v2(std::uintptr_t* address, std::size_t size) {
    if (!has_context()) return INVALID_CONTEXT;
    if (size == 0) return INVALID_VALUE;
    if (size > TOTAL) return OUT_OF_MEMORY;
    std::lock_guard<std::recursive_mutex> guard(mutex);
    void* made = std::aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    std::memset(made, 0x7F, size);
    *address = reinterpret_cast<std::uintptr_t>(made);
    memory[*address] = size;
    return OK;
}
API cuMemFree_v2(std::uintptr_t address) {
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (!has_context()) return INVALID_CONTEXT;
    if (memory.erase(address) == 0) return INVALID_VALUE;
    std::free(reinterpret_cast<void*>(address));
    return OK;
}
API cuMemHostAlloc(void** made, std::size_t size, unsigned) {
    if (!has_context()) return INVALID_CONTEXT;
    if (size > TOTAL) return OUT_OF_MEMORY;
    *made = std::malloc(size);
    return OK;
}
API cuMemFreeHost(void* made) { std::free(made); return has_context() ? OK : INVALID_CONTEXT; }
API cuMemcpyHtoDAsync_v2(std::uintptr_t target, const void* source, std::size_t size, Stream* stream) {
    if (!is_allocated(target, size)) return INVALID_VALUE;
    return enqueue(stream, [=] { std::memcpy(reinterpret_cast<void*>(target), source, size); });
}
API cuMemcpyDtoHAsync_v2(void* target, std::uintptr_t source, std::size_t size, Stream* stream) {
    if (!is_allocated(source, size)) return INVALID_VALUE;
    return enqueue(stream, [=] { std::memcpy(target, reinterpret_cast<void*>(source), size); });
}
API cuMemcpyDtoDAsync_v2(std::uintptr_t target, std::uintptr_t source, std::size_t size, Stream* stream) {
    if (!is_allocated(source, size) || !is_allocated(target, size)) return INVALID_VALUE;
    return enqueue(stream, [=] { std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), size); });
}

API cuStreamCreate(Stream** made, unsigned flags) {
    if (!has_context()) return INVALID_CONTEXT;
    *made = new Stream;
    return flags == 1 ? OK : INVALID_VALUE;  // CU_STREAM_NON_BLOCKING
}
API cuStreamDestroy_v2(Stream* stream) { delete stream; return has_context() ? OK : INVALID_CONTEXT; }
API cuStreamSynchronize(Stream*) { return has_context() ? OK : INVALID_CONTEXT; }
API cuStreamWaitEvent(Stream* stream, Event* event, unsigned flags) {
    return event && event->recorded && flags == 0 ? enqueue(stream, [] {}) : int(INVALID_HANDLE);
}

API cuEventCreate(Event** made, unsigned flags) {
    if (!has_context()) return INVALID_CONTEXT;
    *made = new Event{flags, false, {}};
    return OK;
}
API cuEventDestroy_v2(Event* event) { delete event; return OK; }
API cuEventRecord(Event* event, Stream* stream) {
    return enqueue(stream, [=] {
        event->recorded = true;
        event->time = std::chrono::steady_clock::now();
    });
}
API cuEventSynchronize(Event* event) { return !has_context() ? INVALID_CONTEXT : event->recorded ? OK : INVALID_HANDLE; }
API cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    if (!start->recorded || !end->recorded || ((start->flags | end->flags) & DISABLE_TIMING)) return INVALID_HANDLE;
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return OK;
}
API cuEventElapsedTime(float* milliseconds, Event* start, Event* end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

API cuModuleLoadData(Module** made, const void* image) {
    if (!has_context()) return INVALID_CONTEXT;
    void* library = dlopen(static_cast<const char*>(image), RTLD_NOW | RTLD_LOCAL);
    *made = new Module{library};
    return library ? OK : INVALID_VALUE;
}
API cuModuleLoadDataEx(Module** made, const void* image, unsigned, void*, void*) { return cuModuleLoadData(made, image); }
API cuModuleUnload(Module* module) { delete module; return has_context() ? OK : INVALID_CONTEXT; }
API cuModuleGetFunction(void** function, Module* module, const char* name) {
    *function = dlsym(module->library, name);
    return *function ? OK : NOT_FOUND;
}
API cuFuncSetBlockShape(void*, int x, int y, int z) { return x == 256 && y == 1 && z == 1 ? OK : INVALID_VALUE; }
API cuFuncSetSharedSize(void*, unsigned) { return OK; }
API cuLaunchKernel(void* function, unsigned columns, unsigned rows, unsigned, unsigned x, unsigned y, unsigned z,
                   unsigned, Stream* stream, void**, void** extra) {
    if (x != 256 || y != 1 || z != 1 || !extra) return INVALID_VALUE;
    const char* given = nullptr;  // a list of keys and values: 1 is the arguments' address, 2 that of their size
    std::size_t size = 0;
    for (void** item = extra; *item; item += 2) {
        if (*item == reinterpret_cast<void*>(1)) given = static_cast<const char*>(item[1]);
        if (*item == reinterpret_cast<void*>(2)) size = *static_cast<std::size_t*>(item[1]);
    }
    std::vector<char> arguments(given, given + size);
    auto kernel = reinterpret_cast<void (*)(unsigned, unsigned, const void*)>(function);
    // The kernels keep what a block shares in variables of the thread.
    return enqueue(stream, [=] { kernel(columns, rows, arguments.data()); });
}

API cuStreamBeginCapture_v2(Stream* stream, int) { stream->captured = new Graph; return OK; }
API cuStreamEndCapture(Stream* stream, Graph** graph) {
    *graph = stream->captured;
    stream->captured = nullptr;
    return *graph ? OK : INVALID_VALUE;
}
API cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    *executable = new Graph(*graph);
    return OK;
}
API cuGraphLaunch(Graph* executable, Stream* stream) {
    for (const Work& work : executable->work)
        if (int status = enqueue(stream, work)) return status;
    return OK;
}
API cuGraphDestroy(Graph* graph) { delete graph; return OK; }
API cuGraphExecDestroy(Graph* executable) { delete executable; return OK; }

API cuGetProcAddress_v2(const char* name, void** found, int, std::uint64_t, int* status) {
    *found = nullptr;
    for (const char* version : {"_v4", "_v3", "_v2", ""})
        if (!*found) *found = dlsym(RTLD_DEFAULT, (std::string(name) + version).c_str());
    if (status) *status = *found ? 0 : 1;
    return *found ? OK : NOT_FOUND;
}
API cuGetProcAddress(const char* name, void** found, int version, std::uint64_t flags) {
    return cuGetProcAddress_v2(name, found, version, flags, nullptr);
}
