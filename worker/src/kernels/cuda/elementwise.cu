// Everything between the linear layers but attention. What a linear layer reads next is also written rounded to the type
// that it multiplies in: to bfloat16 where `rounding` is 1, to f16 where it is 2, not at all where it is 0.

__device__ __forceinline__ void store_rounded(u16 *rounded, int rounding, u64 at, float value) {
    if (rounding == 1) rounded[at] = Bf16::round(value);
    if (rounding == 2) rounded[at] = F16::round(value);
}

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

// The sum over a block of 256 threads, in one order.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float of_warps[8];
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < 8; warp++) sum += of_warps[warp];
    __syncthreads();
    return sum;
}

// A block of 256 threads to a row. `layer` is 0 for the root mean square (Zhang and Sennrich, 2019).
extern "C" __global__ void __launch_bounds__(256)
    normalise(const float *x, const float *weight, const float *bias, float *out, u16 *rounded, int rounding, u32 width,
              float epsilon, int layer) {
    const float *row = x + u64(blockIdx.x) * width;
    float mean = 0.0f;
    if (layer) {
        float sum = 0.0f;
        for (u32 i = threadIdx.x; i < width; i += 256) sum += row[i];
        mean = block_sum(sum) / float(width);
    }
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += 256) {
        float off = row[i] - mean;
        squares = fmaf(off, off, squares);
    }
    float scale = 1.0f / sqrtf(block_sum(squares) / float(width) + epsilon);
    for (u32 i = threadIdx.x; i < width; i += 256) {
        float value = (row[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0.0f);
        u64 at = u64(blockIdx.x) * width + i;
        out[at] = value;
        store_rounded(rounded, rounding, at, value);
    }
}

// Rotates pairs of the first `turning` elements of each of `heads` heads of a row of `width` numbers. A row's angles are
// the cosines of its pairs, then their sines. A block of threads to a row.
extern "C" __global__ void rotate(float *qkv, const float *angles, u32 width, u32 heads, u32 head_width, u32 turning,
                                  int neighbours) {
    u32 half = turning / 2;
    const float *cosines = angles + u64(blockIdx.x) * turning, *sines = cosines + half;
    for (u32 index = threadIdx.x; index < heads * half; index += blockDim.x) {
        u32 pair = index % half;
        float *head = qkv + u64(blockIdx.x) * width + index / half * head_width;
        u32 i = neighbours ? 2 * pair : pair, j = neighbours ? 2 * pair + 1 : pair + half;
        float x = head[i], y = head[j], cosine = cosines[pair], sine = sines[pair];
        head[i] = x * cosine - y * sine;
        head[j] = y * cosine + x * sine;
    }
}

// Stores the keys and values of rows at their slots. `keys` and `values` begin with the layer's. A block of threads to a
// row; `format` is 0 for f32, 1 for bfloat16, 2 for f16.
extern "C" __global__ void append(const float *qkv, const u32 *slots, void *keys, void *values, int format, u32 query_width,
                                  u32 kv_width) {
    const float *row = qkv + u64(blockIdx.x) * (query_width + 2 * kv_width) + query_width;
    u64 first = u64(slots[blockIdx.x]) * kv_width;
    for (u32 i = threadIdx.x; i < 2 * kv_width; i += blockDim.x) {
        void *to = i < kv_width ? keys : values;
        u64 at = first + (i < kv_width ? i : i - kv_width);
        if (format == 0) ((float *)to)[at] = row[i];
        store_rounded((u16 *)to, format, at, row[i]);
    }
}

// `activation` is 0 for SiLU, 1 for GELU, 2 for its tanh approximation (Hendrycks and Gimpel, 2016).
__device__ __forceinline__ float activated(int activation, float x) {
    if (activation == 0) return x / (1.0f + expf(-x));
    if (activation == 1) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
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
