// Linear layers: out[row][output] = dot(x[row], weight[output]) + bias[output].
//
// Weights of 16 bits, and blocks of Q8_0 and Q4_K whose weights are rounded to bfloat16, go through tensor cores
// against activations that are rounded to the same type; sums are f32. Every sum takes its products in the same order,
// 16 inputs at a time from the first to the last, whatever kernel computes it and however many rows there are: a row
// has the same bits in any batch.
//
// Matrices are stored as the tensor cores take them. A tile has 16 outputs and 32 inputs; lane 4g + t of a warp holds
// of outputs g and g + 8 the inputs 8t to 8t + 7: for each half of four inputs (one multiply_add) two of g, two of g +
// 8, the next two of g, of g + 8. So a lane reads 16 bytes at a time, of weights and, with the same inputs, of
// activations. Outputs are padded to 16, inputs to 128, with zeros.

// The host defines one of FORMAT_F32, FORMAT_BF16, FORMAT_F16, FORMAT_Q8_0 and FORMAT_Q4_K.

#define TILE_OUTPUTS 16
#define TILE_INPUTS 32

// Index of weight (output, input) of a matrix with `inputs` stored inputs, in tiles of 512 elements.
__device__ __forceinline__ u64 packed_at(u32 output, u32 input, u32 inputs) {
    u32 lane = (output % 8) * 4 + input % 32 / 8;
    u32 half = input % 8 / 4, pair = input % 4 / 2, upper = output % 16 / 8;
    u64 tile = u64(output / TILE_OUTPUTS) * (inputs / TILE_INPUTS) + input / TILE_INPUTS;
    return tile * 512 + half * 256 + lane * 8 + (pair * 2 + upper) * 2 + input % 2;
}

// The tile and the row in it of a block of 32 inputs, for its scales.
__device__ __forceinline__ u64 scale_at(u32 output, u32 input, u32 inputs) {
    u64 tile = u64(output / TILE_OUTPUTS) * (inputs / TILE_INPUTS) + input / TILE_INPUTS;
    return tile * TILE_OUTPUTS + output % TILE_OUTPUTS;
}

// Formats. `fragments` returns the weights of a tile in the type `Number`, for one multiply_add each; a stage is four
// tiles.

template <class N>
struct Floats {
    typedef N Number;
    static const int STAGE_BYTES = 4096;
    static const int SCALE_BYTES = 0;
    static __device__ __forceinline__ void fragments(const u8 *tiles, const u8 *, int tile, int lane, uint4 &a, uint4 &b) {
        a = *(const uint4 *)(tiles + tile * 1024 + lane * 16);
        b = *(const uint4 *)(tiles + tile * 1024 + 512 + lane * 16);
    }
    static __device__ __forceinline__ float at(const u8 *tiles, const u8 *, u64 index, u64) {
        return N::widen(((const u16 *)tiles)[index]);
    }
};

// A number below 2^23 as a float, through its bits, because conversions are slow.
__device__ __forceinline__ float small_number(u32 number) { return __uint_as_float(0x4b000000 | number) - 8388608.0f; }

// `offset` is the quant with its sign bit flipped: 128 more.
__device__ __forceinline__ float q8_0_weight(u32 offset, float scale) { return (small_number(offset) - 128.0f) * scale; }

__device__ __forceinline__ float q4_k_weight(u32 quant, u32 scales) {
    return fmaf(small_number(quant), F16::widen(u16(scales)), -F16::widen(u16(scales >> 16)));
}

