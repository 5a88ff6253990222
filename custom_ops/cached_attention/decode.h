// Decoding: few query rows against many keys, bound by reading the keys and values once.
//
// A block takes one row of the batch, one key head, one of `splits` pieces of the keys that the row sees, and up to
// four chunks of kDecodeRows query rows; its waves share the piece tile by tile.  In a wave, `Lanes` lanes hold one
// key, eight elements each; a lane loads 64 bytes of keys and 64 of values at once, so that enough is under way to
// cover the latency of memory.  The dot products of all query rows with the keys of a step are summed over the lanes
// together: each exchange hands half of the values to a partner and so halves their number; sixteen sums cost about
// sixteen exchanges, and every lane ends up with one finished score, whose exponential it then takes alone.
#pragma once
#include "cached_attention/common.h"

namespace rocline {

// Sums v[0..kScores) over groups of Lanes lanes.  Of the sums a lane keeps kResults: number `sub * kResults + i` or,
// where there are more lanes than sums, `sub / kShare`.
template <int kScores, int Lanes>
struct Fold {
  static constexpr int kResults = Lanes < kScores ? kScores / Lanes : 1;
  static constexpr int kShare = Lanes > kScores ? Lanes / kScores : 1;

  static ROCLINE_DEVICE int index(int sub, int i) { return sub / kShare * kResults + i; }
  // The lane of the group, and the place in it, where sum number `index` is.
  static constexpr ROCLINE_DEVICE int lane(int index) { return index / kResults * kShare; }
  static constexpr ROCLINE_DEVICE int place(int index) { return index % kResults; }

  template <int Count = kScores, int Mask = Lanes / 2>
  static ROCLINE_DEVICE void sum(float (&v)[kScores], int sub) {
    constexpr int left = Count > 1 ? Count / 2 : 1;
    const bool upper = sub & Mask;
#pragma unroll
    for (int i = 0; i < left; ++i) {
      if constexpr (Count > 1) {
        const float give = upper ? v[i] : v[i + left];
        v[i] = (upper ? v[i + left] : v[i]) + shuffle_xor(give, Mask);
      } else {
        v[i] += shuffle_xor(v[i], Mask);
      }
    }
    if constexpr (Mask > 1) sum<left, Mask / 2>(v, sub);
  }
};

// Where the pieces of a row's output wait for combine(): sums [rows, splits, head], then maximum and sum of the
// exponentials [rows, splits, 2], with rows = batch * queries * heads as in y.
struct Partial {
  float *sums, *stats;
  ROCLINE_DEVICE Partial(const AttentionParams& a, float* workspace)
      : sums(workspace), stats(workspace + (i64)a.batch * a.queries * a.heads * a.splits * a.head) {}
};

template <class T, int Lanes>
ROCLINE_DEVICE void decode(const T* q, const T* k, const T* v, const i64* positions, const T* bias, T* y,
                           float* workspace, const AttentionParams& a) {
  constexpr int kDepth = 8 / sizeof(T);  // keys a lane loads at once
  constexpr int kScores = kDepth * kDecodeRows;
  using Sums = Fold<kScores, Lanes>;
  constexpr int kKeys = kWave / Lanes;      // keys side by side in a wave
  constexpr int kTile = kKeys * kDepth;     // keys of one step of the loop
  constexpr int kRowMask = Lanes / kDepth;  // lanes that differ from this bit on hold other keys of the same row
  __shared__ float merged[kWaves][kDecodeRows][Lanes * 8];
  __shared__ float merged_max[kWaves][kDecodeRows], merged_sum[kWaves][kDecodeRows];

  const int batch = block_x() / a.kv_heads, kv_head = block_x() % a.kv_heads;
  const int group = a.heads / a.kv_heads, rows = a.queries * group;
  const int chunks = (rows + kDecodeRows - 1) / kDecodeRows, chunks_here = chunks > 2 ? 4 : chunks;
  const int wave = thread_x() / kWave, lane = thread_x() % kWave, sub = lane % Lanes, slot = lane / Lanes;
  const int part = wave / chunks_here, parts = kWaves / chunks_here;
  const int first_row = (block_z() * chunks_here + wave % chunks_here) * kDecodeRows;

  Range range = Range::none(a);
  for (int query = 0; query < a.queries; ++query) range.add(a, query_position(a, positions, batch, query));
  const int share = range.last > range.first ? (range.last - range.first + a.splits - 1) / a.splits : 0;
  const int begin = range.first + (int)block_y() * share;
  const int end = begin + share < range.last ? begin + share : range.last;

  float queries[kDecodeRows][8], sums[kDecodeRows][8];
  const bool active = sub * 8 < a.head;
#pragma unroll
  for (int r = 0; r < kDecodeRows; ++r) {
    const int row = first_row + r;
    const T* from = q + ((i64)(batch * a.queries + row / group) * a.heads + kv_head * group + row % group) * a.head;
    Eight<T> loaded{};
    if (row < rows && active) loaded = load_eight(from + sub * 8);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      queries[r][e] = loaded.at(e);
      sums[r][e] = 0.f;
    }
  }

