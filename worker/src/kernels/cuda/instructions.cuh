// GPU instructions that CUDA C++ lacks. tests/gpu_stand_in replaces them where the kernels run on a CPU.

#ifdef __CUDACC_RTC__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

// Shared memory of a block, as large as the launch says.
#define SHARED_BYTES(name) extern __shared__ __align__(128) u8 name[]

// Rounded to the nearest, `low` in the lower half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
__device__ __forceinline__ u32 pack_f16(float low, float high) {
    u32 packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

__device__ __forceinline__ float widen_bf16(u16 bits) { return __uint_as_float(u32(bits) << 16); }
__device__ __forceinline__ float widen_f16(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// d += a · b for a of 16 x 16 and b of 16 x 8.
__device__ __forceinline__ void multiply_add_bf16(float (&d)[4], const uint4 &a, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_add_f16(float (&d)[4], const uint4 &a, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Loads four matrices of 8 x 8 numbers of 16 bits; lane 8i + j has the address of row j of matrix i in shared memory.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(u32 (&b)[4], const u8 *row) {
    u32 at = u32(__cvta_generic_to_shared(row));
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(at));
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(at));
    }
}

// Two to the power of `x`; 0 for minus infinity.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Copies 16 bytes to shared memory in the background; zeros where `valid` is false, and then nothing is read.
__device__ __forceinline__ void copy_16_bytes(void *shared, const void *global, bool valid) {
    u32 to = u32(__cvta_generic_to_shared(shared));
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes));
}

__device__ __forceinline__ void end_copy_group() { asm volatile("cp.async.commit_group;"); }

// Waits until at most `LEFT` of this thread's groups are pending.
template <int LEFT>
__device__ __forceinline__ void await_copy_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT));
}

#endif
