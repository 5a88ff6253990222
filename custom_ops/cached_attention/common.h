// What the prefill and the decode kernel share: positions, visibility, loads of eight elements.
#pragma once
#include "cached_attention/params.h"
#include "kernels/device.h"

namespace rocline {

constexpr int kBlock = 256;
constexpr int kWaves = kBlock / kWave;
constexpr float kLog2e = 1.44269504f, kInfinity = __builtin_inff();

// Eight elements as they lie in memory: unpacked on their way here, sixteen-bit ones would fill a register each.
template <class T>
struct alignas(16) Eight {
  static constexpr int kShare = 4 / sizeof(T);
  u32 word[8 / kShare];

  ROCLINE_DEVICE float at(int i) const {
    if constexpr (kShare == 1)
      return bit_cast<float>(word[i]);
    else
      return to_float(T{static_cast<u16>(word[i / 2] >> (i % 2 * 16))});
  }
};

// `from` must be aligned to 16 bytes.
template <class T>
ROCLINE_DEVICE Eight<T> load_eight(const T* from) {
  return *reinterpret_cast<const Eight<T>*>(from);
}

// The kernels that are not bound by memory take the dtype at run time: one instantiation in place of three.
template <class F>
ROCLINE_DEVICE void with_dtype(const AttentionParams& a, F function) {
  if (a.dtype == kFloat)
    function(float{});
  else if (a.dtype == kHalf)
    function(half{});
  else
    function(bfloat{});
}

ROCLINE_DEVICE float load_any(const AttentionParams& a, const void* from, i64 offset) {
  float value = 0.f;
  with_dtype(a, [&](auto tag) { value = to_float(static_cast<const decltype(tag)*>(from)[offset]); });
  return value;
}

ROCLINE_DEVICE void store_any(const AttentionParams& a, void* to, i64 offset, float value) {
  with_dtype(a, [&](auto tag) { static_cast<decltype(tag)*>(to)[offset] = from_float<decltype(tag)>(value); });
}

// Eight elements of `from`, `offset` on, widened and stored at `to` (shared memory, on 16 bytes); zeros from `count`
// on.
ROCLINE_DEVICE void stage_eight(const AttentionParams& a, float* to, const void* from, i64 offset, int count) {
  with_dtype(a, [&](auto tag) {
    const auto* source = static_cast<const decltype(tag)*>(from) + offset;
    if (a.vector && count > 0) {
      const auto loaded = load_eight(source);
#pragma unroll
      for (int i = 0; i < 8; ++i) to[i] = loaded.at(i);
    } else {
#pragma unroll 1
      for (int i = 0; i < 8; ++i) to[i] = i < count ? to_float(source[i]) : 0.f;
    }
  });
}

// The first element of the bias of a query and head.
ROCLINE_DEVICE i64 bias_offset(const AttentionParams& a, int batch, int head, int query) {
  return batch * a.bias_batch + head * a.bias_head + query * a.bias_query;
}

// The position of a query; one that is out of range is padding, so that it reads and writes nothing.
ROCLINE_DEVICE int query_position(const AttentionParams& a, const i64* positions, int batch, int query) {
  if (!a.causal) return query;
  const i64 position = positions[(i64)batch * a.queries + query];
  return position >= 0 && position < a.keys ? (int)position : -1;
}

// Without causality positions belong to the keys, and a negative one hides its key.
ROCLINE_DEVICE bool key_shown(const AttentionParams& a, const i64* positions, int batch, int key) {
  return a.causal || positions[(i64)batch * a.keys + key] >= 0;
}

// The keys [first, last) that some queries see, hidden ones among them.
struct Range {
  int first, last;

  static ROCLINE_DEVICE Range none(const AttentionParams& a) { return {a.keys, 0}; }
  ROCLINE_DEVICE void add(const AttentionParams& a, int position) {
    if (position < 0) return;
    const int low = a.window && position >= a.window ? position - a.window + 1 : 0;
    const i64 high = a.causal ? position + 1 : a.window ? static_cast<i64>(position) + a.window : a.keys;
    first = low < first ? low : first;
    last = high < a.keys ? (high > last ? static_cast<int>(high) : last) : a.keys;
  }
  ROCLINE_DEVICE bool has(int key) const { return key >= first && key < last; }
};

// A score in units of log2: scaled, capped, biased.
ROCLINE_DEVICE float finish_score(const AttentionParams& a, float score, float bias) {
  score *= a.scale;
  if (a.soft_cap > 0.f) score = a.soft_cap * tanh_fast(score * reciprocal_fast(a.soft_cap));
  return (score + bias) * kLog2e;
}

}  // namespace rocline