// A tile has its quants in the layout of a matrix of floats, and 16 scales in f16.
struct Q8 {
    typedef Bf16 Number;
    static const int STAGE_BYTES = 2048;
    static const int SCALE_BYTES = 128;
    static __device__ __forceinline__ u32 pair(u32 offsets, int at, float scale) {
        return Bf16::pack(q8_0_weight(offsets >> at & 255, scale), q8_0_weight(offsets >> (at + 8) & 255, scale));
    }
    static __device__ __forceinline__ uint4 widened(uint2 quants, u16 lower, u16 upper) {
        float low = F16::widen(lower), high = F16::widen(upper);
        u32 first = quants.x ^ 0x80808080, second = quants.y ^ 0x80808080;
        return make_uint4(pair(first, 0, low), pair(first, 16, high), pair(second, 0, low), pair(second, 16, high));
    }
    static __device__ __forceinline__ void fragments(const u8 *tiles, const u8 *scales, int tile, int lane, uint4 &a,
                                                     uint4 &b) {
        const u16 *scale = (const u16 *)scales + tile * 16 + lane / 4;
        u16 lower = scale[0], upper = scale[8];
        a = widened(*(const uint2 *)(tiles + tile * 512 + lane * 8), lower, upper);
        b = widened(*(const uint2 *)(tiles + tile * 512 + 256 + lane * 8), lower, upper);
    }
    static __device__ __forceinline__ float at(const u8 *tiles, const u8 *scales, u64 index, u64 scale) {
        return q8_0_weight(tiles[index] ^ 0x80, F16::widen(((const u16 *)scales)[scale]));
    }
};

// As Q8 with 4 bits per quant, the lower ones first, and 16 scales, each with its minimum in the upper half.
struct Q4K {
    typedef Bf16 Number;
    static const int STAGE_BYTES = 1024;
    static const int SCALE_BYTES = 256;
    static __device__ __forceinline__ uint4 widened(u32 quants, u32 lower, u32 upper) {
        uint4 a;
        a.x = Bf16::pack(q4_k_weight(quants & 15, lower), q4_k_weight(quants >> 4 & 15, lower));
        a.y = Bf16::pack(q4_k_weight(quants >> 8 & 15, upper), q4_k_weight(quants >> 12 & 15, upper));
        a.z = Bf16::pack(q4_k_weight(quants >> 16 & 15, lower), q4_k_weight(quants >> 20 & 15, lower));
        a.w = Bf16::pack(q4_k_weight(quants >> 24 & 15, upper), q4_k_weight(quants >> 28, upper));
        return a;
    }
    static __device__ __forceinline__ void fragments(const u8 *tiles, const u8 *scales, int tile, int lane, uint4 &a,
                                                     uint4 &b) {
        const u32 *scale = (const u32 *)scales + tile * 16 + lane / 4;
        u32 lower = scale[0], upper = scale[8];
        a = widened(*(const u32 *)(tiles + tile * 256 + lane * 4), lower, upper);
        b = widened(*(const u32 *)(tiles + tile * 256 + 128 + lane * 4), lower, upper);
    }
    static __device__ __forceinline__ float at(const u8 *tiles, const u8 *scales, u64 index, u64 scale) {
        return q4_k_weight(tiles[index / 2] >> (index % 2 * 4) & 15, ((const u32 *)scales)[scale]);
    }
};

// Packing. One thread per output and block of 8 inputs of the padded matrix.

extern "C" __global__ void pack_16_bits(const u16 *from, u16 *to, u32 outputs, u32 inputs, u32 stored) {
    u64 index = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    u32 output = u32(index / stored), input = u32(index % stored);
    if (output >= (outputs + 15) / 16 * 16) return;
    bool exists = output < outputs && input < inputs;
    to[packed_at(output, input, stored)] = exists ? from[u64(output) * inputs + input] : u16(0);
}

extern "C" __global__ void pack_q8_0(const u8 *from, u8 *to, u16 *scales, u32 outputs, u32 inputs, u32 stored) {
    u64 index = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    u32 output = u32(index / stored), input = u32(index % stored);
    if (output >= (outputs + 15) / 16 * 16) return;
    u32 blocks = (inputs + 31) / 32;
    bool exists = output < outputs && input / 32 < blocks;
    const u8 *block = from + (u64(output) * blocks + input / 32) * 34;
    to[packed_at(output, input, stored)] = exists ? block[2 + input % 32] : u8(0);
    if (input % 32 == 0) scales[scale_at(output, input, stored)] = exists ? u16(block[0] | block[1] << 8) : u16(0);
}

