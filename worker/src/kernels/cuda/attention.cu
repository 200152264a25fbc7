// Causal attention of rows over the paged cache.
//
// Keys are taken in tiles of 64 positions that begin at multiples of 64, from the first that the row sees to its own. A
// tile gives a maximum, a sum and a weighted mean of values, from scratch; a row's result folds its tiles in
// ascending order. The kernels below differ only in which threads compute which tile: a row has the same bits
// whatever else is in the batch, however its sequence was chunked and wherever its blocks are.

// The host defines FORMAT_F32, FORMAT_F16 or FORMAT_BF16 for the cache.

#define TILE 64

struct Cached {
    const void *keys, *values;
    // Block tables of all sequences, concatenated.
    const u32 *tables;
    u32 block_tokens, kv_width;
};

struct Queries {
    const float *qkv;
    // Per row: its position, and where the block table of its sequence begins.
    const u32 *positions, *tables;
    u32 heads, kv_heads, width, window;
    float scale;
};

__device__ __forceinline__ u64 slot_of(const Cached &cached, u32 table, u32 position) {
    return u64(cached.tables[table + position / cached.block_tokens]) * cached.block_tokens +
           position % cached.block_tokens;
}

__device__ __forceinline__ u32 first_seen(u32 position, u32 window) {
    return window > 0 && position + 1 > window ? position + 1 - window : 0;
}

// The running result of a row and head.
struct Fold {
    float max, sum;
};

// Factors of the running result and of a tile's; a tile without visible keys changes nothing.
struct Factors {
    float running, tile;
    bool counts;
};

__device__ __forceinline__ Factors fold(Fold &running, float max, float sum) {
    Factors factors;
    factors.counts = max != MINUS_INFINITY;
    float highest = fmaxf(running.max, max);
    factors.running = power_of_two(__fsub_rn(running.max, highest));
    factors.tile = power_of_two(__fsub_rn(max, highest));
    if (factors.counts) {
        running.sum = __fmaf_rn(running.sum, factors.running, __fmul_rn(sum, factors.tile));
        running.max = highest;
    }
    return factors;
}

__device__ __forceinline__ float folded(float running, float tile, const Factors &factors) {
    return factors.counts ? __fmaf_rn(running, factors.running, __fmul_rn(tile, factors.tile)) : running;
}

// With tensor cores: a warp has 16 slots, each a row and one of the query heads that share a key head, and takes a tile
// of keys and values in shared memory. WIDTH is the padded width of a head; 16-byte chunk c of the head at position p
// is at chunk c ^ (p % 8), so that the 8 rows of a matrix are in different banks.

template <int WIDTH>
__device__ __forceinline__ u32 chunk_at(u32 position, u32 chunk) {
    return (position * (WIDTH / 8) + (chunk ^ position % 8)) * 16;
}

template <class Number, int WIDTH>
struct WarpTile {
    uint4 queries[WIDTH / 16];
    // For the lane's two slots.
    u32 positions[2], firsts[2];
    // All slots of the warp see the positions between these.
    u32 seen_from, seen_to;
    float max[2], sum[2];
    float values[WIDTH / 8][4];

