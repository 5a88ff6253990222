// RotaryCache on the CPU: one head of one token at a time.
#include "cpu/vec.h"
#include "rotary_cache/params.h"

namespace rocline::ROCLINE_ISA {
namespace {

// to[0, n) = from[0, n) * scale * norm, norm null where there is none.
template <class T>
void scale_run(const T* from, const T* norm, float scale, T* to, std::int64_t n) {
  if (!norm) {
    if (to != from) std::memcpy(to, from, n * sizeof(T));
    return;
  }
  each(n, [&](std::int64_t, auto get, auto put) { put(to, get(from) * scale * get(norm)); });
}

template <class T>
void rotate_halves(const T* from, const T* norm, float scale, const float* cos, const float* sin, T* to,
                   std::int64_t half_size) {
  const T *from_b = from + half_size, *norm_b = norm ? norm + half_size : nullptr;
  T* to_b = to + half_size;
  each(half_size, [&](std::int64_t, auto get, auto put) {
    Vec a = get(from), b = get(from_b);
    const Vec c = get(cos), s = get(sin);
    if (norm) {
      a = a * scale * get(norm);
      b = b * scale * get(norm_b);
    }
    put(to, a * c - b * s);
    put(to_b, b * c + a * s);
  });
}

template <class T>
void rotate_pairs(const T* from, const T* norm, float scale, const float* cos, const float* sin, T* to,
                  std::int64_t size) {
  std::int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    Vec x = load(from + i), c, s, swapped;
    if (norm) x = x * scale * load(norm + i);
    for (int lane = 0; lane < kWidth; ++lane) {
      c[lane] = cos[(i + lane) / 2];
      s[lane] = lane % 2 ? sin[(i + lane) / 2] : -sin[(i + lane) / 2];
      swapped[lane] = x[lane ^ 1];
    }
    store(to + i, x * c + swapped * s);
  }
  for (; i < size; i += 2) {
    float a = to_float(from[i]), b = to_float(from[i + 1]);
    if (norm) {
      a *= scale * to_float(norm[i]);
      b *= scale * to_float(norm[i + 1]);
    }
    from_float(a * cos[i / 2] - b * sin[i / 2], to[i]);
    from_float(b * cos[i / 2] + a * sin[i / 2], to[i + 1]);
  }
}

template <class T>
void rotate_head(const RotaryParams& p, const RotaryBuffers& buffers, const T* from, const T* norm,
                 std::int64_t position, T* to) {
  float scale = 1.f;
  if (norm) {
    Vec squares{};
    each(p.head, [&](std::int64_t, auto get, auto) { squares += get(from) * get(from); });
    scale = 1.f / __builtin_sqrtf(sum(squares) / static_cast<float>(p.head) + p.epsilon);
  }
  const float *cos = buffers.cos + position * (p.rotary / 2), *sin = buffers.sin + position * (p.rotary / 2);
  if (p.rotary && p.interleaved)
    rotate_pairs(from, norm, scale, cos, sin, to, p.rotary);
  else if (p.rotary)
    rotate_halves(from, norm, scale, cos, sin, to, p.rotary / 2);
  scale_run(from + p.rotary, norm ? norm + p.rotary : nullptr, scale, to + p.rotary, p.head - p.rotary);
}

template <class T>
void one_head(const RotaryParams& p, const RotaryBuffers& b, std::int64_t token, int slot) {
  const std::int64_t position = b.positions[token];
  if (slot < p.heads) {
    const T* from = static_cast<const T*>(b.q) + token * p.q_stride + slot * p.head;
    T* to = static_cast<T*>(b.y) + (token * p.heads + slot) * p.head;
    if (position < 0)
      std::memset(static_cast<void*>(to), 0, p.head * sizeof(T));
    else
      rotate_head(p, b, from, static_cast<const T*>(b.q_norm), position, to);
    return;
  }
  if (position < 0) return;
  const bool is_k = slot < p.heads + p.kv_heads;
  const int kv_head = is_k ? slot - p.heads : slot - p.heads - p.kv_heads;
  const std::int64_t from = token * p.kv_stride + kv_head * p.head;
  const std::int64_t to = ((token / p.tokens * p.kv_heads + kv_head) * p.capacity + position) * p.head;
  if (is_k)
    rotate_head(p, b, static_cast<const T*>(b.k) + from, static_cast<const T*>(b.k_norm), position,
                static_cast<T*>(b.present_k) + to);
  else
    std::memcpy(static_cast<void*>(static_cast<T*>(b.present_v) + to), static_cast<const T*>(b.v) + from,
                p.head * sizeof(T));
}

}  // namespace

void rotary_cache_cpu(const cpu::Pool& pool, DType dtype, const RotaryParams& p, const RotaryBuffers& buffers) {
  if (p.head == 0) return;
  const int slots = p.heads + 2 * p.kv_heads;
  visit_float(dtype, [&](auto tag) {
    using Element = decltype(tag);
    pool.ranges(std::int64_t{p.batch} * p.tokens * slots, (1 << 14) / p.head + 1,
                [&](std::int64_t begin, std::int64_t end) {
                  for (std::int64_t item = begin; item < end; ++item)
                    one_head<Element>(p, buffers, item / slots, static_cast<int>(item % slots));
                });
  });
}

}  // namespace rocline::ROCLINE_ISA
