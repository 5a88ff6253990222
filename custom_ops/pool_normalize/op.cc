// PoolNormalize(x, attention_mask; mode = "mean", normalize = 1) -> y, workspace
#include "cpu/dispatch.h"
#include "ort/op.h"
#include "pool_normalize/pooling.h"

ROCLINE_CPU_KERNEL(pool_normalize_cpu, const rocline::cpu::Pool&, rocline::DType, const void* x,
                   const std::int64_t* mask, float* y, float* partial, std::int64_t batch, std::int64_t tokens,
                   std::int64_t hidden, rocline::pooling::Mode mode, bool normalize);

namespace rocline {
namespace {

constexpr Schema schema{"PoolNormalize",
                        {required("x"), required("attention_mask", DType::i64)},
                        {required("y", DType::f32), required("workspace", DType::f32)}};

class PoolNormalize final : public Kernel {
 public:
  static Status infer(Inference& shapes) {
    SymbolicShape x, y, workspace;
    ROCLINE_TRY(shapes.input(0, x));
    y.rank = 2;
    workspace.rank = 3;
    if (x.rank == 3) {
      y[0] = workspace[0] = x[0];
      y[1] = workspace[2] = x[2];
    }
    ROCLINE_TRY(shapes.output(0, y));
    return shapes.output(1, workspace);
  }

  Status create(const Creation& node) override {
    char mode[8] = "mean";
    std::int64_t normalize = 1;
    ROCLINE_TRY(node.attribute("mode", mode, sizeof mode));
    ROCLINE_TRY(node.attribute("normalize", normalize));
    normalize_ = normalize != 0;
    if (std::strcmp(mode, "mean") == 0) mode_ = pooling::kMean;
    else if (std::strcmp(mode, "cls") == 0) mode_ = pooling::kClass;
    else if (std::strcmp(mode, "last") == 0) mode_ = pooling::kLast;
    else return Status::error(ort::Error::invalid_argument, "attribute 'mode': '%s', expected mean, cls or last", mode);
    if (mode_ != pooling::kMean) return node.function("pool_normalize_pick", pick_);
    ROCLINE_TRY(node.function("pool_normalize_sum", sum_));
    return node.function_named("pool_normalize_finish", finish_);
  }

  Status cpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    if (call.batch * call.hidden > 0)
      pool_normalize_cpu(context.pool(), context.dtype(), call.x, call.mask, call.y, call.partial, call.batch,
                         call.tokens, call.hidden, mode_, normalize_);
    return {};
  }

  Status gpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    if (call.batch * call.hidden == 0) return {};
    gpu::Stream stream;
    ROCLINE_TRY(context.stream(stream));
    // The sizes that kernel.hip names kThreads and kRowThreads.
    constexpr unsigned threads = 256, row_threads = 512;
    const int normalize = normalize_;
    if (mode_ != pooling::kMean) {
      const int last = mode_ == pooling::kLast;
      return pick_.launch(stream, {call.batch}, row_threads, 0, call.x, call.mask, call.y, call.tokens, call.hidden,
                          last, normalize);
    }
    const pooling::Tiling tiling = pooling::tiling_of(call.hidden, context.dtype() == DType::f32 ? 4 : 8);
    const std::int64_t blocks = call.batch * pooling::splits_of(call.tokens) * tiling.tiles;
    if (blocks > 0)
      ROCLINE_TRY(sum_.launch(stream, {blocks}, threads, 0, call.x, call.mask, call.partial, call.tokens, call.hidden));
    return finish_.launch(stream, {call.batch}, row_threads, 0, call.partial, call.mask, call.y, call.tokens,
                          call.hidden, normalize);
  }

 private:
  struct Call {
    const void* x = nullptr;
    const std::int64_t* mask = nullptr;
    float *y = nullptr, *partial = nullptr;
    std::int64_t batch = 0, tokens = 0, hidden = 0;
  };

  Status prepare(Context& context, Call& call) const {
    const Tensor &x = context.input(0), &mask = context.input(1);
    if (x.shape.rank != 3 || x.shape[1] > pooling::kMaxTokens)
      return context.refuse(x, "[batch, tokens, hidden] with at most %lld tokens", pooling::kMaxTokens);
    const std::int64_t batch = x.shape[0], tokens = x.shape[1], hidden = x.shape[2];
    if (mask.shape != Shape(batch, tokens))
      return context.refuse(mask, "the first two dimensions of 'x' %s", x.shape.text().c_str());
    Tensor y, workspace;
    ROCLINE_TRY(context.output(0, Shape(batch, hidden), y));
    const std::int64_t splits = mode_ == pooling::kMean ? pooling::splits_of(tokens) : 0;
    ROCLINE_TRY(context.output(1, Shape(batch, splits, hidden), workspace));
    call = {x.data, mask.as<const std::int64_t>(), y.as<float>(), workspace.as<float>(), batch, tokens, hidden};
    return {};
  }

  pooling::Mode mode_ = pooling::kMean;
  bool normalize_ = true;
  gpu::Function sum_, finish_, pick_;
};

ROCLINE_REGISTER(PoolNormalize, schema);

}  // namespace
}  // namespace rocline
