// SwiGlu(gate[, up]; activation = "silu") -> y = activation(gate) * up; without `up`, `gate` holds both, side by side.
#include "cpu/dispatch.h"
#include "ort/op.h"
#include "swi_glu/activation.h"

ROCLINE_CPU_KERNEL(swi_glu_cpu, const rocline::cpu::Pool&, rocline::DType, rocline::Activation, const void* gate,
                   const void* up, void* y, std::int64_t rows, std::int64_t columns, std::int64_t stride);

namespace rocline {
namespace {

constexpr Schema schema{"SwiGlu", {required("gate"), optional("up")}, {required("y")}};

constexpr struct {
  const char* name;
  Activation activation;
} kActivations[] = {{"silu", Activation::silu}, {"gelu", Activation::gelu}, {"gelu_tanh", Activation::gelu_tanh}};

class SwiGlu final : public Kernel {
 public:
  static Status infer(Inference& shapes) {
    SymbolicShape y;
    ROCLINE_TRY(shapes.input(0, y));
    int inputs = 0;
    ROCLINE_TRY(shapes.inputs(inputs));
    if (inputs == 1 && y.rank > 0) {
      Dim& columns = y[-1];
      // A size that is not known needs a name: ONNX Runtime would write -1.
      columns = columns.known() ? Dim{columns.size / 2, ""} : Dim{-1, "gated_columns"};
    }
    return shapes.output(0, y);
  }

  Status create(const Creation& node) override {
    char name[16] = "silu";
    ROCLINE_TRY(node.attribute("activation", name, sizeof name));
    for (const auto& known : kActivations)
      if (std::strcmp(name, known.name) == 0) {
        activation_ = known.activation;
        return node.function("swi_glu", function_);
      }
    return Status::error(ort::Error::invalid_argument,
                         "attribute 'activation': \"%s\", expected silu, gelu or gelu_tanh", name);
  }

  Status cpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    if (call.rows * call.columns > 0)
      swi_glu_cpu(context.pool(), context.dtype(), activation_, call.gate, call.up, call.y, call.rows, call.columns,
                  call.stride);
    return {};
  }

  Status gpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    const std::int64_t total = call.rows * call.columns;
    if (total == 0) return {};
    gpu::Stream stream;
    ROCLINE_TRY(context.stream(stream));
    constexpr unsigned threads = 256;
    // One 16-byte vector a thread.
    const std::int64_t a_block = threads * (context.dtype() == DType::f32 ? 4 : 8);
    return function_.launch(stream, {(total + a_block - 1) / a_block}, threads, 0, call.gate, call.up, call.y, total,
                            call.columns, call.stride, static_cast<int>(activation_));
  }

 private:
  struct Call {
    const char *gate = nullptr, *up = nullptr;
    void* y = nullptr;
    std::int64_t rows = 0, columns = 0, stride = 0;
  };

  static Status prepare(Context& context, Call& call) {
    const Tensor &gate = context.input(0), &up = context.input(1);
    Shape shape = gate.shape;
    if (up.present) {
      if (up.shape != shape) return context.refuse(up, "the shape of 'gate', %s", shape.text().c_str());
    } else {
      if (shape.rank < 1 || shape[-1] % 2 != 0)
        return context.refuse(gate, "an even last dimension that holds gate and up, as input 'up' is left off");
      shape[-1] /= 2;
    }
    Tensor y;
    ROCLINE_TRY(context.output(0, shape, y));
    call.gate = static_cast<const char*>(gate.data);
    call.y = y.data;
    if (shape.elements() == 0) return {};
    if (up.present) {
      call.up = static_cast<const char*>(up.data);
      call.rows = 1;
      call.columns = call.stride = shape.elements();
    } else {
      call.columns = shape[-1];
      call.rows = shape.elements() / call.columns;
      call.stride = 2 * call.columns;
      call.up = call.gate + call.columns * (context.dtype() == DType::f32 ? 4 : 2);
    }
    return {};
  }

  Activation activation_ = Activation::silu;
  gpu::Function function_;
};

ROCLINE_REGISTER(SwiGlu, schema);

}  // namespace
}  // namespace rocline
