// Views of logits on the GPU. The sums, the exponential and the draws have the bits of
// proto/src/sampling: the same operations in the same order, each rounded on its own. The host finishes
// whatever needs only a few numbers.
//
// Blocks work on segments of a row; the threads' loops are correct for any number of threads.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef double f64;

#define CHUNK 512u
#define LANES 8u
#define SEGMENT_CHUNKS 4u
#define SEGMENT (SEGMENT_CHUNKS * CHUNK)
#define MOST_THREADS 256u
// Most tokens that a task hands to the host.
#define MOST_CANDIDATES 8192u
#define NONE 0xffffffffu

#define MINUS_INFINITY __int_as_float(0xff800000)
#define INFINITE __int_as_float(0x7f800000)

// A distribution to compute from a row.
struct Task {
    f64 temperature;
    // Without `top_k`, tokens below this share of the total are dropped.
    f64 least_share;
    u32 row;
    u32 flags;
    // If not 0, tokens below this rank are dropped.
    u32 top_k;
    // With NEEDS_CANDIDATES: number of earlier such tasks.
    u32 part;
};

// Flags of a task.
#define NEEDS_TOTAL 1u
#define NEEDS_PROBABILITIES 2u
#define NEEDS_CANDIDATES 4u

// A draw by inverse CDF from the distribution of a task with NEEDS_PROBABILITIES.
struct Draw {
    f64 u;
    u32 task;
    u32 unused;
};

// A logit to look up.
struct Lookup {
    u32 row, id;
};

// The questions about one forward pass; tasks, draws and lookups follow it.
struct Step {
    // Addresses.
    u64 logits, scratch, out;
    u32 vocabulary, segments, chunks, tasks, draws, lookups;
    // Tasks with NEEDS_CANDIDATES, and the capacity of the pool in tokens.
    u32 parts, pool;
};

// The result of a segment.
struct Best {
    float max;
    // The lowest id with this maximum.
    u32 place;
    // The lowest id with an invalid logit.
    u32 improper;
};

// The result of a task.
struct Result {
    f64 total;
    float max;
    u32 place;
    u32 improper;
    float improper_value;
    u32 candidates;
    u32 unused;
};

// A token and its logit; `NONE` when there is none.
struct Token {
    u32 id;
    float logit;
};

// The candidates of a segment of a task in the pool.
struct Part {
    u32 first, count;
};

#define DEVICE static __device__ __forceinline__

// The input.
DEVICE const Task *tasks_of(const Step *step) { return (const Task *)(step + 1); }
DEVICE const Draw *draws_of(const Step *step) { return (const Draw *)(tasks_of(step) + step->tasks); }
DEVICE const Lookup *lookups_of(const Step *step) { return (const Lookup *)(draws_of(step) + step->draws); }
DEVICE const float *row_of(const Step *step, u32 row) {
    return (const float *)step->logits + u64(row) * step->vocabulary;
}

// The output: the number of all candidates, then arrays; the one that is fetched only in part is last.
DEVICE u32 *cursor_of(const Step *step) { return (u32 *)step->out; }
DEVICE Result *results_of(const Step *step) { return (Result *)(cursor_of(step) + 2); }
DEVICE Token *drawn_of(const Step *step) { return (Token *)(results_of(step) + step->tasks); }
DEVICE Part *parts_of(const Step *step) { return (Part *)(drawn_of(step) + step->draws); }
DEVICE float *looked_up_of(const Step *step) { return (float *)(parts_of(step) + step->parts * step->segments); }
DEVICE Token *pool_of(const Step *step) { return (Token *)(looked_up_of(step) + step->lookups); }

// Results that one kernel leaves for the next.
DEVICE f64 *weight_sums_of(const Step *step, u32 task) { return (f64 *)step->scratch + u64(task) * step->chunks; }
DEVICE f64 *probability_sums_of(const Step *step, u32 task) { return weight_sums_of(step, step->tasks + task); }
DEVICE float *thresholds_of(const Step *step) { return (float *)weight_sums_of(step, 2 * step->tasks); }
DEVICE Best *bests_of(const Step *step, u32 row) {
    return (Best *)(thresholds_of(step) + step->tasks) + u64(row) * step->segments;
}