    // Slot s is row first_row + s / group of the batch, and head s % group of those that share the key head; there are
    // `slots`.
    __device__ __forceinline__ void load_queries(const Queries &of, u32 first_row, u32 first_slot, u32 slots, u32 kv_head) {
        const u32 lane = threadIdx.x % 32, group = of.heads / of.kv_heads;
        const u32 row_width = (of.heads + 2 * of.kv_heads) * of.width;
        const float *heads[2];
        for (int i = 0; i < 2; i++) {
            u32 slot = first_slot + lane / 4 + 8 * i;
            bool exists = slot < slots;
            u32 row = first_row + (exists ? slot / group : 0);
            positions[i] = exists ? of.positions[row] : 0;
            // An empty slot sees nothing.
            firsts[i] = exists ? first_seen(positions[i], of.window) : 1;
            heads[i] = exists ? of.qkv + u64(row) * row_width + (kv_head * group + slot % group) * of.width : nullptr;
        }
        seen_from = firsts[0] > firsts[1] ? firsts[0] : firsts[1];
        seen_to = positions[0] < positions[1] ? positions[0] : positions[1];
        for (int distance = 4; distance < 32; distance *= 2) {
            u32 from = __shfl_xor_sync(~0u, seen_from, distance), to = __shfl_xor_sync(~0u, seen_to, distance);
            seen_from = from > seen_from ? from : seen_from;
            seen_to = to < seen_to ? to : seen_to;
        }
#pragma unroll
        for (int step = 0; step < WIDTH / 16; step++) {
            u32 parts[4];
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const float *head = heads[part % 2];
                u32 at = step * 16 + lane % 4 * 2 + part / 2 * 8;
                bool exists = head && at < of.width;
                parts[part] = Number::pack(exists ? head[at] : 0.0f, exists ? head[at + 1] : 0.0f);
            }
            queries[step] = make_uint4(parts[0], parts[1], parts[2], parts[3]);
        }
    }

    // Computes `max`, `sum` and `values` of the tile that begins at position `begin`.
    __device__ __forceinline__ void attend(const u8 *keys, const u8 *cached_values, u32 begin, float scale) {
        const u32 lane = threadIdx.x % 32;
        float scores[TILE / 8][4];
#pragma unroll
        for (int block = 0; block < TILE / 8; block++) {
            scores[block][0] = scores[block][1] = scores[block][2] = scores[block][3] = 0.0f;
#pragma unroll
            for (int step = 0; step < WIDTH / 32; step++) {
                u32 b[4];
                load_matrices<false>(b, keys + chunk_at<WIDTH>(block * 8 + lane % 8, step * 4 + lane / 8));
                Number::multiply_add(scores[block], queries[step * 2], b[0], b[1]);
                Number::multiply_add(scores[block], queries[step * 2 + 1], b[2], b[3]);
            }
        }
        float factor = scale * 1.4426950408889634f;
        max[0] = max[1] = MINUS_INFINITY;
        bool all = begin >= seen_from && begin + TILE <= seen_to + 1;
#pragma unroll
        for (int block = 0; block < TILE / 8; block++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                u32 position = begin + block * 8 + lane % 4 * 2 + part % 2;
                bool seen = all || (position >= firsts[part / 2] && position <= positions[part / 2]);
                scores[block][part] = seen ? __fmul_rn(scores[block][part], factor) : MINUS_INFINITY;
                max[part / 2] = fmaxf(max[part / 2], scores[block][part]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            max[i] = fmaxf(max[i], __shfl_xor_sync(~0u, max[i], 1));
            max[i] = fmaxf(max[i], __shfl_xor_sync(~0u, max[i], 2));
            sum[i] = 0.0f;
        }
#pragma unroll
        for (int block = 0; block < TILE / 8; block++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                float highest = max[part / 2] == MINUS_INFINITY ? 0.0f : max[part / 2];
                scores[block][part] = power_of_two(__fsub_rn(scores[block][part], highest));
                sum[part / 2] += scores[block][part];
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
            sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
        }
#pragma unroll
        for (int block = 0; block < WIDTH / 8; block++) {
            values[block][0] = values[block][1] = values[block][2] = values[block][3] = 0.0f;
        }
#pragma unroll
        for (int step = 0; step < TILE / 16; step++) {
            float(&low)[4] = scores[step * 2], (&high)[4] = scores[step * 2 + 1];
            uint4 weights = make_uint4(Number::pack(low[0], low[1]), Number::pack(low[2], low[3]),
                                       Number::pack(high[0], high[1]), Number::pack(high[2], high[3]));
#pragma unroll
            for (int pair = 0; pair < WIDTH / 16; pair++) {
                u32 b[4];
                u32 position = step * 16 + lane / 8 % 2 * 8 + lane % 8;
                load_matrices<true>(b, cached_values + chunk_at<WIDTH>(position, pair * 2 + lane / 16));
                Number::multiply_add(values[pair * 2], weights, b[0], b[1]);
                Number::multiply_add(values[pair * 2 + 1], weights, b[2], b[3]);
            }
        }
    }
};

#define NO_SLOT 0xffffffff

// The slot of a position; NO_SLOT after `last`, where another sequence's may be.
__device__ __forceinline__ u32 slot_until(const Cached &cached, u32 table, u32 position, u32 last) {
    return position <= last ? u32(slot_of(cached, table, position)) : NO_SLOT;
}

