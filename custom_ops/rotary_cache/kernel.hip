// RotaryCache on the device.
//   q, y: [batch, tokens, heads, head]   k, v: [batch, tokens, kv_heads, head]   positions: [batch, tokens]
//   (a token of q, k and v starts q_stride or kv_stride elements after the one before: the three may lie side by side)
//   cos, sin: [positions, rotary / 2]    q_norm, k_norm: [head] or null
//   past and present keys and values: [batch, kv_heads, capacity, head]
//
// A group of `lanes` lanes takes one head of q, k or v of one token.  Its lanes hold two runs of Width elements each:
// the two halves that rotate into one another, or two neighbouring runs where nothing does or pairs are interleaved.  A
// group reads all of a head's norm before it writes any of the head, so y may be q.
//
// A position outside [-1, capacity), or past the tables, counts as padding: the device cannot refuse it as the CPU
// does.
#include "kernels/device.h"
#include "rotary_cache/params.h"

namespace rocline {

constexpr int kBlock = 256;

template <class T, int Width>
struct alignas(sizeof(T) * Width < 16 ? sizeof(T) * Width : 16) Run {
  T x[Width];
};

template <class T, int Width>
ROCLINE_DEVICE void widen(const T* from, bool real, float (&out)[Width]) {
  if (!real) return;
  const auto run = *reinterpret_cast<const Run<T, Width>*>(from);
#pragma unroll
  for (int i = 0; i < Width; ++i) out[i] = to_float(run.x[i]);
}

template <class T, int Width>
ROCLINE_DEVICE void narrow(T* to, bool real, const float (&in)[Width]) {
  if (!real) return;
  Run<T, Width> run;
#pragma unroll
  for (int i = 0; i < Width; ++i) run.x[i] = from_float<T>(in[i]);
  *reinterpret_cast<Run<T, Width>*>(to) = run;
}

template <int Width>
ROCLINE_DEVICE void rotate(float (&a)[Width], float (&b)[Width], const float* cos, const float* sin) {
  const auto c = *reinterpret_cast<const Run<float, Width>*>(cos), s = *reinterpret_cast<const Run<float, Width>*>(sin);
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    const float x = a[i], y = b[i];
    a[i] = x * c.x[i] - y * s.x[i];
    b[i] = y * c.x[i] + x * s.x[i];
  }
}

template <int Width>
ROCLINE_DEVICE void rotate_pairs(float (&a)[Width], const float* cos, const float* sin) {
#pragma unroll
  for (int i = 0; i + 1 < Width; i += 2) {
    const float x = a[i], y = a[i + 1], c = cos[i / 2], s = sin[i / 2];
    a[i] = x * c - y * s;
    a[i + 1] = y * c + x * s;
  }
}

