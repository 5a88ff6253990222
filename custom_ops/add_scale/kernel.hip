// y = (a + b) * scale; a, y: [total], b: [columns], repeated along a.
#include "kernels/device.h"

namespace rocline {

constexpr int kThreads = 256;

// Where an element stands in its row, given where the block's first one does: the only division of 64 bits is the
// block's own, and uniform.
ROCLINE_DEVICE i64 column_of(i64 base, u32 offset, i64 columns) {
  const i64 at = base + offset;
  if (columns >> 31) return at < columns ? at : at - columns;
  return static_cast<u32>(at) % static_cast<u32>(columns);
}

template <class Element>
ROCLINE_DEVICE void add_scale(const Element* a, const Element* b, Element* y, i64 total, i64 columns, float scale) {
  constexpr int lanes = Vec<Element>::lanes;
  const i64 first = static_cast<i64>(block_x()) * (kThreads * lanes);
  const i64 base = columns == total ? first : first % columns;
  // b's vectors stay whole only where a row holds a whole number of them, or where there is one row.
  const bool whole = columns == total || columns % lanes == 0;
  if (whole && aligned16(a) && aligned16(b) && aligned16(y) && first + kThreads * lanes <= total) {
    const u32 offset = thread_x() * lanes;
    const i64 i = first + offset;
    const Vec<Element> va = load16(a + i), vb = load16(b + column_of(base, offset, columns));
    Vec<Element> vy;
#pragma unroll
    for (int k = 0; k < lanes; ++k) vy.at[k] = (va.at[k] + vb.at[k]) * scale;
    store16(y + i, vy);
    return;
  }
#pragma unroll 1
  for (u32 offset = thread_x(); offset < kThreads * lanes && first + offset < total; offset += kThreads) {
    const i64 i = first + offset;
    y[i] = from_float<Element>((to_float(a[i]) + to_float(b[column_of(base, offset, columns)])) * scale);
  }
}

#define ENTRY(suffix, Element)                                                                                   \
  extern "C" __global__ __launch_bounds__(kThreads) void add_scale_##suffix(                                     \
      const Element* a, const Element* b, Element* y, i64 total, i64 columns, float scale) {                     \
    add_scale(a, b, y, total, columns, scale);                                                                   \
  }
ROCLINE_ENTRIES(ENTRY)

}  // namespace rocline