  // The scores that this lane finishes: a key of its slot and a row each.
  Range seen[Sums::kResults];
  float maximum[Sums::kResults], total[Sums::kResults];
#pragma unroll
  for (int i = 0; i < Sums::kResults; ++i) {
    const int row = first_row + Sums::index(sub, i) % kDecodeRows;
    seen[i] = Range::none(a);
    if (row < rows) seen[i].add(a, query_position(a, positions, batch, row / group));
    maximum[i] = -kInfinity;
    total[i] = 0.f;
  }

  const i64 base = (i64)block_x() * a.keys * a.head + (active ? sub * 8 : 0);
  const auto fetch = [&](Eight<T>(&to)[kDepth], const T* from, int tile) {
#pragma unroll
    for (int u = 0; u < kDepth; ++u) {
      const int key = tile + u * kKeys + slot;
      to[u] = load_eight(from + base + (i64)(key < end ? key : end - 1) * a.head);
    }
  };

  for (int tile = begin + part * kTile; tile < end; tile += parts * kTile) {
    Eight<T> keys[kDepth], values[kDepth];
    fetch(keys, k, tile);
    float score[kScores];
#pragma unroll
    for (int u = 0; u < kDepth; ++u) {
      float element[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) element[e] = keys[u].at(e);
#pragma unroll
      for (int r = 0; r < kDecodeRows; ++r) {
        float dot = 0.f;
#pragma unroll
        for (int e = 0; e < 8; ++e) dot = multiply_add(queries[r][e], element[e], dot);
        score[u * kDecodeRows + r] = dot;
      }
      keep_order();
    }
    // Not earlier, where they would need registers of their own: other waves cover the wait.
    fetch(values, v, tile);
    keep_order();
    Sums::sum(score, sub);

    float scaling[Sums::kResults];
#pragma unroll
    for (int i = 0; i < Sums::kResults; ++i) {
      const int key = tile + Sums::index(sub, i) / kDecodeRows * kKeys + slot;
      const bool visible = key < end && seen[i].has(key) && key_shown(a, positions, batch, key);
      float added = 0.f;
      if (bias && visible) {
        const int row = first_row + Sums::index(sub, i) % kDecodeRows;
        added = to_float(bias[bias_offset(a, batch, kv_head * group + row % group, row / group) + key]);
      }
      score[i] = visible ? finish_score(a, score[i], added) : -kInfinity;
      float best = maximum[i] > score[i] ? maximum[i] : score[i];
#pragma unroll
      for (int mask = kRowMask; mask < kWave; mask *= 2) {
        const float other = shuffle_xor(best, mask);
        best = best > other ? best : other;
      }
      const float origin = best == -kInfinity ? 0.f : best;
      scaling[i] = exp2_fast(maximum[i] - origin);
      score[i] = exp2_fast(score[i] - origin);
      total[i] = total[i] * scaling[i] + score[i];
      maximum[i] = best;
    }

    const int group_lane = slot * Lanes;
#pragma unroll
    for (int r = 0; r < kDecodeRows; ++r) {
      const float factor = shuffle(scaling[Sums::place(r)], group_lane + Sums::lane(r));
#pragma unroll
      for (int e = 0; e < 8; ++e) sums[r][e] *= factor;
    }
    keep_order();
#pragma unroll
    for (int u = 0; u < kDepth; ++u) {
      const int key = tile + u * kKeys + slot;
      const bool shown = a.causal || key_shown(a, positions, batch, key < end ? key : end - 1);
      float element[8];
#pragma unroll
      // A hidden key may hold anything: zero times NaN would spoil the sum.
      for (int e = 0; e < 8; ++e) element[e] = shown ? values[u].at(e) : 0.f;
#pragma unroll
      for (int r = 0; r < kDecodeRows; ++r) {
        const int index = u * kDecodeRows + r;
        const float weight = shuffle(score[Sums::place(index)], group_lane + Sums::lane(index));
#pragma unroll
        for (int e = 0; e < 8; ++e) sums[r][e] = multiply_add(weight, element[e], sums[r][e]);
      }
      keep_order();
    }
  }

#pragma unroll
  for (int i = 0; i < Sums::kResults; ++i) {
#pragma unroll
    for (int mask = kRowMask; mask < kWave; mask *= 2) total[i] += shuffle_xor(total[i], mask);
    if (lane < kRowMask) {
      merged_max[wave][Sums::index(sub, i) % kDecodeRows] = maximum[i];
      merged_sum[wave][Sums::index(sub, i) % kDecodeRows] = total[i];
    }
  }
#pragma unroll
  for (int r = 0; r < kDecodeRows; ++r)
#pragma unroll
    for (int e = 0; e < 8; ++e) {
#pragma unroll
      for (int mask = Lanes; mask < kWave; mask *= 2) sums[r][e] += shuffle_xor(sums[r][e], mask);
      if (slot == 0) merged[wave][r][sub * 8 + e] = sums[r][e];
    }
  barrier();

