// CachedAttention(q, present_k, present_v, position_ids[, bias]) -> y[, workspace]
//
// causal = 1: position_ids [batch, queries] are the queries' own; a query at p sees the slots (p - window, p] of the
// cache, and one at -1 is padding whose y is zero.
// causal = 0: present_k and present_v are keys and values of this run, position_ids [batch, keys] belong to the keys: a
// negative one hides its key from every query.  With a window, query i sees the keys nearer than `window` to key i.
// score = soft_cap(scale * q . k) + bias; a query that sees nothing gives zero.
#include "cached_attention/params.h"

#include "cpu/dispatch.h"
#include "ort/op.h"

ROCLINE_CPU_KERNEL(cached_attention_cpu, const rocline::cpu::Pool&, rocline::DType, const rocline::AttentionParams&,
                   const rocline::AttentionBuffers&, bool& enough_memory);

namespace rocline {
namespace {

constexpr Schema schema{"CachedAttention",
                        {required("q"), required("present_k"), required("present_v"),
                         required("position_ids", DType::i64), optional("bias")},
                        {required("y"), optional("workspace", DType::f32)}};

enum Input { kQ, kK, kV, kPositions, kBias };

long long number(std::int64_t value) { return value; }
bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }
std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

class CachedAttention final : public Kernel {
 public:
  static Status infer(Inference& shapes) {
    ROCLINE_TRY(shapes.output_like(0, kQ));
    SymbolicShape workspace;
    workspace.rank = 1;
    return shapes.output(1, workspace);
  }

  Status create(const Creation& node) override {
    ROCLINE_TRY(node.attribute("heads", heads_));
    ROCLINE_TRY(node.attribute("kv_heads", kv_heads_));
    ROCLINE_TRY(node.attribute("scale", scale_));
    ROCLINE_TRY(node.attribute("window", window_));
    ROCLINE_TRY(node.attribute("soft_cap", soft_cap_));
    ROCLINE_TRY(node.attribute("causal", causal_));
    if (heads_ < 1 || kv_heads_ < 1 || heads_ % kv_heads_)
      return Status::error(ort::Error::invalid_argument,
                           "attributes 'heads' %lld and 'kv_heads' %lld: expected a positive multiple of the second",
                           number(heads_), number(kv_heads_));
    if (window_ < 0 || window_ > 0x7fffffff)
      return Status::error(ort::Error::invalid_argument, "attribute 'window' %lld: expected 0 (none) to 2^31 - 1",
                           number(window_));
    if (!(soft_cap_ >= 0.f))
      return Status::error(ort::Error::invalid_argument, "attribute 'soft_cap' %g: expected 0 (none) or more",
                           static_cast<double>(soft_cap_));
    ROCLINE_TRY(node.function("cached_attention_decode_64", decode_[0]));
    ROCLINE_TRY(node.function("cached_attention_decode_128", decode_[1]));
    ROCLINE_TRY(node.function("cached_attention_decode_256", decode_[2]));
    ROCLINE_TRY(node.function_named("cached_attention_prefill_64", prefill_[0]));
    ROCLINE_TRY(node.function_named("cached_attention_prefill_128", prefill_[1]));
    ROCLINE_TRY(node.function_named("cached_attention_prefill_256", prefill_[2]));
    return node.function_named("cached_attention_combine", combine_);
  }

  Status cpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    const Tensor& positions = context.input(kPositions);
    for (std::int64_t i = 0; causal_ && i < positions.elements(); ++i)
      if (const std::int64_t p = positions.as<std::int64_t>()[i]; p < -1 || p >= call.params.keys)
        return context.refuse(positions, "positions from -1 (padding) to %d, found %lld in row %lld",
                              call.params.keys - 1, number(p), number(i / call.params.queries));
    if (call.empty) return {};
    bool enough_memory = true;
    cached_attention_cpu(context.pool(), context.dtype(), call.params, call.buffers, enough_memory);
    return enough_memory ? Status{} : Status::error(ort::Error::fail, "out of memory");
  }

