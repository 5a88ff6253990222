// Tokens from logits, in eight launches whose grids depend on shapes only; spec.py says what is kept and drawn.
//
//   orders   logits, penalised, as ordered integers into the workspace; the best of each chunk
//   ranks    the row's best; distances to it as ranks; histogram of the ranks' first digit; greedy rows end here
//   narrow   four times: the second and third digit of the rank where top_k ends, then of the one where top_p ends
//   sums     weight of the kept tokens of each chunk
//   draw     the token
//
// A chunk of 4096 tokens is one block's; rows that have their token leave each later kernel at once.  The logits are
// read once; the workspace, 4 bytes a token, is written twice and read six times, by draw in one chunk alone.  A search
// that a row does not need costs it the launch.
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

template <class Element>
ROCLINE_DEVICE void orders(const Element* logits, const float* penalty, i64 penalty_step, const i64* previous,
                           i64 previous_count, u64* workspace, i64 vocab) {
  __shared__ u64 scratch[kWaves];
  __shared__ unsigned char seen[kChunk];
  const Row row(workspace, vocab, block_x());
  const i64 first = static_cast<i64>(row.chunk) * kChunk;
  const u32 count = vocab - first < kChunk ? static_cast<u32>(vocab - first) : kChunk;
  const Element* from = logits + row.index * vocab + first;

  constexpr u32 to_clear = kHistogram + kHistogram / 2;
  for (u32 i = row.chunk * kThreads + thread_x(); i < to_clear; i += row.layout.chunks * kThreads) row.weights()[i] = 0;

  if (previous_count) {
    for (u32 i = thread_x(); i < kChunk; i += kThreads) seen[i] = 0;
    barrier();
    for (i64 i = thread_x(); i < previous_count; i += kThreads) {
      const i64 id = previous[row.index * previous_count + i] - first;
      if (id >= 0 && id < count) seen[id] = 1;
    }
    barrier();
  }

  u64 best = 0;
  const auto take = [&](u32 at, float logit) {
    const u32 value = order(logit);
    const u64 ranked = static_cast<u64>(value) << 32 | ~static_cast<u32>(first + at);
    best = ranked > best ? ranked : best;
    return value;
  };
  const auto take_unseen = [&](u32 at, float logit) { return previous_count && seen[at] ? 0 : take(at, logit); };
  constexpr u32 lanes = Vec<Element>::lanes;
  if (count == kChunk && aligned16(from)) {
#pragma unroll
    for (u32 i = 0; i < kPerThread / lanes; ++i) {
      const u32 at = (i * kThreads + thread_x()) * lanes;
      const Vec<Element> some = load16(from + at);
#pragma unroll
      for (u32 k = 0; k < lanes; k += 4) {
        Bytes16 four;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) four.word[j] = take_unseen(at + k + j, some.at[k + j]);
        *reinterpret_cast<Bytes16*>(row.ranks() + at + k) = four;
      }
    }
  } else {
    for (u32 at = thread_x(); at < kChunk; at += kThreads)
      row.ranks()[at] = at < count ? take_unseen(at, to_float(from[at])) : 0;
  }
  if (previous_count) {
    barrier();
    const float divisor = penalty[row.index * penalty_step];
    for (u32 at = thread_x(); at < count; at += kThreads)
      if (seen[at]) row.ranks()[at] = take(at, penalised(to_float(from[at]), divisor));
  }
  best = block_maximum(best, scratch);
  if (thread_x() == 0) row.words[row.layout.best + row.chunk] = best;
}

