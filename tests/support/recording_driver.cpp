// CUDA's driver, played on the host: it counts and records what is queued, and runs kernels that a C++ compiler compiled.
//
// A module is the path of a shared library made with `cuda_on_host.h`. Memory of the device is memory of the host.

#include <dlfcn.h>
#include <string.h>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

enum { SUCCESS, INVALID = 1, NOT_READY = 600, LAUNCH, UPLOAD, RECORD, FORBIDDEN = 900 };

struct Module {
    void *library;
    void (*begin_block)(unsigned int);
    void (*end_block)();
    void (*set_position)(unsigned int, unsigned int, unsigned int, unsigned int);
};

struct Kernel {
    const Module *module;
    void (*call)(const char *);
    size_t size;
    std::string name;
};

struct Event {
    bool done = true;
};

struct Entry {
    long long kind, stream, size, blocks;
    const char *name;
};

std::recursive_mutex lock;
std::vector<Entry> entries;
std::vector<std::function<void()>> queued;
bool is_running = true, is_delayed = false;
void *captured = nullptr;
std::vector<std::vector<std::function<void()>>> graphs;
thread_local int mode = 0;  // of captures: 0 forbids a thread what is none of a graph, 2 nothing
int failing = 0;
void (*called)() = nullptr;
unsigned int most_blocks = 3, most_threads = 4;
thread_local std::vector<void *> contexts;

bool fails(int kind)
{
    const bool is_next = failing == kind;
    if (is_next)
        failing = 0;
    return is_next;
}

void run(const Kernel &kernel, const std::string &arguments, unsigned int blocks, unsigned int threads)
{
    for (unsigned int block = 0; block < blocks; block++) {
        const Module &module = *kernel.module;
        module.begin_block(threads);
        std::vector<std::thread> team;
        for (unsigned int thread = 0; thread < threads; thread++)
            team.emplace_back([&, thread] {
                module.set_position(block, blocks, thread, threads);
                kernel.call(arguments.data());
            });
        for (auto &member : team)
            member.join();
        module.end_block();
    }
}

void queue(const Entry &entry, std::function<void()> work)
{
    std::lock_guard<std::recursive_mutex> own(lock);
    entries.push_back(entry);
    if (captured && (void *)(intptr_t)entry.stream == captured)
        graphs.back().push_back(work);
    else if (is_delayed)
        queued.push_back(work);
    else
        work();
}

bool is_forbidden() { return captured && mode == 0; }

}  // namespace

// How it plays, and what it has recorded --------------------------------------------------------------------------