  const Partial partial(a, workspace);
  for (int i = thread_x(); i < chunks_here * kDecodeRows * a.head; i += kBlock) {
    const int element = i % a.head, r = i / a.head % kDecodeRows, chunk = i / a.head / kDecodeRows;
    const int row = (block_z() * chunks_here + chunk) * kDecodeRows + r;
    if (row >= rows) break;
    float best = -kInfinity, sum = 0.f, weights = 0.f;
    for (int p = 0; p < parts; ++p) {
      const float other = merged_max[p * chunks_here + chunk][r];
      best = best > other ? best : other;
    }
    const float origin = best == -kInfinity ? 0.f : best;
    for (int p = 0; p < parts; ++p) {
      const int from = p * chunks_here + chunk;
      const float weight = exp2_fast(merged_max[from][r] - origin);
      weights += weight * merged_sum[from][r];
      sum = multiply_add(weight, merged[from][r][element], sum);
    }
    const i64 out = (i64)(batch * a.queries + row / group) * a.heads + kv_head * group + row % group;
    if (a.splits == 1) {
      y[out * a.head + element] = from_float<T>(weights > 0.f ? sum / weights : 0.f);
    } else {
      const i64 piece = out * a.splits + block_y();
      partial.sums[piece * a.head + element] = sum;
      if (element == 0) {
        partial.stats[piece * 2] = best;
        partial.stats[piece * 2 + 1] = weights;
      }
    }
  }
}

// One block a row of y.
ROCLINE_DEVICE void combine(float* workspace, void* y, const AttentionParams& a) {
  __shared__ float weight[kMostSplits], weights[kMostSplits];
  const Partial partial(a, workspace);
  const i64 row = block_x();
  const float* stats = partial.stats + row * a.splits * 2;
  float best = -kInfinity;
  for (int s = 0; s < a.splits; ++s) best = best > stats[s * 2] ? best : stats[s * 2];
  const float origin = best == -kInfinity ? 0.f : best;
  for (int s = thread_x(); s < a.splits; s += block_size()) {
    weight[s] = exp2_fast(stats[s * 2] - origin);
    weights[s] = weight[s] * stats[s * 2 + 1];
  }
  barrier();
  float total = 0.f;
  for (int s = 0; s < a.splits; ++s) total += weights[s];
  for (int element = thread_x(); element < a.head; element += block_size()) {
    const float* sums = partial.sums + row * a.splits * a.head + element;
    float sum = 0.f;
    for (int s = 0; s < a.splits; ++s) sum = multiply_add(weight[s], sums[(i64)s * a.head], sum);
    store_any(a, y, row * a.head + element, total > 0.f ? sum / total : 0.f);
  }
}

}  // namespace rocline
