// Prefix of every program that the stand-in compiles: CUDA's keywords and functions on a CPU.
//
// The threads of a block are fibers of one OS thread. A fiber runs until a barrier or an operation that
// its warp does together; the next one is random, so that a missing barrier shows as a wrong result sooner or later.
// Shared memory is initially NaN, and so is the target of a background copy, whose bytes arrive only when the
// thread waits for them.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#include <sys/mman.h>

#include "launch.h"

namespace stand_in {

// A pending copy.
struct Copy {
    unsigned char *to;
    const unsigned char *from;
    bool valid;
    unsigned group;
};

const int MOST_THREADS = 1024, LANES = 32;
const size_t STACK = 128 << 10, SHARED = 256 << 10, PAGE = 4096;

struct Thread {
    Index index;
    void *stack_pointer;
    unsigned groups, first_copy;
    std::vector<Copy> copies;
};

typedef void (*Together)(void **of_lanes);

// Lanes are bits.
struct Warp {
    Thread *threads;
    u32 live, ready, waiting, at_barrier;
    // What the waiting lanes do together.
    Together what;
    void *of_lanes[LANES];
    // Who runs first of those that are ready, and whether those above or those below come next.
    int first;
    bool upwards;
};

// The block that runs on a thread of the system.
struct Block {
    Thread threads[MOST_THREADS];
    Warp warps[MOST_THREADS / LANES];
    int warp_count, running_warp;
    Thread *running;
    const char *name;
    Index grid, size, index;
    unsigned shared_bytes;
    unsigned char *stacks, *shared_end, *shared;
    void *outside;
    const std::function<void()> *kernel;
    u64 random;

