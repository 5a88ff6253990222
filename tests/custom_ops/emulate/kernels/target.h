// Stands in for custom_ops/kernels/target.h: the same primitives on the host, for waves of ROCLINE_WAVE lanes.
#pragma once
#include <cmath>
#include <cstring>

#include "fibers.h"

#define __global__ __attribute__((visibility("default")))
#define __device__
// Blocks run one after another, so what a block shares may be static.
#define __shared__ static
#define __constant__ static const
#define __launch_bounds__(...)
#define ROCLINE_BOUNDS(threads, registers, blocks)
#define ROCLINE_DEVICE inline __attribute__((always_inline))

namespace rocline {

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

constexpr int kWave = ROCLINE_WAVE;

template <class To, class From>
ROCLINE_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

ROCLINE_DEVICE u32 thread_x() { return emulate::block().current; }
ROCLINE_DEVICE u32 block_x() { return emulate::block().x; }
ROCLINE_DEVICE u32 block_y() { return emulate::block().y; }
ROCLINE_DEVICE u32 block_z() { return emulate::block().z; }
ROCLINE_DEVICE u32 block_size() { return emulate::block().threads; }
ROCLINE_DEVICE u32 lane() { return thread_x() % kWave; }
ROCLINE_DEVICE void barrier() { emulate::block().barrier(); }
ROCLINE_DEVICE void keep_order() {}

ROCLINE_DEVICE u32 shuffle_bits(u32 value, u32 from) { return emulate::block().exchange(value, from % kWave); }
ROCLINE_DEVICE u64 ballot(bool vote) { return emulate::block().ballot(vote); }

template <class Whole>
ROCLINE_DEVICE void atomic_add(Whole* to, Whole value) {
  *to += value;
}

ROCLINE_DEVICE float half_to_float(u16 bits) { return static_cast<float>(bit_cast<_Float16>(bits)); }
ROCLINE_DEVICE u16 float_to_half(float value) { return bit_cast<u16>(static_cast<_Float16>(value)); }

ROCLINE_DEVICE float exp2_fast(float x) { return std::exp2(x); }
ROCLINE_DEVICE float log2_fast(float x) { return std::log2(x); }
ROCLINE_DEVICE float rsqrt_fast(float x) { return 1.f / std::sqrt(x); }
ROCLINE_DEVICE float reciprocal_fast(float x) { return 1.f / x; }
ROCLINE_DEVICE float square_root(float x) { return std::sqrt(x); }
ROCLINE_DEVICE float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

}  // namespace rocline
