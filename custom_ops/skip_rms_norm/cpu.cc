// SkipRmsNorm on the CPU.
#include "cpu/vec.h"

namespace rocline::ROCLINE_ISA {
namespace {

// kept <- x + skip, rounded to the element type; returns the sum of squares of what `kept` then holds.
template <class Element>
float add_rows(const Element* x, const Element* skip, Element* kept, std::int64_t hidden) {
  Vec squares{};
  each(hidden, [&](std::int64_t, auto get, auto put) {
    put(kept, get(x) + get(skip));
    const Vec value = get(kept);
    squares = multiply_add(value, value, squares);
  });
  return sum(squares);
}

template <class Element>
float sum_of_squares(const Element* x, std::int64_t hidden) {
  Vec squares{};
  each(hidden, [&](std::int64_t, auto get, auto) {
    const Vec value = get(x);
    squares = multiply_add(value, value, squares);
  });
  return sum(squares);
}

}  // namespace

// x, skip, y, total: [rows, hidden]; weight: [hidden].  skip and total may be null; y and total may be x or skip.
void skip_rms_norm_cpu(const cpu::Pool& pool, DType dtype, const void* x, const void* skip, const void* weight, void* y,
                       void* total, std::int64_t rows, std::int64_t hidden, float epsilon) {
  visit_float(dtype, [&](auto tag) {
    using Element = decltype(tag);
    pool.ranges(rows, 1 + (1 << 14) / (hidden + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t offset = row * hidden;
        const Element* from = static_cast<const Element*>(x) + offset;
        Element* out = static_cast<Element*>(y) + offset;
        Element* kept = total ? static_cast<Element*>(total) + offset : nullptr;
        float squares;
        if (skip) {
          // Without a second output the sum waits in y for its norm.
          Element* added = kept ? kept : out;
          squares = add_rows(from, static_cast<const Element*>(skip) + offset, added, hidden);
          from = added;
        } else {
          squares = sum_of_squares(from, hidden);
          if (kept && kept != from) std::memcpy(kept, from, sizeof(Element) * hidden);
        }
        const float scale = 1.f / __builtin_sqrtf(squares / static_cast<float>(hidden) + epsilon);
        const auto* w = static_cast<const Element*>(weight);
        each(hidden, [&](std::int64_t, auto get, auto put) { put(out, get(from) * scale * get(w)); });
      }
    });
  });
}

}  // namespace rocline::ROCLINE_ISA
