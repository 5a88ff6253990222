// A vector of floats in one register of the instruction set that a cpu.cc is being compiled for (ROCLINE_ISA), with
// loads and stores of float, half and bfloat that convert on the way.  + - * / and comparisons are the compiler's own.
//
// Everything stands in the instruction set's namespace: a function shared between two of them would be kept once by the
// linker, perhaps in the version that this machine cannot run.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/pool.h"
#include "cpu/types.h"
#include "ort/tensor.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace rocline::ROCLINE_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#else
constexpr int kWidth = 8;
#endif

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef std::uint32_t VecU32 __attribute__((vector_size(4 * kWidth)));
typedef std::int32_t VecI32 __attribute__((vector_size(4 * kWidth)));
typedef std::uint16_t VecU16 __attribute__((vector_size(2 * kWidth)));

inline Vec splat(float value) { return Vec{} + value; }

inline Vec load(const float* from) {
  Vec out;
  std::memcpy(&out, from, sizeof out);
  return out;
}
inline Vec load(const bfloat* from) {
  VecU16 raw;
  std::memcpy(&raw, from, sizeof raw);
  return reinterpret_cast<Vec>(__builtin_convertvector(raw, VecU32) << 16);
}
inline Vec load(const half* from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Vec out;
  for (int i = 0; i < kWidth; ++i) out[i] = to_float(from[i]);
  return out;
#endif
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }
inline void store(bfloat* to, Vec value) {
  const VecU32 x = reinterpret_cast<VecU32>(value);
  const VecU32 nan = reinterpret_cast<VecU32>((x & 0x7fffffffu) > 0x7f800000u);
  const VecU32 rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16, quiet = (x >> 16) | 0x40u;
  const VecU16 raw = __builtin_convertvector((nan & quiet) | (~nan & rounded), VecU16);
  std::memcpy(to, &raw, sizeof raw);
}
inline void store(half* to, Vec value) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kWidth; ++i) from_float(value[i], to[i]);
#endif
}

// The first `count` lanes, count < kWidth; nothing past them is touched and the other lanes are `fill`.
template <class T>
Vec load_part(const T* from, std::int64_t count, float fill = 0.f) {
  Vec out = splat(fill);
  for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(from[i]);
  return out;
}
template <class T>
void store_part(T* to, Vec value, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) from_float(value[i], to[i]);
}

// Calls function(offset, load, store) over [0, n): whole vectors, then the rest through load_part and store_part.
//   each(n, [&](std::int64_t i, auto get, auto put) { put(y, get(a) + get(b)); });
template <class F>
void each(std::int64_t n, const F& function) {
  std::int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth)
    function(i, [i](const auto* from) { return load(from + i); }, [i](auto* to, Vec value) { store(to + i, value); });
  if (i < n)
    function(
        i, [i, n](const auto* from) { return load_part(from + i, n - i); },
        [i, n](auto* to, Vec value) { store_part(to + i, value, n - i); });
}

inline Vec select(VecI32 mask, Vec yes, Vec no) {
  return reinterpret_cast<Vec>((mask & reinterpret_cast<VecI32>(yes)) | (~mask & reinterpret_cast<VecI32>(no)));
}
inline Vec maximum(Vec a, Vec b) { return select(a > b, a, b); }
inline Vec minimum(Vec a, Vec b) { return select(a < b, a, b); }

// a * b + c; fused where the instruction set has it.
inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline float sum(Vec value) {
  // Pairwise, the same order for every caller.
  float lanes[kWidth];
  std::memcpy(lanes, &value, sizeof lanes);
  for (int step = kWidth / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}
inline float maximum(Vec value) {
  float best = value[0];
  for (int i = 1; i < kWidth; ++i) best = value[i] > best ? value[i] : best;
  return best;
}

// e^x within 2 units in the last place for |x| < 87; 0 below, infinity above, NaN stays NaN.
inline Vec exponential(Vec x) {
  const Vec low = splat(-87.33654f), high = splat(88.72283f);
  const Vec clamped = minimum(maximum(x, low), high);
  // x = n ln 2 + r with |r| <= ln 2 / 2; adding and taking away 1.5 * 2^23 rounds to a whole number.
  const Vec magic = splat(12582912.f);
  const Vec shifted = multiply_add(clamped, splat(1.44269504f), magic);
  const Vec n = shifted - magic;
  Vec r = multiply_add(n, splat(-0.693359375f), clamped);
  r = multiply_add(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = multiply_add(p, r, splat(1.3981999507e-3f));
  p = multiply_add(p, r, splat(8.3334519073e-3f));
  p = multiply_add(p, r, splat(4.1665795894e-2f));
  p = multiply_add(p, r, splat(1.6666665459e-1f));
  p = multiply_add(p, r, splat(5.0000001201e-1f));
  p = multiply_add(p, r * r, r + 1.f);
  // n reaches 128, whose power of two is no float: two halves.
  const VecI32 whole = __builtin_convertvector(n, VecI32), half_n = whole >> 1;
  const Vec scale_a = reinterpret_cast<Vec>((half_n + 127) << 23);
  const Vec scale_b = reinterpret_cast<Vec>((whole - half_n + 127) << 23);
  Vec out = p * scale_a * scale_b;
  out = select(x < low, Vec{}, out);
  out = select(x > high, splat(__builtin_inff()), out);
  return select(x != x, x, out);
}

}  // namespace rocline::ROCLINE_ISA
