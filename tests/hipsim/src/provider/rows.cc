// Kernels that reduce along rows: norms, softmax, sums and means.
#include <cmath>

#include "launch.h"

namespace hipsim::provider {
namespace {

// One row's sum of up to three inputs, normalised: what LayerNorm and SkipLayerNorm share.
struct Norm {
  Elements in, skip, bias;           // skip and bias may be null
  Elements gamma, beta;              // may be null
  Elements out, sum;                 // sum may be null: in + skip + bias
  Elements mean, inverse_deviation;  // may be null
  std::int64_t rows, length;
  double epsilon;
  bool simplified;             // root mean square
  std::int64_t broadcast = 0;  // which row's gamma: 0 the only one, n > 0 row / n, n < 0 row % -n
};

void run(const Norm& norm) {
  std::vector<double> row(static_cast<std::size_t>(norm.length));
  for (std::int64_t r = 0; r < norm.rows; ++r) {
    const std::int64_t start = r * norm.length;
    double mean = 0, squares = 0;
    for (std::int64_t i = 0; i < norm.length; ++i) {
      Number value = norm.in.get(start + i);
      if (norm.skip) value += norm.skip.get(start + i);
      if (norm.bias) value += norm.bias.get(i);
      row[static_cast<std::size_t>(i)] = static_cast<double>(value);
      if (norm.sum) norm.sum.set(start + i, value);
      mean += static_cast<double>(value);
    }
    mean /= static_cast<double>(norm.length);
    const double centre = norm.simplified ? 0 : mean;
    for (double value : row) squares += (value - centre) * (value - centre);
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(norm.length) + norm.epsilon);
    const std::int64_t b = norm.broadcast;
    const std::int64_t parameters = b == 0 ? 0 : norm.length * (b > 0 ? r / b : r % -b);
    for (std::int64_t i = 0; i < norm.length; ++i) {
      Number value = (row[static_cast<std::size_t>(i)] - centre) * inverse;
      if (norm.gamma) value *= norm.gamma.get(parameters + i);
      if (norm.beta && !norm.simplified) value += norm.beta.get(parameters + i);
      norm.out.set(start + i, value);
    }
    if (norm.mean) norm.mean.set(r, mean);
    if (norm.inverse_deviation) norm.inverse_deviation.set(r, inverse);
  }
}

Task norm_task(const Norm& norm) {
  Task task{"", [norm] { run(norm); }, {}};
  const auto add = [&](const Elements& elements, std::int64_t count, bool writes) {
    if (elements) task.accesses.push_back(range(elements, count, writes));
  };
  const std::int64_t all = norm.rows * norm.length, b = norm.broadcast;
  const std::int64_t sets = b == 0 ? 1 : b > 0 ? (norm.rows - 1) / b + 1 : -b;
  add(norm.in, all, false);
  add(norm.skip, all, false);
  add(norm.bias, norm.length, false);
  add(norm.gamma, sets * norm.length, false);
  add(norm.beta, sets * norm.length, false);
  add(norm.out, all, true);
  add(norm.sum, all, true);
  add(norm.mean, norm.rows, true);
  add(norm.inverse_deviation, norm.rows, true);
  return task;
}

double epsilon(const Launch& launch, std::size_t index, std::size_t type) {
  return launch.parameter(type) == "double" ? launch.argument<double>(index) : launch.argument<float>(index);
}

// <in, wide, out, simplified>(out, mean, inverse deviation, in, rows, length, epsilon, gamma, beta, broadcast, skip,
// bias, sum)
Task layer_norm(const Launch& launch) {
  return norm_task({launch.elements(3, 0), launch.elements(10, 0), launch.elements(11, 0), launch.elements(7, 2),
                    launch.elements(8, 2), launch.elements(0, 2), launch.elements(12, 0), launch.elements(1, 1),
                    launch.elements(2, 1), launch.argument<std::int32_t>(4), launch.argument<std::int32_t>(5),
                    epsilon(launch, 6, 1), launch.flag(3), launch.argument<std::int32_t>(9)});
}

// <in, wide, out, ..., simplified>(length, in, skip, beta, gamma, bias, epsilon, out, sum[, has bias, has sum]); a
// block for each row
Task skip_layer_norm(const Launch& launch, bool simplified) {
  const Elements none(*find_element("float"), nullptr);
  return norm_task({launch.elements(1, 0), launch.elements(2, 0), launch.elements(5, 0), launch.elements(4, 2),
                    launch.elements(3, 2), launch.elements(7, 2), launch.elements(8, 0), none, none, launch.grid.x,
                    launch.argument<std::int32_t>(0), epsilon(launch, 6, 1), simplified});
}
Task skip_layer_norm_in_registers(const Launch& launch) { return skip_layer_norm(launch, launch.flag(5)); }
Task skip_layer_norm_any(const Launch& launch) { return skip_layer_norm(launch, launch.flag(4)); }

// <type, ...>(length, tokens, segments, beta, gamma, words, positions, segment vectors, epsilon, out, sum, position ids,
// whether these are one row for all); the grid is tokens by rows.  Which vectors are read shows when the task runs.
Task embed_layer_norm(const Launch& launch) {
  const std::int64_t tokens = launch.grid.x, all = tokens * launch.grid.y, length = launch.argument<std::int32_t>(0);
  const auto ids = [&](std::size_t index) { return Elements(*find_element("int"), launch.address(index)); };
  const Elements words = ids(1), segments = ids(2), positions = ids(11);
  const Elements word = launch.elements(5, 0), position = launch.elements(6, 0), segment = launch.elements(7, 0);
  const Elements out = launch.elements(9, 0), sum = launch.elements(10, 0), none(*out.type, nullptr);
  const bool one_row = launch.argument<bool>(12);
  const double epsilon = static_cast<double>(out.type->load(launch.bytes(8, out.type->size).data()));
  const Element& wide = *find_element("float");
  Task task = norm_task({out, none, none, launch.elements(4, 0), launch.elements(3, 0), out, none, none, none, all,
                         length, epsilon, false});
  task.accesses.push_back(range(words, all, false));
  if (segments) task.accesses.push_back(range(segments, all, false));
  if (positions) task.accesses.push_back(range(positions, one_row ? tokens : all, false));
  if (sum) task.accesses.push_back(range(sum, all * length, true));
  task.body = [=, gamma = launch.elements(4, 0), beta = launch.elements(3, 0)] {
    // The sum is normalised as it is, before it is rounded.
    std::vector<float> rows(static_cast<std::size_t>(all * length), 0.f);
    for (std::int64_t token = 0; token < all; ++token) {
      const auto add = [&](const Elements& table, std::int64_t row) {
        touch(table.data + static_cast<std::size_t>(row * length) * table.type->size,
              static_cast<std::size_t>(length) * table.type->size, false);
        for (std::int64_t i = 0; i < length; ++i)
          rows[static_cast<std::size_t>(token * length + i)] += static_cast<float>(table.get(row * length + i));
      };
      add(word, static_cast<std::int64_t>(words.get(token)));
      const std::int64_t at = token % tokens;
      add(position, positions ? static_cast<std::int64_t>(positions.get(one_row ? at : token)) : at);
      if (segment) add(segment, segments ? static_cast<std::int64_t>(segments.get(token)) : 0);
    }
    const Elements in(wide, rows.data());
    run({in, none, none, gamma, beta, out, none, none, none, all, length, epsilon, false});
    for (std::int64_t i = 0; sum && i < all * length; ++i) sum.set(i, in.get(i));
  };
  return task;
}

// <type>(in, length of the axis, elements that a step of it passes over, out, count, exclusive, reverse)
Task cumulative_sum(const Launch& launch) {
  const Elements in = launch.elements(0, 0), out = launch.elements(3, 0);
  const std::int64_t length = launch.divisor(1), step = launch.divisor(2), count = launch.argument<std::int64_t>(4);
  const bool exclusive = launch.argument<bool>(5), reverse = launch.argument<bool>(6);
  return {"",
          [=] {
            for (std::int64_t i = 0; i < count; ++i) {
              const std::int64_t place = i / step % length, first = i - place * step;
              Number sum = 0;
              for (std::int64_t k = 0; k < length; ++k)
                if ((reverse ? k > place : k < place) || (k == place && !exclusive)) sum += in.get(first + k * step);
              out.set(i, sum);
            }
          },
          {range(in, count, false), range(out, count, true)}};
}

Task softmax_task(Elements in, Elements out, std::int64_t rows, std::int64_t length, std::int64_t in_stride,
                  std::int64_t out_stride, bool logarithm) {
  Task task;
  task.accesses = {range(in, (rows - 1) * in_stride + length, false),
                   range(out, (rows - 1) * out_stride + length, true)};
  task.body = [=] {
    for (std::int64_t r = 0; r < rows; ++r) {
      double most = -INFINITY, sum = 0;
      const auto value = [&](std::int64_t i) { return static_cast<double>(in.get(r * in_stride + i)); };
      for (std::int64_t i = 0; i < length; ++i) most = std::fmax(most, value(i));
      for (std::int64_t i = 0; i < length; ++i) sum += std::exp(value(i) - most);
      for (std::int64_t i = 0; i < length; ++i) {
        const double shifted = value(i) - most;
        out.set(r * out_stride + i, logarithm ? shifted - std::log(sum) : std::exp(shifted) / sum);
      }
    }
  };
  return task;
}

// <in, out, wide, log2 of the length>(out, in, rows, stride, length, logarithm)
Task softmax_of_waves(const Launch& launch) {
  const std::int64_t stride = launch.argument<std::int32_t>(3);
  return softmax_task(launch.elements(1, 0), launch.elements(0, 1), launch.argument<std::int32_t>(2),
                      launch.argument<std::int32_t>(4), stride, stride, launch.argument<bool>(5));
}

// <..., in, wide, out, epilogue>(out, in, length, input stride, output stride); a block for each row
Task softmax_of_blocks(const Launch& launch) {
  return softmax_task(launch.elements(1, 1), launch.elements(0, 3), launch.grid.x, launch.argument<std::int32_t>(2),
                      launch.argument<std::int32_t>(3), launch.argument<std::int32_t>(4),
                      launch.functor(4) == "LogSoftMaxForwardEpilogue");
}

// <in, out, wide, operation, last operation, is it a mean>(rows, columns, in, out, buffer, counts): one value a row
Task reduce_columns(const Launch& launch) {
  const std::int64_t rows = launch.argument<std::int32_t>(0), columns = launch.argument<std::int32_t>(1);
  const Elements in = launch.elements(2, 0), out = launch.elements(3, 1);
  const bool square = launch.functor(3) == "Square", root = launch.functor(4) == "Sqrt", mean = launch.flag(5);
  return {"",
          [=] {
            for (std::int64_t r = 0; r < rows; ++r) {
              double sum = 0;
              for (std::int64_t i = 0; i < columns; ++i) {
                const auto value = static_cast<double>(in.get(r * columns + i));
                sum += square ? value * value : value;
              }
              if (mean) sum /= static_cast<double>(columns);
              out.set(r, root ? std::sqrt(sum) : sum);
            }
          },
          {range(in, rows * columns, false), range(out, rows, true)}};
}

// <in, out, wide>(in, out, rows, columns): adds one value a column to what is there
Task reduce_rows(const Launch& launch) {
  const std::int64_t rows = launch.argument<std::int32_t>(2), columns = launch.argument<std::int32_t>(3);
  const Elements in = launch.elements(0, 0), out = launch.elements(1, 1);
  return {"",
          [=] {
            for (std::int64_t i = 0; i < columns; ++i) {
              auto sum = static_cast<double>(out.get(i));
              for (std::int64_t r = 0; r < rows; ++r) sum += static_cast<double>(in.get(r * columns + i));
              out.set(i, sum);
            }
          },
          {range(in, rows * columns, false), range(out, columns, false), range(out, columns, true)}};
}

}  // namespace

const std::vector<Kernel>& row_kernels() {
  static const auto& table = *new std::vector<Kernel>{
      {"cuApplyLayerNorm", layer_norm},
      {"SkipLayerNormKernelSmall", skip_layer_norm_in_registers},
      {"SkipLayerNormKernelVec", skip_layer_norm_in_registers},
      {"SkipLayerNormKernel", skip_layer_norm_any},
      {"EmbedLayerNormKernel", embed_layer_norm},
      {"_CumSumKernel", cumulative_sum},
      {"softmax_warp_forward", softmax_of_waves},
      {"softmax_block_forward", softmax_of_blocks},
      {"reduce_matrix_columns_kernel", reduce_columns},
      {"reduce_matrix_rows_kernel", reduce_rows},
  };
  return table;
}

}  // namespace hipsim::provider
