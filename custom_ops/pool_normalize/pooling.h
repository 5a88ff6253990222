// How the tokens of a row are shared out: up to 64 splits, of 64 tokens where that is enough, each
// summed on its own.  The batch plays no part: a row's vector is the same in any batch.
#pragma once

#if defined(__CUDACC__) || defined(__HIP__)
#define ROCLINE_POOLING __device__ inline
#else
#define ROCLINE_POOLING inline
#endif

namespace rocline {
namespace pooling {

constexpr long long kMaxTokens = 1 << 24;  // the kernels count tokens in float32

enum Mode : int { kMean, kClass, kLast };

// Unnamed, so that each instruction set of the CPU has its own: the linker would keep one of them for all.
namespace {

ROCLINE_POOLING long long splits_of(long long tokens) {
  const long long splits = (tokens + 63) / 64;
  return splits < 64 ? splits : 64;
}

// How a block's 256 threads stand over a tile of columns, each with `lanes` columns: tiles are equally wide, at most 64
// threads, and as many tokens side by side as there is room for.
struct Tiling {
  long long tiles;
  int column_lanes, token_lanes;
};
ROCLINE_POOLING Tiling tiling_of(long long hidden, int lanes) {
  const long long vectors = (hidden + lanes - 1) / lanes, tiles = (vectors + 63) / 64;
  const int column_lanes = static_cast<int>((vectors + tiles - 1) / tiles);
  return {tiles, column_lanes, 256 / column_lanes};
}

}  // namespace
}  // namespace pooling
}  // namespace rocline
