// CachedAttention on the device.
//   q, y: [batch, queries, heads, head]   k, v: [batch, kv_heads, keys, head]   positions: [batch, queries], or
//   [batch, keys] where `causal` is 0     bias: strides in the parameters, or null     workspace: see decode.h
// decode:  grid (batch * kv_heads, splits, chunks / 4)     combine: grid (batch * queries * heads)
// prefill: grid (queries * heads / kv_heads / kPrefillRows, batch * kv_heads)
//
// A position outside [-1, keys) counts as padding: the device cannot refuse it as the CPU does.
#include "cached_attention/decode.h"
#include "cached_attention/prefill.h"

using rocline::AttentionParams;
using rocline::kBlock;

#define DECODE(suffix, Element, head, lanes)                                                                    \
  extern "C" __global__ ROCLINE_BOUNDS(kBlock, 168, 2) void cached_attention_decode_##head##_##suffix(          \
      const Element* q, const Element* k, const Element* v, const rocline::i64* positions, const Element* bias, \
      Element* y, float* workspace, AttentionParams a) {                                                        \
    rocline::decode<Element, lanes>(q, k, v, positions, bias, y, workspace, a);                                 \
  }
#define DECODES(suffix, Element)   \
  DECODE(suffix, Element, 64, 8)   \
  DECODE(suffix, Element, 128, 16) \
  DECODE(suffix, Element, 256, 32)
ROCLINE_ENTRIES(DECODES)

#define PREFILL(head, chunks, registers, blocks)                                                             \
  extern "C" __global__ ROCLINE_BOUNDS(kBlock, registers, blocks) void cached_attention_prefill_##head(      \
      const void* q, const void* k, const void* v, const rocline::i64* positions, const void* bias, void* y, \
      AttentionParams a) {                                                                                   \
    rocline::prefill<chunks>(q, k, v, positions, bias, y, a);                                                \
  }
PREFILL(64, 1, 168, 2)
PREFILL(128, 2, 256, 2)
PREFILL(256, 4, 256, 1)

extern "C" __global__ __launch_bounds__(kBlock) void cached_attention_combine(float* workspace, void* y,
                                                                              AttentionParams a) {
  rocline::combine(workspace, y, a);
}
