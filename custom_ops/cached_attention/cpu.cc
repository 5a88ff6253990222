// CachedAttention on the CPU: flash attention over blocks of keys, and decoding cut into pieces of the cache.
//
// A tile is some query rows, (query, head) pairs that share a key head, against a block of keys.  Its scores are kept
// as [key][row], so that the softmax runs down the keys with a vector of rows and needs no sum across lanes.  Many rows
// multiply their transposed queries, few rows take dot products with the keys as they lie.
#include <cstdlib>

#include "cached_attention/params.h"
#include "cached_attention/products.h"

namespace rocline::ROCLINE_ISA {
namespace {

constexpr int kBlock = 64;  // keys a block
constexpr int kFew = 16;    // rows of a tile in decoding
constexpr int kMany = 64;   // rows of a tile in prefill
constexpr float kInfinity = __builtin_inff();

// A tile of up to Rows query rows: rows [first_row, first_row + rows) of one key head of one row of the batch.
template <class T, int Rows>
class Tile {
 public:
  Tile(const AttentionParams& params, const AttentionBuffers& buffers, int batch, int kv_head, int first_row)
      : a_(params),
        b_(buffers),
        batch_(batch),
        kv_head_(kv_head),
        first_row_(first_row),
        group_(params.heads / params.kv_heads) {
    const int left = a_.queries * group_ - first_row;
    rows_ = left < Rows ? left : Rows;
    padded_ = (rows_ + kGroup - 1) / kGroup * kGroup;
    if constexpr (Rows == kFew) std::memset(scores_, 0, sizeof scores_);
    for (int r = 0; r < Rows; ++r) {
      position_[r] = r < rows_ ? query_position((first_row + r) / group_) : -1;
      maximum_[r] = -kInfinity;
      total_[r] = 0.f;
      if (position_[r] < 0) continue;
      const int low = a_.window && position_[r] >= a_.window ? position_[r] - a_.window + 1 : 0;
      const std::int64_t reach = a_.causal   ? position_[r] + 1
                                 : a_.window ? std::int64_t{position_[r]} + a_.window
                                             : a_.keys;
      const int high = reach < a_.keys ? static_cast<int>(reach) : a_.keys;
      first_ = low < first_ ? low : first_;
      last_ = high > last_ ? high : last_;
    }
    if (last_ < first_) first_ = last_;
  }

  int first() const { return first_; }
  int last() const { return last_; }
  int padded() const { return padded_; }

  void run(int begin, int end) {
    load_queries();
    for (int r = 0; r < padded_; ++r) std::memset(sums_ + r * kMostHead, 0, a_.head * sizeof(float));
    for (int key = begin; key < end; key += kBlock) block(key, end - key < kBlock ? end - key : kBlock);
  }

  void write() const {
    for (int r = 0; r < rows_; ++r) {
      const float inverse = total_[r] > 0.f ? 1.f / total_[r] : 0.f;
      T* y = static_cast<T*>(b_.y) + row_offset(r);
      const float* from = sums_ + r * kMostHead;
      each(a_.head, [&](std::int64_t, auto get, auto put) { put(y, get(from) * inverse); });
    }
  }

  // A piece of the keys waits as [padded][head + 2]: sums, maximum, total.
  void save(float* to) const {
    for (int r = 0; r < padded_; ++r, to += a_.head + 2) {
      std::memcpy(to, sums_ + r * kMostHead, a_.head * sizeof(float));
      to[a_.head] = maximum_[r];
      to[a_.head + 1] = total_[r];
    }
  }
  void merge(const float* from, std::int64_t pieces, std::int64_t piece_size) {
    const std::int64_t stride = a_.head + 2;
    for (int r = 0; r < padded_; ++r) {
      float* sums = sums_ + r * kMostHead;
      std::memset(sums, 0, a_.head * sizeof(float));
      for (std::int64_t piece = 0; piece < pieces; ++piece) {
        const float other = from[piece * piece_size + r * stride + a_.head];
        maximum_[r] = other > maximum_[r] ? other : maximum_[r];
      }
      const float origin = maximum_[r] == -kInfinity ? 0.f : maximum_[r];
      for (std::int64_t piece = 0; piece < pieces; ++piece) {
        const float* source = from + piece * piece_size + r * stride;
        const float weight = exponential(splat(source[a_.head] - origin))[0];
        total_[r] += weight * source[a_.head + 1];
        each(a_.head, [&](std::int64_t, auto get, auto put) { put(sums, get(sums) + get(source) * weight); });
      }
    }
  }

 private:
  int query_position(int query) const {
    return a_.causal ? static_cast<int>(b_.positions[std::int64_t{batch_} * a_.queries + query]) : query;
  }
  std::int64_t row_offset(int r) const {
    const int row = first_row_ + r;
    return ((std::int64_t{batch_} * a_.queries + row / group_) * a_.heads + kv_head_ * group_ + row % group_) * a_.head;
  }