extern "C" __global__ void pack_q4_k(const u8 *from, u8 *to, u32 *scales, u32 outputs, u32 inputs, u32 stored) {
    // Two neighbours share a byte.
    u64 index = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * 2;
    u32 output = u32(index / stored), input = u32(index % stored);
    if (output >= (outputs + 15) / 16 * 16) return;
    u32 blocks = (inputs + 255) / 256;
    bool exists = output < outputs && input / 256 < blocks;
    const u8 *block = from + (u64(output) * blocks + input / 256) * 144;
    u32 within = input % 256, part = within / 32;
    // Bytes 16 on: 64 inputs in 32 bytes, the first half of them in the lower bits.
    const u8 *quants = block + 16 + within / 64 * 32 + within % 32;
    int shift = part % 2 * 4;
    to[packed_at(output, input, stored) / 2] =
        exists ? u8((quants[0] >> shift & 15) | (quants[1] >> shift & 15) << 4) : u8(0);
    if (input % 32 != 0) return;
    const u8 *six = block + 4;
    u32 scale = 0, minimum = 0;
    if (exists && part < 4) {
        scale = six[part] & 63;
        minimum = six[part + 4] & 63;
    } else if (exists) {
        scale = (six[part + 4] & 15) | (six[part - 4] >> 6) << 4;
        minimum = six[part + 4] >> 4 | (six[part] >> 6) << 4;
    }
    float step = exists ? F16::widen(u16(block[0] | block[1] << 8)) : 0.0f;
    float least = exists ? F16::widen(u16(block[2] | block[3] << 8)) : 0.0f;
    scales[scale_at(output, input, stored)] = F16::pack(step * float(scale), least * float(minimum));
}

// Widens a packed quantised matrix to bfloat16; each warp takes tile after tile.
template <class Format>
__device__ void widen_matrix(const u8 *tiles, const u8 *scales, u16 *to, u64 count) {
    u32 lane = threadIdx.x % 32;
    u64 warps = u64(gridDim.x) * blockDim.x / 32;
    for (u64 tile = (u64(blockIdx.x) * blockDim.x + threadIdx.x) / 32; tile < count; tile += warps) {
        uint4 first, second;
        const u8 *own = tiles + tile * (Format::STAGE_BYTES / 4), *own_scales = scales + tile * (Format::SCALE_BYTES / 4);
        Format::fragments(own, own_scales, 0, lane, first, second);
        ((uint4 *)to)[tile * 64 + lane] = first;
        ((uint4 *)to)[tile * 64 + 32 + lane] = second;
    }
}
#define WIDEN(name, ...)                                                                                             \
    extern "C" __global__ void name(const u8 *tiles, const u8 *scales, u16 *to, u64 count) {                          \
        widen_matrix<__VA_ARGS__>(tiles, scales, to, count);                                                         \
    }

// out[i] = table[ids[i]], one block per row.
template <class Format>
__device__ void embed_rows(const u8 *tiles, const u8 *scales, const u32 *ids, float *out, u32 inputs, u32 stored) {
    u32 id = ids[blockIdx.x];
    for (u32 input = threadIdx.x; input < inputs; input += blockDim.x) {
        u64 at = packed_at(id, input, stored), scale = scale_at(id, input, stored);
        out[u64(blockIdx.x) * inputs + input] = Format::at(tiles, scales, at, scale);
    }
}
#define EMBED(name, ...)                                                                                             \
    extern "C" __global__ void name(const u8 *tiles, const u8 *scales, const u32 *ids, float *out, u32 inputs,        \
                                    u32 stored) {                                                                    \
        embed_rows<__VA_ARGS__>(tiles, scales, ids, out, inputs, stored);                                            \
    }

// Adds to the old value if `add` is set.
__device__ __forceinline__ void write(float *out, float value, int add) { *out = add ? *out + value : value; }

