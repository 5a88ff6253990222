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
#include "sample_token/search.h"

namespace rocline {

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