// Fetches 16 bytes of a position's keys and values; zeros without a slot or beyond the head.
template <int WIDTH>
__device__ __forceinline__ void fetch_chunk(u8 *keys, u8 *values, const Cached &cached, u32 slot, u32 kv_head, u32 width,
                                            u32 position, u32 chunk) {
    bool exists = slot != NO_SLOT && chunk * 8 < width;
    u64 at = exists ? u64(slot) * cached.kv_width + kv_head * width + chunk * 8 : 0;
    copy_16_bytes(keys + chunk_at<WIDTH>(position, chunk), (const u16 *)cached.keys + at, exists);
    copy_16_bytes(values + chunk_at<WIDTH>(position, chunk), (const u16 *)cached.values + at, exists);
}

// Some slots of consecutive rows of one sequence: those from `first_slot` on and below `slots`, counted
// from `first_row`. `partial_row` counts only rows with stored tiles.
struct Item {
    u32 first_row, first_slot, slots, first_position, last_position, partial_row;
};

__device__ __forceinline__ Item item_of(const u32 *items) {
    const u32 *item = items + blockIdx.x * 6;
    return Item{item[0], item[1], item[2], item[3], item[4], item[5]};
}

// A stored tile: numbers of the head, maximum, sum.
__device__ __forceinline__ u64 partial_at(u64 row_and_head, u32 tile, u32 tiles, u32 width) {
    return (row_and_head * tiles + tile) * (width + 2);
}

// Few slots: every warp computes and stores one tile; `combine_tiles` folds. Blocks are items, key heads and as
// many tiles as they have warps; stored tiles are those of the rows from `first_partial` on, `tiles` each.
template <class Number, int WIDTH>
__device__ __forceinline__ void attend_tiles(const u32 *items, Queries of, Cached cached, float *partial,
                                             u32 first_partial, u32 tiles) {
    SHARED_BYTES(memory);
    const int TILE_BYTES = TILE * WIDTH * 2;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.y, group = of.heads / of.kv_heads;
    Item item = item_of(items);
    u32 first_tile = first_seen(item.first_position, of.window) / TILE;
    u32 tile = first_tile + blockIdx.z * (blockDim.x / 32) + warp;
    if (tile * TILE > item.last_position) return;
    u8 *keys = memory + warp * 2 * TILE_BYTES, *values = keys + TILE_BYTES;
    u32 slots[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        slots[i] = slot_until(cached, of.tables[item.first_row], tile * TILE + lane + 32 * i, item.last_position);
    }
#pragma unroll 8
    for (u32 index = lane; index < TILE * WIDTH / 8; index += 32) {
        u32 position = index / (WIDTH / 8), chunk = index % (WIDTH / 8);
        u32 slot = __shfl_sync(~0u, position < 32 ? slots[0] : slots[1], position % 32);
        fetch_chunk<WIDTH>(keys, values, cached, slot, kv_head, of.width, position, chunk);
    }
    end_copy_group();
    WarpTile<Number, WIDTH> own;
    own.load_queries(of, item.first_row, item.first_slot, item.slots, kv_head);
    await_copy_groups<0>();
    __syncwarp();
    own.attend(keys, values, tile * TILE, of.scale);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 slot = item.first_slot + lane / 4 + 8 * i;
        if (slot >= item.slots) continue;
        u64 row_and_head = u64(item.partial_row + slot / group - first_partial) * of.heads + kv_head * group + slot % group;
        float *to = partial + partial_at(row_and_head, tile, tiles, of.width);
#pragma unroll
        for (int block = 0; block < WIDTH / 8; block++) {
            u32 at = block * 8 + lane % 4 * 2;
            if (at < of.width) {
                to[at] = own.values[block][2 * i];
                to[at + 1] = own.values[block][2 * i + 1];
            }
        }
        if (lane % 4 == 0) {
            to[of.width] = own.max[i];
            to[of.width + 1] = own.sum[i];
        }
    }
}

