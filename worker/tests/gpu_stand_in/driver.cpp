// A stand-in for NVIDIA's driver on the CPU: the functions that the worker calls.
//
// Queued work runs only when the host waits for it, which exposes a host that overwrites memory in
// flight or reads too early. Memory is initially NaN and lies between guard pages: it
// ends where its page does, up to 16 bytes.
//
// STAND_IN_SEED seeds the order of threads, STAND_IN_SHARED_BYTES is what a block may share at most, STAND_IN_PROCESSORS counts
// multiprocessors, STAND_IN_MEMORY_MIB is the memory, and each process appends to the file STAND_IN_LAUNCHES how often it
// launched which kernel.

#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <string>

#include "launch.h"

namespace {

using stand_in::Launch;
using stand_in::Place;
using stand_in::u64;

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    NOT_FOUND = 500,
    NOT_READY = 600,
    OUT_OF_RESOURCES = 701,
};

const size_t PAGE = 4096;
const unsigned char GUARD = 0xa7;

u64 setting(const char *name, u64 otherwise) {
    const char *value = getenv(name);
    return value ? strtoull(value, nullptr, 0) : otherwise;
}

thread_local Place place;

[[noreturn]] void fail(const char *problem) {
    fprintf(stderr, "stand-in for a GPU: %s\n", problem);
    abort();
}

// === memory ===

struct Memory {
    unsigned char *mapped;
    size_t mapped_bytes, bytes;
};

std::mutex memory_lock;
// By address.
std::map<u64, Memory> memories;
std::map<u64, size_t> pinned;
size_t used_bytes;

size_t all_bytes() {
    static const size_t bytes = setting("STAND_IN_MEMORY_MIB", 2048) << 20;
    return bytes;
}

int allocate(u64 *to, size_t bytes) {
    if (bytes == 0) return INVALID_VALUE;
    std::lock_guard<std::mutex> lock(memory_lock);
    if (bytes > all_bytes() || used_bytes > all_bytes() - bytes) return OUT_OF_MEMORY;
    size_t inner = (bytes + PAGE - 1) / PAGE * PAGE, all = inner + 2 * PAGE;
    void *at = mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return OUT_OF_MEMORY;
    unsigned char *mapped = (unsigned char *)at;
    if (mprotect(mapped + PAGE, inner, PROT_READ | PROT_WRITE) != 0) return OUT_OF_MEMORY;
    unsigned char *begin = mapped + PAGE + (inner - (bytes + 15) / 16 * 16);
    memset(mapped + PAGE, GUARD, begin - (mapped + PAGE));
    memset(begin, 0xff, bytes);
    memset(begin + bytes, GUARD, mapped + PAGE + inner - (begin + bytes));
    memories[u64(begin)] = {mapped, all, bytes};
    used_bytes += bytes;
    *to = u64(begin);
    return SUCCESS;
}

void release(u64 address) {
    std::lock_guard<std::mutex> lock(memory_lock);
    auto found = memories.find(address);
    if (found == memories.end()) fail("memory is freed that is not there");
    const Memory &memory = found->second;
    const unsigned char *begin = (const unsigned char *)address, *end = memory.mapped + memory.mapped_bytes - PAGE;
    for (const unsigned char *at = memory.mapped + PAGE; at < end; at++) {
        if ((at < begin || at >= begin + memory.bytes) && *at != GUARD) {
            fprintf(stderr, "stand-in for a GPU: something wrote %td bytes from the begin of %zu bytes\n", at - begin, memory.bytes);
            abort();
        }
    }
    munmap(memory.mapped, memory.mapped_bytes);
    used_bytes -= memory.bytes;
    memories.erase(found);
}

// Whether the host's memory is pinned: then the copy happens when the stream reaches it.
bool is_pinned(const void *at) {
    std::lock_guard<std::mutex> lock(memory_lock);
    auto found = pinned.upper_bound(u64(at));
    if (found == pinned.begin()) return false;
    --found;
    return u64(at) < found->first + found->second;
}

