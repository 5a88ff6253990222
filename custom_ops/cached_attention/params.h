// What op.cc tells CachedAttention's kernels, on the CPU and on the device.
#pragma once

namespace rocline {

constexpr int kMostHead = 256;
// The most pieces that the device's decoding cuts the keys of a row into.
constexpr int kMostSplits = 64;
// Query rows (a token and one of the heads that share a key head) that a wave decodes together.
constexpr int kDecodeRows = 4;
// The fewest query rows a block of the prefill kernel takes; with waves of 32 it takes twice as many.
constexpr int kPrefillRows = 64;

enum : int { kFloat, kHalf, kBfloat };

struct AttentionParams {
  // Elements from one row, head or query of the bias to the next; 0 where it is broadcast.
  long long bias_batch, bias_head, bias_query;
  int batch, heads, kv_heads, queries, keys, head;
  int causal, window;     // window 0: none
  float scale, soft_cap;  // soft_cap 0: none
  int splits;
  int dtype;   // of q, k, v, bias and y
  int vector;  // every head of q, k and v starts on 16 bytes and has a multiple of 8 elements; decoding needs it
};

struct AttentionBuffers {
  const void *q, *k, *v;
  const long long* positions;
  const void* bias;  // null: none
  void* y;
};

}  // namespace rocline