// Many slots: the four warps of a block have 16 each and share the tiles, which they fold one by one.
template <class Number, int WIDTH>
__device__ __forceinline__ void attend_slots(const u32 *items, Queries of, Cached cached, float *out, u16 *rounded,
                                             int rounding) {
    SHARED_BYTES(memory);
    const int TILE_BYTES = TILE * WIDTH * 2;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.y, group = of.heads / of.kv_heads;
    Item item = item_of(items);
    u32 table = of.tables[item.first_row];
    WarpTile<Number, WIDTH> own;
    own.load_queries(of, item.first_row, item.first_slot + warp * 16, item.slots, kv_head);
    Fold running[2] = {{MINUS_INFINITY, 0.0f}, {MINUS_INFINITY, 0.0f}};
    float values[WIDTH / 8][4] = {};
    u32 tile = first_seen(item.first_position, of.window) / TILE, end = item.last_position / TILE + 1;
    // Slots are looked up a tile before they are needed.
    __shared__ u32 slots[2][TILE];
    auto find_slots = [&](u32 tile) {
        u32 position = tile * TILE + threadIdx.x;
        if (threadIdx.x < TILE) slots[tile % 2][threadIdx.x] = slot_until(cached, table, position, item.last_position);
    };
    auto fetch = [&](u32 tile) {
        if (tile < end) {
            u8 *to = memory + tile % 2 * 2 * TILE_BYTES;
#pragma unroll
            for (u32 index = threadIdx.x; index < TILE * WIDTH / 8; index += 128) {
                u32 position = index / (WIDTH / 8), chunk = index % (WIDTH / 8);
                fetch_chunk<WIDTH>(to, to + TILE_BYTES, cached, slots[tile % 2][position], kv_head, of.width, position, chunk);
            }
        }
        end_copy_group();
    };
    find_slots(tile);
    __syncthreads();
    fetch(tile);
    find_slots(tile + 1);
    __syncthreads();
#pragma unroll 1
    for (; tile < end; tile++) {
        fetch(tile + 1);
        find_slots(tile + 2);
        await_copy_groups<1>();
        __syncthreads();
        const u8 *from = memory + tile % 2 * 2 * TILE_BYTES;
        own.attend(from, from + TILE_BYTES, tile * TILE, of.scale);
        Factors factors[2] = {fold(running[0], own.max[0], own.sum[0]), fold(running[1], own.max[1], own.sum[1])};
#pragma unroll
        for (int block = 0; block < WIDTH / 8; block++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                values[block][part] = folded(values[block][part], own.values[block][part], factors[part / 2]);
            }
        }
        // The next copy replaces this tile.
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 slot = item.first_slot + warp * 16 + lane / 4 + 8 * i;
        if (slot >= item.slots) continue;
        u64 to = (u64(item.first_row + slot / group) * of.heads + kv_head * group + slot % group) * of.width;
#pragma unroll
        for (int block = 0; block < WIDTH / 8; block++) {
#pragma unroll
            for (int part = 0; part < 2; part++) {
                u32 at = block * 8 + lane % 4 * 2 + part;
                if (at >= of.width) continue;
                float value = __fdiv_rn(values[block][2 * i + part], running[i].sum);
                out[to + at] = value;
                store_rounded(rounded, rounding, to + at, value);
            }
        }
    }
}

#define QUERIES                                                                                                      \
    const float *qkv, const u32 *positions, const u32 *row_tables, u32 heads, u32 kv_heads, u32 width, u32 window,    \
        float scale
#define CACHED const void *keys, const void *values, const u32 *tables, u32 block_tokens
#define THE_QUERIES Queries{qkv, positions, row_tables, heads, kv_heads, width, window, scale}
#define THE_CACHED Cached{keys, values, tables, block_tokens, kv_heads * width}

#define ATTEND(format, number, WIDTH)                                                                                \
    extern "C" __global__ void __launch_bounds__(128)                                                                \
        attend_tiles_##WIDTH##_##format(const u32 *items, QUERIES, CACHED, float *partial, u32 first_partial,      \
                                     u32 tiles) {                                                                   \
        attend_tiles<number, WIDTH>(items, THE_QUERIES, THE_CACHED, partial, first_partial, tiles);                      \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(128)                                                                \
        attend_slots_##WIDTH##_##format(const u32 *items, QUERIES, CACHED, float *out, u16 *rounded, int rounding) {   \
        attend_slots<number, WIDTH>(items, THE_QUERIES, THE_CACHED, out, rounded, rounding);                         \
    }