bool is_there(u64 address, size_t bytes) {
    std::lock_guard<std::mutex> lock(memory_lock);
    auto found = memories.upper_bound(address);
    if (found != memories.begin()) {
        --found;
        if (address + bytes <= found->first + found->second.bytes) return true;
        fprintf(stderr, "stand-in for a GPU: a copy of %zu bytes at byte %llu of %zu\n", bytes, address - found->first, found->second.bytes);
    }
    return false;
}

// === streams ===

struct Stream {
    std::mutex lock;
    std::deque<std::function<void()>> queue;
};
Stream default_stream;

Stream &of(Stream *stream) { return stream ? *stream : default_stream; }

void push(Stream *stream, std::function<void()> call) {
    std::lock_guard<std::mutex> lock(of(stream).lock);
    of(stream).queue.push_back(std::move(call));
}

void drain(Stream *stream) {
    std::lock_guard<std::mutex> lock(of(stream).lock);
    auto &queue = of(stream).queue;
    while (!queue.empty()) {
        queue.front()();
        queue.pop_front();
    }
}

struct Event {
    Stream *stream;
    bool is_recorded, has_come;
    timespec time;
};

struct Function {
    std::string name;
    std::function<void()> *(*launch)(const Launch &, void **);
    unsigned most_shared_bytes;
};

std::mutex launches_lock;
std::map<std::string, u64> launches;

void write_launches() {
    FILE *file = fopen(getenv("STAND_IN_LAUNCHES"), "a");
    for (auto &each : launches) fprintf(file, "%llu %s\n", each.second, each.first.c_str());
    fclose(file);
}

u64 seed() {
    static const u64 seed = [] {
        u64 drawn = setting("STAND_IN_SEED", u64(std::random_device()()) | 1);
        fprintf(stderr, "stand-in for a GPU: STAND_IN_SEED=%llu draws who runs when\n", drawn);
        return drawn;
    }();
    return seed;
}

u64 mixed(u64 number) {
    number = (number ^ number >> 30) * 0xbf58476d1ce4e5b9;
    number = (number ^ number >> 27) * 0x94d049bb133111eb;
    return number ^ number >> 31;
}

unsigned shared_limit() { return (unsigned)setting("STAND_IN_SHARED_BYTES", 232448); }

void stopped(int number, siginfo_t *info, void *) {
    char text[512] = "no kernel", message[640];
    if (place.describe) place.describe(text, sizeof text);
    int length = number == SIGSEGV || number == SIGBUS
                     ? snprintf(message, sizeof message, "stand-in for a GPU: %s: nothing is at %p\n", text, info->si_addr)
                     : snprintf(message, sizeof message,
                                "stand-in for a GPU: %s: a vector that is not aligned, or an index outside of its array\n", text);
    if (write(2, message, length) < 0) _exit(1);
    signal(number, SIG_DFL);
}

}  // namespace

extern "C" {

int cuInit(unsigned) {
    static const bool once = [] {
        struct sigaction action = {};
        action.sa_sigaction = stopped;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int number : {SIGSEGV, SIGBUS, SIGILL}) sigaction(number, &action, nullptr);
        seed();
        if (getenv("STAND_IN_LAUNCHES")) atexit(write_launches);
        return true;
    }();
    (void)once;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    *version = int(setting("STAND_IN_DRIVER", 13000));
    return SUCCESS;
}

int cuDeviceGet(int *device, int number) {
    *device = number;
    return number == 0 ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int size, int) {
    snprintf(name, size, "stand-in");
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = all_bytes();
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
        case 1: *value = 1024; break;                                       // threads of a block
        case 8: *value = 48 << 10; break;                                   // bytes that a block shares without asking
        case 10: *value = 32; break;                                        // lanes of a warp
        case 16: *value = (int)setting("STAND_IN_PROCESSORS", 4); break;    // multiprocessors
        case 75: *value = int(setting("STAND_IN_CAPABILITY", 90)) / 10; break;
        case 76: *value = int(setting("STAND_IN_CAPABILITY", 90)) % 10; break;
        case 97: *value = (int)shared_limit(); break;                       // bytes that a block may ask for
        case 115: *value = 1; break;                                        // pools of memory
        default: *value = 0;
    }
    return SUCCESS;
}

