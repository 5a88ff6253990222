// y = pooled tokens of each row, normalised if asked; x: [batch, tokens, hidden], mask: [batch, tokens], y: [batch, hidden].
//
//   sum     mean only: sums of a split's tokens, a block for a split and a tile of columns
//   finish  mean only: the splits' sums, in turn, divided by the number of tokens
//   pick    the first or the last token
#include "kernels/device.h"
#include "pool_normalize/pooling.h"

namespace rocline {

using namespace pooling;

constexpr int kThreads = 256;
constexpr int kColumnLanes = 64;  // threads side by side along a token, 16 bytes each
constexpr int kTokenLanes = kThreads / kColumnLanes;

template <class Element>
ROCLINE_DEVICE void sum(const Element* x, const i64* mask, float* partial, i64 tokens, i64 hidden) {
  constexpr int lanes = Vec<Element>::lanes;
  __shared__ float sums[kTokenLanes - 1][kColumnLanes * lanes];
  const i64 tiles = (hidden + kColumnLanes * lanes - 1) / (kColumnLanes * lanes), splits = splits_of(tokens);
  const i64 tile = block_x() % tiles, split = block_x() / tiles % splits, row = block_x() / tiles / splits;
  const int column_lane = thread_x() % kColumnLanes, token_lane = thread_x() / kColumnLanes;
  const i64 begin = tokens * split / splits, end = tokens * (split + 1) / splits;
  const i64 first = tile * kColumnLanes * lanes;
  const Element* from = x + row * tokens * hidden;
  const i64* seen = mask + row * tokens;

  // In vectors a thread's columns stand side by side, else kColumnLanes apart.
  const bool vectors = hidden % lanes == 0 && aligned16(x);
  const i64 column = first + (vectors ? column_lane * lanes : column_lane);
  float sum[lanes] = {};
  if (vectors) {
    if (column < hidden) {
#pragma unroll 4
      for (i64 token = begin + token_lane; token < end; token += kTokenLanes) {
        if (seen[token] == 0) continue;
        const Vec<Element> some = load16(from + token * hidden + column);
#pragma unroll
        for (int k = 0; k < lanes; ++k) sum[k] += some.at[k];
      }
    }
  } else {
    for (i64 token = begin + token_lane; token < end; token += kTokenLanes) {
      if (seen[token] == 0) continue;
#pragma unroll
      for (int k = 0; k < lanes; ++k) {
        const i64 at = column + k * kColumnLanes;
        if (at < hidden) sum[k] += to_float(from[token * hidden + at]);
      }
    }
  }

  if (token_lane > 0) {
#pragma unroll
    for (int k = 0; k < lanes; ++k) sums[token_lane - 1][k * kColumnLanes + column_lane] = sum[k];
  }
  barrier();
  if (token_lane > 0) return;
  float* to = partial + (row * splits + split) * hidden;
#pragma unroll
  for (int k = 0; k < lanes; ++k) {
#pragma unroll
    for (int other = 0; other < kTokenLanes - 1; ++other) sum[k] += sums[other][k * kColumnLanes + column_lane];
    const i64 at = column + (vectors ? k : k * kColumnLanes);
    if (at < hidden) to[at] = sum[k];
  }
}

// Writes value(column) to y, scaled to length 1 if asked.
template <class F>
ROCLINE_DEVICE void write(float* y, i64 hidden, int normalize, const F& value) {
  __shared__ float scratch[kThreads / kWave];
  float squares = 0.f;
  for (i64 column = thread_x(); column < hidden; column += kThreads) {
    const float one = value(column);
    y[column] = one;
    squares += one * one;
  }
  if (!normalize) return;
  const float length = square_root(reduce_block<Sum, kThreads>(squares, scratch));
  const float divisor = length > 1e-12f ? length : 1e-12f;
  for (i64 column = thread_x(); column < hidden; column += kThreads) y[column] /= divisor;
}

ROCLINE_DEVICE void finish(const float* partial, const i64* mask, float* y, i64 tokens, i64 hidden, int normalize) {
  __shared__ float scratch[kThreads / kWave];
  const i64 row = block_x(), splits = splits_of(tokens);
  float count = 0.f;
  for (i64 token = thread_x(); token < tokens; token += kThreads) count += mask[row * tokens + token] != 0 ? 1.f : 0.f;
  count = reduce_block<Sum, kThreads>(count, scratch);
  const float divisor = count > 0.f ? count : 1e-9f;
  const float* from = partial + row * splits * hidden;
  write(y + row * hidden, hidden, normalize, [&](i64 column) {
    float sum = 0.f;
#pragma unroll 4
    for (i64 split = 0; split < splits; ++split) sum += from[split * hidden + column];
    return sum / divisor;
  });
}

template <class Element>
ROCLINE_DEVICE void pick(const Element* x, const i64* mask, float* y, i64 tokens, i64 hidden, int last, int normalize) {
  __shared__ float scratch[kThreads / kWave];
  const i64 row = block_x();
  float place = last || tokens == 0 ? -1.f : 0.f;
  if (last) {
    for (i64 token = thread_x(); token < tokens; token += kThreads)
      if (mask[row * tokens + token] != 0) place = static_cast<float>(token);
    place = reduce_block<Maximum, kThreads>(place, scratch);
  }
  const Element* from = x + (row * tokens + static_cast<i64>(place)) * hidden;
  write(y + row * hidden, hidden, normalize,
        [&](i64 column) { return place < 0.f ? 0.f : to_float(from[column]); });
}

#define ENTRY(suffix, Element)                                                                                     \
  extern "C" __global__ __launch_bounds__(kThreads) void pool_normalize_sum_##suffix(                              \
      const Element* x, const i64* mask, float* partial, i64 tokens, i64 hidden) {                                 \
    sum(x, mask, partial, tokens, hidden);                                                                         \
  }                                                                                                                \
  extern "C" __global__ __launch_bounds__(kThreads) void pool_normalize_pick_##suffix(                             \
      const Element* x, const i64* mask, float* y, i64 tokens, i64 hidden, int last, int normalize) {              \
    pick(x, mask, y, tokens, hidden, last, normalize);                                                             \
  }
ROCLINE_ENTRIES(ENTRY)

extern "C" __global__ __launch_bounds__(kThreads) void pool_normalize_finish(
    const float* partial, const i64* mask, float* y, i64 tokens, i64 hidden, int normalize) {
  finish(partial, mask, y, tokens, hidden, normalize);
}

}  // namespace rocline