extern "C" {

void set_playing(int running, int delayed, void *stream)
{
    is_running = running;
    is_delayed = delayed;
    captured = stream;
    if (captured)
        graphs.emplace_back();
}

long long count_graphs() { return (long long)graphs.size(); }

void replay(long long number)
{
    std::lock_guard<std::recursive_mutex> own(lock);
    for (auto &work : graphs[number])
        work();
}

void fail_once(int kind) { failing = kind; }

void call_at_launches(void (*function)()) { called = function; }

void set_limits(unsigned int blocks, unsigned int threads)
{
    most_blocks = blocks;
    most_threads = threads;
}

void run_queued()
{
    std::lock_guard<std::recursive_mutex> own(lock);
    auto works = std::move(queued);
    queued.clear();
    for (auto &work : works)
        work();
}

long long count_entries() { return (long long)entries.size(); }
void clear_entries() { entries.clear(); }

const char *read_entry(long long number, long long *found)
{
    const Entry &entry = entries[number];
    found[0] = entry.kind;
    found[1] = entry.stream;
    found[2] = entry.size;
    found[3] = entry.blocks;
    return entry.name;
}

// The driver's functions ---------------------------------------------------------------------------------------------

int cuInit(unsigned int) { return SUCCESS; }

int cuDriverGetVersion(int *version)
{
    *version = 12090;
    return SUCCESS;
}

int cuGetErrorName(int status, const char **name)
{
    *name = status == INVALID ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR_UNKNOWN";
    return SUCCESS;
}

int cuGetErrorString(int, const char **text)
{
    *text = "as played";
    return SUCCESS;
}

int cuDeviceGet(int *device, int number)
{
    *device = number;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int)
{
    *value = attribute == 75 ? 9 : attribute == 16 ? 2 : 0;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device)
{
    *context = (void *)(intptr_t)(0x1000 + device);
    return SUCCESS;
}

int cuCtxGetCurrent(void **context)
{
    *context = contexts.empty() ? nullptr : contexts.back();
    return SUCCESS;
}

// Only XLA's threads ask, which have a context by then.
int cuCtxGetDevice(int *device)
{
    if (contexts.empty())
        contexts.push_back((void *)0x1000);
    *device = (int)((intptr_t)contexts.back() - 0x1000);
    return SUCCESS;
}

int cuCtxPushCurrent_v2(void *context)
{
    contexts.push_back(context);
    return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context)
{
    *context = contexts.back();
    contexts.pop_back();
    return SUCCESS;
}

int cuModuleLoadData(void **module, const void *image)
{
    if (is_forbidden())
        return FORBIDDEN;
    void *library = dlopen((const char *)image, RTLD_NOW | RTLD_LOCAL);
    if (!library || contexts.empty())
        return INVALID;
    auto *found = new Module{library, nullptr, nullptr, nullptr};
    found->begin_block = (void (*)(unsigned int))dlsym(library, "begin_block");
    found->end_block = (void (*)())dlsym(library, "end_block");
    found->set_position =
        (void (*)(unsigned int, unsigned int, unsigned int, unsigned int))dlsym(library, "set_position");
    *module = found;
    return SUCCESS;
}

int cuModuleGetFunction(void **function, void *module, const char *name)
{
    auto *call = (void (*)(const char *))dlsym(((Module *)module)->library, (std::string("packed_") + name).c_str());
    auto *size = (size_t (*)())dlsym(((Module *)module)->library, (std::string("size_") + name).c_str());
    if (!call || !size)
        return INVALID;
    *function = new Kernel{(Module *)module, call, size(), name};
    return SUCCESS;
}

int cuMemHostAlloc(void **memory, size_t size, unsigned int)
{
    *memory = malloc(size);
    return is_forbidden() ? FORBIDDEN : SUCCESS;
}

int cuEventCreate(void **event, unsigned int)
{
    *event = new Event;
    return SUCCESS;
}

int cuEventRecord(void *event, void *stream)
{
    ((Event *)event)->done = false;
    queue({RECORD, (long long)(intptr_t)stream, 0, 0, ""}, [=] { ((Event *)event)->done = true; });
    return SUCCESS;
}

int cuEventQuery(void *event)
{
    return is_forbidden() ? FORBIDDEN : ((Event *)event)->done ? SUCCESS : NOT_READY;
}

int cuThreadExchangeStreamCaptureMode(int *other)
{
    std::swap(mode, *other);
    return SUCCESS;
}

int cuStreamIsCapturing(void *stream, int *status)
{
    *status = captured && stream == captured;
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *stream)
{
    if (contexts.empty() || fails(UPLOAD))
        return INVALID;
    queue({UPLOAD, (long long)(intptr_t)stream, (long long)size, 0, ""}, [=] {
        if (is_running)
            memcpy(to, from, size);
    });
    return SUCCESS;
}

int cuLaunchKernel(
    void *function, unsigned int blocks, unsigned int, unsigned int, unsigned int threads, unsigned int, unsigned int,
    unsigned int, void *stream, void **parameters, void **extra)
{
    if (contexts.empty() || fails(LAUNCH) || parameters || (intptr_t)extra[0] != 1 || (intptr_t)extra[2] != 2 || extra[4])
        return INVALID;
    if (called)
        called();
    auto *kernel = (Kernel *)function;
    const std::string arguments((const char *)extra[1], *(size_t *)extra[3]);
    if (arguments.size() != kernel->size)
        return INVALID;
    queue({LAUNCH, (long long)(intptr_t)stream, (long long)arguments.size(), blocks, kernel->name.c_str()}, [=] {
        // A block of one thread stays one; a larger one shrinks, which a kernel must not notice.
        if (is_running)
            run(*kernel, arguments, blocks < most_blocks ? blocks : most_blocks,
                threads < most_threads ? threads : most_threads);
    });
    return SUCCESS;
}

}  // extern "C"