    Block() {
        auto map = [](size_t bytes) {
            void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (at == MAP_FAILED) abort();
            return (unsigned char *)at;
        };
        stacks = map(MOST_THREADS * STACK);
        // A stack overflow stops the program.
        for (int i = 0; i < MOST_THREADS; i++) mprotect(stacks + i * STACK, PAGE, PROT_NONE);
        // Shared memory ends where a page ends.
        shared_end = map(SHARED + PAGE) + SHARED;
        mprotect(shared_end, PAGE, PROT_NONE);
    }
    ~Block() {
        munmap(stacks, MOST_THREADS * STACK);
        munmap(shared_end - SHARED, SHARED + PAGE);
    }
};

static thread_local Block *the_block;

static inline Block &block() { return *the_block; }
static inline Thread &self() { return *block().running; }
static inline Warp &own_warp() { return block().warps[self().index.x / LANES]; }

static inline u32 draw(u32 below) {
    u64 &random = block().random;
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return u32((random >> 33) % below);
}

static void describe(char *to, size_t size) {
    Block *block = the_block;
    if (!block || !block->running) {
        snprintf(to, size, "no kernel");
        return;
    }
    const Index &at = block->index;
    snprintf(to, size, "%s, block (%u, %u, %u), thread %u", block->name, at.x, at.y, at.z, block->running->index.x);
}

[[noreturn]] static void fail(const char *problem) {
    char place[256];
    describe(place, sizeof place);
    fprintf(stderr, "stand-in for a GPU: %s: %s\n", place, problem);
    if (the_block) {
        for (int w = 0; w < block().warp_count; w++) {
            const Warp &warp = block().warps[w];
            fprintf(stderr, "  warp %d: lanes %08x live, %08x can run, %08x at the barrier, %08x wait for their warp\n", w,
                    warp.live, warp.ready, warp.at_barrier, warp.waiting);
        }
    }
    abort();
}

// === changes of threads ===

// Saves the context in `from` and continues at `to`.
#ifdef __x86_64__
extern "C" void stand_in_switch(void **from, void *to);
asm(R"(
.text
.type stand_in_switch, @function
.hidden stand_in_switch
.globl stand_in_switch
stand_in_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size stand_in_switch, .-stand_in_switch
)");
#else
#error "the change of threads is written for x86-64"
#endif

static void thread_main();

static inline void prepare(Thread &thread, unsigned char *stack) {
    // As the switch finds it: six registers, where to go on, and the alignment that functions expect.
    void **top = (void **)(stack + STACK) - 8;
    memset(top, 0, 8 * sizeof *top);
    top[6] = (void *)thread_main;
    thread.stack_pointer = top;
}

static inline void new_turn(Warp &warp) {
    u32 drawn = draw(2 * LANES);
    warp.first = int(drawn / 2);
    warp.upwards = drawn % 2;
}

static inline Thread *first_of(const Warp &warp) {
    u32 turned = warp.ready >> warp.first | u32(u64(warp.ready) << (LANES - warp.first));
    int lane = warp.upwards ? __builtin_ctz(turned) : LANES - 1 - __builtin_clz(turned);
    return warp.threads + (lane + warp.first) % LANES;
}

// The next fiber; none when all have ended.
static Thread *next() {
    Block &b = block();
    if (b.warps[b.running_warp].ready) return first_of(b.warps[b.running_warp]);
    for (;;) {
        int first = int(draw(b.warp_count));
        for (int i = 0; i < b.warp_count; i++) {
            b.running_warp = (first + i) % b.warp_count;
            if (b.warps[b.running_warp].ready) return first_of(b.warps[b.running_warp]);
        }
        u32 live = 0;
        for (int w = 0; w < b.warp_count; w++) {
            Warp &warp = b.warps[w];
            if (warp.waiting) fail("threads wait for others that do not come");
            live |= warp.live;
            warp.ready = warp.at_barrier;
            warp.at_barrier = 0;
            new_turn(warp);
        }
        if (!live) return nullptr;
    }
}

static inline void go_on() {
    Block &b = block();
    Thread *from = b.running, *to = next();
    if (from == to) return;
    b.running = to;
    stand_in_switch(&from->stack_pointer, to ? to->stack_pointer : b.outside);
}

static void all_have_arrived(Warp &warp) {
    if (warp.waiting != ~0u) {
        for (int i = 0; i < LANES; i++) {
            if (!(warp.waiting >> i & 1)) warp.of_lanes[i] = nullptr;
        }
    }
    warp.what(warp.of_lanes);
    warp.ready = warp.waiting;
    warp.waiting = 0;
    new_turn(warp);
    Block &b = block();
    if (b.warp_count > 1 && draw(16) == 0) b.running_warp = int(draw(b.warp_count));
}

static void thread_main() {
    (*block().kernel)();
    Warp &warp = own_warp();
    u32 own = 1u << self().index.x % LANES;
    warp.live &= ~own;
    warp.ready &= ~own;
    if (warp.live && warp.waiting == warp.live) all_have_arrived(warp);
    go_on();
    abort();
}

// Waits for the other lanes of the warp; the last one calls `what` with what each of them has, null where there is none.
static inline void meet(Together what, void *own) {
    Warp &warp = own_warp();
    if (warp.waiting && warp.what != what) fail("lanes of a warp do different things together");
    u32 lane = self().index.x % LANES;
    warp.what = what;
    warp.of_lanes[lane] = own;
    warp.ready &= ~(1u << lane);
    warp.waiting |= 1u << lane;
    asm volatile("" ::: "memory");
    if (warp.waiting == warp.live) all_have_arrived(warp);
    go_on();
    asm volatile("" ::: "memory");
}

static void run_block(const Launch &launch) {
    Block &b = block();
    int count = int(launch.block.x);
    b.warp_count = (count + LANES - 1) / LANES;
    for (int w = 0; w < b.warp_count; w++) {
        Warp &warp = b.warps[w];
        int size = count - w * LANES;
        warp.threads = b.threads + w * LANES;
        warp.live = warp.ready = size < LANES ? (1u << size) - 1 : ~0u;
        warp.waiting = warp.at_barrier = 0;
        new_turn(warp);
    }
    for (int i = 0; i < count; i++) {
        Thread &thread = b.threads[i];
        thread.index = {unsigned(i), 0, 0};
        thread.groups = thread.first_copy = 0;
        thread.copies.clear();
        prepare(thread, b.stacks + i * STACK);
    }
    memset(b.shared, 0xff, b.shared_end - b.shared);
    b.running_warp = int(draw(b.warp_count));
    b.running = next();
    stand_in_switch(&b.outside, b.running->stack_pointer);
}

static void run(const Launch &launch, const char *name, const std::function<void()> &kernel) {
    static thread_local Block own;
    the_block = &own;
    launch.place()->describe = describe;
    own.name = name;
    own.grid = launch.grid;
    own.size = launch.block;
    own.shared_bytes = launch.shared_bytes;
    own.shared = own.shared_end - (launch.shared_bytes + 127) / 128 * 128;
    own.kernel = &kernel;
    own.random = launch.seed | 1;
    u64 blocks = u64(launch.grid.x) * launch.grid.y * launch.grid.z, begin = draw(u32(blocks));
    // Every block once, in one order or the other.
    bool up = draw(2) == 0;
    for (u64 i = 0; i < blocks; i++) {
        u64 at = (begin + (up ? i : blocks - i)) % blocks;
        own.index = {unsigned(at % launch.grid.x), unsigned(at / launch.grid.x % launch.grid.y),
                     unsigned(at / launch.grid.x / launch.grid.y)};
        run_block(launch);
    }
    own.running = nullptr;
    the_block = nullptr;
}

template <class T>
static T argument(void *at) {
    T value;
    memcpy(&value, at, sizeof value);
    return value;
}

template <class... Types, size_t... Is>
static std::tuple<Types...> arguments(void **parameters, std::index_sequence<Is...>) {
    return std::tuple<Types...>(argument<Types>(parameters[Is])...);
}

// A launch that waits; null where the host has made a mistake.
template <class... Types>
static std::function<void()> *queued(void (*kernel)(Types...), const char *name, unsigned bound, const Launch &launch,
                                     void **parameters) {
    auto mistake = [&](const char *what) {
        fprintf(stderr, "stand-in for a GPU: launch of %s: %s\n", name, what);
        return nullptr;
    };
    if (bound > 0 && launch.block.x > bound) return mistake("more threads than __launch_bounds__ has");
    if (launch.block.y * launch.block.z != 1) return mistake("blocks of threads of more than one dimension");
    // The host passes MOST_ARGUMENTS, the rest of them null.
    for (size_t i = 0; i < sizeof...(Types); i++) {
        if (!parameters[i]) return mistake("too few arguments");
    }
    if (sizeof...(Types) < 18 && parameters[sizeof...(Types)]) return mistake("too many arguments");
    auto values = arguments<Types...>(parameters, std::index_sequence_for<Types...>());
    return new std::function<void()>([=] { run(launch, name, [&] { std::apply(kernel, values); }); });
}

// Exchange between the lanes of a warp.
struct Shuffle {
    u32 value, from;
};
static void shuffle(void **of_lanes) {
    u32 values[LANES];
    for (int i = 0; i < LANES; i++) values[i] = of_lanes[i] ? ((Shuffle *)of_lanes[i])->value : ~0u;
    for (int i = 0; i < LANES; i++) {
        if (of_lanes[i]) ((Shuffle *)of_lanes[i])->value = values[((Shuffle *)of_lanes[i])->from % LANES];
    }
}
template <class T>
static T shuffled(T value, u32 from) {
    static_assert(sizeof(T) == 4, "");
    Shuffle own = {0, from};
    memcpy(&own.value, &value, 4);
    meet(shuffle, &own);
    memcpy(&value, &own.value, 4);
    return value;
}
static void nothing(void **) {}

template <class To, class From>
static To bits(From from) {
    To to;
    static_assert(sizeof to == sizeof from, "");
    memcpy(&to, &from, sizeof to);
    return to;
}

static void require_whole_warp(void **of_lanes) {
    for (int i = 0; i < LANES; i++) {
        if (!of_lanes[i]) fail("not all lanes take part in what a whole warp does");
    }
}

}  // namespace stand_in

