// One output element from the elements at one place of each input: unary, binary, ternary and variadic operators,
// with and without broadcasting.
#include <cmath>
#include <functional>
#include <map>

#include "launch.h"

namespace hipsim::provider {
namespace {

using Index = std::function<std::int64_t(std::int64_t)>;
using Compute = std::function<Number(const Number*)>;

std::int64_t itself(std::int64_t i) { return i; }
std::int64_t first(std::int64_t) { return 0; }

struct Operand {
  Elements elements;
  Index index;
};

Task apply(std::vector<Operand> operands, Elements out, std::int64_t count, Compute compute) {
  Task task;
  for (const Operand& each : operands) task.accesses.push_back(range(each.elements, reach(count, each.index), false));
  task.accesses.push_back(range(out, count, true));
  task.body = [operands = std::move(operands), out, count, compute = std::move(compute)] {
    Number values[8];
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::size_t k = 0; k < operands.size(); ++k) values[k] = operands[k].elements.get(operands[k].index(i));
      out.set(i, compute(values));
    }
  };
  return task;
}

// The place in an input that is broadcast: output strides, then the input's.
Index broadcast(const Array<Divisor>& output, const Array<std::int64_t>& input, int rank) {
  return [output, input, rank](std::int64_t i) {
    std::int64_t place = 0;
    for (int d = 0; d < rank; ++d) {
      const std::int64_t divisor = output.items[d].value;
      place += i / divisor * input.items[d];
      i %= divisor;
    }
    return place;
  };
}

double gelu(double x) { return 0.5 * x * (1 + std::erf(x * M_SQRT1_2)); }
double fast_gelu(double x) {
  return 0.5 * x * (1 + std::tanh(x * (0.7978845608028654 + 0.035677408136300125 * x * x)));
}
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Operators of one value and, for some, one constant.
using Unary = double (*)(double value, double constant);
const std::map<std::string, Unary>& unary_operators() {
  static const auto& table = *new std::map<std::string, Unary>{
      {"_IsNan", [](double x, double) { return x != x ? 1. : 0.; }},
      {"Abs", [](double x, double) { return std::fabs(x); }},
      {"Ceil", [](double x, double) { return std::ceil(x); }},
      {"Cos", [](double x, double) { return std::cos(x); }},
      {"Div", [](double x, double divisor) { return x / divisor; }},
      {"Erf", [](double x, double) { return std::erf(x); }},
      {"Exp", [](double x, double) { return std::exp(x); }},
      {"Floor", [](double x, double) { return std::floor(x); }},
      {"Gelu", [](double x, double) { return gelu(x); }},
      {"LeakyRelu", [](double x, double alpha) { return x >= 0 ? x : alpha * x; }},
      {"Log", [](double x, double) { return std::log(x); }},
      {"Neg", [](double x, double) { return -x; }},
      {"Not", [](double x, double) { return x == 0 ? 1. : 0.; }},
      {"QuickGelu", [](double x, double alpha) { return x * sigmoid(alpha * x); }},
      {"Reciprocal", [](double x, double) { return 1 / x; }},
      {"Relu", [](double x, double) { return x > 0 ? x : 0; }},
      {"Round", [](double x, double) { return std::nearbyint(x); }},
      {"Sigmoid", [](double x, double) { return sigmoid(x); }},
      {"Sign", [](double x, double) { return x > 0   ? 1.
                                             : x < 0 ? -1.
                                                     : 0.; }},
      {"Sin", [](double x, double) { return std::sin(x); }},
      {"Softplus", [](double x, double) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }},
      {"Sqrt", [](double x, double) { return std::sqrt(x); }},
      {"Tanh", [](double x, double) { return std::tanh(x); }},
  };
  return table;
}