DEVICE f64 exponential(f64 x) {
    const f64 LEAST = -708.0, ROUND = 6755399441055744.0, LOG2_E = 1.44269504088896340735992468100189214;
    const f64 LN_2_HIGH = 45426.0 / 65536.0, LN_2_LOW = 1.4286068203094173e-6;
    f64 clamped = x > LEAST ? x : LEAST;
    f64 shifted = __dadd_rn(__dmul_rn(clamped, LOG2_E), ROUND);
    f64 n = __dsub_rn(shifted, ROUND);
    f64 r = __dsub_rn(__dsub_rn(clamped, __dmul_rn(n, LN_2_HIGH)), __dmul_rn(n, LN_2_LOW));
    f64 power = __longlong_as_double((__double_as_longlong(shifted) + 1023) << 52);
    f64 square = __dmul_rn(r, r);
    f64 odd = 1.0 / 6227020800.0, even = 1.0 / 479001600.0;
#define TERM(i, j)                                                                                                      \
    odd = __dadd_rn(__dmul_rn(odd, square), 1.0 / i);                                                                   \
    even = __dadd_rn(__dmul_rn(even, square), 1.0 / j);
    TERM(39916800.0, 3628800.0)
    TERM(362880.0, 40320.0)
    TERM(5040.0, 720.0)
    TERM(120.0, 24.0)
    TERM(6.0, 2.0)
#undef TERM
    f64 whole = __dadd_rn(__dadd_rn(__dmul_rn(__dadd_rn(__dmul_rn(odd, r), even), square), r), 1.0);
    return x >= LEAST ? __dmul_rn(whole, power) : 0.0;
}

DEVICE f64 weight_of(float logit, float max, f64 temperature) {
    return exponential(__ddiv_rn(__dsub_rn(f64(logit), f64(max)), temperature));
}

DEVICE Best better(Best a, Best b) {
    bool takes_b = b.max > a.max || (b.max == a.max && b.place < a.place);
    return Best{takes_b ? b.max : a.max, takes_b ? b.place : a.place, a.improper < b.improper ? a.improper : b.improper};
}

// The best among the threads of a block.
DEVICE Best best_of_block(Best own, Best *shared) {
    shared[threadIdx.x] = own;
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] = better(shared[threadIdx.x], shared[threadIdx.x + half]);
    }
    __syncthreads();
    Best best = shared[0];
    __syncthreads();
    return best;
}

// The best of a row's segments.
DEVICE Best best_of_row(const Step *step, u32 row, Best *shared) {
    Best own = {MINUS_INFINITY, NONE, NONE};
    for (u32 i = threadIdx.x; i < step->segments; i += blockDim.x) own = better(own, bests_of(step, row)[i]);
    return best_of_block(own, shared);
}

// The sum of the numbers of all chunks in order.
DEVICE f64 sum_of_chunks(const f64 *sums, u32 chunks, f64 *shared) {
    f64 total = 0.0;
    for (u32 from = 0; from < chunks; from += MOST_THREADS) {
        u32 count = chunks - from < MOST_THREADS ? chunks - from : MOST_THREADS;
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) shared[i] = sums[from + i];
        __syncthreads();
        if (threadIdx.x == 0)
            for (u32 i = 0; i < count; i++) total = __dadd_rn(total, shared[i]);
        __syncthreads();
    }
    if (threadIdx.x == 0) shared[0] = total;
    __syncthreads();
    total = shared[0];
    __syncthreads();
    return total;
}

