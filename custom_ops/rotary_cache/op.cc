// RotaryCache(q, k, v, past_k, past_v, position_ids, cos, sin[, q_norm, k_norm]) -> (q, present_k, present_v)
//
// q may hold q, k and v of each token side by side, as one packed projection makes them; k and v have no elements then.
// Normalises (where weights are given) and rotates q and k by each token's position, and stores k and v in slot
// `position` of the cache.  present is past with those slots replaced: in place where both are bound to one buffer,
// after a copy where they are not.  A position of -1 is padding: nothing is stored, and its q comes out as zero.
#include "rotary_cache/params.h"

#include <cstring>

#include "cpu/dispatch.h"
#include "ort/op.h"

ROCLINE_CPU_KERNEL(rotary_cache_cpu, const rocline::cpu::Pool&, rocline::DType, const rocline::RotaryParams&,
                   const rocline::RotaryBuffers&);

namespace rocline {
namespace {

constexpr Schema schema{"RotaryCache",
                        {required("q"), required("k"), required("v"), required("past_k"), required("past_v"),
                         required("position_ids", DType::i64), required("cos", DType::f32), required("sin", DType::f32),
                         optional("q_norm"), optional("k_norm")},
                        {required("q_rotated"), required("present_k"), required("present_v")}};

enum Input { kQ, kK, kV, kPastK, kPastV, kPositions, kCos, kSin, kQNorm, kKNorm };

long long number(std::int64_t value) { return value; }

std::int64_t bytes(const Tensor& tensor) { return tensor.elements() * (tensor.dtype == DType::f32 ? 4 : 2); }

bool overlap(const Tensor& a, const Tensor& b) {
  const char *pa = a.as<char>(), *pb = b.as<char>();
  return bytes(a) > 0 && bytes(b) > 0 && pa < pb + bytes(b) && pb < pa + bytes(a);
}

class RotaryCache final : public Kernel {
 public:
  static Status infer(Inference& shapes) {
    ROCLINE_TRY(shapes.output_like(1, kPastK));
    ROCLINE_TRY(shapes.output_like(2, kPastV));
    SymbolicShape y, k, past;
    ROCLINE_TRY(shapes.input(kQ, y));
    ROCLINE_TRY(shapes.input(kK, k));
    ROCLINE_TRY(shapes.input(kPastK, past));
    if (y.rank == 3 && k.rank == 1 && past.rank == 4) {
      // Packed: less k's and v's columns.
      const bool known = y[-1].known() && past[1].known() && past[3].known();
      y[-1] = known ? Dim{y[-1].size - 2 * past[1].size * past[3].size, ""} : Dim{-1, ""};
    }
    return shapes.output(0, y);
  }

  Status create(const Creation& node) override {
    ROCLINE_TRY(node.attribute("heads", heads_));
    ROCLINE_TRY(node.attribute("kv_heads", kv_heads_));
    ROCLINE_TRY(node.attribute("interleaved", interleaved_));
    ROCLINE_TRY(node.attribute("rotary_dim", rotary_dim_));
    ROCLINE_TRY(node.attribute("epsilon", epsilon_));
    if (heads_ < 1 || kv_heads_ < 1 || heads_ % kv_heads_)
      return Status::error(ort::Error::invalid_argument,
                           "attributes 'heads' %lld and 'kv_heads' %lld: expected a positive multiple of the second",
                           number(heads_), number(kv_heads_));
    if (rotary_dim_ < 0 || rotary_dim_ % 2)
      return Status::error(ort::Error::invalid_argument,
                           "attribute 'rotary_dim' %lld: expected an even number, 0 for the head", number(rotary_dim_));
    ROCLINE_TRY(node.function_named("rotary_cache_copy", copy_));
    return node.function("rotary_cache", rotate_);
  }

