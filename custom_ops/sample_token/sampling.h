// What the CPU and the GPU compute alike in SampleToken.  Floats are never multiplied and then added, which a compiler
// could fuse into one rounding, and all that is summed is an integer, so that the order does not matter.
#pragma once

#if defined(__CUDACC__) || defined(__HIP__)
#define ROCLINE_SAMPLING __device__ inline
#else
#define ROCLINE_SAMPLING inline
#endif

namespace rocline {
namespace sampling {

typedef decltype(0u) u32;
typedef decltype(0ull) u64;
typedef decltype(0ll) i64;

constexpr u32 kChunk = 4096;           // tokens a block of the GPU handles
constexpr i64 kMaxVocab = 1 << 22;     // so that the sum of all weights stays below 2^61
constexpr u64 kOne = 1ull << 39;       // weight of the most probable token
constexpr u32 kMinusInfinity = 0x007fffffu;  // order() of -inf: no number lies below
constexpr u32 kNotANumber = 0xffffffffu;     // order() of every NaN, above +inf
constexpr u32 kNoRank = 1u << 28;            // behind every token; padding of a chunk

// A rank's three digits of 11, 9 and 8 bits; one histogram for each search of each digit.
constexpr u32 kFirst = 2048, kSecond = 512, kThird = 256;
constexpr u32 kHistogram = kFirst + 2 * (kSecond + kThird);
constexpr u32 kStateWords = 24;
constexpr u32 kSpareWords = 2;  // a workspace at an odd multiple of 8 bytes is used from the next word on

// The node's inputs that are neither logits nor seen tokens: one value for all rows (step 0), or one for each (step 1).
struct Parameters {
  const float* temperature;
  const int* top_k;
  const float* top_p;
  const float* min_p;
  const float* penalty;
  const i64* seed;  // [batch, 2]: seed, offset
  i64 temperature_step, top_k_step, top_p_step, min_p_step, penalty_step;
};

// One row's parameters as the kernels use them.
struct Settings {
  float scale;     // of weight(); 0: greedy
  u32 top_k;       // tokens to keep, 0: all
  u64 top_p;       // in units of 2^-32
  u64 min_weight;  // of a token to keep
};
constexpr u64 kWholeP = 1ull << 32;

// Why a row has no token, in the order in which it is checked; the token is then minus this.
enum Refusal : int { kFine, kBadTemperature, kBadTopP, kBadMinP, kBadPenalty, kHasNaN, kNoToken };

// The tokens that are kept: those of lower rank than `rank`, and the `ties` lowest ids of `rank` itself.
struct Cut {
  u32 rank;
  u64 ties;
};

// Unnamed, so that each instruction set of the CPU has its own: the linker would keep one of them for all.
namespace {

template <class To, class From>
ROCLINE_SAMPLING To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  return __builtin_bit_cast(To, from);
}

ROCLINE_SAMPLING u32 multiply_high(u32 a, u32 b) { return static_cast<u32>(static_cast<u64>(a) * b >> 32); }
ROCLINE_SAMPLING u64 multiply_high(u64 a, u64 b) {
  const u64 a0 = static_cast<u32>(a), a1 = a >> 32, b0 = static_cast<u32>(b), b1 = b >> 32;
  const u64 middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + static_cast<u32>(middle);
  return a1 * b1 + (middle >> 32) + (other >> 32);
}

// Floats in the order of unsigned integers: -inf first, +inf, NaN last; -0 is +0.
ROCLINE_SAMPLING u32 order(float value) {
  const u32 bits = reinterpret<u32>(value), magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return kNotANumber;
  return bits == magnitude || magnitude == 0 ? magnitude | 0x80000000u : ~bits;
}
ROCLINE_SAMPLING float value_of(u32 order) {
  return reinterpret<float>(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

// A seen token's logit, as transformers' RepetitionPenaltyLogitsProcessor makes it.
ROCLINE_SAMPLING float penalised(float logit, float penalty) {
  const double x = logit;
  return static_cast<float>(logit < 0.f ? x * penalty : x / penalty);
}

// Distances (best logit - logit, >= 0) as 28-bit ranks, most probable first.  Their bits are kept whole from 2^-16 to
// 2^15; nearer and farther ones lose 8 bits of the mantissa (31 * 2^23 of the 2^28 ranks are for the range in between).
constexpr u32 kNear = 111u << 23, kFar = 142u << 23, kMiddle = kNear >> 8, kOuter = kMiddle + (kFar - kNear);
ROCLINE_SAMPLING u32 rank_of(u32 best, u32 order) {
  if (order == best) return 0;
  const float distance = value_of(best) - value_of(order);
  const u32 bits = reinterpret<u32>(distance);
  return bits < kNear ? bits >> 8 : bits < kFar ? kMiddle + (bits - kNear) : kOuter + ((bits - kFar) >> 8);
}
ROCLINE_SAMPLING float distance_of(u32 rank) {
  return reinterpret<float>(rank < kMiddle  ? rank << 8
                            : rank < kOuter ? kNear + (rank - kMiddle)
                                            : kFar + ((rank - kOuter) << 8));
}

// What weight() multiplies a distance by: log2(e) / temperature, in units of 2^-25.
ROCLINE_SAMPLING float scale_of(float temperature) {
  return static_cast<float>(48408812.54395 / static_cast<double>(temperature));
}

// exp(-distance / temperature) in units of 1 / kOne, rounded down, within 2^-26 of itself for distances near 0.
ROCLINE_SAMPLING u64 weight(u32 rank, float scale) {
  if (rank == 0) return kOne;
  if (rank >= kNoRank) return 0;
  const float exponent = distance_of(rank) * scale;
  if (!(exponent < 39.f * 33554432.f)) return 0;
  const u32 fixed = static_cast<u32>(exponent), fraction = fixed << 7;
  // 1 - 2^-f for f in [0, 1), in units of 2^-32: a polynomial fitted to it, least error 2^-29.
  u32 p = 0x7346cu;
  p = 0x53b871u - multiply_high(p, fraction);
  p = 0x273fae0u - multiply_high(p, fraction);
  p = 0xe34be42u - multiply_high(p, fraction);
  p = 0x3d7f5ddeu - multiply_high(p, fraction);
  p = 0xb1721670u - multiply_high(p, fraction);
  return ((1ull << 32) - multiply_high(p, fraction)) << 7 >> (fixed >> 25);
}

// The least sum of weights that is at least top_p of `total`; top_p in [0, 1], in units of 2^-32, rounded up.
ROCLINE_SAMPLING u64 needed(u64 total, u64 top_p) {
  const u64 need = (total >> 32) * top_p + (((total & 0xffffffffull) * top_p + 0xffffffffull) >> 32);
  return need ? need : 1;
}
ROCLINE_SAMPLING u64 round_up(double value) {
  const u64 whole = static_cast<u64>(value);
  return static_cast<double>(whole) < value ? whole + 1 : whole;
}

// One 64-bit draw: the first two words of Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3,
// SC 2011), key = seed, counter = offset.
ROCLINE_SAMPLING u64 philox(u64 seed, u64 offset) {
  u32 key0 = static_cast<u32>(seed), key1 = static_cast<u32>(seed >> 32);
  u32 c0 = static_cast<u32>(offset), c1 = static_cast<u32>(offset >> 32), c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const u64 even = 0xd2511f53ull * c0, odd = 0xcd9e8d57ull * c2;
    c0 = static_cast<u32>(odd >> 32) ^ c1 ^ key0;
    c1 = static_cast<u32>(odd);
    c2 = static_cast<u32>(even >> 32) ^ c3 ^ key1;
    c3 = static_cast<u32>(even);
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return static_cast<u64>(c1) << 32 | c0;
}

ROCLINE_SAMPLING Settings settings_of(const Parameters& from, i64 row, i64 vocab) {
  const float temperature = from.temperature[row * from.temperature_step];
  const int top_k = from.top_k[row * from.top_k_step];
  Settings out;
  out.scale = temperature > 0.f ? scale_of(temperature) : 0.f;
  out.top_k = top_k > 0 && top_k < vocab ? static_cast<u32>(top_k) : 0;
  out.top_p = round_up(static_cast<double>(from.top_p[row * from.top_p_step]) * static_cast<double>(kWholeP));
  out.min_weight = round_up(static_cast<double>(from.min_p[row * from.min_p_step]) * static_cast<double>(kOne));
  return out;
}

ROCLINE_SAMPLING bool finite(float value) { return (reinterpret<u32>(value) & 0x7f800000u) != 0x7f800000u; }

// `best` is the order() of the row's highest logit.
ROCLINE_SAMPLING Refusal check(const Parameters& from, i64 row, u32 best) {
  const float temperature = from.temperature[row * from.temperature_step], top_p = from.top_p[row * from.top_p_step];
  const float min_p = from.min_p[row * from.min_p_step], penalty = from.penalty[row * from.penalty_step];
  if (!(temperature >= 0.f && finite(temperature))) return kBadTemperature;
  if (!(top_p >= 0.f && top_p <= 1.f)) return kBadTopP;
  if (!(min_p >= 0.f && min_p <= 1.f)) return kBadMinP;
  if (!(penalty > 0.f && finite(penalty))) return kBadPenalty;
  return best == kNotANumber ? kHasNaN : best <= kMinusInfinity ? kNoToken : kFine;
}

// Where the arrays of a row's workspace begin, in 64-bit words, each at a multiple of 16 bytes.
struct Layout {
  u32 chunks;
  u64 ranks;    // u32 [chunks, kChunk]: order() of each logit, then its rank
  u64 best;     // u64 [chunks]: order() << 32 | ~id of each chunk's best token
  u64 sums;     // u64 [chunks]: weights of the tokens that are kept, but for those of the cut's own rank
  u64 ties;     // u64 [chunks]: number of tokens of the cut's rank
  u64 weights;  // u64 [kHistogram]
  u64 counts;   // u32 [kHistogram]
  u64 state;    // State of kernel.hip
  u64 words;
};

ROCLINE_SAMPLING Layout layout_of(i64 vocab) {
  Layout out;
  out.chunks = static_cast<u32>((vocab + kChunk - 1) / kChunk);
  const u64 even = (out.chunks + 1) / 2 * 2;
  out.ranks = 0;
  out.best = static_cast<u64>(out.chunks) * (kChunk / 2);
  out.sums = out.best + even;
  out.ties = out.sums + even;
  out.weights = out.ties + even;
  out.counts = out.weights + kHistogram;
  out.state = out.counts + kHistogram / 2;
  out.words = out.state + kStateWords + kSpareWords;
  return out;
}

}  // namespace
}  // namespace sampling
}  // namespace rocline