  Status gpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    if (call.empty) return {};
    gpu::Stream stream;
    ROCLINE_TRY(context.stream(stream));
    constexpr unsigned block = 256;
    const AttentionParams& p = call.params;
    const AttentionBuffers& b = call.buffers;
    const std::int64_t rows = std::int64_t{p.queries} * (p.heads / p.kv_heads),
                       heads = std::int64_t{p.batch} * p.kv_heads;
    const int size = p.head <= 64 ? 0 : p.head <= 128 ? 1 : 2;
    if (!decodes(p) || !p.vector)
      return prefill_[size].launch(stream, {divide_up(rows, kPrefillRows), static_cast<unsigned>(heads)}, block, 0, b.q,
                                   b.k, b.v, b.positions, b.bias, b.y, p);
    const auto splits = static_cast<unsigned>(p.splits),
               groups = static_cast<unsigned>(divide_up(rows, 4 * kDecodeRows));
    ROCLINE_TRY(decode_[size].launch(stream, {heads, splits, groups}, block, 0, b.q, b.k, b.v, b.positions, b.bias, b.y,
                                     call.workspace, p));
    if (p.splits == 1) return {};
    return combine_.launch(stream, {std::int64_t{p.batch} * p.queries * p.heads}, 128u, 0, call.workspace, b.y, p);
  }

 private:
  struct Call {
    AttentionParams params{};
    AttentionBuffers buffers{};
    float* workspace = nullptr;
    bool empty = false;
  };

  // Few query rows: bound by reading the cache, which the decode kernel splits over the device.
  static bool decodes(const AttentionParams& p) {
    return p.queries == 1 || std::int64_t{p.queries} * (p.heads / p.kv_heads) <= 8 * kDecodeRows;
  }

  // Pieces of the keys, so that about a thousand blocks keep any device busy; from shapes alone.
  static std::int64_t splits(const AttentionParams& p) {
    const std::int64_t rows = std::int64_t{p.queries} * (p.heads / p.kv_heads);
    const std::int64_t blocks = std::int64_t{p.batch} * p.kv_heads * divide_up(rows, 4 * kDecodeRows);
    const std::int64_t wanted = divide_up(1024, blocks < 1 ? 1 : blocks), most = divide_up(p.keys, 128);
    const std::int64_t pieces = wanted < most ? wanted : most;
    return !decodes(p) || pieces < 1 ? 1 : pieces < kMostSplits ? pieces : kMostSplits;
  }

  Status prepare(Context& context, Call& call) const {
    const Tensor &q = context.input(kQ), &k = context.input(kK), &v = context.input(kV);
    const Tensor &positions = context.input(kPositions), &bias = context.input(kBias);
    if (q.shape.rank != 3 || q.shape[2] % heads_)
      return context.refuse(q, "[batch, queries, %lld heads * head]", number(heads_));
    const std::int64_t batch = q.shape[0], queries = q.shape[1], head = q.shape[2] / heads_;
    if (head > kMostHead)
      return context.refuse(q, "a head of at most %d elements, found %lld", kMostHead, number(head));
    if (k.shape.rank != 4 || k.shape != Shape(batch, kv_heads_, k.shape[2], head))
      return context.refuse(k, "[batch, kv_heads, keys, head] [%lld, %lld, keys, %lld] to match 'q' %s", number(batch),
                            number(kv_heads_), number(head), q.shape.text().c_str());
    if (v.shape != k.shape) return context.refuse(v, "the shape of 'present_k', %s", k.shape.text().c_str());
    const std::int64_t keys = k.shape[2];
    const Shape expected(batch, causal_ ? queries : keys);
    if (positions.shape != expected)
      return context.refuse(positions, "[batch, %s] %s where 'causal' is %lld", causal_ ? "queries" : "keys",
                            expected.text().c_str(), number(causal_));
    if (!causal_ && window_ && queries != keys)
      return context.refuse(k, "as many keys as 'q' has queries, %lld, for a window where 'causal' is 0",
                            number(queries));
    const bool biased = bias.present && bias.elements() > 0;
    if (biased) {
      const Shape& s = bias.shape;
      if (s.rank != 4 || (s[0] != 1 && s[0] != batch) || (s[1] != 1 && s[1] != heads_) ||
          (s[2] != 1 && s[2] != queries) || s[3] != keys)
        return context.refuse(bias, "[1 or batch, 1 or heads, 1 or queries, keys] of %s",
                              Shape(batch, heads_, queries, keys).text().c_str());
    }
    constexpr std::int64_t most = 0x7fffffff;
    if (q.elements() > most || batch * kv_heads_ > 65535 || keys > most / kMostHead)
      return context.refuse(q, "at most 2^31 - 1 elements, 65535 rows times key heads, and 2^23 - 1 keys");

    AttentionParams& p = call.params;
    p.batch = static_cast<int>(batch);
    p.heads = static_cast<int>(heads_);
    p.kv_heads = static_cast<int>(kv_heads_);
    p.queries = static_cast<int>(queries);
    p.keys = static_cast<int>(keys);
    p.head = static_cast<int>(head);
    p.causal = causal_ != 0;
    p.window = static_cast<int>(window_);
    p.scale = scale_ != 0.f ? scale_ : 1.f / __builtin_sqrtf(static_cast<float>(head > 0 ? head : 1));
    p.soft_cap = soft_cap_;
    if (biased) {
      const Shape& s = bias.shape;
      p.bias_query = s[2] == 1 ? 0 : keys;
      p.bias_head = s[1] == 1 ? 0 : s[2] * keys;
      p.bias_batch = s[0] == 1 ? 0 : s[1] * s[2] * keys;
    }
    p.dtype = context.dtype() == DType::f32 ? kFloat : context.dtype() == DType::f16 ? kHalf : kBfloat;
    p.vector = head % 8 == 0 && aligned(q.data) && aligned(k.data) && aligned(v.data);
    p.splits = static_cast<int>(splits(p));
    Tensor y, workspace;
    ROCLINE_TRY(context.output(0, q.shape, y));
    // A maximum and a sum go with every partial head.
    const std::int64_t needed = p.splits == 1 ? 0 : batch * queries * heads_ * p.splits * (head + 2);
    ROCLINE_TRY(context.output(1, Shape(needed), workspace));
    if (!workspace.present) p.splits = 1;
    call.workspace = workspace.as<float>();
    call.buffers = {q.data, k.data, v.data, positions.as<const long long>(), biased ? bias.data : nullptr, y.data};
    call.empty = q.elements() == 0;
    return {};
  }

  std::int64_t heads_ = 0, kv_heads_ = 0, window_ = 0, causal_ = 1;
  float scale_ = 0.f, soft_cap_ = 0.f;
  gpu::Function decode_[3], prefill_[3], combine_;
};

ROCLINE_REGISTER(CachedAttention, schema);

}  // namespace
}  // namespace rocline