  // Scaled, [row][element] for few rows and [element][row] for many; rows past the last are zero.
  void load_queries() {
    for (int r = 0; r < Rows; ++r) {
      float line[kMostHead] = {};
      const T* from = r < rows_ ? static_cast<const T*>(b_.q) + row_offset(r) : nullptr;
      if (from) each(a_.head, [&](std::int64_t, auto get, auto put) { put(line, get(from) * a_.scale); });
      if (Rows == kFew)
        std::memcpy(queries_ + r * kMostHead, line, sizeof line);
      else
        for (int i = 0; i < a_.head; ++i) queries_[i * Rows + r] = line[i];
    }
  }

  void block(int key, int count) {
    const std::int64_t offset = ((std::int64_t{batch_} * a_.kv_heads + kv_head_) * a_.keys + key) * a_.head;
    const T *k = static_cast<const T*>(b_.k) + offset, *v = static_cast<const T*>(b_.v) + offset;
    score(k, count);
    finish_scores(key, count);
    soften(count);
    // A hidden key may hold anything, and zero times NaN would spoil the sum: runs of keys that are shown.
    for (int begin = 0; begin < count;) {
      if (hidden(key + begin)) {
        ++begin;
        continue;
      }
      int end = begin + 1;
      while (end < count && !hidden(key + end)) ++end;
      add_values(v + begin * std::int64_t{a_.head}, begin, end - begin);
      begin = end;
    }
  }

  bool hidden(int key) const { return !a_.causal && b_.positions[std::int64_t{batch_} * a_.keys + key] < 0; }

  void score(const T* k, int count) {
    if constexpr (Rows == kFew) {
      for (int j = 0; j < count; j += 2)
        for (int r = 0; r < padded_; r += kGroup) {
          const int second = j + 1 < count ? j + 1 : j;
          dot_products(queries_ + r * kMostHead, kMostHead, k + j * std::int64_t{a_.head},
                       k + second * std::int64_t{a_.head}, a_.head, scores_ + j * Rows + r,
                       scores_ + second * Rows + r);
        }
    } else {
      const float* keys = widen(k, count);
      std::memset(scores_, 0, sizeof scores_);
      for (int j = 0; j < count; j += kGroup)
        // Past the last key a group reads rows of the scratch that nothing looks at, or steps back.
        if (j + kGroup <= count)
          add_product(scores_ + j * Rows, Rows, keys + j * std::int64_t{a_.head}, a_.head, 1, queries_, Rows, a_.head,
                      Rows);
        else
          for (int rest = j; rest < count; ++rest) add_line(scores_ + rest * Rows, keys + rest * std::int64_t{a_.head});
    }
  }
  void add_line(float* scores, const float* key) {
    for (int r = 0; r < Rows; r += kWidth) {
      Vec total{};
      for (int i = 0; i < a_.head; ++i) total = multiply_add(splat(key[i]), load(queries_ + i * Rows + r), total);
      store(scores + r, total);
    }
  }

  void add_values(const T* v, int begin, int count) {
    const auto add = [&](const auto* values) {
      for (int r = 0; r < padded_; r += kGroup)
        add_product(sums_ + r * kMostHead, kMostHead, scores_ + begin * Rows + r, 1, Rows, values, a_.head, count,
                    a_.head);
    };
    if constexpr (Rows == kFew)
      add(v);
    else
      add(widen(v, count));
  }

  // Many rows read each key and value often: converted once.
  const float* widen(const T* from, int count) {
    if constexpr (sizeof(T) == sizeof(float)) {
      return from;
    } else {
      each(std::int64_t{count} * a_.head, [&](std::int64_t, auto get, auto put) { put(wide_, get(from)); });
      return wide_;
    }
  }

  void finish_scores(int key, int count) {
    if (a_.soft_cap > 0.f) {
      const float twice = 2.f / a_.soft_cap;
      for (int i = 0; i < count * Rows; i += kWidth) {
        const Vec e = exponential(load(scores_ + i) * twice);
        // tanh(x) = 1 - 2 / (e^2x + 1)
        store(scores_ + i, a_.soft_cap - 2.f * a_.soft_cap / (e + 1.f));
      }
    }
    for (int r = 0; r < rows_; ++r) {
      const int row = first_row_ + r, position = position_[r];
      const T* bias = b_.bias
                          ? static_cast<const T*>(b_.bias) + batch_ * a_.bias_batch +
                                (kv_head_ * group_ + row % group_) * a_.bias_head + row / group_ * a_.bias_query + key
                          : nullptr;
      // Keys [low, high) of the block are seen.
      std::int64_t low = 0, high = count;
      if (a_.window) low = std::int64_t{position} - a_.window + 1 - key;
      if (a_.causal && position + 1 - key < high) high = position + 1 - key;
      if (!a_.causal && a_.window && std::int64_t{position} + a_.window - key < high)
        high = std::int64_t{position} + a_.window - key;
      if (position < 0) high = 0;
      for (int j = 0; j < count; ++j) {
        float& value = scores_[j * Rows + r];
        if (j < low || j >= high || hidden(key + j))
          value = -kInfinity;
        else if (bias)
          value += to_float(bias[j]);
      }
    }
  }

