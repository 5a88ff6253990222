// y = activation(gate) * up; y: [rows, columns]; gate and up have `stride` elements from one row to the next.
#include "kernels/device.h"
#include "swi_glu/activation.h"

namespace rocline {

constexpr int kThreads = 256;

// 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions: within 1.5e-7 of erf.
ROCLINE_DEVICE float erf_fast(float x) {
  const float magnitude = x < 0.f ? -x : x, t = reciprocal_fast(1.f + 0.3275911f * magnitude);
  float p = multiply_add(t, 1.061405429f, -1.453152027f);
  p = multiply_add(p, t, 1.421413741f);
  p = multiply_add(p, t, -0.284496736f);
  p = multiply_add(p, t, 0.254829592f);
  const float y = 1.f - p * t * exp_fast(-x * x);
  return x < 0.f ? -y : y;
}

// The same for every thread of a launch: a uniform branch, so that one kernel serves all three.
ROCLINE_DEVICE float activate(float x, Activation activation) {
  if (activation == Activation::silu) return x * sigmoid(x);
  if (activation == Activation::gelu) return 0.5f * x * (1.f + erf_fast(x * kInverseRoot2));
  return 0.5f * x * (1.f + tanh_fast(kRoot2OverPi * (x + kCubic * x * x * x)));
}

template <class Element>
ROCLINE_DEVICE void swi_glu(const Element* gate, const Element* up, Element* y, i64 total, i64 columns, i64 stride,
                            Activation activation) {
  constexpr int lanes = Vec<Element>::lanes;
  const i64 first = static_cast<i64>(block_x()) * (kThreads * lanes);
  // The block's own row and column by one division of 64 bits, which is uniform; its threads' by one of 32.
  const i64 row = first / columns, column = first % columns;
  const u32 width = columns >> 31 ? ~0u : static_cast<u32>(columns);
  const auto place = [&](u32 offset) {
    const u64 at = column + offset;
    const u64 rows = at < width ? 0 : (at >> 32 ? at / columns : static_cast<u32>(at) / width);
    return (row + static_cast<i64>(rows)) * stride + static_cast<i64>(at - rows * columns);
  };
  // Rows hold whole vectors, or there is just one row.
  const bool whole = (columns == total || (columns % lanes == 0 && stride % lanes == 0)) && aligned16(gate) &&
                     aligned16(up) && aligned16(y) && first + kThreads * lanes <= total;
  if (whole) {
    const u32 offset = thread_x() * lanes;
    const i64 from = place(offset);
    const Vec<Element> g = load16(gate + from), u = load16(up + from);
    Vec<Element> out;
#pragma unroll
    for (int e = 0; e < lanes; ++e) out.at[e] = activate(g.at[e], activation) * u.at[e];
    store16(y + first + offset, out);
    return;
  }
#pragma unroll 1
  for (u32 offset = thread_x(); offset < kThreads * lanes && first + offset < total; offset += kThreads) {
    const i64 from = place(offset);
    y[first + offset] = from_float<Element>(activate(to_float(gate[from]), activation) * to_float(up[from]));
  }
}

#define ENTRY(suffix, Element)                                                                             \
  extern "C" __global__ __launch_bounds__(kThreads) void swi_glu_##suffix(                                 \
      const Element* gate, const Element* up, Element* y, i64 total, i64 columns, i64 stride, int activation) { \
    swi_glu(gate, up, y, total, columns, stride, static_cast<Activation>(activation));                     \
  }
ROCLINE_ENTRIES(ENTRY)

}  // namespace rocline
