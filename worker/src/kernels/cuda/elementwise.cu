// All kernels between the linear layers except attention.

// Rounds rows of `inputs` numbers into rows of `stored`, padded with zeros. One block per row.
extern "C" __global__ void round_rows(const float *x, u16 *rounded, int rounding, u32 inputs, u32 stored) {
    for (u32 input = threadIdx.x; input < stored; input += blockDim.x) {
        float value = input < inputs ? x[u64(blockIdx.x) * inputs + input] : 0.0f;
        store_rounded(rounded, rounding, u64(blockIdx.x) * stored + input, value);
    }
}

// out[i] = x[rows[i]], one block per row.
extern "C" __global__ void select_rows(const float *x, const u32 *rows, float *out, u32 width) {
    const float *from = x + u64(rows[blockIdx.x]) * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) out[u64(blockIdx.x) * width + i] = from[i];
}

#define NORM_THREADS 512
// Numbers of a row that a thread keeps in registers; it reads others again.
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

// One block per row. `layer` is 0 for the root mean square (Zhang and Sennrich, 2019).
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

// Rotates the first `turning` elements of a head. `angles` holds the cosines of their pairs, then the sines. The
// elements after them form pairs that do not turn; the last one of an odd width is alone.
struct Pair {
    u32 first, second;
    float cosine, sine;

    __device__ __forceinline__ Pair(const float *angles, u32 turning, int neighbours, u32 index) {
        u32 half = turning / 2;
        bool turns = index < half;
        first = turns && !neighbours ? index : 2 * index;
        second = turns && !neighbours ? index + half : first + 1;
        cosine = turns ? angles[index] : 1.0f;
        sine = turns ? angles[half + index] : 0.0f;
    }
};

// Rotates the heads of rows of `width` numbers in place. Threads in the second dimension of blocks are pairs of heads.
extern "C" __global__ void rotate(float *qkv, const float *angles, u32 width, u32 heads, u32 head_width, u32 turning,
                                  int neighbours) {
    u32 index = blockIdx.y * blockDim.x + threadIdx.x, half = turning / 2;
    if (index >= heads * half) return;
    Pair pair(angles + u64(blockIdx.x) * turning, turning, neighbours, index % half);
    float *head = qkv + u64(blockIdx.x) * width + index / half * head_width;
    float x = head[pair.first], y = head[pair.second];
    head[pair.first] = x * pair.cosine - y * pair.sine;
    head[pair.second] = y * pair.cosine + x * pair.sine;
}

// Stores the keys and values of rows at their slots. `keys` and `values` begin with the layer's. `format` is 0 for f32,
// 1 for bfloat16, 2 for f16. Where `turning` is not 0, keys are stored rotated, and queries are rotated in place.
// Threads in the second dimension of blocks are pairs of the heads of queries, keys and values.
extern "C" __global__ void append(float *qkv, const u32 *slots, void *keys, void *values, int format, u32 heads,
                                  u32 kv_heads, u32 head_width, const float *angles, u32 turning, int neighbours) {
    u32 pairs = (head_width + 1) / 2, at = blockIdx.y * blockDim.x + threadIdx.x, index = at / pairs;
    if (index >= heads + 2 * kv_heads) return;
    bool is_query = index < heads, is_value = index >= heads + kv_heads;
    if (is_query && at % pairs >= turning / 2) return;
    float *head = qkv + (u64(blockIdx.x) * (heads + 2 * kv_heads) + index) * head_width;
    Pair pair(angles + u64(blockIdx.x) * turning, is_value ? 0 : turning, neighbours, at % pairs);
    bool has_second = pair.second < head_width;
    float x = head[pair.first], y = has_second ? head[pair.second] : 0.0f;
    float first = x * pair.cosine - y * pair.sine, second = y * pair.cosine + x * pair.sine;
    if (is_query) {
        head[pair.first] = first;
        head[pair.second] = second;
        return;
    }
    void *to = is_value ? values : keys;
    u64 slot = (u64(slots[blockIdx.x]) * kv_heads + (index - heads - (is_value ? kv_heads : 0))) * head_width;
    if (format == 0) ((float *)to)[slot + pair.first] = first;
    store_rounded((u16 *)to, format, slot + pair.first, first);
    if (!has_second) return;
    if (format == 0) ((float *)to)[slot + pair.second] = second;
    store_rounded((u16 *)to, format, slot + pair.second, second);
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

// Rows of 2 · inner: the gate, then its factor. A thread has four consecutive columns.
extern "C" __global__ void activate_gated(int activation, const float *x, float *out, u16 *rounded, int rounding, u32 inner) {
    u32 first = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    const float *row = x + u64(blockIdx.y) * 2 * inner;
    u64 at = u64(blockIdx.y) * inner + first;
    if (inner % 4 == 0 && first < inner) {
        float4 gate = *(const float4 *)(row + first), up = *(const float4 *)(row + inner + first);
        float4 value = make_float4(activated(activation, gate.x) * up.x, activated(activation, gate.y) * up.y,
                                   activated(activation, gate.z) * up.z, activated(activation, gate.w) * up.w);
        *(float4 *)(out + at) = value;
        if (rounding == 1) {
            *(uint2 *)(rounded + at) = make_uint2(Bf16::pack(value.x, value.y), Bf16::pack(value.z, value.w));
        } else if (rounding == 2) {
            *(uint2 *)(rounded + at) = make_uint2(F16::pack(value.x, value.y), F16::pack(value.z, value.w));
        }
        return;
    }
    for (u32 i = first; i < first + 4 && i < inner; i++) {
        float value = activated(activation, row[i]) * row[inner + i];
        out[at + i - first] = value;
        store_rounded(rounded, rounding, at + i - first, value);
    }
}

extern "C" __global__ void add(float *x, const float *y, u64 elements) {
    u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < elements) x[at] += y[at];
}

// x[rows[i]][first..first + count] += y[i], one block per row.
extern "C" __global__ void add_rows(float *x, const u32 *rows, const float *y, u32 width, u32 first, u32 count) {
    float *to = x + u64(rows[blockIdx.x]) * width + first;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) to[i] += y[u64(blockIdx.x) * count + i];
}