static int context;

int cuDevicePrimaryCtxRetain(void **to, int) {
    *to = &context;
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void *) { return SUCCESS; }
int cuCtxGetCurrent(void **to) {
    *to = &context;
    return SUCCESS;
}
int cuCtxSynchronize() {
    drain(nullptr);
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t *free, size_t *all) {
    std::lock_guard<std::mutex> lock(memory_lock);
    *all = all_bytes();
    *free = *all - used_bytes;
    return SUCCESS;
}

int cuMemAllocAsync(u64 *to, size_t bytes, Stream *) { return allocate(to, bytes); }
int cuMemAlloc_v2(u64 *to, size_t bytes) { return allocate(to, bytes); }
int cuMemFreeAsync(u64 address, Stream *stream) {
    push(stream, [=] { release(address); });
    return SUCCESS;
}
int cuMemFree_v2(u64 address) {
    drain(nullptr);
    release(address);
    return SUCCESS;
}

int cuMemHostAlloc(void **to, size_t bytes, unsigned) {
    *to = malloc(bytes);
    if (!*to) return OUT_OF_MEMORY;
    memset(*to, 0xff, bytes);
    std::lock_guard<std::mutex> lock(memory_lock);
    pinned[u64(*to)] = bytes;
    return SUCCESS;
}
int cuMemFreeHost(void *at) {
    std::lock_guard<std::mutex> lock(memory_lock);
    pinned.erase(u64(at));
    free(at);
    return SUCCESS;
}

int cuMemsetD8Async(u64 to, unsigned char value, size_t bytes, Stream *stream) {
    if (!is_there(to, bytes)) return INVALID_VALUE;
    push(stream, [=] { memset((void *)to, value, bytes); });
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, Stream *stream) {
    if (!is_there(to, bytes)) return INVALID_VALUE;
    if (is_pinned(from)) {
        push(stream, [=] { memcpy((void *)to, from, bytes); });
    } else {
        std::string copy((const char *)from, bytes);
        push(stream, [to, copy = std::move(copy)] { memcpy((void *)to, copy.data(), copy.size()); });
    }
    return SUCCESS;
}

int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, Stream *stream) {
    if (!is_there(from, bytes)) return INVALID_VALUE;
    memset(to, 0xff, bytes);
    push(stream, [=] { memcpy(to, (const void *)from, bytes); });
    if (!is_pinned(to)) drain(stream);
    return SUCCESS;
}

int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, Stream *stream) {
    if (!is_there(to, bytes) || !is_there(from, bytes)) return INVALID_VALUE;
    push(stream, [=] { memcpy((void *)to, (const void *)from, bytes); });
    return SUCCESS;
}

int cuStreamCreate(Stream **to, unsigned) {
    *to = new Stream;
    return SUCCESS;
}
int cuStreamDestroy_v2(Stream *stream) {
    drain(stream);
    delete stream;
    return SUCCESS;
}
int cuStreamSynchronize(Stream *stream) {
    drain(stream);
    return SUCCESS;
}
int cuStreamWaitEvent(Stream *, Event *event, unsigned) {
    if (event->is_recorded && !event->has_come) drain(event->stream);
    return SUCCESS;
}