// === CUDA's keywords and functions ===

// The compiler finds kernels by the first two.
#define __global__ STAND_IN_KERNEL
#define __launch_bounds__(threads) STAND_IN_BOUND(threads)
#define __device__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (stand_in::self().index)
#define blockIdx (stand_in::block().index)
#define blockDim (stand_in::block().size)
#define gridDim (stand_in::block().grid)

struct __align__(8) uint2 {
    unsigned x, y;
};
struct __align__(16) uint4 {
    unsigned x, y, z, w;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static inline float __int_as_float(int value) { return stand_in::bits<float>(value); }
static inline float __uint_as_float(unsigned value) { return stand_in::bits<float>(value); }
static inline unsigned __float_as_uint(float value) { return stand_in::bits<unsigned>(value); }
static inline long long __double_as_longlong(double value) { return stand_in::bits<long long>(value); }
static inline double __longlong_as_double(long long value) { return stand_in::bits<double>(value); }

// Rounded one by one: programs are compiled without contraction.
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }

static inline unsigned atomicAdd(unsigned *at, unsigned value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }

static inline void __syncthreads() {
    stand_in::Warp &warp = stand_in::own_warp();
    unsigned own = 1u << threadIdx.x % 32;
    warp.ready &= ~own;
    warp.at_barrier |= own;
    asm volatile("" ::: "memory");
    stand_in::go_on();
    asm volatile("" ::: "memory");
}
static inline void __syncwarp() { stand_in::meet(stand_in::nothing, &stand_in::self()); }
template <class T>
static inline T __shfl_xor_sync(unsigned, T value, int distance) {
    return stand_in::shuffled(value, threadIdx.x % 32 ^ distance);
}
template <class T>
static inline T __shfl_sync(unsigned, T value, int from) {
    return stand_in::shuffled(value, from);
}