  // Scores become exponentials; sums and totals move to the new maximum.
  void soften(int count) {
    bool moved = false;
    float factors[Rows];
    const int width = padded_ < Rows ? (padded_ + kWidth - 1) / kWidth * kWidth : Rows;
    for (int r = 0; r < width; r += kWidth) {
      const Vec before = load(maximum_ + r);
      Vec best = before;
      for (int j = 0; j < count; ++j) best = maximum(best, load(scores_ + j * Rows + r));
      const Vec origin = select(best == -kInfinity, Vec{}, best);
      Vec total{};
      for (int j = 0; j < count; ++j) {
        const Vec e = exponential(load(scores_ + j * Rows + r) - origin);
        store(scores_ + j * Rows + r, e);
        total += e;
      }
      const Vec factor = exponential(before - origin);
      store(factors + r, factor);
      store(total_ + r, load(total_ + r) * factor + total);
      store(maximum_ + r, best);
      for (int lane = 0; lane < kWidth; ++lane) moved |= factor[lane] != 1.f;
    }
    for (int r = 0; moved && r < padded_; ++r) {
      float* sums = sums_ + r * kMostHead;
      each(a_.head, [&](std::int64_t, auto get, auto put) { put(sums, get(sums) * factors[r]); });
    }
  }

  const AttentionParams& a_;
  const AttentionBuffers& b_;
  int batch_, kv_head_, first_row_, group_, rows_ = 0, padded_ = 0, first_ = 0x7fffffff, last_ = 0;
  int position_[Rows];
  float maximum_[Rows], total_[Rows];
  float queries_[kMostHead * Rows], sums_[Rows * kMostHead], scores_[kBlock * Rows];
  float wide_[sizeof(T) == sizeof(float) || Rows == kFew ? 1 : kBlock * kMostHead];
};

template <class T, int Rows>
struct Tiling {
  const AttentionParams& a;
  const AttentionBuffers& b;
  int tiles_a_head = (a.queries * (a.heads / a.kv_heads) + Rows - 1) / Rows;
  std::int64_t tiles = std::int64_t{a.batch} * a.kv_heads * tiles_a_head;

  Tile<T, Rows> tile(std::int64_t i) const {
    const int head = static_cast<int>(i / tiles_a_head);
    return {a, b, head / a.kv_heads, head % a.kv_heads, static_cast<int>(i % tiles_a_head) * Rows};
  }
};

template <class T>
bool decode(const cpu::Pool& pool, const AttentionParams& a, const AttentionBuffers& b) {
  const Tiling<T, kFew> tiling{a, b};
  std::int64_t longest = 0;
  for (std::int64_t i = 0; i < tiling.tiles; ++i) {
    const auto tile = tiling.tile(i);
    longest = tile.last() - tile.first() > longest ? tile.last() - tile.first() : longest;
  }
  // Enough pieces for the threads to share evenly, none of them short.
  const std::int64_t most = tiling.tiles < 16 ? 16 / tiling.tiles : 1, wanted = longest / 256;
  const std::int64_t pieces = wanted < 1 ? 1 : wanted < most ? wanted : most;
  const std::int64_t piece_size = std::int64_t{kFew} * (a.head + 2);
  float* partial = nullptr;
  if (pieces > 1) {
    partial = static_cast<float*>(std::malloc(tiling.tiles * pieces * piece_size * sizeof(float)));
    if (!partial) return false;
  }
  const std::int64_t work = (longest / pieces + 1) * a.head;
  pool.ranges(tiling.tiles * pieces, (1 << 14) / work + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      auto tile = tiling.tile(i / pieces);
      const std::int64_t length = tile.last() - tile.first(), piece = i % pieces;
      tile.run(tile.first() + static_cast<int>(length * piece / pieces),
               tile.first() + static_cast<int>(length * (piece + 1) / pieces));
      if (pieces > 1)
        tile.save(partial + i * piece_size);
      else
        tile.write();
    }
  });
  for (std::int64_t i = 0; pieces > 1 && i < tiling.tiles; ++i) {
    auto tile = tiling.tile(i);
    tile.merge(partial + i * pieces * piece_size, pieces, piece_size);
    tile.write();
  }
  std::free(partial);
  return true;
}

template <class T>
void prefill(const cpu::Pool& pool, const AttentionParams& a, const AttentionBuffers& b) {
  const Tiling<T, kMany> tiling{a, b};
  pool.ranges(tiling.tiles, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      auto tile = tiling.tile(i);
      tile.run(tile.first(), tile.last());
      tile.write();
    }
  });
}

}  // namespace

void cached_attention_cpu(const cpu::Pool& pool, DType dtype, const AttentionParams& a, const AttentionBuffers& b,
                          bool& enough_memory) {
  visit_float(dtype, [&](auto tag) {
    using Element = decltype(tag);
    if (a.queries * (a.heads / a.kv_heads) <= 2 * kFew)
      enough_memory = decode<Element>(pool, a, b);
    else
      prefill<Element>(pool, a, b);
  });
}

}  // namespace rocline::ROCLINE_ISA