// <in, out, functor, ...>(in, out, functor, count)
Task unary(const Launch& launch) {
  const std::string name = launch.functor(2);
  const Elements in = launch.elements(0, 0), out = launch.elements(1, 1);
  const std::int64_t count = launch.argument<std::int32_t>(3);
  // A cast keeps whole numbers that a double could not hold.
  if (name == "Cast") return apply({{in, itself}}, out, count, [](const Number* x) { return x[0]; });
  const auto found = unary_operators().find(name);
  if (found == unary_operators().end()) throw Unknown{};
  double constant = 0;
  if (name == "Div") constant = static_cast<double>(in.type->load(launch.bytes(2, in.type->size).data()));
  if (name == "LeakyRelu" || name == "QuickGelu") constant = launch.argument<float>(2);
  return apply({{in, itself}}, out, count, [operation = found->second, constant](const Number* x) {
    return static_cast<Number>(operation(static_cast<double>(x[0]), constant));
  });
}

bool whole(const std::string& type) {
  const Element* element = find_element(type);
  if (!element) throw Unknown{};
  return type.find("char") != std::string::npos || type.find("short") != std::string::npos ||
         type.find("int") != std::string::npos || type.find("long") != std::string::npos;
}

Compute binary_operator(const std::string& name, bool integers) {
  using Binary = Number (*)(Number, Number);
  static const auto& table = *new std::map<std::string, Binary>{
      {"Add", [](Number a, Number b) { return a + b; }},
      {"Sub", [](Number a, Number b) { return a - b; }},
      {"Mul", [](Number a, Number b) { return a * b; }},
      {"Div", [](Number a, Number b) { return a / b; }},
      {"Pow", [](Number a, Number b) { return std::pow(a, b); }},
      {"Max", [](Number a, Number b) { return a != a || a > b ? a : b; }},
      {"Min", [](Number a, Number b) { return a != a || a < b ? a : b; }},
      {"Fmod", [](Number a, Number b) { return std::fmod(a, b); }},
      {"Mod", [](Number a, Number b) { return a - std::floor(a / b) * b; }},
      {"And", [](Number a, Number b) -> Number { return a != 0 && b != 0; }},
      {"Or", [](Number a, Number b) -> Number { return a != 0 || b != 0; }},
      {"Xor", [](Number a, Number b) -> Number { return (a != 0) != (b != 0); }},
      {"Equal", [](Number a, Number b) -> Number { return a == b; }},
      {"Less", [](Number a, Number b) -> Number { return a < b; }},
      {"LessOrEqual", [](Number a, Number b) -> Number { return a <= b; }},
      {"Greater", [](Number a, Number b) -> Number { return a > b; }},
      {"GreaterOrEqual", [](Number a, Number b) -> Number { return a >= b; }},
  };
  // Pow_7 is Pow for models of operator set 7.
  const auto found = table.find(name == "Pow_7" ? "Pow" : name);
  if (found == table.end()) throw Unknown{};
  if (name == "Div" && integers) return [](const Number* x) { return std::trunc(x[0] / x[1]); };
  return [operation = found->second](const Number* x) { return operation(x[0], x[1]); };
}

// <left moves, right moves, out, left, right, functor, ..., type of count>(left, right, out, functor, count)
Task binary_simple(const Launch& launch) {
  return apply({{launch.elements(0, 3), launch.flag(0) ? itself : first},
                {launch.elements(1, 4), launch.flag(1) ? itself : first}},
               launch.elements(2, 2), launch.count(4, launch.parameter(8)),
               binary_operator(launch.functor(5), whole(launch.parameter(3))));
}

// <out, left, right, functor, left is broadcast, right is broadcast, ..., type of count>
// (rank, left strides, left, right strides, right, output strides, out, functor, count)
Task binary_broadcast(const Launch& launch) {
  const int rank = launch.argument<std::int32_t>(0);
  const auto output = launch.argument<Array<Divisor>>(5);
  const auto index = [&](std::size_t flag, std::size_t strides) -> Index {
    if (!launch.flag(flag)) return itself;
    return broadcast(output, launch.argument<Array<std::int64_t>>(strides), rank);
  };
  return apply({{launch.elements(2, 1), index(4, 1)}, {launch.elements(4, 2), index(5, 3)}}, launch.elements(6, 0),
               launch.count(8, launch.parameter(8)), binary_operator(launch.functor(3), whole(launch.parameter(1))));
}

