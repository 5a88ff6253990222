// The search for a row's cuts: histograms of digits, and the digit that one of them gives.
#pragma once
#include "sample_token/row.h"

namespace rocline {

// The digits of a search: top_k's are stages 0 and 1 after the first, top_p's stages 2 and 3.
ROCLINE_DEVICE u32 buckets_of(int stage) { return stage % 2 ? kThird : kSecond; }
ROCLINE_DEVICE u32 histogram_of(int stage) { return kFirst + stage / 2 * (kSecond + kThird) + stage % 2 * kSecond; }

// A histogram gathered by a block in shared memory, then added to the row's.  Weights below 2^40 of at most 4096 tokens
// are summed as two 32-bit halves, 20 bits and the rest: 64-bit atomics on shared memory are slow.
template <u32 most>
struct Histogram {
  u32 counts[most], low[most], high[most];

  ROCLINE_DEVICE void clear(u32 buckets) {
    for (u32 i = thread_x(); i < buckets; i += kThreads) counts[i] = low[i] = high[i] = 0;
    barrier();
  }
  ROCLINE_DEVICE void add(u32 bucket, u64 weight) {
    atomic_add(&counts[bucket], 1u);
    if (weight == 0) return;
    atomic_add(&low[bucket], static_cast<u32>(weight) & 0xfffffu);
    atomic_add(&high[bucket], static_cast<u32>(weight >> 20));
  }
  ROCLINE_DEVICE void flush(const Row& row, u32 at, u32 buckets) const {
    barrier();
    for (u32 i = thread_x(); i < buckets; i += kThreads) {
      if (counts[i] == 0) continue;
      atomic_add(&row.counts()[at + i], counts[i]);
      const u64 weight = (static_cast<u64>(high[i]) << 20) + low[i];
      if (weight) atomic_add(&row.weights()[at + i], weight);
    }
  }
};

// Reads the histogram of `buckets` that begins at `at`.  The bucket at which the count (or the weight) of all up to it
// reaches `target` becomes the next digit of the search.
ROCLINE_DEVICE Search descend(const Row& row, u32 at, u32 buckets, bool by_weight, u64 target, Search search,
                              u64* scratch) {
  constexpr u32 most = kFirst / kThreads;
  __shared__ Search found;
  const u32 own = buckets / kThreads, first = at + thread_x() * own;
  u64 weight[most], weight_sum = 0, count_sum = 0, total;
  u32 count[most];
#pragma unroll
  for (u32 i = 0; i < most; ++i) {
    // Without a branch, so that the loads overlap.
    const u32 bucket = i < own ? first + i : first;
    const u64 some_weight = row.weights()[bucket];
    const u32 some = row.counts()[bucket];
    weight_sum += weight[i] = i < own ? some_weight : 0;
    count_sum += count[i] = i < own ? some : 0;
  }
  Search here = search;
  here.weight += block_before(weight_sum, total, scratch);
  here.count += block_before(count_sum, total, scratch);
#pragma unroll
  for (u32 i = 0; i < most; ++i) {
    const u64 before = by_weight ? here.weight : here.count, step = by_weight ? weight[i] : count[i];
    if (before < target && target <= before + step) {
      found = here;
      found.prefix = search.prefix * buckets + (first - at) + i;
    }
    here.weight += weight[i];
    here.count += count[i];
  }
  barrier();
  search = found;
  barrier();
  return search;
}

}  // namespace rocline
