// y = pooled tokens of each row, normalised if asked.  x: [batch, tokens, hidden]; mask: [batch, tokens]; y: [batch,
// hidden]; partial: [batch, splits, hidden].
//
//   sum     mean only: sums of a split's tokens, a block for a split and a tile of columns
//   finish  mean only: the splits' sums, in turn, divided by the number of tokens
//   pick    the first or the last token
#include "kernels/device.h"
#include "pool_normalize/pooling.h"

namespace rocline {

using namespace pooling;

constexpr int kThreads = 256;
constexpr int kRowThreads = 512;  // of finish and pick, which have one block a row
constexpr int kAtOnce = 8;        // loads that a thread of sum has on their way

template <class Element>
ROCLINE_DEVICE void sum(const Element* x, const i64* mask, float* partial, i64 tokens, i64 hidden) {
  constexpr int lanes = Vec<Element>::lanes;
  __shared__ float sums[kThreads * lanes];
  __shared__ unsigned char keep[kThreads];
  const Tiling tiling = tiling_of(hidden, lanes);
  const int column_lanes = tiling.column_lanes, token_lanes = tiling.token_lanes, columns = column_lanes * lanes;
  const i64 splits = splits_of(tokens);
  const i64 tile = block_x() % tiling.tiles, item = block_x() / tiling.tiles;
  const i64 split = item % splits, row = item / splits;
  const int column_lane = thread_x() % column_lanes, token_lane = thread_x() / column_lanes;
  const i64 begin = tokens * split / splits, end = tokens * (split + 1) / splits;
  const Element* from = x + row * tokens * hidden;
  const i64* seen = mask + row * tokens;

  float sum[lanes] = {};
  // In vectors a thread's columns stand side by side, else column_lanes apart.
  const bool vectors = hidden % lanes == 0 && aligned16(x);
  const i64 column = tile * columns + (vectors ? column_lane * lanes : column_lane);
  // A block's last threads may have no place among the tokens, or among the columns.
  const bool idle = token_lane >= token_lanes || column >= hidden;
  for (i64 first = begin; first < end; first += kThreads) {
    const int count = end - first < kThreads ? static_cast<int>(end - first) : kThreads;
    barrier();
    if (static_cast<int>(thread_x()) < count) keep[thread_x()] = seen[first + thread_x()] != 0;
    barrier();
    const Element* at = from + first * hidden + column;
    if (vectors) {
      // The mask is known: several loads are on their way at once.
      for (int token = idle ? count : token_lane; token < count; token += token_lanes * kAtOnce) {
        Bytes16 raw[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int one = token + i * token_lanes;
          raw[i] = {};
          if (one < count && keep[one]) raw[i] = *reinterpret_cast<const Bytes16*>(at + one * hidden);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const Vec<Element> some = load16(reinterpret_cast<const Element*>(&raw[i]));
#pragma unroll
          for (int k = 0; k < lanes; ++k) sum[k] += some.at[k];
        }
      }
    } else {
      for (int token = idle ? count : token_lane; token < count; token += token_lanes) {
        if (!keep[token]) continue;
#pragma unroll
        for (int k = 0; k < lanes; ++k)
          if (column + k * column_lanes < hidden) sum[k] += to_float(at[token * hidden + k * column_lanes]);
      }
    }
  }

  if (token_lane < token_lanes) {
#pragma unroll
    for (int k = 0; k < lanes; ++k)
      sums[token_lane * columns + (vectors ? column_lane * lanes + k : column_lane + k * column_lanes)] = sum[k];
  }
  barrier();
  float* to = partial + (row * splits + split) * hidden + tile * columns;
  for (int at = thread_x(); at < columns && tile * columns + at < hidden; at += kThreads) {
    float total = 0.f;
    for (int other = 0; other < token_lanes; ++other) total += sums[other * columns + at];
    to[at] = total;
  }
}

// Writes value(column, ...) to y, `width` columns at a time, and scales y to length 1 if asked.
template <int width, class F>
ROCLINE_DEVICE void write(float* y, i64 hidden, int normalize, const F& value) {
  __shared__ float scratch[kRowThreads / kWave];
  float squares = 0.f;
  for (i64 column = thread_x() * width; column < hidden; column += kRowThreads * width) {
    float some[width];
    value(column, some);
#pragma unroll
    for (int k = 0; k < width; ++k) {
      y[column + k] = some[k];
      squares += some[k] * some[k];
    }
  }
  if (!normalize) return;
  const float length = square_root(reduce_block<Sum, kRowThreads>(squares, scratch));
  const float divisor = length > 1e-12f ? length : 1e-12f;
  for (i64 column = thread_x() * width; column < hidden; column += kRowThreads * width)
#pragma unroll
    for (int k = 0; k < width; ++k) y[column + k] /= divisor;
}

ROCLINE_DEVICE void finish(const float* partial, const i64* mask, float* y, i64 tokens, i64 hidden, int normalize) {
  __shared__ float scratch[kRowThreads / kWave];
  const i64 row = block_x(), splits = splits_of(tokens);
  float count = 0.f;
  for (i64 token = thread_x(); token < tokens; token += kRowThreads)
    count += mask[row * tokens + token] != 0 ? 1.f : 0.f;
  count = reduce_block<Sum, kRowThreads>(count, scratch);
  const float divisor = count > 0.f ? count : 1e-9f;
  const float* from = partial + row * splits * hidden;
  float* to = y + row * hidden;
  if (hidden % 4 == 0 && aligned16(partial)) {
    write<4>(to, hidden, normalize, [&](i64 column, float* sum) {
      Vec<float> total = {};
#pragma unroll 8
      for (i64 split = 0; split < splits; ++split) {
        const Vec<float> some = load16(from + split * hidden + column);
#pragma unroll
        for (int k = 0; k < 4; ++k) total.at[k] += some.at[k];
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[k] = total.at[k] / divisor;
    });
  } else {
    write<1>(to, hidden, normalize, [&](i64 column, float* sum) {
      float total = 0.f;
      for (i64 split = 0; split < splits; ++split) total += from[split * hidden + column];
      *sum = total / divisor;
    });
  }
}

template <class Element>
ROCLINE_DEVICE void pick(const Element* x, const i64* mask, float* y, i64 tokens, i64 hidden, int last, int normalize) {
  __shared__ float scratch[kRowThreads / kWave];
  const i64 row = block_x();
  float place = last || tokens == 0 ? -1.f : 0.f;
  if (last) {
    for (i64 token = thread_x(); token < tokens; token += kRowThreads)
      if (mask[row * tokens + token] != 0) place = static_cast<float>(token);
    place = reduce_block<Maximum, kRowThreads>(place, scratch);
  }
  const Element* from = x + (row * tokens + static_cast<i64>(place)) * hidden;
  write<1>(y + row * hidden, hidden, normalize,
           [&](i64 column, float* one) { *one = place < 0.f ? 0.f : to_float(from[column]); });
}

#define ENTRY(suffix, Element)                                                                                     \
  extern "C" __global__ __launch_bounds__(kThreads) void pool_normalize_sum_##suffix(                              \
      const Element* x, const i64* mask, float* partial, i64 tokens, i64 hidden) {                                 \
    sum(x, mask, partial, tokens, hidden);                                                                         \
  }                                                                                                                \
  extern "C" __global__ __launch_bounds__(kRowThreads) void pool_normalize_pick_##suffix(                             \
      const Element* x, const i64* mask, float* y, i64 tokens, i64 hidden, int last, int normalize) {              \
    pick(x, mask, y, tokens, hidden, last, normalize);                                                             \
  }
ROCLINE_ENTRIES(ENTRY)

extern "C" __global__ __launch_bounds__(kRowThreads) void pool_normalize_finish(
    const float* partial, const i64* mask, float* y, i64 tokens, i64 hidden, int normalize) {
  finish(partial, mask, y, tokens, hidden, normalize);
}

}  // namespace rocline
