// AddScale on the CPU.
#include "cpu/vec.h"

namespace rocline::ROCLINE_ISA {

// a, y: [rows, columns]; b: [columns]
void add_scale_cpu(const cpu::Pool& pool, DType dtype, const void* a, const void* b, void* y, std::int64_t rows,
                   std::int64_t columns, float scale) {
  visit_float(dtype, [&](auto tag) {
    using Element = decltype(tag);
    // Pieces of the flat array, not rows: rows may be one, or a few elements wide.
    pool.ranges(rows * columns, 1 << 14, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t column = begin % columns; begin < end; column = 0) {
        const std::int64_t count = columns - column < end - begin ? columns - column : end - begin;
        const auto* pa = static_cast<const Element*>(a) + begin;
        const auto* pb = static_cast<const Element*>(b) + column;
        auto* py = static_cast<Element*>(y) + begin;
        each(count, [&](std::int64_t, auto get, auto put) { put(py, (get(pa) + get(pb)) * scale); });
        begin += count;
      }
    });
  });
}

}  // namespace rocline::ROCLINE_ISA
