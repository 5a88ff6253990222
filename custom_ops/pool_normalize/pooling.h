// How the tokens of a row are shared out: splits of at least 32 tokens, at most 32 of them, each summed on its own.
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
  const long long splits = (tokens + 31) / 32;
  return splits < 32 ? splits : 32;
}

}  // namespace
}  // namespace pooling
}  // namespace rocline
