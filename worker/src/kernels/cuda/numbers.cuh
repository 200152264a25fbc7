// Shared by all kernels: number formats, and operations with a fixed rounding.
//
// NVRTC has no headers; this file and instructions.cuh replace them.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define MINUS_INFINITY __int_as_float(0xff800000)

// Types of 16 bits for matrix products.
struct Bf16 {
    static __device__ __forceinline__ float widen(u16 bits) { return widen_bf16(bits); }
    static __device__ __forceinline__ u32 pack(float low, float high) { return pack_bf16(low, high); }
    static __device__ __forceinline__ u16 round(float value) { return u16(pack(value, 0.0f)); }
    static __device__ __forceinline__ void multiply_add(float (&d)[4], const uint4 &a, u32 b0, u32 b1) {
        multiply_add_bf16(d, a, b0, b1);
    }
};

struct F16 {
    static __device__ __forceinline__ float widen(u16 bits) { return widen_f16(bits); }
    static __device__ __forceinline__ u32 pack(float low, float high) { return pack_f16(low, high); }
    static __device__ __forceinline__ u16 round(float value) { return u16(pack(value, 0.0f)); }
    static __device__ __forceinline__ void multiply_add(float (&d)[4], const uint4 &a, u32 b0, u32 b1) {
        multiply_add_f16(d, a, b0, b1);
    }
};

// The input of the next linear layer is also written rounded to that layer's type: to bfloat16 if `rounding` is
// 1, to f16 if it is 2, not at all if it is 0.
__device__ __forceinline__ void store_rounded(u16 *rounded, int rounding, u64 at, float value) {
    if (rounding == 1) rounded[at] = Bf16::round(value);
    if (rounding == 2) rounded[at] = F16::round(value);
}
