// Runs draw.cu on a CPU: blocks one after the other, the threads of a block as threads that meet at barriers.
//
// Reads questions from its input and writes answers: the sizes of scratch, output, logits and input in words, then the
// logits and the input; the output comes back. See rows.rs.

#include <pthread.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#ifndef THREADS
#define THREADS 1
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)

struct Index {
    unsigned x, y;
};
static thread_local Index threadIdx, blockIdx;
static const Index blockDim = {THREADS, 1};
static Index gridDim;
static pthread_barrier_t barrier;

static void __syncthreads() { pthread_barrier_wait(&barrier); }
static unsigned atomicAdd(unsigned *at, unsigned value) { return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST); }

template <class To, class From>
static To bits(From from) {
    To to;
    static_assert(sizeof to == sizeof from, "");
    memcpy(&to, &from, sizeof to);
    return to;
}
static float __int_as_float(unsigned value) { return bits<float>(value); }
static float __uint_as_float(unsigned value) { return bits<float>(value); }
static unsigned __float_as_uint(float value) { return bits<unsigned>(value); }
static long long __double_as_longlong(double value) { return bits<long long>(value); }
static double __longlong_as_double(long long value) { return bits<double>(value); }
// Rounded one by one: this is compiled without contraction.
static double __dadd_rn(double a, double b) { return a + b; }
static double __dsub_rn(double a, double b) { return a - b; }
static double __dmul_rn(double a, double b) { return a * b; }
static double __ddiv_rn(double a, double b) { return a / b; }

#include "draw.cu"

static void run(void (*kernel)(const Step *), const Step *step, unsigned x, unsigned y) {
    if (threadIdx.x == 0) gridDim = {x, y};
    __syncthreads();
    for (blockIdx.y = 0; blockIdx.y < y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < x; blockIdx.x++) {
            kernel(step);
            __syncthreads();
        }
}

// As rows.rs launches them, and those that are not needed.
static void thread(unsigned index, const Step *step, unsigned rows) {
    threadIdx = {index, 0};
    run(draw_maxima, step, step->segments, rows);
    run(draw_weights, step, step->segments, step->tasks);
    run(draw_probabilities, step, step->segments, step->tasks);
    run(draw_thresholds, step, step->tasks, 1);
    run(draw_candidates, step, step->segments, step->tasks);
    run(draw_results, step, step->tasks, 1);
    run(draw_tokens, step, step->draws, 1);
}

int main() {
    pthread_barrier_init(&barrier, nullptr, THREADS);
    unsigned sizes[4];
    while (fread(sizes, sizeof sizes, 1, stdin) == 1) {
        // What is not written must not be read: no zeros.
        std::vector<u64> scratch(sizes[0] / 2 + 1, 0xa5a5a5a5a5a5a5a5), out(sizes[1] / 2 + 1, 0xa5a5a5a5a5a5a5a5);
        std::vector<u64> input(sizes[3] / 2 + 1);
        std::vector<float> logits(sizes[2]);
        if (fread(logits.data(), 4, sizes[2], stdin) != sizes[2]) return 1;
        if (fread(input.data(), 4, sizes[3], stdin) != sizes[3]) return 1;
        Step *step = (Step *)input.data();
        step->logits = (u64)logits.data();
        step->scratch = (u64)scratch.data();
        step->out = (u64)out.data();
        std::vector<std::thread> threads;
        for (unsigned i = 0; i < THREADS; i++) threads.emplace_back(thread, i, step, sizes[2] / step->vocabulary);
        for (std::thread &each : threads) each.join();
        fwrite(out.data(), 4, sizes[1], stdout);
        fflush(stdout);
    }
}