// Writes the sums of the chunks of a segment, whose numbers the block shares.
DEVICE void sum_segment(const Step *step, const f64 *numbers, f64 *lanes, f64 *sums) {
    __syncthreads();
    for (u32 i = threadIdx.x; i < SEGMENT_CHUNKS * LANES; i += blockDim.x) {
        const f64 *of_lane = numbers + i / LANES * CHUNK + i % LANES;
        f64 lane = 0.0;
        for (u32 j = 0; j < CHUNK / LANES; j++) lane = __dadd_rn(lane, of_lane[j * LANES]);
        lanes[i] = lane;
    }
    __syncthreads();
    for (u32 chunk = threadIdx.x; chunk < SEGMENT_CHUNKS; chunk += blockDim.x) {
        f64 sum = 0.0;
        for (u32 lane = 0; lane < LANES; lane++) sum = __dadd_rn(sum, lanes[chunk * LANES + lane]);
        u32 at = blockIdx.x * SEGMENT_CHUNKS + chunk;
        if (at < step->chunks) sums[at] = sum;
    }
}

// Blocks: segments, rows.
extern "C" __global__ void __launch_bounds__(256) draw_maxima(const Step *step) {
    __shared__ Best shared[MOST_THREADS];
    const float *row = row_of(step, blockIdx.y);
    u32 from = blockIdx.x * SEGMENT, left = step->vocabulary - from, to = from + (left < SEGMENT ? left : SEGMENT);
    Best own = {MINUS_INFINITY, NONE, NONE};
    for (u32 i = from + threadIdx.x; i < to; i += blockDim.x) {
        float logit = row[i];
        if (!(logit < INFINITE) && own.improper == NONE) own.improper = i;
        if (logit > own.max) {
            own.max = logit;
            own.place = i;
        }
    }
    Best best = best_of_block(own, shared);
    if (threadIdx.x == 0) bests_of(step, blockIdx.y)[blockIdx.x] = best;
    // The counters of a later kernel.
    if (blockIdx.x == 0 && blockIdx.y == 0) {
        for (u32 i = threadIdx.x; i < step->tasks; i += blockDim.x) results_of(step)[i].candidates = 0;
        if (threadIdx.x == 0) *cursor_of(step) = 0;
    }
}

// Blocks: segments, tasks.
extern "C" __global__ void __launch_bounds__(256) draw_weights(const Step *step) {
    __shared__ f64 weights[SEGMENT];
    __shared__ f64 lanes[SEGMENT_CHUNKS * LANES];
    __shared__ Best shared[MOST_THREADS];
    const Task *task = tasks_of(step) + blockIdx.y;
    if (!(task->flags & NEEDS_TOTAL)) return;
    float max = best_of_row(step, task->row, shared).max;
    const float *row = row_of(step, task->row);
    u32 from = blockIdx.x * SEGMENT;
    for (u32 i = threadIdx.x; i < SEGMENT; i += blockDim.x) {
        weights[i] = from + i < step->vocabulary ? weight_of(row[from + i], max, task->temperature) : 0.0;
    }
    sum_segment(step, weights, lanes, weight_sums_of(step, blockIdx.y));
}

// Blocks: segments, tasks.
extern "C" __global__ void __launch_bounds__(256) draw_probabilities(const Step *step) {
    __shared__ f64 probabilities[SEGMENT];
    __shared__ f64 lanes[SEGMENT_CHUNKS * LANES];
    __shared__ Best shared[MOST_THREADS];
    __shared__ f64 tile[MOST_THREADS];
    const Task *task = tasks_of(step) + blockIdx.y;
    if (!(task->flags & NEEDS_PROBABILITIES)) return;
    float max = best_of_row(step, task->row, shared).max;
    f64 total = sum_of_chunks(weight_sums_of(step, blockIdx.y), step->chunks, tile);
    const float *row = row_of(step, task->row);
    u32 from = blockIdx.x * SEGMENT;
    for (u32 i = threadIdx.x; i < SEGMENT; i += blockDim.x) {
        f64 weight = from + i < step->vocabulary ? weight_of(row[from + i], max, task->temperature) : 0.0;
        probabilities[i] = __ddiv_rn(weight, total);
    }
    sum_segment(step, probabilities, lanes, probability_sums_of(step, blockIdx.y));
}