ROCLINE_DEVICE void ranks(const Parameters& parameters, u64* workspace, i64* tokens, i64 vocab) {
  __shared__ u64 scratch[kWaves];
  __shared__ Histogram<kFirst> histogram;
  const Row row(workspace, vocab, block_x());
  u64 best = 0;
  for (u32 i = thread_x(); i < row.layout.chunks; i += kThreads) {
    const u64 other = row.words[row.layout.best + i];
    best = other > best ? other : best;
  }
  best = block_maximum(best, scratch);
  const u32 highest = static_cast<u32>(best >> 32);
  const Refusal refusal = check(parameters, row.index, highest);
  const Settings settings = refusal ? Settings{} : settings_of(parameters, row.index, vocab);
  const bool done = settings.scale == 0.f;
  if (row.first_thread()) {
    State& state = row.state();
    state.done = done;
    state.settings = settings;
    if (done) tokens[row.index] = refusal ? -static_cast<i64>(refusal) : static_cast<i64>(~static_cast<u32>(best));
    else state.random = philox(parameters.seed[2 * row.index], parameters.seed[2 * row.index + 1]);
  }
  if (done) return;

  const bool cuts = settings.top_k || settings.top_p < kWholeP;
  if (cuts) histogram.clear(kFirst);
  each_four(row.ranks(), [&](Bytes16& four, Bytes16* at) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (four.word[k] == 0) {
        four.word[k] = kNoRank;
        continue;
      }
      four.word[k] = rank_of(highest, four.word[k]);
      if (cuts) histogram.add(four.word[k] >> 17, weight(four.word[k], settings.scale));
    }
    *at = four;
  });
  if (cuts) histogram.flush(row, 0, kFirst);
}

// The cut that a search for top_k ends in, and the weight of all that it keeps.
ROCLINE_DEVICE Cut cut_at_count(const Row& row, const Settings& settings, u64& total, u64* scratch) {
  const Search end =
      descend(row, histogram_of(1), kThird, false, settings.top_k, row.state().found[1], scratch);
  const Cut cut{end.prefix, settings.top_k - end.count};
  total = end.weight + cut.ties * weight(cut.rank, settings.scale);
  return cut;
}

ROCLINE_DEVICE u64 whole_weight(const Row& row, u64* scratch) {
  u64 sum = 0, total;
  for (u32 i = thread_x(); i < kFirst; i += kThreads) sum += row.weights()[i];
  block_before(sum, total, scratch);
  return total;
}

ROCLINE_DEVICE void narrow(u64* workspace, i64 vocab, int stage) {
  __shared__ u64 scratch[kWaves];
  __shared__ Histogram<kSecond> histogram;
  const Row row(workspace, vocab, block_x());
  State& state = row.state();
  if (state.done) return;
  const Settings settings = state.settings;
  if (stage < 2 ? settings.top_k == 0 : settings.top_p == kWholeP) return;

  u64 target = stage < 2 ? settings.top_k : state.target;
  if (stage == 2) {
    u64 total;
    if (settings.top_k) cut_at_count(row, settings, total, scratch);
    else total = whole_weight(row, scratch);
    target = needed(total, settings.top_p);
  }
  const bool begins = stage % 2 == 0;
  const Search search =
      descend(row, begins ? 0 : histogram_of(stage - 1), begins ? kFirst : kSecond, stage >= 2, target,
              begins ? Search{} : state.found[stage - 1], scratch);
  if (row.first_thread()) {
    state.found[stage] = search;
    if (stage == 2) state.target = target;
  }
  const u32 buckets = buckets_of(stage), shift = begins ? 17 : 8, next = begins ? 8 : 0;
  histogram.clear(buckets);
  each_rank(row.ranks(), [&](u32 rank) {
    if (rank >> shift == search.prefix) histogram.add(rank >> next & (buckets - 1), weight(rank, settings.scale));
  });
  histogram.flush(row, histogram_of(stage), buckets);
}

ROCLINE_DEVICE bool keeps(const Cut& cut, const Settings& settings, u32 rank, u64& weight_of_it) {
  if (rank >= cut.rank) return false;
  weight_of_it = weight(rank, settings.scale);
  return weight_of_it >= settings.min_weight;
}

ROCLINE_DEVICE void sums(u64* workspace, i64 vocab) {
  __shared__ u64 scratch[kWaves];
  const Row row(workspace, vocab, block_x());
  State& state = row.state();
  if (state.done) return;
  const Settings settings = state.settings;
  Cut cut{kNoRank, 0};
  if (settings.top_p < kWholeP) {
    const u64 target = state.target;
    const Search end = descend(row, histogram_of(3), kThird, true, target, state.found[3], scratch);
    const u64 one = weight(end.prefix, settings.scale);
    cut = {end.prefix, (target - end.weight + one - 1) / one};
  } else if (settings.top_k) {
    u64 total;
    cut = cut_at_count(row, settings, total, scratch);
  }
  if (row.first_thread()) state.cut = cut;

  u64 sum = 0, ties = 0, total_sum, total_ties;
  each_rank(row.ranks(), [&](u32 rank) {
    u64 one;
    if (keeps(cut, settings, rank, one)) sum += one;
    ties += rank == cut.rank;
  });
  block_before(sum, total_sum, scratch);
  block_before(ties, total_ties, scratch);
  if (thread_x() == 0) {
    row.words[row.layout.sums + row.chunk] = total_sum;
    row.words[row.layout.ties + row.chunk] = total_ties;
  }
}