#if defined(FORMAT_BF16)
ATTEND(bf16, Bf16, 64)
ATTEND(bf16, Bf16, 128)
#elif defined(FORMAT_F16)
ATTEND(f16, F16, 64)
ATTEND(f16, F16, 128)
#else

// Without tensor cores, for a cache of f32 and heads of other widths. A warp computes the tile of
// one row and head; blocks are heads of `rows`, and groups of four tiles. `format` is that of `append`.
extern "C" __global__ void __launch_bounds__(128)
    attend_plainly(const u32 *rows, QUERIES, CACHED, int format, float *partial, u32 tiles) {
    Queries of = THE_QUERIES;
    Cached cached = THE_CACHED;
    __shared__ float all_weights[4][TILE];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 row = rows[blockIdx.x / heads], head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
    u32 position = of.positions[row], table = of.tables[row], first = first_seen(position, window);
    u32 tile = first / TILE + blockIdx.z * 4 + warp, begin = tile * TILE;
    if (begin > position) return;
    auto number = [&](const void *from, u64 at) {
        if (format == 0) return ((const float *)from)[at];
        return format == 1 ? Bf16::widen(((const u16 *)from)[at]) : F16::widen(((const u16 *)from)[at]);
    };
    const float *query = of.qkv + u64(row) * (heads + 2 * kv_heads) * width + head * width;
    float *weights = all_weights[warp];
    float scores[2], max = MINUS_INFINITY;
    for (int i = 0; i < 2; i++) {
        u32 key = begin + lane + 32 * i;
        scores[i] = MINUS_INFINITY;
        if (key >= first && key <= position) {
            u64 at = slot_of(cached, table, key) * cached.kv_width + kv_head * width;
            float dot = 0.0f;
            for (u32 d = 0; d < width; d++) dot = fmaf(query[d], number(cached.keys, at + d), dot);
            scores[i] = dot * (scale * 1.4426950408889634f);
        }
        max = fmaxf(max, scores[i]);
    }
    for (int distance = 16; distance > 0; distance /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, distance));
    float sum = 0.0f;
    for (int i = 0; i < 2; i++) {
        float weight = power_of_two(scores[i] - (max == MINUS_INFINITY ? 0.0f : max));
        weights[lane + 32 * i] = weight;
        sum += weight;
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    __syncwarp();
    float *to = partial + partial_at(blockIdx.x, tile, tiles, width);
    u32 from = first > begin ? first - begin : 0, end = position - begin < TILE - 1 ? position - begin : TILE - 1;
    for (u32 d = lane; d < width; d += 32) {
        float value = 0.0f;
        for (u32 key = from; key <= end; key++) {
            u64 at = slot_of(cached, table, begin + key) * cached.kv_width + kv_head * width + d;
            value = fmaf(weights[key], number(cached.values, at), value);
        }
        to[d] = value;
    }
    if (lane == 0) {
        to[width] = max;
        to[width + 1] = sum;
    }
}

// Folds the tiles of a row and head; blocks are heads of `rows`.
extern "C" __global__ void combine_tiles(const u32 *rows, const float *__restrict__ partial, const u32 *positions, u32 heads, u32 width,
                                         u32 window, float *out, u16 *rounded, int rounding, u32 tiles) {
    u32 row = rows[blockIdx.x / heads], position = positions[row];
    u32 first = first_seen(position, window) / TILE, last = position / TILE;
    for (u32 d = threadIdx.x; d < width; d += blockDim.x) {
        Fold running = {MINUS_INFINITY, 0.0f};
        float value = 0.0f;
#pragma unroll 8
        for (u32 tile = first; tile <= last; tile++) {
            const float *from = partial + partial_at(blockIdx.x, tile, tiles, width);
            Factors factors = fold(running, from[width], from[width + 1]);
            value = folded(value, from[d], factors);
        }
        value = __fdiv_rn(value, running.sum);
        u64 to = (u64(row) * heads + blockIdx.x % heads) * width + d;
        out[to] = value;
        store_rounded(rounded, rounding, to, value);
    }
}

#endif
