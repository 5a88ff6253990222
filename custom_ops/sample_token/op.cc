// SampleToken(logits, temperature, top_k, top_p, min_p, repetition_penalty, seed[, previous]) -> tokens, workspace
#include "cpu/dispatch.h"
#include "ort/op.h"
#include "sample_token/sampling.h"

ROCLINE_CPU_KERNEL(sample_token_cpu, const rocline::cpu::Pool&, rocline::DType, const void* logits,
                   const rocline::sampling::Parameters&, const std::int64_t* previous, std::int64_t previous_count,
                   std::int64_t batch, std::int64_t vocab, std::int64_t* workspace, std::int64_t* tokens);

namespace rocline {
namespace {

enum Input { kLogits, kTemperature, kTopK, kTopP, kMinP, kPenalty, kSeed, kPrevious };

constexpr Schema schema{"SampleToken",
                        {required("logits"), required("temperature", DType::f32), required("top_k", DType::i32),
                         required("top_p", DType::f32), required("min_p", DType::f32),
                         required("repetition_penalty", DType::f32), required("seed", DType::i64),
                         optional("previous", DType::i64)},
                        {required("tokens", DType::i64), required("workspace", DType::i64)}};

class SampleToken final : public Kernel {
 public:
  static Status infer(Inference& shapes) {
    SymbolicShape logits, tokens, workspace;
    ROCLINE_TRY(shapes.input(kLogits, logits));
    tokens.rank = 1;
    workspace.rank = 2;
    if (logits.rank == 2) {
      tokens[0] = workspace[0] = logits[0];
      if (logits[1].known()) workspace[1].size = static_cast<std::int64_t>(sampling::layout_of(logits[1].size).words);
    }
    ROCLINE_TRY(shapes.output(0, tokens));
    return shapes.output(1, workspace);
  }

  Status create(const Creation& node) override {
    ROCLINE_TRY(node.function("sample_token_orders", orders_));
    ROCLINE_TRY(node.function_named("sample_token_ranks", ranks_));
    ROCLINE_TRY(node.function_named("sample_token_narrow", narrow_));
    ROCLINE_TRY(node.function_named("sample_token_sums", sums_));
    return node.function_named("sample_token_draw", draw_);
  }

  Status cpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    if (call.batch == 0) return {};
    sample_token_cpu(context.pool(), context.dtype(), call.logits, call.parameters, call.previous, call.previous_count,
                     call.batch, call.vocab, call.workspace, call.tokens);
    for (std::int64_t row = 0; row < call.batch; ++row)
      if (call.tokens[row] < 0) return refuse_row(context, row, static_cast<sampling::Refusal>(-call.tokens[row]));
    return {};
  }

  Status gpu(Context& context) override {
    Call call;
    ROCLINE_TRY(prepare(context, call));
    if (call.batch == 0) return {};
    gpu::Stream stream;
    ROCLINE_TRY(context.stream(stream));
    constexpr unsigned threads = 256;
    const gpu::Grid chunks{call.batch * sampling::layout_of(call.vocab).chunks}, rows{call.batch};
    ROCLINE_TRY(orders_.launch(stream, chunks, threads, 0, call.logits, call.parameters.penalty,
                               call.parameters.penalty_step, call.previous, call.previous_count, call.workspace,
                               call.vocab));
    ROCLINE_TRY(ranks_.launch(stream, chunks, threads, 0, call.parameters, call.workspace, call.tokens, call.vocab));
    for (int stage = 0; stage < 4; ++stage)
      ROCLINE_TRY(narrow_.launch(stream, chunks, threads, 0, call.workspace, call.vocab, stage));
    ROCLINE_TRY(sums_.launch(stream, chunks, threads, 0, call.workspace, call.vocab));
    return draw_.launch(stream, rows, threads, 0, call.workspace, call.tokens, call.vocab);
  }

 private:
  struct Call {
    const void* logits = nullptr;
    const std::int64_t* previous = nullptr;
    std::int64_t previous_count = 0, batch = 0, vocab = 0;
    std::int64_t *workspace = nullptr, *tokens = nullptr;
    sampling::Parameters parameters{};
  };