// Few rows: at most 8 · BLOCKS. A warp has 16 outputs and iterates over all inputs. It reads weights through its own
// ring of STAGES stages of 128 inputs, and activations through one that the warps of a block share.
template <class Format, int BLOCKS, int WARPS, int STAGES>
__device__ __forceinline__ void multiply_few(const u8 *tiles, const u8 *scales, const u16 *x, const float *bias, float *out,
                                             u32 rows, u32 outputs, u32 stored, int add) {
    typedef typename Format::Number Number;
    const int WEIGHTS = Format::STAGE_BYTES + Format::SCALE_BYTES, ACTIVATIONS = BLOCKS * 2048;
    const int STAGE = WARPS * WEIGHTS + ACTIVATIONS;
    // A row has 16 chunks of a stage's activations.
    const int ROWS_AT_A_TIME = 2 * WARPS, TIMES = BLOCKS * 4 / WARPS > 0 ? BLOCKS * 4 / WARPS : 1;
    SHARED_BYTES(ring);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 last_tile = (outputs + 15) / 16 - 1;
    const u32 own_tile = blockIdx.x * WARPS + warp;
    const u32 tile = own_tile < last_tile ? own_tile : last_tile;
    const u32 stages = stored / 128;

    // Source and target of this thread's copies, one stage at a time.
    const u8 *weights_from = tiles + u64(tile) * stages * Format::STAGE_BYTES + lane * 16;
    const u8 *scales_from = scales + u64(tile) * stages * Format::SCALE_BYTES + lane * 16;
    const u32 own_row = threadIdx.x / 16, own_chunk = threadIdx.x % 16;
    const u16 *x_from = x + u64(own_row) * stored + own_chunk * 8;
    u8 *const weights_to = ring + warp * WEIGHTS + lane * 16;
    u8 *const x_to = ring + WARPS * WEIGHTS + own_chunk / 4 * (BLOCKS * 512) + own_row * 64 + own_chunk % 4 * 16;

    // Missing rows are zeros.
    for (int slot = 0; slot < STAGES; slot++) {
#pragma unroll
        for (int i = 0; i < TIMES; i++) {
            u32 row = own_row + i * ROWS_AT_A_TIME;
            if (row >= rows && row < 8 * BLOCKS) {
                *(uint4 *)(x_to + slot * STAGE + i * ROWS_AT_A_TIME * 64) = make_uint4(0, 0, 0, 0);
            }
        }
    }

    u32 fetched = 0, fetch_slot = 0;
    auto fetch = [&]() {
        if (fetched < stages) {
            u8 *to = weights_to + fetch_slot;
#pragma unroll
            for (int i = 0; i < Format::STAGE_BYTES / 512; i++) copy_16_bytes(to + i * 512, weights_from + i * 512, true);
            if (Format::SCALE_BYTES > 0 && lane < Format::SCALE_BYTES / 16) {
                copy_16_bytes(to + Format::STAGE_BYTES, scales_from, true);
            }
#pragma unroll
            for (int i = 0; i < TIMES; i++) {
                if (own_row + i * ROWS_AT_A_TIME < rows) {
                    copy_16_bytes(x_to + fetch_slot + i * ROWS_AT_A_TIME * 64, x_from + u64(i * ROWS_AT_A_TIME) * stored, true);
                }
            }
            weights_from += Format::STAGE_BYTES;
            scales_from += Format::SCALE_BYTES;
            x_from += 128;
        }
        fetched++;
        fetch_slot = fetch_slot + STAGE == STAGES * STAGE ? 0 : fetch_slot + STAGE;
        end_copy_group();
    };

    float sums[BLOCKS][4] = {};
    for (int stage = 0; stage < STAGES - 1; stage++) fetch();
    const u8 *const own_weights = ring + warp * WEIGHTS;
    const u8 *const activations = ring + WARPS * WEIGHTS + lane * 16;
    u32 slot = 0;
#pragma unroll 1
    for (u32 stage = 0; stage < stages; stage++) {
        await_copy_groups<STAGES - 2>();
        __syncthreads();
        fetch();
        const u8 *weights = own_weights + slot, *b_from = activations + slot;
#pragma unroll
        for (int part = 0; part < 4; part++) {
            uint4 first, second;
            Format::fragments(weights, weights + Format::STAGE_BYTES, part, lane, first, second);
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) {
                uint4 b = *(const uint4 *)(b_from + part * (BLOCKS * 512) + block * 512);
                Number::multiply_add(sums[block], first, b.x, b.y);
                Number::multiply_add(sums[block], second, b.z, b.w);
            }
        }
        slot = slot + STAGE == STAGES * STAGE ? 0 : slot + STAGE;
    }
    if (own_tile > last_tile) return;
