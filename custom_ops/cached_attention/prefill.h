// Prefill: many query rows against the keys, tile by tile with an online softmax; scores never leave the block.
//
// Rows are (query, head) pairs of one key head, so that all heads of a group share each staged tile.  A wave owns
// tile::kRows rows and keeps their sums in registers.  q, k and v are staged in shared memory as float, kDepth or
// kValues elements of the head at a time: one instantiation serves every head size of its class, and the shared memory
// does not grow with the head.  Every inner product goes through kernels/tile_mma.h.
#pragma once
#include "cached_attention/common.h"
#include "kernels/tile_mma.h"

namespace rocline {

// Chunks: head / tile::kValues, rounded up.
template <int Chunks>
ROCLINE_DEVICE void prefill(const void* q, const void* k, const void* v, const i64* positions, const void* bias,
                            void* y, const AttentionParams& a) {
  using tile::kKeys;
  constexpr int kBlockRows = kWaves * tile::kRows;
  static_assert(kBlockRows % kPrefillRows == 0, "the grid counts blocks of kPrefillRows");
  // row_tile holds a piece of q, then the bias, then the probabilities: a wave reads only its own rows of any.
  constexpr int kRowTile = kBlockRows * tile::kRowStride, kKeyTile = kKeys * tile::kValueStride;
  alignas(16) __shared__ float tiles[kRowTile + kKeyTile];
  float *row_tile = tiles, *key_tile = tiles + kRowTile;

  const int batch = block_y() / a.kv_heads, kv_head = block_y() % a.kv_heads;
  const int group = a.heads / a.kv_heads, rows = a.queries * group;
  const int first_row = (int)block_x() * kBlockRows;
  if (first_row >= rows) return;
  const int wave = thread_x() / kWave, lane = thread_x() % kWave;
  const i64 kv_base = (i64)block_y() * a.keys * a.head;
  const auto row_offset = [&](int row) {
    return (i64)(batch * a.queries + row / group) * a.heads + kv_head * group + row % group;
  };

  Range seen[tile::kLaneRows];
  float maximum[tile::kLaneRows], total[tile::kLaneRows], values[Chunks][tile::kLaneRows][tile::kValueColumns];
#pragma unroll
  for (int i = 0; i < tile::kLaneRows; ++i) {
    const int row = first_row + wave * tile::kRows + tile::row(lane, i);
    seen[i] = Range::none(a);
    if (row < rows) seen[i].add(a, query_position(a, positions, batch, row / group));
    maximum[i] = -kInfinity;
    total[i] = 0.f;
#pragma unroll
    for (int chunk = 0; chunk < Chunks; ++chunk)
#pragma unroll
      for (int j = 0; j < tile::kValueColumns; ++j) values[chunk][i][j] = 0.f;
  }

  Range range = Range::none(a);
  const int last_row = first_row + kBlockRows < rows ? first_row + kBlockRows : rows;
  for (int query = first_row / group + lane; query <= (last_row - 1) / group; query += kWave)
    range.add(a, query_position(a, positions, batch, query));
#pragma unroll
  for (int mask = 1; mask < kWave; mask *= 2) {
    const int first = shuffle_xor(range.first, mask), last = shuffle_xor(range.last, mask);
    range.first = first < range.first ? first : range.first;
    range.last = last > range.last ? last : range.last;
  }

  for (int key = range.first; key < range.last; key += kKeys) {
    float scores[tile::kLaneRows][tile::kScoreColumns] = {};
    for (int depth = 0; depth < a.head; depth += tile::kDepth) {
      barrier();
#pragma unroll 1
      for (int i = thread_x(); i < kBlockRows * (tile::kDepth / 8); i += kBlock) {
        const int row = i / (tile::kDepth / 8), column = i % (tile::kDepth / 8) * 8, count = a.head - depth - column;
        const bool real = first_row + row < rows && count > 0;
        stage_eight(a, row_tile + row * tile::kRowStride + column, q,
                    row_offset(first_row + row) * a.head + depth + column, real ? count : 0);
      }
#pragma unroll 1
      for (int i = thread_x(); i < kKeys * (tile::kDepth / 8); i += kBlock) {
        const int row = i / (tile::kDepth / 8), column = i % (tile::kDepth / 8) * 8, count = a.head - depth - column;
        const bool real = key + row < range.last && count > 0;
        stage_eight(a, key_tile + row * tile::kRowStride + column, k,
                    kv_base + (i64)(key + row) * a.head + depth + column, real ? count : 0);
      }
      barrier();
      tile::add_scores(scores, row_tile + wave * tile::kRows * tile::kRowStride, key_tile, lane);
    }

    if (bias) {
      barrier();
#pragma unroll 1
      for (int i = thread_x(); i < kBlockRows * kKeys; i += kBlock) {
        const int row = first_row + i / kKeys, column = key + i % kKeys;
        if (row < rows && column < range.last)
          row_tile[i / kKeys * tile::kRowStride + i % kKeys] =
              load_any(a, bias, bias_offset(a, batch, kv_head * group + row % group, row / group) + column);
      }
      barrier();
    }
    bool shown[tile::kScoreColumns];
#pragma unroll
    for (int j = 0; j < tile::kScoreColumns; ++j) {
      const int column = key + tile::score_column(lane, j);
      shown[j] = column < range.last && key_shown(a, positions, batch, column);
    }
#pragma unroll
    for (int i = 0; i < tile::kLaneRows; ++i) {
      float* line = row_tile + (wave * tile::kRows + tile::row(lane, i)) * tile::kRowStride;
      float best = maximum[i];
#pragma unroll
      for (int j = 0; j < tile::kScoreColumns; ++j) {
        const int column = tile::score_column(lane, j);
        const float score = finish_score(a, scores[i][j], bias ? line[column] : 0.f);
        scores[i][j] = shown[j] && seen[i].has(key + column) ? score : -kInfinity;
        best = best > scores[i][j] ? best : scores[i][j];
      }
#pragma unroll
      for (int mask = 1; mask < tile::kLanes; mask *= 2) {
        const float other = shuffle_xor(best, mask);
        best = best > other ? best : other;
      }
      const float origin = best == -kInfinity ? 0.f : best, scaling = exp2_fast(maximum[i] - origin);
      maximum[i] = best;
      total[i] *= scaling;
#pragma unroll
      for (int j = 0; j < tile::kScoreColumns; ++j) {
        scores[i][j] = exp2_fast(scores[i][j] - origin);
        total[i] += scores[i][j];
        line[tile::score_column(lane, j)] = scores[i][j];
      }
#pragma unroll
      for (int chunk = 0; chunk < Chunks; ++chunk)
#pragma unroll
        for (int j = 0; j < tile::kValueColumns; ++j) values[chunk][i][j] *= scaling;
    }

#pragma unroll
    for (int chunk = 0; chunk < Chunks; ++chunk) {
      barrier();
#pragma unroll 1
      for (int i = thread_x(); i < kKeys * (tile::kValues / 8); i += kBlock) {
        const int row = i / (tile::kValues / 8), column = i % (tile::kValues / 8) * 8;
        const int element = chunk * tile::kValues + column, count = a.head - element;
        // A hidden key may hold anything: zero times NaN would spoil the sum.
        const bool real = key + row < range.last && count > 0 && key_shown(a, positions, batch, key + row);
        stage_eight(a, key_tile + row * tile::kValueStride + column, v, kv_base + (i64)(key + row) * a.head + element,
                    real ? count : 0);
      }
      barrier();
      tile::add_values(values[chunk], row_tile + wave * tile::kRows * tile::kRowStride, key_tile, lane);
    }
  }

#pragma unroll
  for (int i = 0; i < tile::kLaneRows; ++i) {
#pragma unroll
    for (int mask = 1; mask < tile::kLanes; mask *= 2) total[i] += shuffle_xor(total[i], mask);
    total[i] = total[i] > 0.f ? 1.f / total[i] : 0.f;
  }
  // Through shared memory, kColumns elements of each head at a time, so that neighbouring threads store neighbours.
  constexpr int kColumns = 4 * tile::kLanes, kStride = kColumns + 4;
  static_assert(kBlockRows * kStride <= kRowTile + kKeyTile, "the tiles' memory holds the rows of y");
#pragma unroll
  for (int first = 0; first < Chunks * tile::kValues; first += kColumns) {
    barrier();
#pragma unroll
    for (int i = 0; i < tile::kLaneRows; ++i)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        tiles[(wave * tile::kRows + tile::row(lane, i)) * kStride + lane % tile::kLanes * 4 + c] =
            values[first / tile::kValues][i][first % tile::kValues / tile::kLanes + c] * total[i];
    barrier();
#pragma unroll 1
    for (int i = thread_x(); i < kBlockRows * kColumns; i += kBlock) {
      const int row = first_row + i / kColumns, element = first + i % kColumns;
      if (row < rows && element < a.head)
        store_any(a, y, row_offset(row) * a.head + element, tiles[i / kColumns * kStride + i % kColumns]);
    }
  }
}

}  // namespace rocline