// Ascends with the logit.
DEVICE u32 key_of(float logit) {
    u32 bits = __float_as_uint(logit);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Finds the logit of rank `top_k`, digit by digit. Blocks: tasks.
extern "C" __global__ void __launch_bounds__(1024) draw_thresholds(const Step *step) {
    __shared__ u32 counts[256];
    __shared__ u32 found[2];
    const Task *task = tasks_of(step) + blockIdx.x;
    if (task->top_k == 0) return;
    const float *row = row_of(step, task->row);
    u32 prefix = 0, known = 0, rank = task->top_k;
    for (u32 shift = 32; shift > 0;) {
        shift -= 8;
        for (u32 i = threadIdx.x; i < 256; i += blockDim.x) counts[i] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < step->vocabulary; i += blockDim.x) {
            u32 key = key_of(row[i]);
            if ((key & known) == prefix) atomicAdd(&counts[key >> shift & 255u], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u32 digit = 255;
            for (; digit > 0 && counts[digit] < rank; digit--) rank -= counts[digit];
            found[0] = digit;
            found[1] = rank;
        }
        __syncthreads();
        prefix |= found[0] << shift;
        known |= 255u << shift;
        rank = found[1];
        __syncthreads();
    }
    u32 bits = prefix & 0x80000000u ? prefix & 0x7fffffffu : ~prefix;
    if (threadIdx.x == 0) thresholds_of(step)[blockIdx.x] = __uint_as_float(bits);
}

// Collects the tokens that can be in a task's distribution, with a margin for rounding: the host decides. Those of a
// segment lie together in ascending order. Blocks: segments, tasks.
extern "C" __global__ void __launch_bounds__(256) draw_candidates(const Step *step) {
    __shared__ Best shared[MOST_THREADS];
    __shared__ f64 tile[MOST_THREADS];
    __shared__ u32 counts[MOST_THREADS];
    __shared__ u32 first_shared;
    const f64 MARGIN = 1e-9, LEAST = -708.000001;
    const Task *task = tasks_of(step) + blockIdx.y;
    if (!(task->flags & NEEDS_CANDIDATES)) return;
    const float *row = row_of(step, task->row);
    f64 max = best_of_row(step, task->row, shared).max, temperature = task->temperature, least = LEAST * temperature;
    if (task->top_k > 0) {
        f64 of_rank = (f64(thresholds_of(step)[blockIdx.y]) - max) - temperature * MARGIN;
        least = of_rank > least ? of_rank : least;
    } else if (task->least_share > 0.0) {
        f64 total = sum_of_chunks(weight_sums_of(step, blockIdx.y), step->chunks, tile);
        f64 of_share = temperature * (log(task->least_share * total) - MARGIN);
        least = of_share > least ? of_share : least;
    }
    // A thread has neighbouring tokens.
    u32 each = SEGMENT / blockDim.x, from = blockIdx.x * SEGMENT + threadIdx.x * each;
    u32 to = from + each < step->vocabulary ? from + each : step->vocabulary;
    u32 own = 0;
    for (u32 i = from; i < to; i++) own += f64(row[i]) - max >= least;
    counts[threadIdx.x] = own;
    __syncthreads();
    for (u32 distance = 1; distance < blockDim.x; distance *= 2) {
        u32 before = threadIdx.x >= distance ? counts[threadIdx.x - distance] : 0;
        __syncthreads();
        counts[threadIdx.x] += before;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        u32 count = counts[blockDim.x - 1], first = NONE;
        if (atomicAdd(&results_of(step)[blockIdx.y].candidates, count) + count <= MOST_CANDIDATES) {
            first = atomicAdd(cursor_of(step), count);
            if (first + count > step->pool) first = NONE;
        }
        parts_of(step)[task->part * step->segments + blockIdx.x] = Part{first, count};
        first_shared = first;
    }
    __syncthreads();
    if (first_shared == NONE) return;
    u32 at = first_shared + counts[threadIdx.x] - own;
    for (u32 i = from; i < to; i++)
        if (f64(row[i]) - max >= least) pool_of(step)[at++] = Token{i, row[i]};
}

// Blocks: tasks.
extern "C" __global__ void __launch_bounds__(256) draw_results(const Step *step) {
    __shared__ Best shared[MOST_THREADS];
    __shared__ f64 tile[MOST_THREADS];
    const Task *task = tasks_of(step) + blockIdx.x;
    Best best = best_of_row(step, task->row, shared);
    f64 total = 0.0;
    if (task->flags & NEEDS_TOTAL) total = sum_of_chunks(weight_sums_of(step, blockIdx.x), step->chunks, tile);
    if (threadIdx.x == 0) {
        Result *result = results_of(step) + blockIdx.x;
        result->total = total;
        result->max = best.max;
        result->place = best.place;
        result->improper = best.improper;
        result->improper_value = best.improper == NONE ? 0.0f : row_of(step, task->row)[best.improper];
    }
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < step->lookups; i += gridDim.x * blockDim.x) {
        Lookup lookup = lookups_of(step)[i];
        bool is_there = lookup.id < step->vocabulary;
        looked_up_of(step)[i] = is_there ? row_of(step, lookup.row)[lookup.id] : MINUS_INFINITY;
    }
}