  Status cpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    const RotaryParams& params = call.params;
    const auto* positions = context.input(kPositions).as<const long long>();
    const std::int64_t limit = params.rotary && params.positions < params.capacity ? params.positions : params.capacity;
    for (std::int64_t i = 0; i < context.input(kPositions).elements(); ++i)
      if (positions[i] < -1 || positions[i] >= limit)
        return context.refuse(context.input(kPositions),
                              "positions from -1 (padding) to %lld, found %lld in row %lld "
                              "(the cache has %d slots, the tables %d rows)",
                              number(limit - 1), positions[i], number(i / params.tokens), params.capacity,
                              params.positions);
    for (int i : {0, 1})
      if (call.copy[i])
        context.pool().ranges(bytes(call.past[i]), 1 << 18, [&](std::int64_t begin, std::int64_t end) {
          std::memcpy(call.present[i].as<char>() + begin, call.past[i].as<char>() + begin, end - begin);
        });
    rotary_cache_cpu(context.pool(), context.dtype(), params, call.buffers);
    return {};
  }

  Status gpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    gpu::Stream stream;
    ROCLINE_TRY(context.stream(stream));
    constexpr unsigned block = 256;
    for (int i : {0, 1}) {
      const std::int64_t size = bytes(call.past[i]);
      if (!call.copy[i] || size == 0) continue;
      const int vector = aligned(call.past[i].data) && aligned(call.present[i].data) && size % 16 == 0;
      const std::int64_t units = size / (vector ? 16 : 2), wanted = (units + block - 1) / block;
      const int blocks = static_cast<int>(wanted < 4096 ? wanted : 4096);
      ROCLINE_TRY(copy_.launch(stream, {blocks}, block, 0, call.past[i].data, call.present[i].data, number(units),
                               vector, blocks));
    }
    const RotaryParams& params = call.params;
    const RotaryBuffers& b = call.buffers;
    const std::int64_t heads = std::int64_t{params.batch} * params.tokens * (params.heads + 2 * params.kv_heads);
    if (heads * params.head == 0) return {};
    return rotate_.launch(stream, {(heads * params.lanes + block - 1) / block}, block, 0, b.q, b.k, b.v, b.positions,
                          b.cos, b.sin, b.q_norm, b.k_norm, b.y, b.present_k, b.present_v, params);
  }

 private:
  struct Call {
    RotaryParams params{};
    RotaryBuffers buffers{};
    Tensor past[2], present[2];
    bool copy[2] = {};
  };

  static bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

  static const void* given(const Tensor& tensor) {
    return tensor.present && tensor.elements() > 0 ? tensor.data : nullptr;
  }

