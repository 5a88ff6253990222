// y = rms_norm(x + skip) * weight, sum = x + skip; x, skip, y, sum: [rows, hidden]; weight: [hidden].
// skip and sum may be null; y and sum may be x or skip: a thread reads an element before it writes there.
#include "kernels/device.h"

namespace rocline {

constexpr int kThreads = 256;
// Threads that share a short row: one wave of 32, or half of one of 64.
constexpr int kGroup = 32;
// 16-byte vectors of its row that a thread keeps in registers between the two passes; it reads the others again.
constexpr int kHeld = 4;

template <int Threads>
ROCLINE_DEVICE float add_up(float value, float* scratch) {
  if constexpr (Threads == kGroup)
    return reduce_wave<Sum, kGroup>(value);
  else
    return reduce_block<Sum, Threads>(value, scratch);
}

// The sum is normalised as it is stored, so that y is the norm of the second output to the bit.
template <class Element>
ROCLINE_DEVICE float added(const Element* x, const Element* skip, i64 i) {
  const float value = to_float(x[i]);
  return skip ? to_float(from_float<Element>(value + to_float(skip[i]))) : value;
}

template <class Element>
ROCLINE_DEVICE Vec<Element> added16(const Element* x, const Element* skip, i64 i) {
  Vec<Element> value = load16(x + i);
  if (skip) {
    const Vec<Element> other = load16(skip + i);
#pragma unroll
    for (int e = 0; e < value.lanes; ++e) value.at[e] = to_float(from_float<Element>(value.at[e] + other.at[e]));
  }
  return value;
}

template <class Element>
ROCLINE_DEVICE float squared(const Vec<Element>& value) {
  float squares = 0.f;
#pragma unroll
  for (int e = 0; e < value.lanes; ++e) squares = multiply_add(value.at[e], value.at[e], squares);
  return squares;
}

template <class Element>
ROCLINE_DEVICE void store_normed(Element* y, const Element* weight, i64 i, Vec<Element> value, float scale) {
  const Vec<Element> w = load16(weight + i);
#pragma unroll
  for (int e = 0; e < value.lanes; ++e) value.at[e] = value.at[e] * scale * w.at[e];
  store16(y + i, value);
}

// One row, by `Threads` neighbouring threads of which this one is `thread`; the pointers are the row's.
template <class Element, int Threads>
ROCLINE_DEVICE void norm_row(const Element* x, const Element* skip, const Element* weight, Element* y, Element* sum,
                             i64 hidden, float epsilon, int thread, float* scratch) {
  constexpr int lanes = Vec<Element>::lanes;
  const bool whole = hidden % lanes == 0 && aligned16(x) && aligned16(skip) && aligned16(weight) && aligned16(y) &&
                     aligned16(sum);
  float squares = 0.f;
  if (whole) {
    Vec<Element> held[kHeld];
    // All loads before the first store, which could be to the same memory for all that the compiler knows.
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const i64 i = static_cast<i64>(k * Threads + thread) * lanes;
      if (i < hidden) held[k] = added16(x, skip, i);
    }
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const i64 i = static_cast<i64>(k * Threads + thread) * lanes;
      if (i < hidden) {
        squares += squared(held[k]);
        if (sum) store16(sum + i, held[k]);
      }
    }
    const i64 rest = static_cast<i64>(kHeld * Threads + thread) * lanes;
#pragma unroll 1
    for (i64 i = rest; i < hidden; i += Threads * lanes) {
      const Vec<Element> value = added16(x, skip, i);
      squares += squared(value);
      if (sum) store16(sum + i, value);
    }
    const float scale = rsqrt_fast(add_up<Threads>(squares, scratch) / static_cast<float>(hidden) + epsilon);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const i64 i = static_cast<i64>(k * Threads + thread) * lanes;
      if (i < hidden) store_normed(y, weight, i, held[k], scale);
    }
#pragma unroll 1
    for (i64 i = rest; i < hidden; i += Threads * lanes)
      store_normed(y, weight, i, sum ? load16(sum + i) : added16(x, skip, i), scale);
    return;
  }
#pragma unroll 1
  for (i64 i = thread; i < hidden; i += Threads) {
    const float value = added(x, skip, i);
    squares = multiply_add(value, value, squares);
    if (sum) sum[i] = from_float<Element>(value);
  }
  const float scale = rsqrt_fast(add_up<Threads>(squares, scratch) / static_cast<float>(hidden) + epsilon);
#pragma unroll 1
  for (i64 i = thread; i < hidden; i += Threads) {
    const float value = sum ? to_float(sum[i]) : added(x, skip, i);
    y[i] = from_float<Element>(value * scale * to_float(weight[i]));
  }
}

template <class Element, int Threads>
ROCLINE_DEVICE void skip_rms_norm(const Element* x, const Element* skip, const Element* weight, Element* y,
                                  Element* sum, i64 rows, i64 hidden, float epsilon) {
  __shared__ float scratch[kThreads / kGroup];
  const i64 row = static_cast<i64>(block_x()) * (kThreads / Threads) + thread_x() / Threads;
  if (row >= rows) return;
  const i64 start = row * hidden;
  norm_row<Element, Threads>(x + start, skip ? skip + start : nullptr, weight, y + start,
                             sum ? sum + start : nullptr, hidden, epsilon, thread_x() % Threads, scratch);
}

// _block: a block a row.  _group: kThreads / kGroup rows a block, for rows of at most kGroup * kHeld vectors.
#define ENTRY(suffix, Element)                                                                                     \
  extern "C" __global__ __launch_bounds__(kThreads) void skip_rms_norm_block_##suffix(                             \
      const Element* x, const Element* skip, const Element* weight, Element* y, Element* sum, i64 rows, i64 hidden, \
      float epsilon) {                                                                                             \
    skip_rms_norm<Element, kThreads>(x, skip, weight, y, sum, rows, hidden, epsilon);                              \
  }                                                                                                                \
  extern "C" __global__ __launch_bounds__(kThreads) void skip_rms_norm_group_##suffix(                             \
      const Element* x, const Element* skip, const Element* weight, Element* y, Element* sum, i64 rows, i64 hidden, \
      float epsilon) {                                                                                             \
    skip_rms_norm<Element, kGroup>(x, skip, weight, y, sum, rows, hidden, epsilon);                                \
  }
ROCLINE_ENTRIES(ENTRY)

}  // namespace rocline