// Blocks: draws.
extern "C" __global__ void __launch_bounds__(256) draw_tokens(const Step *step) {
    __shared__ Best shared[MOST_THREADS];
    __shared__ f64 tile[MOST_THREADS];
    __shared__ f64 probabilities[CHUNK];
    __shared__ u32 chunk_shared;
    u32 task_index = draws_of(step)[blockIdx.x].task;
    const Task *task = tasks_of(step) + task_index;
    const f64 *sums = probability_sums_of(step, task_index);
    float max = best_of_row(step, task->row, shared).max;
    f64 total = sum_of_chunks(weight_sums_of(step, task_index), step->chunks, tile);
    f64 target = __dmul_rn(draws_of(step)[blockIdx.x].u, sum_of_chunks(sums, step->chunks, tile));
    // Of thread 0: the sum of the chunks before the one where the cumulative sum exceeds the target.
    f64 before = 0.0;
    u32 found = NONE, last_possible = NONE;
    for (u32 from = 0; from < step->chunks; from += MOST_THREADS) {
        u32 count = step->chunks - from < MOST_THREADS ? step->chunks - from : MOST_THREADS;
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) tile[i] = sums[from + i];
        __syncthreads();
        if (threadIdx.x == 0) {
            for (u32 i = 0; i < count && found == NONE; i++) {
                f64 through = __dadd_rn(before, tile[i]);
                if (tile[i] > 0.0) last_possible = from + i;
                if (through > target) found = from + i;
                else before = through;
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) chunk_shared = found == NONE ? last_possible : found;
    __syncthreads();
    u32 chunk = chunk_shared;
    if (chunk == NONE) {
        if (threadIdx.x == 0) drawn_of(step)[blockIdx.x] = Token{NONE, 0.0f};
        return;
    }
    const float *row = row_of(step, task->row) + u64(chunk) * CHUNK;
    u32 left = step->vocabulary - chunk * CHUNK, count = left < CHUNK ? left : CHUNK;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x)
        probabilities[i] = __ddiv_rn(weight_of(row[i], max, task->temperature), total);
    __syncthreads();
    if (threadIdx.x > 0) return;
    u32 last = 0;
    bool is_drawn = false;
    for (u32 i = 0; i < count && !is_drawn; i++) {
        before = __dadd_rn(before, probabilities[i]);
        if (!(probabilities[i] > 0.0)) continue;
        // Rounding can leave the last sum at or below the target.
        last = i;
        is_drawn = found != NONE && before > target;
    }
    drawn_of(step)[blockIdx.x] = Token{chunk * CHUNK + last, row[last]};
}
