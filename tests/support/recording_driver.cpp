// CUDA's driver, played on the host: it counts and records what is queued, and runs kernels that a C++ compiler compiled.
//
// A module is the path of a shared library made with `cuda_on_host.h`. Memory of a device is memory of the host; which device has
// it can be said, and then only that device may be given its address. Each device has streams of its own, and a thread's context
// must be that of the device that it asks for something: some of it the real driver would do from any context.

#include <dlfcn.h>
#include <string.h>

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

enum {
    SUCCESS,
    INVALID = 1,
    NO_CONTEXT = 201,
    WRONG_HANDLE = 400,
    NOT_READY = 600,
    LAUNCH,
    UPLOAD,
    RECORD,
    WAIT,
    FETCH,
    ILLEGAL_ADDRESS = 700,
    FORBIDDEN = 900
};
const long long FIRST_CONTEXT = 0x1000, STREAMS_OF_DEVICE = 1000, LARGEST_DEFAULT_STREAM = 2;

struct Module {
    void *library;
    long long device;
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
    long long device;
    long long recorded = 0, done = 0;
};

struct Memory {
    size_t size;
    long long device;
};

// Of a stream, while the devices are behind.
struct Queued {
    std::function<void()> work;
    const Event *awaited;
    long long times;
};

struct Entry {
    long long kind, stream, size, blocks;
    const char *name;
};

std::recursive_mutex lock;
std::vector<Entry> entries;
std::map<long long, std::deque<Queued>> queued;
std::map<uintptr_t, Memory> memories;
bool is_running = true, is_delayed = false;
void *captured = nullptr;
std::vector<std::vector<std::function<void()>>> graphs;
thread_local int mode = 0;  // of captures: 0 forbids a thread what is none of a graph, 2 nothing
int failing = 0;
void (*called)() = nullptr;
unsigned int most_threads = 4;
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

void queue(const Entry &entry, std::function<void()> work, const Event *awaited = nullptr)
{
    std::lock_guard<std::recursive_mutex> own(lock);
    entries.push_back(entry);
    if (captured && (void *)(intptr_t)entry.stream == captured)
        graphs.back().push_back(work);
    else if (is_delayed)
        queued[entry.stream].push_back({work, awaited, awaited ? awaited->recorded : 0});
    else
        work();
}

bool is_forbidden() { return captured && mode == 0; }

long long current_device() { return contexts.empty() ? -1 : (long long)(intptr_t)contexts.back() - FIRST_CONTEXT; }

// What is wrong with asking this thread's device to queue something on a stream: the default streams are those of any device.
int misuse(const void *stream)
{
    const long long number = (long long)(intptr_t)stream;
    if (contexts.empty())
        return NO_CONTEXT;
    return number > LARGEST_DEFAULT_STREAM && number / STREAMS_OF_DEVICE != current_device() ? WRONG_HANDLE : SUCCESS;
}

// The device that has memory at an address; -1 if that was not said.
long long owner(uintptr_t address)
{
    auto next = memories.upper_bound(address);
    if (next == memories.begin())
        return -1;
    const auto &found = *--next;
    return address < found.first + found.second.size ? found.second.device : -1;
}

bool is_elsewhere(const void *address, long long device)
{
    const long long found = owner((uintptr_t)address);
    return found >= 0 && found != device;
}

// Whether there are addresses of another device's memory among what this thread's device is given.
bool has_foreign_addresses(const char *words, size_t size)
{
    std::lock_guard<std::recursive_mutex> own(lock);
    for (size_t at = 0; at + 8 <= size && !memories.empty(); at += 8) {
        const void *word;
        memcpy(&word, words + at, sizeof word);
        if (is_elsewhere(word, current_device()))
            return true;
    }
    return false;
}

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

void set_limit(unsigned int threads) { most_threads = threads; }

// One stream after the other goes as far as it can, that which was first asked last; returns whether all came to their ends.
int run_queued()
{
    std::lock_guard<std::recursive_mutex> own(lock);
    bool moved = true, is_done = false;
    while (moved && !is_done) {
        moved = false;
        is_done = true;
        for (auto stream = queued.rbegin(); stream != queued.rend(); ++stream) {
            auto &works = stream->second;
            while (!works.empty() && (!works.front().awaited || works.front().awaited->done >= works.front().times)) {
                auto work = std::move(works.front().work);
                works.pop_front();
                work();
                moved = true;
            }
            is_done = is_done && works.empty();
        }
    }
    return is_done;
}

void say_memory(void *address, size_t size, long long device) { memories[(uintptr_t)address] = {size, device}; }
void forget_memory() { memories.clear(); }

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
    *name = status == INVALID           ? "CUDA_ERROR_INVALID_VALUE"
            : status == NO_CONTEXT      ? "CUDA_ERROR_INVALID_CONTEXT"
            : status == WRONG_HANDLE    ? "CUDA_ERROR_INVALID_HANDLE"
            : status == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                                        : "CUDA_ERROR_UNKNOWN";
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
    *context = (void *)(intptr_t)(FIRST_CONTEXT + device);
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
        contexts.push_back((void *)FIRST_CONTEXT);
    *device = (int)current_device();
    return SUCCESS;
}

