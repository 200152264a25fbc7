// What all kernels share: number formats, and the operations whose rounding must not be left to the compiler.
//
// NVRTC has no headers; everything that is needed stands here.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define MINUS_INFINITY __int_as_float(0xff800000)

// Types of 16 bits that matrices are multiplied in.
struct Bf16 {
    static __device__ __forceinline__ float widen(u16 bits) { return __uint_as_float(u32(bits) << 16); }
    // `low` in the lower half.
    static __device__ __forceinline__ u32 pack(float low, float high) {
        u32 packed;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
        return packed;
    }
    static __device__ __forceinline__ u16 round(float value) { return u16(pack(value, 0.0f)); }
    // d += a · b for a of 16 x 16 and b of 16 x 8.
    static __device__ __forceinline__ void multiply_add(float (&d)[4], const uint4 &a, u32 b0, u32 b1) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
    }
};

struct F16 {
    static __device__ __forceinline__ float widen(u16 bits) {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
    static __device__ __forceinline__ u32 pack(float low, float high) {
        u32 packed;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
        return packed;
    }
    static __device__ __forceinline__ u16 round(float value) { return u16(pack(value, 0.0f)); }
    static __device__ __forceinline__ void multiply_add(float (&d)[4], const uint4 &a, u32 b0, u32 b1) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
    }
};

// What a linear layer reads next is also written rounded to the type that it multiplies in: to bfloat16 where `rounding` is
// 1, to f16 where it is 2, not at all where it is 0.
__device__ __forceinline__ void store_rounded(u16 *rounded, int rounding, u64 at, float value) {
    if (rounding == 1) rounded[at] = Bf16::round(value);
    if (rounding == 2) rounded[at] = F16::round(value);
}

// Copies 16 bytes to shared memory in the background; zeros where `valid` is false, and then nothing is read.
__device__ __forceinline__ void copy_16_bytes(void *shared, const void *global, bool valid) {
    u32 to = u32(__cvta_generic_to_shared(shared));
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes));
}

__device__ __forceinline__ void end_copy_group() { asm volatile("cp.async.commit_group;"); }

// Waits until at most `LEFT` of this thread's groups are under way.
template <int LEFT>
__device__ __forceinline__ void await_copy_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT));
}