// <out, left, right, functor, ..., type of count>(left, right, height, out, functor, count)
Task binary_per_channel(const Launch& launch) {
  const std::int64_t height = launch.divisor(2);
  return apply(
      {{launch.elements(0, 1), itself}, {launch.elements(1, 2), [height](std::int64_t i) { return i / height; }}},
      launch.elements(3, 0), launch.count(5, launch.parameter(6)),
      binary_operator(launch.functor(3), whole(launch.parameter(1))));
}

// The same with batches: (left, right, height, channels, out, functor, count)
Task binary_per_channel_batches(const Launch& launch) {
  const std::int64_t height = launch.divisor(2), channels = launch.divisor(3);
  return apply(
      {{launch.elements(0, 1), itself}, {launch.elements(1, 2), [=](std::int64_t i) { return i / height % channels; }}},
      launch.elements(4, 0), launch.count(6, launch.parameter(6)),
      binary_operator(launch.functor(3), whole(launch.parameter(1))));
}

// How an input of Where moves: its index type is the template argument "(...BroadcastIndexType)N".
enum class Moves { along, not_at_all, broadcast };
Moves moves(const Launch& launch, std::size_t index) {
  const std::string& text = launch.parameter(index);
  switch (text.back()) {
    case '0': return Moves::along;
    case '1': return Moves::not_at_all;
    case '2': return Moves::broadcast;
    default: throw Unknown{};
  }
}
Number choose(const Number* x) { return x[0] != 0 ? x[1] : x[2]; }

// <type, moves of condition, x, y, ...>(condition, x, y, out, count)
Task where_simple(const Launch& launch) {
  const auto index = [&](std::size_t parameter) { return moves(launch, parameter) == Moves::along ? itself : first; };
  const Elements condition(*find_element("bool"), launch.address(0));
  return apply({{condition, index(1)}, {launch.elements(1, 0), index(2)}, {launch.elements(2, 0), index(3)}},
               launch.elements(3, 0), launch.argument<std::int32_t>(4), choose);
}

// (rank, strides and data of condition, x and y, output strides, out, count)
Task where_broadcast(const Launch& launch) {
  const int rank = static_cast<int>(launch.argument<std::uint64_t>(0));
  const auto output = launch.argument<Array<Divisor>>(7);
  const auto index = [&](std::size_t parameter, std::size_t strides) -> Index {
    switch (moves(launch, parameter)) {
      case Moves::along: return itself;
      case Moves::not_at_all: return first;
      default: return broadcast(output, launch.argument<Array<std::int64_t>>(strides), rank);
    }
  };
  const Elements condition(*find_element("bool"), launch.address(2));
  return apply({{condition, index(1, 1)}, {launch.elements(4, 0), index(2, 3)}, {launch.elements(6, 0), index(3, 5)}},
               launch.elements(8, 0), launch.argument<std::int32_t>(9), choose);
}

// Sum, Min, Max of several inputs of one shape: <type, functor, ...>(functor, count, inputs, out)
Task variadic(const Launch& launch) {
  const auto inputs = launch.argument<Array<const char*>>(2);
  const Element* type = find_element(launch.parameter(0));
  if (!type) throw Unknown{};
  std::vector<Operand> operands;
  for (int i = 0; i < inputs.length; ++i) operands.push_back({{*type, inputs.items[i]}, itself});
  const Compute two = binary_operator(launch.functor(1), false);
  return apply(operands, launch.elements(3, 0), launch.argument<std::int64_t>(1),
               [two, inputs = operands.size()](const Number* x) {
                 Number pair[2] = {x[0], 0};
                 for (std::size_t i = 1; i < inputs; ++i) {
                   pair[1] = x[i];
                   pair[0] = two(pair);
                 }
                 return pair[0];
               });
}

// <functor, type, ...>(in, count, bias, length of the bias, out): out = f(in + bias)
Task biased(const Launch& launch) {
  const std::string name = launch.functor(0);
  double (*const activation)(double) = name == "FastGeLU" ? fast_gelu
                                       : name == "GeLU"   ? gelu
                                       : name == "ReLU"
                                           ? static_cast<double (*)(double)>([](double x) { return x > 0 ? x : 0; })
                                           : nullptr;
  if (!activation) throw Unknown{};
  std::vector<Operand> operands{{launch.elements(0, 1), itself}};
  const std::int64_t length = launch.argument<std::int32_t>(3);
  if (launch.address(2) && length > 0)
    operands.push_back({launch.elements(2, 1), [length](std::int64_t i) { return i % length; }});
  return apply(operands, launch.elements(4, 1), launch.argument<std::int32_t>(1),
               [activation, inputs = operands.size()](const Number* x) {
                 return static_cast<Number>(activation(static_cast<double>(inputs == 2 ? x[0] + x[1] : x[0])));
               });
}