template <class T, int Width>
ROCLINE_DEVICE void rotary_cache(const T* q, const T* k, const T* v, const i64* positions, const float* cos,
                                 const float* sin, const T* q_norm, const T* k_norm, T* y, T* present_k, T* present_v,
                                 const RotaryParams& a) {
  const int slots = a.heads + 2 * a.kv_heads, sub = thread_x() & (a.lanes - 1);
  const i64 items = (i64)a.batch * a.tokens * slots;
  // Lanes past the end work on the last item again, without a store: all of a wave must take part in its exchanges.
  const i64 wanted = (i64)block_x() * (kBlock / a.lanes) + thread_x() / a.lanes;
  const bool inside = wanted < items;
  const unsigned item = inside ? wanted : items - 1, token = item / slots, slot = item % slots;
  const i64 position = positions[token];
  const bool live = position >= 0 && position < a.capacity && (a.rotary == 0 || position < a.positions);

  const bool is_q = (int)slot < a.heads, is_k = !is_q && (int)slot < a.heads + a.kv_heads;
  const int kv_head = (is_k ? slot - a.heads : slot - a.heads - a.kv_heads);
  const T* from = is_q ? q + (i64)token * a.q_stride + slot * a.head
                       : (is_k ? k : v) + (i64)token * a.kv_stride + kv_head * a.head;
  const i64 cached = (((i64)(token / a.tokens) * a.kv_heads + kv_head) * a.capacity + (live ? position : 0)) * a.head;
  T* to = is_q ? y + ((i64)token * a.heads + slot) * a.head : (is_k ? present_k : present_v) + cached;
  const T* norm = is_q ? q_norm : is_k ? k_norm : nullptr;
  const int rotary = (is_q || is_k) && live ? a.rotary : 0;
  const float* token_cos = cos + (rotary ? position * (rotary / 2) : 0);
  const float* token_sin = sin + (rotary ? position * (rotary / 2) : 0);
  const bool writes = inside && (live || is_q);

  const int runs = (a.head + Width - 1) / Width, units = (runs + 1) / 2, rotated = rotary / (2 * Width);
  float scale = 1.f;
  if (q_norm || k_norm) {
    float squares = 0.f;
    for (int unit = sub; unit < units; unit += a.lanes) {
      float x[2][Width] = {};
      widen(from + 2 * unit * Width, true, x[0]);
      widen(from + (2 * unit + 1) * Width, 2 * unit + 1 < runs, x[1]);
#pragma unroll
      for (int i = 0; i < Width; ++i) squares += x[0][i] * x[0][i] + x[1][i] * x[1][i];
    }
    for (int mask = a.lanes / 2; mask > 0; mask /= 2) squares += shuffle_xor(squares, mask);
    if (norm) scale = rsqrt_fast(squares / a.head + a.epsilon);
  }

  for (int unit = sub; unit < units; unit += a.lanes) {
    // Interleaved pairs lie in one run of eight; single elements are two runs of one either way.
    const bool halves = !a.interleaved && unit < rotated;
    const int first = halves ? unit * Width : 2 * unit * Width;
    const int second = halves ? first + rotary / 2 : first + Width;
    const bool both = second < a.head;
    float x[2][Width] = {};
    widen(from + first, true, x[0]);
    widen(from + second, both, x[1]);
    if (norm) {
      float w[2][Width] = {};
      widen(norm + first, true, w[0]);
      widen(norm + second, both, w[1]);
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        x[0][i] *= scale * w[0][i];
        x[1][i] *= scale * w[1][i];
      }
    }
    if (halves || (Width == 1 && unit < rotated)) {
      rotate(x[0], x[1], token_cos + unit * Width, token_sin + unit * Width);
    } else if (a.interleaved) {
      if (first < rotary) rotate_pairs(x[0], token_cos + first / 2, token_sin + first / 2);
      if (second < rotary) rotate_pairs(x[1], token_cos + second / 2, token_sin + second / 2);
    }
    if (!live) {
#pragma unroll
      for (int i = 0; i < Width; ++i) x[0][i] = x[1][i] = 0.f;
    }
    narrow(to + first, writes, x[0]);
    narrow(to + second, writes && both, x[1]);
  }
}

}  // namespace rocline

using rocline::RotaryParams;

// grid: batch * tokens * (heads + 2 * kv_heads) * lanes / kBlock
#define ROTARY_CACHE(T, suffix)                                                                              \
  extern "C" __global__ __launch_bounds__(rocline::kBlock) void rotary_cache_##suffix(                       \
      const T* q, const T* k, const T* v, const rocline::i64* positions, const float* cos, const float* sin, \
      const T* q_norm, const T* k_norm, T* y, T* present_k, T* present_v, RotaryParams a) {                  \
    if (a.vector)                                                                                            \
      rocline::rotary_cache<T, 8>(q, k, v, positions, cos, sin, q_norm, k_norm, y, present_k, present_v, a); \
    else                                                                                                     \
      rocline::rotary_cache<T, 1>(q, k, v, positions, cos, sin, q_norm, k_norm, y, present_k, present_v, a); \
  }

ROTARY_CACHE(float, f32)
ROTARY_CACHE(rocline::half, f16)
ROTARY_CACHE(rocline::bfloat, bf16)

// Copies a past cache whole: which slots of a row live cannot be told from the new positions (a row that only pads in
// this run keeps all of its own).  `units` of 16 bytes or, where `vector` is 0, of 2.
extern "C" __global__ __launch_bounds__(rocline::kBlock) void rotary_cache_copy(const void* past, void* present,
                                                                                rocline::i64 units, int vector,
                                                                                int blocks) {
  using namespace rocline;
  const i64 step = static_cast<i64>(blocks) * kBlock;
  for (i64 i = static_cast<i64>(block_x()) * kBlock + thread_x(); i < units; i += step) {
    if (vector)
      static_cast<Bytes16*>(present)[i] = static_cast<const Bytes16*>(past)[i];
    else
      static_cast<u16*>(present)[i] = static_cast<const u16*>(past)[i];
  }
}
