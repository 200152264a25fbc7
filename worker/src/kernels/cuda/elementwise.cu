// Everything between the linear layers but attention.

// Rows of `inputs` numbers, rounded, in rows of `stored` that are filled up with zeros. A block of threads to a row.
extern "C" __global__ void round_rows(const float *x, u16 *rounded, int rounding, u32 inputs, u32 stored) {
    for (u32 input = threadIdx.x; input < stored; input += blockDim.x) {
        float value = input < inputs ? x[u64(blockIdx.x) * inputs + input] : 0.0f;
        store_rounded(rounded, rounding, u64(blockIdx.x) * stored + input, value);
    }
}

// out[i] = x[rows[i]], a block of threads to a row.
extern "C" __global__ void select_rows(const float *x, const u32 *rows, float *out, u32 width) {
    const float *from = x + u64(rows[blockIdx.x]) * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) out[u64(blockIdx.x) * width + i] = from[i];
}

#define NORM_THREADS 512
// Numbers of a row that a thread keeps; it reads others again.
#define KEPT 16

// The sum over a block of NORM_THREADS threads, in one order.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float of_warps[NORM_THREADS / 32];
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < NORM_THREADS / 32; warp++) sum += of_warps[warp];
    __syncthreads();
    return sum;
}

// A block of threads to a row. `layer` is 0 for the root mean square (Zhang and Sennrich, 2019).
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    normalise(const float *x, const float *weight, const float *bias, float *out, u16 *rounded, int rounding, u32 width,
              float epsilon, int layer) {
    const float *row = x + u64(blockIdx.x) * width;
    float kept[KEPT];
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        u32 i = k * NORM_THREADS + threadIdx.x;
        kept[k] = i < width ? row[i] : 0.0f;
    }
    auto each = [&](auto call) {
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            u32 i = k * NORM_THREADS + threadIdx.x;
            if (i < width) call(i, kept[k]);
        }
        for (u32 i = KEPT * NORM_THREADS + threadIdx.x; i < width; i += NORM_THREADS) call(i, row[i]);
    };
    float mean = 0.0f, squares = 0.0f;
    if (layer) {
        float sum = 0.0f;
        each([&](u32, float value) { sum += value; });
        mean = block_sum(sum) / float(width);
    }
    each([&](u32, float value) {
        float off = value - mean;
        squares = fmaf(off, off, squares);
    });
    float scale = 1.0f / sqrtf(block_sum(squares) / float(width) + epsilon);
    each([&](u32 i, float value) {
        float normed = (value - mean) * scale * weight[i] + (bias ? bias[i] : 0.0f);
        u64 at = u64(blockIdx.x) * width + i;
        out[at] = normed;
        store_rounded(rounded, rounding, at, normed);
    });
}

// How the first `turning` elements of a head turn: by angles that are the cosines of their pairs, then the sines.
struct Rotary {
    const float *angles;
    u32 turning;
    int neighbours;

    // The pair that element `i` belongs to, and the other element of it.
    __device__ __forceinline__ float turned(const float *head, u32 i) const {
        if (i >= turning) return head[i];
        u32 half = turning / 2, pair = neighbours ? i / 2 : i % half;
        bool second = neighbours ? i % 2 : i >= half;
        u32 other = neighbours ? i ^ 1 : (second ? i - half : i + half);
        float cosine = angles[pair], sine = angles[half + pair];
        return second ? head[i] * cosine + head[other] * sine : head[i] * cosine - head[other] * sine;
    }
};

// Rotates the heads of rows of `width` numbers in place. Blocks of at least `turning` threads, up to 1,024, are rows and
// heads.
extern "C" __global__ void rotate(float *qkv, const float *angles, u32 width, u32 head_width, u32 turning, int neighbours) {
    Rotary rotary = {angles + u64(blockIdx.x) * turning, turning, neighbours};
    float *head = qkv + u64(blockIdx.x) * width + blockIdx.y * head_width;
    float turned = threadIdx.x < turning ? rotary.turned(head, threadIdx.x) : 0.0f;
    __syncthreads();
    if (threadIdx.x < turning) head[threadIdx.x] = turned;
}

// Stores the keys and values of rows at their slots. `keys` and `values` begin with the layer's. `format` is 0 for f32, 1
// for bfloat16, 2 for f16. Where `turning` is not 0, keys are stored rotated, and queries are rotated in place. Blocks of at
// least a head's width of threads are rows, and heads of queries, keys and values; those of queries are there only where
// they turn.
extern "C" __global__ void append(float *qkv, const u32 *slots, void *keys, void *values, int format, u32 heads,
                                  u32 kv_heads, u32 head_width, const float *angles, u32 turning, int neighbours) {
    Rotary rotary = {angles + u64(blockIdx.x) * turning, turning, neighbours};
    u32 index = blockIdx.y + (turning > 0 ? 0 : heads), i = threadIdx.x;
    float *head = qkv + (u64(blockIdx.x) * (heads + 2 * kv_heads) + index) * head_width;
    bool is_value = index >= heads + kv_heads;
    float value = i < head_width ? (is_value ? head[i] : rotary.turned(head, i)) : 0.0f;
    __syncthreads();
    if (i >= head_width) return;
    if (index < heads) {
        head[i] = value;
        return;
    }
    void *to = is_value ? values : keys;
    u64 at = (u64(slots[blockIdx.x]) * kv_heads + (index - heads - (is_value ? kv_heads : 0))) * head_width + i;
    if (format == 0) ((float *)to)[at] = value;
    store_rounded((u16 *)to, format, at, value);
}

// `activation` is 0 for SiLU, 1 for GELU, 2 for its tanh approximation (Hendrycks and Gimpel, 2016).
__device__ __forceinline__ float activated(int activation, float x) {
    if (activation == 0) return x / (1.0f + expf(-x));
    // 1 + erf y = erfc(-y), without the loss of digits near -1.
    if (activation == 1) return 0.5f * x * erfcf(x * -0.70710678118654752f);
    // (1 + tanh y) / 2 = 1 / (1 + exp(-2 y)), without the loss of digits near -1.
    return x / (1.0f + expf(-1.59576912160573072f * (x + 0.044715f * x * x * x)));
}

extern "C" __global__ void activate(int activation, float *x, u16 *rounded, int rounding, u64 elements) {
    u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= elements) return;
    float value = activated(activation, x[at]);
    x[at] = value;
    store_rounded(rounded, rounding, at, value);
}

// Rows of 2 · inner: the gate, then what it is multiplied with.
extern "C" __global__ void activate_gated(int activation, const float *x, float *out, u16 *rounded, int rounding, u32 inner) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= inner) return;
    const float *row = x + u64(blockIdx.y) * 2 * inner;
    float value = activated(activation, row[i]) * row[inner + i];
    u64 at = u64(blockIdx.y) * inner + i;
    out[at] = value;
    store_rounded(rounded, rounding, at, value);
}

extern "C" __global__ void add(float *x, const float *y, u64 elements) {
    u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < elements) x[at] += y[at];
}

// x[rows[i]][first..first + count] += y[i], a block of threads to a row.
extern "C" __global__ void add_rows(float *x, const u32 *rows, const float *y, u32 width, u32 first, u32 count) {
    float *to = x + u64(rows[blockIdx.x]) * width + first;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) to[i] += y[u64(blockIdx.x) * count + i];
}