// <type>(length of the bias, in, bias, out), a block for each row
Task bias_gelu(const Launch& launch) {
  const std::int64_t length = launch.argument<std::int64_t>(0), count = length * launch.grid.x;
  return apply(
      {{launch.elements(1, 0), itself}, {launch.elements(2, 0), [length](std::int64_t i) { return i % length; }}},
      launch.elements(3, 0), count,
      [](const Number* x) { return static_cast<Number>(gelu(static_cast<double>(x[0] + x[1]))); });
}

Task fast_gelu_task(Elements in, std::int64_t count, Elements bias, std::int64_t length, Elements out) {
  std::vector<Operand> operands{{in, itself}};
  if (bias && length > 0) operands.push_back({bias, [length](std::int64_t i) { return i % length; }});
  return apply(operands, out, count, [inputs = operands.size()](const Number* x) {
    return static_cast<Number>(fast_gelu(static_cast<double>(inputs == 2 ? x[0] + x[1] : x[0])));
  });
}
// <type, ...>(three constants, count, length of the bias, in, bias, out)
Task fast_gelu_kernel(const Launch& launch) {
  return fast_gelu_task(launch.elements(5, 0), launch.argument<std::int32_t>(3), launch.elements(6, 0),
                        launch.argument<std::int32_t>(4), launch.elements(7, 0));
}
// The same for pairs of halves.
Task fast_gelu_pairs(const Launch& launch) {
  const auto halves = [&](std::size_t index) { return Elements(*find_element("__half"), launch.address(index)); };
  return fast_gelu_task(halves(5), 2 * std::int64_t{launch.argument<std::int32_t>(3)}, halves(6),
                        2 * std::int64_t{launch.argument<std::int32_t>(4)}, halves(7));
}

// <type>(in, out, least, most, least and most where these pointers are null, count)
Task clip(const Launch& launch) {
  const Elements in = launch.elements(0, 0), least = launch.elements(2, 0), most = launch.elements(3, 0);
  std::vector<Operand> operands{{in, itself}};
  if (least) operands.push_back({least, first});
  if (most) operands.push_back({most, first});
  const auto constant = [&](std::size_t index) { return in.type->load(launch.bytes(index, in.type->size).data()); };
  return apply(operands, launch.elements(1, 0), launch.argument<std::int64_t>(6),
               [low = constant(4), high = constant(5), has_low = bool(least), has_high = bool(most)](const Number* x) {
                 const Number floor = has_low ? x[1] : low, ceiling = has_high ? x[has_low ? 2 : 1] : high;
                 return x[0] < floor ? floor : x[0] > ceiling ? ceiling : x[0];
               });
}

}  // namespace

const std::vector<Kernel>& elementwise_kernels() {
  static const auto& table = *new std::vector<Kernel>{
      {"_UnaryElementWise", unary},
      {"_BinaryElementWiseSimple", binary_simple},
      {"_BinaryElementWise", binary_broadcast},
      {"_BinaryElementWiseRhsPerChannelBatch1", binary_per_channel},
      {"_BinaryElementWiseRhsPerChannelBatchN", binary_per_channel_batches},
      {"_TenaryElementWiseSimple", where_simple},
      {"_TenaryElementWise", where_broadcast},
      {"VariadicElementWiseNoBroadcastInputBatchKernel", variadic},
      {"_Clip", clip},
      {"ElementwiseKernel", biased},
      {"ElementwiseKernelVec", biased},
      {"BiasGeluKernel", bias_gelu},
      {"VectorizedBiasGeluKernel", bias_gelu},
      {"FastGeluKernel", fast_gelu_kernel},
      {"FastGeluKernel2", fast_gelu_pairs},
  };
  return table;
}

}  // namespace hipsim::provider
