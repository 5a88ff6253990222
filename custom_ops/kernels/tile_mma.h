// Products of small tiles, one wave each: the only arithmetic of the attention kernel's inner loops.
//
// A wave owns kRows rows of every tile.  Which rows and columns of a product a lane holds is known to this file alone:
// its users ask row(), score_column() and value_column().  So matrix instructions (MFMA, WMMA), whose lanes hold a
// column of several rows in just this manner, can replace the plain multiply-adds without a change elsewhere.
#pragma once
#include "kernels/device.h"

namespace rocline::tile {

constexpr int kRows = 16;
constexpr int kLaneRows = 4;
// Lanes next to one another that hold the same rows: reductions along a row go over these.
constexpr int kLanes = kWave / kLaneRows;

constexpr int kKeys = 32;    // keys a tile
constexpr int kDepth = 32;   // head elements multiplied between two stagings of q and k
constexpr int kValues = 64;  // head elements of v staged at a time
// Floats from one row of a staged tile to the next: the padding spreads rows over the banks of the shared memory.
constexpr int kRowStride = 36;
constexpr int kValueStride = kValues + 4;
static_assert(kDepth == kKeys, "a tile of q and the probabilities that replace it share their shape");

constexpr int kScoreColumns = kKeys / kLanes;
constexpr int kValueColumns = kValues / kLanes;

ROCLINE_DEVICE int row(int lane, int i) { return lane / kLanes + kRows / kLaneRows * i; }
ROCLINE_DEVICE int score_column(int lane, int j) { return lane % kLanes + kLanes * j; }
ROCLINE_DEVICE int value_column(int lane, int j) { return lane % kLanes * 4 + j % 4 + j / 4 * (4 * kLanes); }

struct alignas(16) Four {
  float x[4];
};
ROCLINE_DEVICE const Four& four(const float* from) { return *reinterpret_cast<const Four*>(from); }

// scores[16 x kKeys] += q[16 x kDepth] * k[kKeys x kDepth]^T
ROCLINE_DEVICE void add_scores(float (&scores)[kLaneRows][kScoreColumns], const float* q, const float* k, int lane) {
#pragma unroll 1
  for (int depth = 0; depth < kDepth; depth += 4) {
    Four b[kScoreColumns];
#pragma unroll
    for (int j = 0; j < kScoreColumns; ++j) b[j] = four(k + score_column(lane, j) * kRowStride + depth);
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
      const Four a = four(q + row(lane, i) * kRowStride + depth);
#pragma unroll
      for (int j = 0; j < kScoreColumns; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[i][j] = multiply_add(a.x[e], b[j].x[e], scores[i][j]);
    }
  }
}

// values[16 x kValues] += p[16 x kKeys] * v[kKeys x kValues]
ROCLINE_DEVICE void add_values(float (&values)[kLaneRows][kValueColumns], const float* p, const float* v, int lane) {
#pragma unroll 1
  for (int key = 0; key < kKeys; key += 4) {
    Four a[kLaneRows];
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) a[i] = four(p + row(lane, i) * kRowStride + key);
#pragma unroll
    for (int e = 0; e < 4; ++e)
#pragma unroll
      for (int j = 0; j < kValueColumns; j += 4) {
        const Four b = four(v + (key + e) * kValueStride + value_column(lane, j));
#pragma unroll
        for (int i = 0; i < kLaneRows; ++i)
#pragma unroll
          for (int c = 0; c < 4; ++c) values[i][j + c] = multiply_add(a[i].x[e], b.x[c], values[i][j + c]);
      }
  }
}

}  // namespace rocline::tile
