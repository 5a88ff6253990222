// A row of logits in the workspace, chunk by chunk, and what a block computes of it together.
#pragma once
#include "kernels/device.h"
#include "sample_token/sampling.h"

namespace rocline {

using namespace sampling;

constexpr int kThreads = 256;
constexpr int kPerThread = kChunk / kThreads;
constexpr int kWaves = kThreads / kWave;

// How far a search has come: the digits found, and what lies before them.
struct Search {
  u32 prefix;
  u64 count, weight;
};

// A row's state between launches, written by one thread of a launch and read by the next ones.
struct State {
  u32 done;
  Settings settings;
  u64 random, target;
  Search found[4];
  Cut cut;
};
static_assert(sizeof(State) <= kStateWords * 8, "the workspace has room for a state");

struct Row {
  Layout layout;
  i64 index;
  u32 chunk;
  u64* words;

  ROCLINE_DEVICE Row(u64* workspace, i64 vocab, u32 block) : layout(layout_of(vocab)) {
    index = block / layout.chunks;
    chunk = block % layout.chunks;
    words = workspace + index * layout.words;
  }
  ROCLINE_DEVICE u32* ranks() const {
    return reinterpret_cast<u32*>(words + layout.ranks) + static_cast<i64>(chunk) * kChunk;
  }
  ROCLINE_DEVICE u64* weights() const { return words + layout.weights; }
  ROCLINE_DEVICE u32* counts() const { return reinterpret_cast<u32*>(words + layout.counts); }
  ROCLINE_DEVICE State& state() const { return *reinterpret_cast<State*>(words + layout.state); }
  ROCLINE_DEVICE bool first_thread() const { return chunk == 0 && thread_x() == 0; }
};

ROCLINE_DEVICE u64 shuffle_wide(u64 value, u32 from) {
  const u32 low = shuffle(static_cast<u32>(value), from), high = shuffle(static_cast<u32>(value >> 32), from);
  return static_cast<u64>(high) << 32 | low;
}

// The highest value of the block, to every thread.
ROCLINE_DEVICE u64 block_maximum(u64 value, u64* scratch) {
#pragma unroll
  for (int mask = kWave / 2; mask > 0; mask /= 2) {
    const u64 other = shuffle_wide(value, lane() ^ mask);
    value = other > value ? other : value;
  }
  if (lane() == 0) scratch[thread_x() / kWave] = value;
  barrier();
#pragma unroll
  for (int wave = 0; wave < kWaves; ++wave) value = scratch[wave] > value ? scratch[wave] : value;
  barrier();
  return value;
}

// The sum over the threads before this one; `total` is that of the block.
ROCLINE_DEVICE u64 block_before(u64 value, u64& total, u64* scratch) {
  u64 sum = value;
#pragma unroll
  for (u32 step = 1; step < kWave; step *= 2) {
    const u64 other = shuffle_wide(sum, lane() - step & (kWave - 1));
    sum += lane() >= step ? other : 0;
  }
  if (lane() == kWave - 1) scratch[thread_x() / kWave] = sum;
  barrier();
  u64 before = sum - value;
  total = 0;
#pragma unroll
  for (int wave = 0; wave < kWaves; ++wave) {
    before += wave < static_cast<int>(thread_x() / kWave) ? scratch[wave] : 0;
    total += scratch[wave];
  }
  barrier();
  return before;
}

// Calls function(four, at) for the tokens of a chunk in no particular order, 16 bytes a load, the next one on its way.
// Not unrolled: the code would be four times as long.
template <class F>
ROCLINE_DEVICE void each_four(u32* ranks, const F& function) {
  Bytes16* at = reinterpret_cast<Bytes16*>(ranks) + thread_x();
  Bytes16 next = *at;
#pragma unroll 1
  for (int i = 1; i <= kPerThread / 4; ++i) {
    Bytes16 four = next;
    if (i < kPerThread / 4) next = at[kThreads];
    function(four, at);
    at += kThreads;
  }
}
template <class F>
ROCLINE_DEVICE void each_rank(u32* ranks, const F& function) {
  each_four(ranks, [&](const Bytes16& four, Bytes16*) {
#pragma unroll
    for (int k = 0; k < 4; ++k) function(four.word[k]);
  });
}

}  // namespace rocline
