// PoolNormalize on the CPU.
#include <cmath>

#include "cpu/vec.h"
#include "pool_normalize/pooling.h"

namespace rocline::ROCLINE_ISA {
namespace {

// The sum of a split's tokens for `vectors` vectors of columns, held in registers.
template <int vectors, class Element>
void sum_columns(const Element* x, const std::int64_t* mask, std::int64_t tokens, std::int64_t hidden, float* to) {
  Vec sum[vectors] = {};
  for (std::int64_t token = 0; token < tokens; ++token) {
    if (mask[token] == 0) continue;
    for (int i = 0; i < vectors; ++i) sum[i] += load(x + token * hidden + i * kWidth);
  }
  for (int i = 0; i < vectors; ++i) store(to + i * kWidth, sum[i]);
}

template <class Element>
void sum_tokens(const Element* x, const std::int64_t* mask, std::int64_t tokens, std::int64_t hidden, float* to) {
  constexpr int vectors = 8;
  std::int64_t column = 0;
  for (; column + vectors * kWidth <= hidden; column += vectors * kWidth)
    sum_columns<vectors>(x + column, mask, tokens, hidden, to + column);
  for (; column + kWidth <= hidden; column += kWidth) sum_columns<1>(x + column, mask, tokens, hidden, to + column);
  for (; column < hidden; ++column) {
    float sum = 0.f;
    for (std::int64_t token = 0; token < tokens; ++token)
      if (mask[token] != 0) sum += to_float(x[token * hidden + column]);
    to[column] = sum;
  }
}

void scale_to_one(float* y, std::int64_t hidden) {
  Vec squares = {};
  each(hidden, [&](std::int64_t, auto get, auto) { squares += get(y) * get(y); });
  const float length = std::sqrt(sum(squares)), divisor = length > 1e-12f ? length : 1e-12f;
  each(hidden, [&](std::int64_t, auto get, auto put) { put(y, get(y) / divisor); });
}

}  // namespace

// partial: [batch, splits_of(tokens), hidden], for the mean alone
void pool_normalize_cpu(const cpu::Pool& pool, DType dtype, const void* x, const std::int64_t* mask, float* y,
                        float* partial, std::int64_t batch, std::int64_t tokens, std::int64_t hidden,
                        pooling::Mode mode, bool normalize) {
  visit_float(dtype, [&](auto tag) {
    using Element = decltype(tag);
    const auto* from = static_cast<const Element*>(x);
    const std::int64_t splits = pooling::splits_of(tokens);
    if (mode == pooling::kMean) {
      const std::int64_t work = splits ? tokens / splits * hidden : 1;
      pool.ranges(batch * splits, 1 + (1 << 15) / (work + 1), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t item = begin; item < end; ++item) {
          const std::int64_t row = item / splits, split = item % splits;
          const std::int64_t first = tokens * split / splits, last = tokens * (split + 1) / splits;
          sum_tokens(from + (row * tokens + first) * hidden, mask + row * tokens + first, last - first, hidden,
                     partial + item * hidden);
        }
      });
    }
    pool.ranges(batch, 1 + (1 << 13) / (hidden + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        float* to = y + row * hidden;
        std::int64_t count = 0, place = mode == pooling::kClass && tokens > 0 ? 0 : -1;
        for (std::int64_t token = 0; mode != pooling::kClass && token < tokens; ++token)
          if (mask[row * tokens + token] != 0) {
            ++count;
            place = token;
          }
        if (mode == pooling::kMean) {
          const float divisor = count > 0 ? static_cast<float>(count) : 1e-9f;
          const float* sums = partial + row * splits * hidden;
          each(hidden, [&](std::int64_t, auto get, auto put) {
            Vec sum = {};
            for (std::int64_t split = 0; split < splits; ++split) sum += get(sums + split * hidden);
            put(to, sum / divisor);
          });
        } else if (place < 0) {
          std::memset(to, 0, hidden * sizeof *to);
        } else {
          const Element* token = from + (row * tokens + place) * hidden;
          each(hidden, [&](std::int64_t, auto get, auto put) { put(to, get(token)); });
        }
        if (normalize) scale_to_one(to, hidden);
      }
    });
  });
}

}  // namespace rocline::ROCLINE_ISA
