// AddScale(a, b; scale = 1) -> y = (a + b) * scale, b broadcast over the leading dimensions of a.
#include "cpu/dispatch.h"
#include "ort/op.h"

ROCLINE_CPU_KERNEL(add_scale_cpu, const rocline::cpu::Pool&, rocline::DType, const void* a, const void* b, void* y,
                   std::int64_t rows, std::int64_t columns, float scale);

namespace rocline {
namespace {

constexpr Schema schema{"AddScale", {required("a"), required("b")}, {required("y")}};

class AddScale final : public Kernel {
 public:
  static Status infer(Inference& shapes) { return shapes.output_like(0, 0); }

  Status create(const Creation& node) override {
    ROCLINE_TRY(node.attribute("scale", scale_));
    return node.function("add_scale", function_);
  }

  Status cpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    if (call.total > 0)
      add_scale_cpu(context.pool(), context.dtype(), call.a, call.b, call.y, call.total / call.columns, call.columns,
                    scale_);
    return {};
  }

  Status gpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    if (call.total == 0) return {};
    gpu::Stream stream;
    ROCLINE_TRY(context.stream(stream));
    constexpr unsigned block = 256;
    // One 16-byte vector a thread.
    const std::int64_t per_block = block * (context.dtype() == DType::f32 ? 4 : 8);
    return function_.launch(stream, {(call.total + per_block - 1) / per_block}, block, 0, call.a, call.b, call.y,
                            call.total, call.columns, scale_);
  }

 private:
  struct Call {
    const void *a = nullptr, *b = nullptr;
    void* y = nullptr;
    std::int64_t total = 0, columns = 0;
  };

  static Status prepare(Context& context, Call& call) {
    const Tensor &a = context.input(0), &b = context.input(1);
    int lead = 0;
    while (lead < b.shape.rank && b.shape.dims[lead] == 1) ++lead;
    const int trailing = b.shape.rank - lead, offset = a.shape.rank - trailing;
    bool fits = b.shape.rank <= a.shape.rank;
    for (int i = 0; fits && i < trailing; ++i) fits = a.shape.dims[offset + i] == b.shape.dims[lead + i];
    if (!fits) return context.refuse(b, "the last dimensions of 'a' %s", a.shape.text().c_str());
    Tensor y;
    ROCLINE_TRY(context.output(0, a.shape, y));
    call = {a.data, b.data, y.data, a.elements(), b.elements()};
    return {};
  }

  float scale_ = 1.f;
  gpu::Function function_;
};

ROCLINE_REGISTER(AddScale, schema);

}  // namespace
}  // namespace rocline