#pragma unroll
    for (int part = 0; part < 4; part++) {
        u32 output = tile * 16 + lane / 4 + part / 2 * 8;
        if (output >= outputs) continue;
        float shift = bias ? bias[output] : 0.0f;
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            u32 row = block * 8 + lane % 4 * 2 + part % 2;
            if (row < rows) write(out + u64(row) * outputs + output, sums[block][part] + shift, add);
        }
    }
}

// Many rows: a warp has 16 · TALL outputs and 8 · WIDE rows, a block of threads UP x ACROSS warps.
template <class Number, int TALL, int WIDE, int UP, int ACROSS, int STAGES>
__device__ __forceinline__ void multiply_many(const u8 *tiles, const u16 *x, const float *bias, float *out, u32 rows,
                                              u32 outputs, u32 stored, int add) {
    const int THREADS = UP * ACROSS * 32, WEIGHTS = UP * TALL * 1024, ACTIVATIONS = ACROSS * WIDE * 512;
    const int STAGE = WEIGHTS + ACTIVATIONS;
    SHARED_BYTES(ring);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, up = warp % UP, across = warp / UP;
    const u32 first_row = blockIdx.x * (8 * WIDE * ACROSS), first_tile = blockIdx.y * (TALL * UP);
    const u32 last_tile = (outputs + 15) / 16 - 1, stages = stored / 32;

    auto fetch = [&](u32 stage) {
        if (stage < stages) {
            u8 *slot = ring + stage % STAGES * STAGE;
#pragma unroll
            for (int i = 0; i < WEIGHTS / 16 / THREADS; i++) {
                u32 chunk = i * THREADS + threadIdx.x, own = first_tile + chunk / 64;
                u32 tile = own < last_tile ? own : last_tile;
                copy_16_bytes(slot + chunk * 16, tiles + (u64(tile) * stages + stage) * 1024 + chunk % 64 * 16, true);
            }
#pragma unroll
            for (int i = 0; i < ACTIVATIONS / 16 / THREADS; i++) {
                u32 chunk = i * THREADS + threadIdx.x, row = first_row + chunk / 4;
                bool exists = row < rows;
                const u16 *from = x + u64(exists ? row : 0) * stored + stage * 32 + chunk % 4 * 8;
                copy_16_bytes(slot + WEIGHTS + chunk * 16, from, exists);
            }
        }
        end_copy_group();
    };

    float sums[TALL][WIDE][4] = {};
#pragma unroll 1
    for (u32 stage = 0; stage < STAGES - 1; stage++) fetch(stage);
#pragma unroll 1
    for (u32 stage = 0; stage < stages; stage++) {
        await_copy_groups<STAGES - 2>();
        __syncthreads();
        fetch(stage + STAGES - 1);
        const u8 *weights = ring + stage % STAGES * STAGE + up * (TALL * 1024) + lane * 16;
        const u8 *activations = ring + stage % STAGES * STAGE + WEIGHTS + across * (WIDE * 512) + lane * 16;
        uint4 b[WIDE];
#pragma unroll
        for (int block = 0; block < WIDE; block++) b[block] = *(const uint4 *)(activations + block * 512);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint4 a[TALL];
#pragma unroll
            for (int i = 0; i < TALL; i++) a[i] = *(const uint4 *)(weights + i * 1024 + half * 512);
#pragma unroll
            for (int block = 0; block < WIDE; block++) {
#pragma unroll
                for (int i = 0; i < TALL; i++) {
                    Number::multiply_add(sums[i][block], a[i], half ? b[block].z : b[block].x,
                                         half ? b[block].w : b[block].y);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < TALL; i++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            u32 output = (first_tile + up * TALL + i) * 16 + lane / 4 + part / 2 * 8;
            if (output >= outputs) continue;
            float shift = bias ? bias[output] : 0.0f;
#pragma unroll
            for (int block = 0; block < WIDE; block++) {
                u32 row = first_row + (across * WIDE + block) * 8 + lane % 4 * 2 + part % 2;
                if (row < rows) write(out + u64(row) * outputs + output, sums[i][block][part] + shift, add);
            }
        }
    }
}

#define FEW(name, blocks, warps, stages, ...)                                                                        \
    extern "C" __global__ void __launch_bounds__(warps * 32)                                                         \
        name(const u8 *tiles, const u8 *scales, const u16 *x, const float *bias, float *out, u32 rows, u32 outputs,   \
             u32 stored, int add) {                                                                                  \
        multiply_few<__VA_ARGS__, blocks, warps, stages>(tiles, scales, x, bias, out, rows, outputs, stored, add);    \
    }
// Rows and warps of each; the host has a table of them.
#define FEW_OF(format, ...)                                                                                          \
    FEW(few_8_1_##format, 1, 1, 8, __VA_ARGS__)                                                                      \
    FEW(few_8_4_##format, 1, 4, 5, __VA_ARGS__)                                                                      \
    FEW(few_16_2_##format, 2, 2, 6, __VA_ARGS__)                                                                     \
    FEW(few_16_4_##format, 2, 4, 4, __VA_ARGS__)                                                                     \
    FEW(few_32_2_##format, 4, 2, 6, __VA_ARGS__)                                                                     \
    FEW(few_32_4_##format, 4, 4, 4, __VA_ARGS__)                                                                     \
    FEW(few_64_2_##format, 8, 2, 4, __VA_ARGS__)                                                                     \
    FEW(few_64_4_##format, 8, 4, 3, __VA_ARGS__)

#define MANY(name, number, tall, wide, stages)                                                                       \
    extern "C" __global__ void __launch_bounds__(128)                                                                \
        name(const u8 *tiles, const u8 *, const u16 *x, const float *bias, float *out, u32 rows, u32 outputs,         \
             u32 stored, int add) {                                                                                  \
        multiply_many<number, tall, wide, 2, 2, stages>(tiles, x, bias, out, rows, outputs, stored, add);            \
    }
// Outputs and rows of each.
#define MANY_OF(format, number)                                                                                      \
    MANY(many_64_64_##format, number, 2, 4, 5)                                                                       \
    MANY(many_128_64_##format, number, 4, 4, 4)                                                                      \
    MANY(many_128_128_##format, number, 4, 8, 4)

#define FORMAT(name, ...)                                                                                    \
    EMBED(embed_##name, __VA_ARGS__)                                                                                 \
    FEW_OF(name, __VA_ARGS__)

#if defined(FORMAT_BF16)
FORMAT(bf16, Floats<Bf16>)
#elif defined(FORMAT_F16)
FORMAT(f16, Floats<F16>)
#elif defined(FORMAT_Q8_0)
FORMAT(q8_0, Q8)
WIDEN(widen_q8_0, Q8)
#elif defined(FORMAT_Q4_K)
FORMAT(q4_k, Q4K)
WIDEN(widen_q4_k, Q4K)
#endif

#if defined(FORMAT_F16)
MANY_OF(f16, F16)
#elif !defined(FORMAT_F32)
MANY_OF(bf16, Bf16)
#endif

#ifdef FORMAT_F32
extern "C" __global__ void embed_f32(const float *table, const u32 *ids, float *out, u32 inputs) {
    u32 id = ids[blockIdx.x];
    for (u32 input = threadIdx.x; input < inputs; input += blockDim.x) {
        out[u64(blockIdx.x) * inputs + input] = table[u64(id) * inputs + input];
    }
}

// Weights of 32 bits: one warp per output, 32 inputs at a time, in the same order for every row.
extern "C" __global__ void multiply_f32(const float *weight, const float *x, const float *bias, float *out, u32 rows,
                                        u32 outputs, u32 inputs, int add) {
    const int ROWS = 4;
    u32 output = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (output >= outputs) return;
    u32 first = blockIdx.y * ROWS;
    float sums[ROWS] = {};
    for (u32 input = lane; input < inputs; input += 32) {
        float w = weight[u64(output) * inputs + input];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            if (first + i < rows) sums[i] = fmaf(w, x[u64(first + i) * inputs + input], sums[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        for (int distance = 16; distance > 0; distance /= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], distance);
        if (lane == 0 && first + i < rows) {
            write(out + u64(first + i) * outputs + output, sums[i] + (bias ? bias[output] : 0.0f), add);
        }
    }
}
#endif