int cuEventCreate(Event **to, unsigned) {
    *to = new Event{};
    return SUCCESS;
}
int cuEventRecord(Event *event, Stream *stream) {
    event->is_recorded = true;
    event->has_come = false;
    event->stream = stream;
    push(stream, [=] {
        event->has_come = true;
        clock_gettime(CLOCK_MONOTONIC, &event->time);
    });
    return SUCCESS;
}
int cuEventSynchronize(Event *event) {
    if (event->is_recorded && !event->has_come) drain(event->stream);
    return SUCCESS;
}
int cuEventQuery(Event *event) { return event->is_recorded && !event->has_come ? NOT_READY : SUCCESS; }
int cuEventElapsedTime_v2(float *milliseconds, Event *from, Event *to) {
    if (!from->has_come || !to->has_come) return NOT_READY;
    *milliseconds = float(double(to->time.tv_sec - from->time.tv_sec) * 1e3 + double(to->time.tv_nsec - from->time.tv_nsec) / 1e6);
    return SUCCESS;
}
int cuEventElapsedTime(float *milliseconds, Event *from, Event *to) { return cuEventElapsedTime_v2(milliseconds, from, to); }
int cuEventDestroy_v2(Event *event) {
    cuEventSynchronize(event);
    delete event;
    return SUCCESS;
}

// `image` is a path; see compiler.cpp.
int cuModuleLoadData(void **module, const void *image) {
    *module = dlopen((const char *)image, RTLD_NOW | RTLD_LOCAL);
    if (*module) return SUCCESS;
    fprintf(stderr, "stand-in for a GPU: %s\n", dlerror());
    return INVALID_IMAGE;
}
int cuModuleUnload(void *) { return SUCCESS; }
int cuModuleGetFunction(Function **to, void *module, const char *name) {
    void *launch = dlsym(module, (std::string("launch_") + name).c_str());
    if (!launch) return NOT_FOUND;
    *to = new Function{name, (std::function<void()> * (*)(const Launch &, void **)) launch, 48 << 10};
    return SUCCESS;
}

int cuFuncSetAttribute(Function *function, int attribute, int value) {
    // The most bytes that blocks share.
    if (attribute != 8 || value < 0 || (unsigned)value > shared_limit()) return INVALID_VALUE;
    function->most_shared_bytes = (unsigned)value;
    return SUCCESS;
}

int cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, Stream *stream, void **parameters, void **) {
    u64 threads = u64(block_x) * block_y * block_z, blocks = u64(grid_x) * grid_y * grid_z;
    if (threads == 0 || threads > 1024 || blocks == 0 || grid_x > 0x7fffffff || grid_y > 65535 || grid_z > 65535 ||
        shared_bytes > function->most_shared_bytes) {
        fprintf(stderr, "stand-in for a GPU: %s cannot be launched with (%u, %u, %u) blocks of %llu threads and %u shared bytes\n",
                function->name.c_str(), grid_x, grid_y, grid_z, threads, shared_bytes);
        return INVALID_VALUE;
    }
    u64 count;
    {
        std::lock_guard<std::mutex> lock(launches_lock);
        count = launches[function->name]++;
    }
    Launch launch = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, 0, [] { return &place; }};
    launch.seed = mixed(seed() ^ mixed(std::hash<std::string>()(function->name) + count));
    std::function<void()> *call = function->launch(launch, parameters);
    if (!call) return OUT_OF_RESOURCES;
    push(stream, [call] {
        (*call)();
        delete call;
    });
    return SUCCESS;
}

int cuGetErrorName(int error, const char **name) {
    *name = error == SUCCESS ? "CUDA_SUCCESS" : "CUDA_ERROR";
    return SUCCESS;
}
int cuGetErrorString(int error, const char **text) {
    switch (error) {
        case SUCCESS: *text = "no error"; break;
        case INVALID_VALUE: *text = "invalid argument"; break;
        case OUT_OF_MEMORY: *text = "out of memory"; break;
        case INVALID_DEVICE: *text = "invalid device ordinal"; break;
        case NOT_FOUND: *text = "named symbol not found"; break;
        case OUT_OF_RESOURCES: *text = "too many resources requested for launch"; break;
        default: *text = "an error of the stand-in for a GPU";
    }
    return SUCCESS;
}
}
