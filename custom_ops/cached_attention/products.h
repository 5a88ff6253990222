// The products of CachedAttention's CPU kernel: small blocks of rows against vectors that are loaded once for all.
#pragma once
#include "cpu/vec.h"

namespace rocline::ROCLINE_ISA {

constexpr int kGroup = 4;   // rows that share each vector loaded

// c[kGroup][columns] += a[kGroup][depth] * b[depth][columns]; a's element (row, k) is a[row * a_row + k * a_depth].
template <int Vectors, class B, class Get, class Put>
void tile_columns(float* c, std::int64_t c_row, const float* a, int a_row, int a_depth, const B* b, std::int64_t b_row,
                  int depth, Get get, Put put) {
  Vec sums[kGroup][Vectors];
  for (int r = 0; r < kGroup; ++r)
    for (int n = 0; n < Vectors; ++n) sums[r][n] = get(c + r * c_row + n * kWidth);
  for (int k = 0; k < depth; ++k) {
    Vec from[Vectors];
    for (int n = 0; n < Vectors; ++n) from[n] = get(b + k * b_row + n * kWidth);
    for (int r = 0; r < kGroup; ++r) {
      const Vec weight = splat(a[r * a_row + k * a_depth]);
      for (int n = 0; n < Vectors; ++n) sums[r][n] = multiply_add(weight, from[n], sums[r][n]);
    }
  }
  for (int r = 0; r < kGroup; ++r)
    for (int n = 0; n < Vectors; ++n) put(c + r * c_row + n * kWidth, sums[r][n]);
}

template <class B>
void add_product(float* c, std::int64_t c_row, const float* a, int a_row, int a_depth, const B* b, std::int64_t b_row,
                 int depth, int columns) {
  constexpr int wide = kWidth == 16 ? 4 : 2;
  const auto get = [](const auto* from) { return load(from); };
  const auto put = [](float* to, Vec value) { store(to, value); };
  int column = 0;
  for (; column + wide * kWidth <= columns; column += wide * kWidth)
    tile_columns<wide>(c + column, c_row, a, a_row, a_depth, b + column, b_row, depth, get, put);
  for (; column + kWidth <= columns; column += kWidth)
    tile_columns<1>(c + column, c_row, a, a_row, a_depth, b + column, b_row, depth, get, put);
  if (const int left = columns - column; left > 0)
    tile_columns<1>(
        c + column, c_row, a, a_row, a_depth, b + column, b_row, depth,
        [left](const auto* from) { return load_part(from, left); },
        [left](float* to, Vec value) { store_part(to, value, left); });
}

// The sums of four vectors.
inline void sums_of(const Vec (&v)[kGroup], float* out) {
#if defined(__AVX2__)
  __m128 quarter[kGroup];
  for (int i = 0; i < kGroup; ++i) {
#if defined(__AVX512F__)
    const __m256 half_sum = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
#else
    const __m256 half_sum = v[i];
#endif
    quarter[i] = _mm_add_ps(_mm256_castps256_ps128(half_sum), _mm256_extractf128_ps(half_sum, 1));
  }
  _mm_storeu_ps(out, _mm_hadd_ps(_mm_hadd_ps(quarter[0], quarter[1]), _mm_hadd_ps(quarter[2], quarter[3])));
#else
  for (int i = 0; i < kGroup; ++i) out[i] = sum(v[i]);
#endif
}

// out[row] = q[row] . key for kGroup rows, and the same for a second key.
template <class T>
void dot_products(const float* q, std::int64_t q_row, const T* key, const T* second, int head, float* out,
                  float* second_out) {
  Vec sums[kGroup] = {}, second_sums[kGroup] = {};
  each(head, [&](std::int64_t, auto get, auto) {
    const Vec x = get(key), y = get(second);
    for (int r = 0; r < kGroup; ++r) {
      const Vec query = get(q + r * q_row);
      sums[r] = multiply_add(query, x, sums[r]);
      second_sums[r] = multiply_add(query, y, second_sums[r]);
    }
  });
  sums_of(sums, out);
  sums_of(second_sums, second_out);
}

}  // namespace rocline::ROCLINE_ISA