int cuCtxPushCurrent_v2(void *context)
{
    contexts.push_back(context);
    return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context)
{
    if (contexts.empty())
        return NO_CONTEXT;
    *context = contexts.back();
    contexts.pop_back();
    return SUCCESS;
}

int cuModuleLoadData(void **module, const void *image)
{
    if (is_forbidden())
        return FORBIDDEN;
    if (contexts.empty())
        return NO_CONTEXT;
    void *library = dlopen((const char *)image, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return INVALID;
    auto *found = new Module{library, current_device(), nullptr, nullptr, nullptr};
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
    if (contexts.empty())
        return NO_CONTEXT;
    *memory = malloc(size);
    return is_forbidden() ? FORBIDDEN : SUCCESS;
}

int cuEventCreate(void **event, unsigned int)
{
    if (contexts.empty())
        return NO_CONTEXT;
    *event = new Event{current_device()};
    return SUCCESS;
}

int cuEventRecord(void *event, void *stream)
{
    auto *own = (Event *)event;
    if (const int wrong = misuse(stream))
        return wrong;
    if (own->device != current_device())
        return WRONG_HANDLE;
    const long long times = ++own->recorded;
    queue({RECORD, (long long)(intptr_t)stream, 0, 0, ""}, [=] { own->done = own->done > times ? own->done : times; });
    return SUCCESS;
}

int cuEventQuery(void *event)
{
    const auto *own = (Event *)event;
    return is_forbidden() ? FORBIDDEN : own->done == own->recorded ? SUCCESS : NOT_READY;
}

int cuStreamWaitEvent(void *stream, void *event, unsigned int)
{
    if (const int wrong = misuse(stream))
        return wrong;
    queue({WAIT, (long long)(intptr_t)stream, 0, 0, ""}, [] {}, (Event *)event);
    return SUCCESS;
}

int cuThreadExchangeStreamCaptureMode(int *other)
{
    std::swap(mode, *other);
    return SUCCESS;
}

int cuStreamIsCapturing(void *stream, int *status)
{
    if (const int wrong = misuse(stream))
        return wrong;
    *status = captured && stream == captured;
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *stream)
{
    if (const int wrong = misuse(stream))
        return wrong;
    if (fails(UPLOAD))
        return INVALID;
    if (is_elsewhere(to, current_device()) || has_foreign_addresses((const char *)from, size))
        return ILLEGAL_ADDRESS;
    queue({UPLOAD, (long long)(intptr_t)stream, (long long)size, 0, ""}, [=] {
        if (is_running)
            memcpy(to, from, size);
    });
    return SUCCESS;
}

int cuMemcpyPeerAsync(void *to, void *to_context, const void *from, void *from_context, size_t size, void *stream)
{
    if (const int wrong = misuse(stream))
        return wrong;
    if (fails(FETCH))
        return INVALID;
    const auto device = [](void *context) { return (long long)(intptr_t)context - FIRST_CONTEXT; };
    if (is_elsewhere(to, device(to_context)) || is_elsewhere(from, device(from_context)))
        return ILLEGAL_ADDRESS;
    queue({FETCH, (long long)(intptr_t)stream, (long long)size, 0, ""}, [=] {
        if (is_running)
            memcpy(to, from, size);
    });
    return SUCCESS;
}

int cuLaunchKernel(
    void *function, unsigned int blocks, unsigned int, unsigned int, unsigned int threads, unsigned int, unsigned int,
    unsigned int, void *stream, void **parameters, void **extra)
{
    if (const int wrong = misuse(stream))
        return wrong;
    if (fails(LAUNCH) || parameters || (intptr_t)extra[0] != 1 || (intptr_t)extra[2] != 2 || extra[4])
        return INVALID;
    if (called)
        called();
    auto *kernel = (Kernel *)function;
    const std::string arguments((const char *)extra[1], *(size_t *)extra[3]);
    if (arguments.size() != kernel->size)
        return INVALID;
    if (kernel->module->device != current_device())
        return WRONG_HANDLE;
    if (has_foreign_addresses(arguments.data(), arguments.size()))
        return ILLEGAL_ADDRESS;
    queue({LAUNCH, (long long)(intptr_t)stream, (long long)arguments.size(), blocks, kernel->name.c_str()}, [=] {
        // A block of one thread stays one; a larger one shrinks, which a kernel must not notice.
        if (is_running)
            run(*kernel, arguments, blocks, threads < most_threads ? threads : most_threads);
    });
    return SUCCESS;
}

}  // extern "C"
