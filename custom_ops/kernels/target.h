// What differs between the compilers that build a kernel: AMD's (hipcc, hiprtc, or plain clang with no ROCm at all) and
// NVIDIA's (nvcc, NVRTC).  Everything above this file is the same source for all of them.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define ROCLINE_NVIDIA 1
#else
#if !defined(__global__)  // plain clang: no HIP header has named the attributes
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __constant__ __attribute__((constant))
#define __launch_bounds__(threads) __attribute__((amdgpu_flat_work_group_size(1, threads)))
#endif
#endif

// For a kernel that needs more waves under way than its registers would leave: at most `registers` a thread on AMD, and
// few enough on NVIDIA for `blocks` of them on a multiprocessor.
#if defined(ROCLINE_NVIDIA)
#define ROCLINE_BOUNDS(threads, registers, blocks) __launch_bounds__(threads, blocks)
#else
#define ROCLINE_BOUNDS(threads, registers, blocks) \
  __launch_bounds__(threads) __attribute__((amdgpu_num_vgpr(registers)))
#endif

#define ROCLINE_DEVICE inline __device__ __attribute__((always_inline))

namespace rocline {

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

template <class To, class From>
ROCLINE_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

#if defined(ROCLINE_NVIDIA)

constexpr int kWave = 32;

ROCLINE_DEVICE u32 thread_x() { return threadIdx.x; }
ROCLINE_DEVICE u32 block_x() { return blockIdx.x; }
ROCLINE_DEVICE u32 block_y() { return blockIdx.y; }
ROCLINE_DEVICE u32 block_z() { return blockIdx.z; }
ROCLINE_DEVICE u32 block_size() { return blockDim.x; }
ROCLINE_DEVICE void barrier() { __syncthreads(); }
ROCLINE_DEVICE u32 lane() { return threadIdx.x % kWave; }

// Keeps the compiler from mixing the instructions before with those after, where that would cost registers.
ROCLINE_DEVICE void keep_order() { asm volatile("" ::: "memory"); }

ROCLINE_DEVICE u32 shuffle_bits(u32 value, u32 from) { return __shfl_sync(0xffffffffu, value, from); }
ROCLINE_DEVICE u64 ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }

// Adds to a whole number in shared or device memory, with no order between several adds.
template <class Whole>
ROCLINE_DEVICE void atomic_add(Whole* to, Whole value) {
  atomicAdd(to, value);
}

ROCLINE_DEVICE float half_to_float(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
ROCLINE_DEVICE u16 float_to_half(float value) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

ROCLINE_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
ROCLINE_DEVICE float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
ROCLINE_DEVICE float rsqrt_fast(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
ROCLINE_DEVICE float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
ROCLINE_DEVICE float square_root(float x) {
  float y;
  asm("sqrt.rn.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
ROCLINE_DEVICE float multiply_add(float a, float b, float c) {
  float y;
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(y) : "f"(a), "f"(b), "f"(c));
  return y;
}

#else

// clang 22 dropped __AMDGCN_WAVEFRONT_SIZE__: CDNA and GCN run waves of 64, RDNA is compiled for waves of 32.
#if defined(__GFX9__) || defined(__GFX8__)
constexpr int kWave = 64;
#else
constexpr int kWave = 32;
#endif

ROCLINE_DEVICE u32 thread_x() { return __builtin_amdgcn_workitem_id_x(); }
ROCLINE_DEVICE u32 block_x() { return __builtin_amdgcn_workgroup_id_x(); }
ROCLINE_DEVICE u32 block_y() { return __builtin_amdgcn_workgroup_id_y(); }
ROCLINE_DEVICE u32 block_z() { return __builtin_amdgcn_workgroup_id_z(); }
ROCLINE_DEVICE u32 block_size() { return __builtin_amdgcn_workgroup_size_x(); }
ROCLINE_DEVICE void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
ROCLINE_DEVICE u32 lane() { return __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u)); }

ROCLINE_DEVICE void keep_order() { __builtin_amdgcn_sched_barrier(0); }

ROCLINE_DEVICE u32 shuffle_bits(u32 value, u32 from) {
  return __builtin_amdgcn_ds_bpermute(static_cast<int>(from << 2), static_cast<int>(value));
}
ROCLINE_DEVICE u64 ballot(bool vote) {
#if defined(__GFX9__) || defined(__GFX8__)
  return __builtin_amdgcn_ballot_w64(vote);
#else
  return __builtin_amdgcn_ballot_w32(vote);
#endif
}

template <class Whole>
ROCLINE_DEVICE void atomic_add(Whole* to, Whole value) {
  __hip_atomic_fetch_add(to, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}

ROCLINE_DEVICE float half_to_float(u16 bits) { return static_cast<float>(bit_cast<_Float16>(bits)); }
ROCLINE_DEVICE u16 float_to_half(float value) { return bit_cast<u16>(static_cast<_Float16>(value)); }

ROCLINE_DEVICE float exp2_fast(float x) { return __builtin_amdgcn_exp2f(x); }
ROCLINE_DEVICE float log2_fast(float x) { return __builtin_amdgcn_logf(x); }
ROCLINE_DEVICE float rsqrt_fast(float x) { return __builtin_amdgcn_rsqf(x); }
ROCLINE_DEVICE float reciprocal_fast(float x) { return __builtin_amdgcn_rcpf(x); }
ROCLINE_DEVICE float square_root(float x) { return __builtin_sqrtf(x); }
ROCLINE_DEVICE float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

#endif

}  // namespace rocline