  static Status prepare(Context& context, Call& call) {
    const Tensor &logits = context.input(kLogits), &seed = context.input(kSeed), &previous = context.input(kPrevious);
    if (logits.shape.rank != 2 || logits.shape[1] < 1 || logits.shape[1] > sampling::kMaxVocab)
      return context.refuse(logits, "[batch, vocab] with 1 to %lld tokens", sampling::kMaxVocab);
    const std::int64_t batch = logits.shape[0], vocab = logits.shape[1];
    const auto rows = static_cast<long long>(batch);
    for (int index = kTemperature; index <= kPenalty; ++index) {
      const Tensor& input = context.input(index);
      if (input.shape != Shape(1) && input.shape != Shape(batch))
        return context.refuse(input, "[1], or [%lld]: one for each row of 'logits'", rows);
    }
    if (seed.shape != Shape(batch, 2))
      return context.refuse(seed, "[%lld, 2]: a seed and an offset for each row of 'logits'", rows);
    if (previous.present && (previous.shape.rank != 2 || previous.shape[0] != batch))
      return context.refuse(previous, "[%lld, tokens]: what each row of 'logits' has seen, -1 for padding", rows);

    const sampling::Layout layout = sampling::layout_of(vocab);
    Tensor tokens, workspace;
    ROCLINE_TRY(context.output(0, Shape(batch), tokens));
    ROCLINE_TRY(context.output(1, Shape(batch, layout.words), workspace));
    call.logits = logits.data;
    call.previous = previous.as<const std::int64_t>();
    call.previous_count = previous.present ? previous.shape[1] : 0;
    call.batch = batch;
    call.vocab = vocab;
    call.workspace = workspace.as<std::int64_t>() + reinterpret_cast<std::uintptr_t>(workspace.data) % 16 / 8;
    call.tokens = tokens.as<std::int64_t>();
    const auto step = [&](int index) -> sampling::i64 { return context.input(index).shape[0] == 1 ? 0 : 1; };
    call.parameters = {context.input(kTemperature).as<const float>(),
                       context.input(kTopK).as<const std::int32_t>(),
                       context.input(kTopP).as<const float>(),
                       context.input(kMinP).as<const float>(),
                       context.input(kPenalty).as<const float>(),
                       seed.as<const sampling::i64>(),
                       step(kTemperature),
                       step(kTopK),
                       step(kTopP),
                       step(kMinP),
                       step(kPenalty)};
    return {};
  }

  // What the CPU reads beforehand a GPU cannot report: there a token of minus the refusal says it.
  static Status refuse_row(const Context& context, std::int64_t row, sampling::Refusal refusal) {
    const auto at = [&](int index) {
      const Tensor& input = context.input(index);
      return input.as<const float>()[input.shape[0] == 1 ? 0 : row];
    };
    const auto number = static_cast<long long>(row);
    const auto bad = [&](int index, const char* wanted) {
      return Status::error(ort::Error::invalid_argument, "input '%s': %g for row %lld, expected %s",
                           context.input(index).name, static_cast<double>(at(index)), number, wanted);
    };
    switch (refusal) {
      case sampling::kBadTemperature: return bad(kTemperature, "a finite number, 0 (greedy) or more");
      case sampling::kBadTopP: return bad(kTopP, "0 to 1");
      case sampling::kBadMinP: return bad(kMinP, "0 to 1");
      case sampling::kBadPenalty: return bad(kPenalty, "a finite number above 0");
      default:
        return Status::error(ort::Error::invalid_argument, "input 'logits': %s %s, row %lld %s",
                             name_of(context.dtype()), context.input(kLogits).shape.text().c_str(), number,
                             refusal == sampling::kHasNaN ? "holds NaN, expected numbers or -inf"
                                                          : "is all -inf, expected a token that can be drawn");
    }
  }

  gpu::Function orders_, ranks_, narrow_, sums_, draw_;
};

ROCLINE_REGISTER(SampleToken, schema);

}  // namespace
}  // namespace rocline
