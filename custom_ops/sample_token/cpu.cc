// SampleToken on the CPU: one row a task, with the histograms of ranks that the GPU uses.
#include "cpu/vec.h"
#include "sample_token/sampling.h"

namespace rocline::ROCLINE_ISA {
using namespace sampling;

namespace {

struct Row {
  u32* ranks;
  u64* weights;
  u32* counts;
  u64* sums;
  i64 vocab;
  float scale;
};

inline VecU32 choose(VecI32 mask, VecU32 yes, VecU32 no) {
  return (reinterpret_cast<VecU32>(mask) & yes) | (~reinterpret_cast<VecU32>(mask) & no);
}

inline VecU32 order_of(Vec value) {
  const VecU32 bits = reinterpret_cast<VecU32>(value), magnitude = bits & 0x7fffffffu;
  const VecU32 ordered = choose((bits == magnitude) | (magnitude == 0u), magnitude | 0x80000000u, ~bits);
  return choose(magnitude > 0x7f800000u, VecU32{} + kNotANumber, ordered);
}

// Writes order() of each logit to `orders`.
template <class Element>
void order_all(const Element* logits, i64 vocab, u32* orders) {
  each(vocab, [&](std::int64_t, auto get, auto put) {
    put(reinterpret_cast<float*>(orders), reinterpret_cast<Vec>(order_of(get(logits))));
  });
}

// The highest order and the lowest id that has it.
u32 best_of(const u32* orders, i64 vocab, i64& id) {
  u32 best = 0;
  for (i64 i = 0; i < vocab; ++i) best = orders[i] > best ? orders[i] : best;
  for (id = 0; id < vocab && orders[id] != best;) ++id;
  return best;
}

// Calls function(rank, weight) for the tokens [begin, end), in turn.
template <class F>
void visit(const Row& row, i64 begin, i64 end, const F& function) {
  constexpr i64 block = 256;
  u64 buffer[block];
  for (; begin < end; begin += block) {
    const i64 count = end - begin < block ? end - begin : block;
    for (i64 i = 0; i < count; ++i) buffer[i] = weight(row.ranks[begin + i], row.scale);
    for (i64 i = 0; i < count; ++i) function(row.ranks[begin + i], buffer[i]);
  }
}

// The first bucket at which the count (or weight) of all tokens up to it reaches `target`; both are left before it.
struct Search {
  u32 prefix = 0;
  u64 count = 0, weight = 0;
};

template <bool by_weight>
void descend(const Row& row, u32 buckets, u64 target, Search& search) {
  u32 bucket = 0;
  for (; bucket + 1 < buckets; ++bucket) {
    if ((by_weight ? search.weight + row.weights[bucket] : search.count + row.counts[bucket]) >= target) break;
    search.count += row.counts[bucket];
    search.weight += row.weights[bucket];
  }
  search.prefix = search.prefix * buckets + bucket;
}

// The rank at which `target` is reached, digit by digit; row.weights and row.counts hold the first digit's histogram.
template <bool by_weight>
Search find(const Row& row, u64 target) {
  Search search;
  descend<by_weight>(row, kFirst, target, search);
  u64* weights = row.weights + kFirst;
  u32* counts = row.counts + kFirst;
  constexpr u32 finer_digits[] = {kSecond, kThird};
  u32 shift = 17;
  for (const u32 buckets : finer_digits) {
    const u32 next = buckets == kSecond ? 8 : 0;
    std::memset(weights, 0, buckets * sizeof *weights);
    std::memset(counts, 0, buckets * sizeof *counts);
    for (i64 i = 0; i < row.vocab; ++i)
      if (row.ranks[i] >> shift == search.prefix) {
        const u32 bucket = row.ranks[i] >> next & (buckets - 1);
        weights[bucket] += weight(row.ranks[i], row.scale);
        ++counts[bucket];
      }
    Row finer = row;
    finer.weights = weights;
    finer.counts = counts;
    descend<by_weight>(finer, buckets, target, search);
    shift = next;
  }
  return search;
}

Cut cut(const Row& row, const Settings& settings) {
  std::memset(row.weights, 0, kFirst * sizeof *row.weights);
  std::memset(row.counts, 0, kFirst * sizeof *row.counts);
  u64 total = 0;
  visit(row, 0, row.vocab, [&](u32 rank, u64 weight) {
    row.weights[rank >> 17] += weight;
    ++row.counts[rank >> 17];
    total += weight;
  });
  Cut kept{kNoRank, 0};
  if (settings.top_k) {
    const Search search = find<false>(row, settings.top_k);
    kept = {search.prefix, settings.top_k - search.count};
    total = search.weight + kept.ties * weight(kept.rank, row.scale);
  }
  if (settings.top_p < kWholeP) {
    const u64 target = needed(total, settings.top_p);
    const Search search = find<true>(row, target);
    const u64 one = weight(search.prefix, row.scale);
    kept = {search.prefix, (target - search.weight + one - 1) / one};
  }
  return kept;
}

// Draws among the kept tokens, in the order of their ids.
i64 draw(const Row& row, const Settings& settings, Cut kept, u64 random) {
  u64 sum = 0, ties = 0;
  for (i64 begin = 0; begin < row.vocab; begin += kChunk) {
    const i64 end = begin + kChunk < row.vocab ? begin + kChunk : row.vocab;
    u64 chunk = 0;
    for (i64 i = begin; i < end; ++i) {
      ties += row.ranks[i] == kept.rank;
      if (row.ranks[i] < kept.rank) {
        const u64 one = weight(row.ranks[i], row.scale);
        chunk += one >= settings.min_weight ? one : 0;
      }
    }
    row.sums[begin / kChunk] = chunk;
    sum += chunk;
  }
  const u64 last = weight(kept.rank, row.scale);
  ties = ties < kept.ties ? ties : kept.ties;
  if (last < settings.min_weight) ties = 0;
  u64 place = multiply_high(random, sum + ties * last);
  if (place >= sum) {
    u64 skip = (place - sum) / last;
    i64 id = 0;
    while (row.ranks[id] != kept.rank || skip-- > 0) ++id;
    return id;
  }
  i64 id = 0;
  for (; place >= row.sums[id / kChunk]; id += kChunk) place -= row.sums[id / kChunk];
  for (;; ++id) {
    if (row.ranks[id] >= kept.rank) continue;
    const u64 one = weight(row.ranks[id], row.scale);
    if (one < settings.min_weight) continue;
    if (place < one) return id;
    place -= one;
  }
}

}  // namespace

// logits: [batch, vocab]; previous: [batch, previous_count] or null; workspace: [batch, Layout(vocab).words()]
void sample_token_cpu(const cpu::Pool& pool, DType dtype, const void* logits, const sampling::Parameters& parameters,
                      const std::int64_t* previous, std::int64_t previous_count, std::int64_t batch, std::int64_t vocab,
                      std::int64_t* workspace, std::int64_t* tokens) {
  const Layout layout = layout_of(vocab);
  visit_float(dtype, [&](auto tag) {
    using Element = decltype(tag);
    pool.ranges(batch, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t index = begin; index < end; ++index) {
        const auto* from = static_cast<const Element*>(logits) + index * vocab;
        u64* words = reinterpret_cast<u64*>(workspace) + static_cast<u64>(index) * layout.words;
        Row row{reinterpret_cast<u32*>(words + layout.ranks),  words + layout.weights,
                reinterpret_cast<u32*>(words + layout.counts), words + layout.sums, vocab, 0.f};
        order_all(from, vocab, row.ranks);
        const float penalty = parameters.penalty[index * parameters.penalty_step];
        for (std::int64_t i = 0; i < previous_count; ++i) {
          const std::int64_t id = previous[index * previous_count + i];
          // From the logit, not from what stands there: a token seen twice is penalised once.
          if (id >= 0 && id < vocab) row.ranks[id] = order(penalised(to_float(from[id]), penalty));
        }
        i64 id;
        const u32 best = best_of(row.ranks, vocab, id);
        if (const Refusal refusal = check(parameters, index, best)) {
          tokens[index] = -refusal;
          continue;
        }
        const Settings settings = settings_of(parameters, index, vocab);
        row.scale = settings.scale;
        if (settings.scale == 0.f) {
          tokens[index] = id;
        } else {
          for (std::int64_t i = 0; i < vocab; ++i) row.ranks[i] = rank_of(best, row.ranks[i]);
          const u64 random = philox(static_cast<u64>(parameters.seed[2 * index]),
                                    static_cast<u64>(parameters.seed[2 * index + 1]));
          tokens[index] = draw(row, settings, cut(row, settings), random);
        }
      }
    });
  });
}

}  // namespace rocline::ROCLINE_ISA