  Status prepare(Context& context, Call& call) const {
    const Tensor &q = context.input(kQ), &k = context.input(kK), &past_k = context.input(kPastK);
    const Tensor &positions = context.input(kPositions), &cos = context.input(kCos);
    const bool packed = k.shape.rank == 1 && k.elements() == 0;
    const std::int64_t heads = packed ? heads_ + 2 * kv_heads_ : heads_;
    if (q.shape.rank != 3 || q.shape[2] % heads)
      return context.refuse(q, "[batch, tokens, %lld heads * head]%s", number(heads),
                            packed ? ", since 'k' has no elements" : "");
    const std::int64_t batch = q.shape[0], tokens = q.shape[1], head = q.shape[2] / heads;
    const Shape wanted = packed ? k.shape : Shape(batch, tokens, kv_heads_ * head);
    for (Input i : {kK, kV})
      if (context.input(i).shape != wanted)
        return context.refuse(context.input(i), "%s %s to match 'q' %s and 'k' %s",
                              packed ? "no elements" : "[batch, tokens, kv_heads * head]", wanted.text().c_str(),
                              q.shape.text().c_str(), k.shape.text().c_str());
    if (past_k.shape.rank != 4 || past_k.shape != Shape(batch, kv_heads_, past_k.shape[2], head))
      return context.refuse(past_k, "[batch, kv_heads, capacity, head] [%lld, %lld, capacity, %lld] to match 'q' %s",
                            number(batch), number(kv_heads_), number(head), q.shape.text().c_str());
    if (context.input(kPastV).shape != past_k.shape)
      return context.refuse(context.input(kPastV), "the shape of 'past_k', %s", past_k.shape.text().c_str());
    const std::int64_t capacity = past_k.shape[2];
    if (positions.shape != Shape(batch, tokens))
      return context.refuse(positions, "[batch, tokens] %s", Shape(batch, tokens).text().c_str());
    const std::int64_t rotary = cos.elements() == 0 ? 0 : rotary_dim_ ? rotary_dim_ : head;
    if (rotary && (cos.shape.rank != 2 || cos.shape[1] * 2 != rotary || rotary > head))
      return context.refuse(cos,
                            "[positions, %lld], half of the %lld rotated elements of a head of %lld, or no elements",
                            number(rotary / 2), number(rotary), number(head));
    if (context.input(kSin).shape != cos.shape)
      return context.refuse(context.input(kSin), "the shape of 'cos', %s", cos.shape.text().c_str());
    for (Input i : {kQNorm, kKNorm})
      if (given(context.input(i)) && context.input(i).shape != Shape(head))
        return context.refuse(context.input(i), "[%lld], the size of a head, or no elements", number(head));
    constexpr std::int64_t most = 0x7fffffff;
    if (q.elements() > most || k.elements() > most || capacity > most || cos.elements() > most)
      return context.refuse(q, "at most 2^31 - 1 elements in 'q', 'k' and the tables");
    const std::int64_t element = context.dtype() == DType::f32 ? 4 : 2, q_columns = heads_ * head * element;
    const auto* after_q = static_cast<const char*>(q.data) + q_columns;

    Tensor y;
    ROCLINE_TRY(context.output(0, Shape(batch, tokens, heads_ * head), y));
    for (int i : {0, 1}) {
      call.past[i] = context.input(i ? kPastV : kPastK);
      ROCLINE_TRY(context.output(1 + i, past_k.shape, call.present[i]));
      call.copy[i] = call.present[i].data != call.past[i].data;
    }
    for (int i : {0, 1})
      for (const Tensor* other : {&call.past[0], &call.past[1], &call.present[1 - i], &y})
        if (overlap(call.present[i], *other) && !(other == &call.past[i] && !call.copy[i]))
          return context.refuse(call.past[i],
                                "output '%s' to be bound to this very buffer or to one apart from it: it "
                                "overlaps '%s'",
                                call.present[i].name, other->name);

    const auto small = [](std::int64_t value) { return static_cast<int>(value); };
    RotaryParams& p = call.params;
    p.batch = small(batch), p.tokens = small(tokens), p.heads = small(heads_), p.kv_heads = small(kv_heads_);
    p.head = small(head), p.capacity = small(capacity), p.rotary = small(rotary);
    p.q_stride = small(heads * head), p.kv_stride = small(packed ? heads * head : kv_heads_ * head);
    p.positions = rotary ? small(cos.shape[0]) : 0;
    p.interleaved = interleaved_ != 0;
    p.epsilon = epsilon_;
    RotaryBuffers& b = call.buffers;
    b = {q.data,
         packed ? after_q : k.data,
         packed ? after_q + kv_heads_ * head * element : context.input(kV).data,
         positions.as<const long long>(),
         cos.as<const float>(),
         context.input(kSin).as<const float>(),
         given(context.input(kQNorm)),
         given(context.input(kKNorm)),
         y.data,
         call.present[0].data,
         call.present[1].data};
    p.vector = head % 16 == 0 && rotary % (interleaved_ ? 8 : 16) == 0;
    for (const void* pointer :
         {b.q, b.k, b.v, static_cast<const void*>(b.cos), static_cast<const void*>(b.sin), b.q_norm, b.k_norm,
          static_cast<const void*>(b.y), static_cast<const void*>(b.present_k), static_cast<const void*>(b.present_v)})
      p.vector = p.vector && aligned(pointer);
    const std::int64_t units = (head + (p.vector ? 15 : 1)) / (p.vector ? 16 : 2);
    for (p.lanes = 1; p.lanes < units && p.lanes < 32;) p.lanes *= 2;
    return {};
  }

  std::int64_t heads_ = 0, kv_heads_ = 0, interleaved_ = 0, rotary_dim_ = 0;
  float epsilon_ = 1e-6f;
  gpu::Function rotate_, copy_;
};

ROCLINE_REGISTER(RotaryCache, schema);

}  // namespace
}  // namespace rocline
