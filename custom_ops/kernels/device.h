// What every kernel is written with: float, half and bfloat elements that compute in float, 16-byte vectors of them, and
// reductions over a wave or a block, for waves of 32 and 64.
//
// exp, log and the rest come from the hardware's approximations (about 1e-7 relative, subnormals flushed): there is no
// math library to link on a machine without ROCm.
#pragma once
#include "kernels/target.h"

namespace rocline {

struct half {
  u16 bits;
};
struct bfloat {
  u16 bits;
};

ROCLINE_DEVICE float to_float(float value) { return value; }
ROCLINE_DEVICE float to_float(half value) { return half_to_float(value.bits); }
ROCLINE_DEVICE float to_float(bfloat value) { return bit_cast<float>(static_cast<u32>(value.bits) << 16); }

// Rounds to nearest even; NaN stays NaN.
template <class Element>
ROCLINE_DEVICE Element from_float(float value);
template <>
ROCLINE_DEVICE float from_float<float>(float value) {
  return value;
}
template <>
ROCLINE_DEVICE half from_float<half>(float value) {
  return {float_to_half(value)};
}
template <>
ROCLINE_DEVICE bfloat from_float<bfloat>(float value) {
  const u32 x = bit_cast<u32>(value);
  const u32 rounded = (x + 0x7fffu + (x >> 16 & 1u)) >> 16, quiet = x >> 16 | 0x40u;
  return {static_cast<u16>((x & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
}

// 16 bytes of elements: 4 floats, 8 halves or 8 bfloats.
template <class Element>
struct Vec {
  static constexpr int lanes = 16 / sizeof(Element);
  float at[lanes];
};

struct alignas(16) Bytes16 {
  u32 word[4];
};

ROCLINE_DEVICE bool aligned16(const void* pointer) { return (reinterpret_cast<u64>(pointer) & 15) == 0; }

// `from` and `to` must be aligned to 16 bytes.
template <class Element>
ROCLINE_DEVICE Vec<Element> load16(const Element* from) {
  const Bytes16 raw = *reinterpret_cast<const Bytes16*>(from);
  Element elements[Vec<Element>::lanes];
  __builtin_memcpy(elements, &raw, 16);
  Vec<Element> out;
#pragma unroll
  for (int i = 0; i < Vec<Element>::lanes; ++i) out.at[i] = to_float(elements[i]);
  return out;
}
template <class Element>
ROCLINE_DEVICE void store16(Element* to, const Vec<Element>& value) {
  Element elements[Vec<Element>::lanes];
#pragma unroll
  for (int i = 0; i < Vec<Element>::lanes; ++i) elements[i] = from_float<Element>(value.at[i]);
  Bytes16 raw;
  __builtin_memcpy(&raw, elements, 16);
  *reinterpret_cast<Bytes16*>(to) = raw;
}

ROCLINE_DEVICE float exp_fast(float x) { return exp2_fast(x * 1.44269504f); }
ROCLINE_DEVICE float sigmoid(float x) { return reciprocal_fast(1.f + exp_fast(-x)); }
// 1 - 2 / (1 + e^2x): right at both ends, where e^2x is infinite or 0; loses digits below |x| = 1e-3, so x itself there.
ROCLINE_DEVICE float tanh_fast(float x) {
  const float magnitude = x < 0.f ? -x : x;
  return magnitude < 1e-3f ? x : 1.f - 2.f * reciprocal_fast(1.f + exp_fast(2.f * x));
}

template <class Value>
ROCLINE_DEVICE Value shuffle(Value value, u32 from) {
  static_assert(sizeof(Value) == 4, "shuffles move 4 bytes");
  return bit_cast<Value>(shuffle_bits(bit_cast<u32>(value), from));
}
template <class Value>
ROCLINE_DEVICE Value shuffle_xor(Value value, u32 mask) {
  return shuffle(value, lane() ^ mask);
}

struct Sum {
  static constexpr float start = 0.f;
  static ROCLINE_DEVICE float of(float a, float b) { return a + b; }
};
struct Maximum {
  static constexpr float start = -__builtin_inff();
  static ROCLINE_DEVICE float of(float a, float b) { return a > b ? a : b; }
};

// Over groups of `Width` neighbouring lanes (a power of two, at most kWave); every lane gets the result.
template <class Operation, int Width = kWave>
ROCLINE_DEVICE float reduce_wave(float value) {
#pragma unroll
  for (int mask = Width / 2; mask > 0; mask /= 2) value = Operation::of(value, shuffle_xor(value, mask));
  return value;
}

// Over a block of `Threads` (a multiple of kWave); every thread gets the result.  `scratch` is shared memory, at least
// Threads / kWave floats, that may be used again at once.
template <class Operation, int Threads>
ROCLINE_DEVICE float reduce_block(float value, float* scratch) {
  constexpr int waves = Threads / kWave;
  static_assert(Threads % kWave == 0 && waves <= kWave, "a block is made of whole waves, at most kWave of them");
  value = reduce_wave<Operation>(value);
  if constexpr (waves > 1) {
    if (lane() == 0) scratch[thread_x() / kWave] = value;
    barrier();
    value = lane() < waves ? scratch[lane()] : Operation::start;
    value = reduce_wave<Operation>(value);
    barrier();
  }
  return value;
}

// Defines the entry point of each dtype: ROCLINE_ENTRIES(ENTRY) with ENTRY(suffix, Element).
#define ROCLINE_ENTRIES(entry) entry(f32, float) entry(f16, ::rocline::half) entry(bf16, ::rocline::bfloat)

}  // namespace rocline
