// SkipRmsNorm(x, weight[, skip]; epsilon = 1e-5) -> y = rms_norm(x + skip) * weight[, sum = x + skip]
#include "cpu/dispatch.h"
#include "ort/op.h"

ROCLINE_CPU_KERNEL(skip_rms_norm_cpu, const rocline::cpu::Pool&, rocline::DType, const void* x, const void* skip,
                   const void* weight, void* y, void* sum, std::int64_t rows, std::int64_t hidden, float epsilon);

namespace rocline {
namespace {

constexpr Schema schema{
    "SkipRmsNorm", {required("x"), required("weight"), optional("skip")}, {required("y"), optional("sum")}};

class SkipRmsNorm final : public Kernel {
 public:
  static Status infer(Inference& shapes) { return shapes.output_like(0, 0); }

  Status create(const Creation& node) override {
    ROCLINE_TRY(node.attribute("epsilon", epsilon_));
    ROCLINE_TRY(node.function("skip_rms_norm_block", block_));
    return node.function("skip_rms_norm_group", group_);
  }

  Status cpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    if (call.rows > 0)
      skip_rms_norm_cpu(context.pool(), context.dtype(), call.x, call.skip, call.weight, call.y, call.sum, call.rows,
                        call.hidden, epsilon_);
    return {};
  }

  Status gpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    if (call.rows == 0) return {};
    gpu::Stream stream;
    ROCLINE_TRY(context.stream(stream));
    // The sizes that kernel.hip names kThreads, kGroup and kHeld.
    constexpr unsigned threads = 256, group = 32, held = 4;
    const std::int64_t lanes = context.dtype() == DType::f32 ? 4 : 8;
    const bool is_short = call.hidden <= group * held * lanes;
    const std::int64_t rows_a_block = is_short ? threads / group : 1;
    return (is_short ? group_ : block_)
        .launch(stream, {(call.rows + rows_a_block - 1) / rows_a_block}, threads, 0, call.x, call.skip, call.weight,
                call.y, call.sum, call.rows, call.hidden, epsilon_);
  }

 private:
  struct Call {
    const void *x = nullptr, *skip = nullptr, *weight = nullptr;
    void *y = nullptr, *sum = nullptr;
    std::int64_t rows = 0, hidden = 0;
  };

  static Status prepare(Context& context, Call& call) {
    const Tensor &x = context.input(0), &weight = context.input(1), &skip = context.input(2);
    if (x.shape.rank < 1) return context.refuse(x, "at least one dimension");
    const std::int64_t hidden = x.shape[-1];
    if (weight.shape != Shape(hidden))
      return context.refuse(weight, "[%lld], the last dimension of 'x'", static_cast<long long>(hidden));
    if (skip.present && skip.shape != x.shape) return context.refuse(skip, "the shape of 'x', %s", x.shape.text().c_str());
    Tensor y, sum;
    ROCLINE_TRY(context.output(0, x.shape, y));
    ROCLINE_TRY(context.output(1, x.shape, sum));
    const std::int64_t rows = x.elements() > 0 ? x.elements() / hidden : 0;
    call = {x.data, skip.data, weight.data, y.data, sum.data, rows, hidden};
    return {};
  }

  float epsilon_ = 1e-5f;
  gpu::Function block_, group_;
};

ROCLINE_REGISTER(SkipRmsNorm, schema);

}  // namespace
}  // namespace rocline