// === instructions.cuh ===

#define SHARED_BYTES(name) unsigned char *const name = stand_in::block().shared

static inline float widen_bf16(unsigned short bits) { return __uint_as_float(unsigned(bits) << 16); }
// To the nearest, to even in the middle.
static inline unsigned short narrow_bf16(float value) {
    unsigned bits = __float_as_uint(value);
    if (value != value) return 0x7fff;
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline float compute_f16(unsigned short bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                 : exponent     ? ldexpf(float(1024 + fraction), exponent - 25)
                                : ldexpf(float(fraction), -24);
    return bits & 0x8000 ? -size : size;
}
struct WideF16 {
    float of[1 << 16];
    WideF16() {
        for (int i = 0; i < 1 << 16; i++) of[i] = compute_f16((unsigned short)i);
    }
};
static const WideF16 wide_f16;
static inline float widen_f16(unsigned short bits) { return wide_f16.of[bits]; }
static inline unsigned short narrow_f16(float value) {
    unsigned sign = __float_as_uint(value) >> 16 & 0x8000;
    float size = fabsf(value);
    if (size != size) return 0x7fff;
    // From the middle between the largest number and the next.
    if (size >= 65520.0f) return (unsigned short)(sign | 0x7c00);
    // Of subnormal numbers, too, the sum with a number whose last bit is theirs is rounded as they are.
    if (size < 6.103515625e-05f) return (unsigned short)(sign | (__float_as_uint(size + 0.5f) - 0x3f000000u));
    unsigned bits = __float_as_uint(size);
    bits += 0xfff + (bits >> 13 & 1);
    return (unsigned short)(sign | ((bits >> 13) - (112 << 10)));
}
static inline unsigned pack_bf16(float low, float high) { return narrow_bf16(low) | unsigned(narrow_bf16(high)) << 16; }
static inline unsigned pack_f16(float low, float high) { return narrow_f16(low) | unsigned(narrow_f16(high)) << 16; }

static inline float power_of_two(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

namespace stand_in {

struct Product {
    float *d;
    u32 a[4], b[2];
};

// Most of the time is spent here: vectors by hand, and no checks.
template <float (*widen)(unsigned short)>
__attribute__((no_sanitize("bounds", "alignment"))) static void multiply(void **of_lanes) {
    typedef float Eight __attribute__((vector_size(32)));
    require_whole_warp(of_lanes);
    // Rows of a, columns of b by inputs, and sums by rows.
    float a[16][16];
    Eight b[16], d[16];
    for (int lane = 0; lane < LANES; lane++) {
        const Product &of = *(const Product *)of_lanes[lane];
        int g = lane / 4, t = lane % 4;
        for (int part = 0; part < 4; part++) {
            float *at = &a[g + part % 2 * 8][2 * t + part / 2 * 8];
            at[0] = widen((unsigned short)of.a[part]);
            at[1] = widen((unsigned short)(of.a[part] >> 16));
        }
        for (int part = 0; part < 2; part++) {
            b[2 * t + part * 8][g] = widen((unsigned short)of.b[part]);
            b[2 * t + part * 8 + 1][g] = widen((unsigned short)(of.b[part] >> 16));
        }
        for (int part = 0; part < 4; part++) d[g + part / 2 * 8][2 * t + part % 2] = of.d[part];
    }
    for (int row = 0; row < 16; row++) {
        Eight sums = {};
        for (int k = 0; k < 16; k++) sums += a[row][k] * b[k];
        d[row] += sums;
    }
    for (int lane = 0; lane < LANES; lane++) {
        const Product &of = *(const Product *)of_lanes[lane];
        int g = lane / 4, t = lane % 4;
        for (int part = 0; part < 4; part++) of.d[part] = d[g + part / 2 * 8][2 * t + part % 2];
    }
}

template <float (*widen)(unsigned short)>
static inline void multiply_add(float (&d)[4], const uint4 &a, u32 b0, u32 b1) {
    Product own = {d, {a.x, a.y, a.z, a.w}, {b0, b1}};
    meet(multiply<widen>, &own);
}

// A row of 16 bytes of one of four matrices, as it is when its lane comes, and what the lane takes of all of them.
struct Rows {
    unsigned short row[8];
    u32 b[4];
};
template <bool TRANSPOSED>
static void exchange(void **of_lanes) {
    require_whole_warp(of_lanes);
    for (int lane = 0; lane < LANES; lane++) {
        for (int matrix = 0; matrix < 4; matrix++) {
            auto at = [&](int row, int column) {
                return u32(((Rows *)of_lanes[matrix * 8 + row])->row[column]);
            };
            int g = lane / 4, t = lane % 4;
            ((Rows *)of_lanes[lane])->b[matrix] =
                TRANSPOSED ? at(2 * t, g) | at(2 * t + 1, g) << 16 : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
        }
    }
}

static void check_shared(const void *at, const char *problem) {
    const unsigned char *byte = (const unsigned char *)at;
    Block &b = block();
    if (u64(byte) % 16 != 0 || byte < b.shared || byte + 16 > b.shared + b.shared_bytes) fail(problem);
}

}  // namespace stand_in

static inline void multiply_add_bf16(float (&d)[4], const uint4 &a, unsigned b0, unsigned b1) {
    stand_in::multiply_add<widen_bf16>(d, a, b0, b1);
}
static inline void multiply_add_f16(float (&d)[4], const uint4 &a, unsigned b0, unsigned b1) {
    stand_in::multiply_add<widen_f16>(d, a, b0, b1);
}

template <bool TRANSPOSED>
static inline void load_matrices(unsigned (&b)[4], const unsigned char *row) {
    stand_in::check_shared(row, "a row of a matrix is not 16 aligned bytes of shared memory");
    stand_in::Rows own;
    memcpy(own.row, row, 16);
    stand_in::meet(stand_in::exchange<TRANSPOSED>, &own);
    memcpy(b, own.b, sizeof own.b);
}

static inline void copy_16_bytes(void *shared, const void *global, bool valid) {
    stand_in::check_shared(shared, "a copy goes to what is not 16 aligned bytes of shared memory");
    if (valid && (unsigned long long)global % 16 != 0) stand_in::fail("a copy comes from a place that is not aligned");
    memset(shared, 0xff, 16);
    stand_in::Thread &self = stand_in::self();
    self.copies.push_back({(unsigned char *)shared, (const unsigned char *)global, valid, self.groups});
}
static inline void end_copy_group() { stand_in::self().groups++; }
template <int LEFT>
static inline void await_copy_groups() {
    stand_in::Thread &self = stand_in::self();
    while (self.first_copy < self.copies.size() && self.copies[self.first_copy].group + LEFT < self.groups) {
        const stand_in::Copy &copy = self.copies[self.first_copy++];
        if (copy.valid) {
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    if (self.first_copy == self.copies.size()) {
        self.copies.clear();
        self.first_copy = 0;
    }
}