// Finds the item at which the running sum over value(i), i < count, passes `place`; `place` is then what is left there.
template <class F>
ROCLINE_DEVICE u32 locate(u32 count, u64& place, u64* scratch, const F& value) {
  __shared__ u64 left;
  __shared__ u32 found;
  const u32 own = (count + kThreads - 1) / kThreads, first = thread_x() * own;
  u64 sum = 0, total;
  for (u32 i = first; i < first + own && i < count; ++i) sum += value(i);
  u64 before = block_before(sum, total, scratch);
  if (before <= place && place < before + sum) {
    u32 i = first;
    for (u64 one = value(i); place - before >= one; one = value(++i)) before += one;
    found = i;
    left = place - before;
  }
  barrier();
  place = left;
  const u32 at = found;
  barrier();
  return at;
}

ROCLINE_DEVICE void draw(u64* workspace, i64* tokens, i64 vocab) {
  __shared__ u64 scratch[kWaves];
  Row row(workspace, vocab, block_x() * layout_of(vocab).chunks);
  const State& state = row.state();
  if (state.done) return;
  const Settings settings = state.settings;
  const Cut cut = state.cut;
  u64 sum = 0, ties = 0, total_sum, total_ties;
  for (u32 i = thread_x(); i < row.layout.chunks; i += kThreads) {
    sum += row.words[row.layout.sums + i];
    ties += row.words[row.layout.ties + i];
  }
  block_before(sum, total_sum, scratch);
  block_before(ties, total_ties, scratch);
  total_ties = total_ties < cut.ties ? total_ties : cut.ties;
  const u64 last = weight(cut.rank, settings.scale);
  if (last < settings.min_weight) total_ties = 0;

  u64 place = multiply_high(state.random, total_sum + total_ties * last);
  const bool among_ties = place >= total_sum;
  if (among_ties) place = (place - total_sum) / last;
  const u64* per_chunk = row.words + (among_ties ? row.layout.ties : row.layout.sums);
  row.chunk = locate(row.layout.chunks, place, scratch, [&](u32 i) { return per_chunk[i]; });
  const u32* in_chunk = row.ranks();
  const u32 at = locate(kChunk, place, scratch, [&](u32 i) -> u64 {
    if (among_ties) return in_chunk[i] == cut.rank;
    u64 one;
    return keeps(cut, settings, in_chunk[i], one) ? one : 0;
  });
  if (thread_x() == 0) tokens[row.index] = static_cast<i64>(row.chunk) * kChunk + at;
}

#define ENTRY(suffix, Element)                                                                                       \
  extern "C" __global__ __launch_bounds__(kThreads) void sample_token_orders_##suffix(                               \
      const Element* logits, const float* penalty, i64 penalty_step, const i64* previous, i64 previous_count,        \
      u64* workspace, i64 vocab) {                                                                                   \
    orders(logits, penalty, penalty_step, previous, previous_count, workspace, vocab);                               \
  }
ROCLINE_ENTRIES(ENTRY)

extern "C" __global__ __launch_bounds__(kThreads) void sample_token_ranks(Parameters parameters, u64* workspace,
                                                                          i64* tokens, i64 vocab) {
  ranks(parameters, workspace, tokens, vocab);
}
extern "C" __global__ __launch_bounds__(kThreads) void sample_token_narrow(u64* workspace, i64 vocab, int stage) {
  narrow(workspace, vocab, stage);
}
extern "C" __global__ __launch_bounds__(kThreads) void sample_token_sums(u64* workspace, i64 vocab) {
  sums(workspace, vocab);
}
extern "C" __global__ __launch_bounds__(kThreads) void sample_token_draw(u64* workspace, i64* tokens, i64 vocab) {
  draw(workspace, tokens, vocab);
}

}  // namespace rocline
