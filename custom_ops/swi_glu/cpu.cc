// SwiGlu on the CPU.
#include "cpu/vec.h"
#include "swi_glu/activation.h"

namespace rocline::ROCLINE_ISA {
namespace {

Vec tanh(Vec x) { return 1.f - 2.f / (1.f + exponential(2.f * x)); }

// 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions: within 1.5e-7 of erf.
Vec erf(Vec x) {
  const Vec magnitude = maximum(x, -x), t = 1.f / (1.f + 0.3275911f * magnitude);
  Vec p = multiply_add(t, splat(1.061405429f), splat(-1.453152027f));
  p = multiply_add(p, t, splat(1.421413741f));
  p = multiply_add(p, t, splat(-0.284496736f));
  p = multiply_add(p, t, splat(0.254829592f));
  const Vec y = 1.f - p * t * exponential(-x * x);
  return select(x < 0.f, -y, y);
}

template <Activation Kind>
Vec activate(Vec x) {
  if constexpr (Kind == Activation::silu) return x / (1.f + exponential(-x));
  if constexpr (Kind == Activation::gelu) return 0.5f * x * (1.f + erf(x * kInverseRoot2));
  return 0.5f * x * (1.f + tanh(kRoot2OverPi * (x + kCubic * x * x * x)));
}

template <class Element, Activation Kind>
void gate_rows(const cpu::Pool& pool, const void* gate, const void* up, void* y, std::int64_t rows,
               std::int64_t columns, std::int64_t stride) {
  // Pieces of the flat output, not rows: there may be one row.
  pool.ranges(rows * columns, 1 << 12, [&](std::int64_t begin, std::int64_t end) {
    while (begin < end) {
      const std::int64_t row = begin / columns, column = begin % columns;
      const std::int64_t count = columns - column < end - begin ? columns - column : end - begin;
      const auto* g = static_cast<const Element*>(gate) + row * stride + column;
      const auto* u = static_cast<const Element*>(up) + row * stride + column;
      auto* out = static_cast<Element*>(y) + begin;
      each(count, [&](std::int64_t, auto get, auto put) { put(out, activate<Kind>(get(g)) * get(u)); });
      begin += count;
    }
  });
}

}  // namespace

// gate, up: [rows, columns] with `stride` elements from row to row; y: [rows, columns] without gaps.
void swi_glu_cpu(const cpu::Pool& pool, DType dtype, Activation activation, const void* gate, const void* up, void* y,
                 std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  visit_float(dtype, [&](auto tag) {
    using Element = decltype(tag);
    switch (activation) {
      case Activation::silu: return gate_rows<Element, Activation::silu>(pool, gate, up, y, rows, columns, stride);
      case Activation::gelu: return gate_rows<Element, Activation::gelu>(pool, gate, up, y, rows, columns, stride);
      default: return gate_rows<Element, Activation::gelu_tanh>(pool, gate, up, y, rows, columns, stride);
    }
  });
}

}  // namespace rocline::ROCLINE_ISA
