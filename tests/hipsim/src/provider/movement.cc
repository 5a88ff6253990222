// Kernels that only move elements: by size, whatever they hold.
#include <algorithm>
#include <functional>
#include <map>

#include "launch.h"

namespace hipsim::provider {
namespace {

using Index = std::function<std::int64_t(std::int64_t)>;
using Strides = Array<std::int64_t>;
using Divisors = Array<Divisor>;
constexpr std::int64_t kNowhere = -1;  // of a source: zero is stored

std::int64_t itself(std::int64_t i) { return i; }

std::size_t size_of(const Launch& launch, std::size_t type) {
  const Element* element = find_element(launch.parameter(type));
  if (!element) throw Unknown{};
  return element->size;
}

// out[target(i)] = in[source(i)] for i below `count`.
Task move(const char* in, char* out, std::size_t size, std::int64_t count, Index source, Index target = itself) {
  Task task;
  task.accesses = {{in, static_cast<std::size_t>(reach(count, source)) * size, false},
                   {out, static_cast<std::size_t>(reach(count, target)) * size, true}};
  task.body = [=] {
    for (std::int64_t i = 0; i < count; ++i) {
      char* const to = out + static_cast<std::size_t>(target(i)) * size;
      const std::int64_t from = source(i);
      if (from == kNowhere)
        std::memset(to, 0, size);
      else
        std::memcpy(to, in + static_cast<std::size_t>(from) * size, size);
    }
  };
  return task;
}
char* writable(const char* address) { return const_cast<char*>(address); }

// <type>(out, value, count)
Task fill(const Launch& launch) {
  const Elements out = launch.elements(0, 0);
  const std::int64_t count = launch.argument<std::int32_t>(2);
  const auto value = launch.bytes(1, out.type->size);
  return {"",
          [=] {
            for (std::int64_t i = 0; i < count; ++i)
              std::memcpy(out.data + static_cast<std::size_t>(i) * value.size(), value.data(), value.size());
          },
          {range(out, count, true)}};
}

// <type>(out, in, count): one element, repeated.
Task fill_from(const Launch& launch) {
  return move(launch.address(1), writable(launch.address(0)), size_of(launch, 0), launch.argument<std::int32_t>(2),
              [](std::int64_t) { return std::int64_t{0}; });
}

// <type>(block of the input, length of the axis, block of the output, block, indices, bytes of an index, in, out,
// count)
Task gather(const Launch& launch) {
  const std::int64_t input_block = launch.argument<std::int64_t>(0), length = launch.argument<std::int64_t>(1);
  const std::int64_t output_block = launch.divisor(2), block = launch.divisor(3);
  const std::size_t bytes = launch.argument<std::uint64_t>(5);
  const Elements indices(*find_element(bytes == 8 ? "long" : "int"), launch.address(4));
  const std::size_t size = size_of(launch, 0);
  const char* in = launch.address(6);
  char* out = writable(launch.address(7));
  const std::int64_t count = launch.argument<std::int32_t>(8);
  Task task;
  // The indices are on the device: which part of the input is read shows when the task runs.
  task.accesses = {range(indices, output_block / block, false), {out, static_cast<std::size_t>(count) * size, true}};
  task.body = [=] {
    for (std::int64_t i = 0; i < count; i += block) {
      const auto index = static_cast<std::int64_t>(indices.get(i % output_block / block));
      const std::int64_t row = index < 0 ? index + length : index;
      char* const to = out + static_cast<std::size_t>(i) * size;
      const std::size_t run = static_cast<std::size_t>(block) * size;
      if (row < 0 || row >= length) {
        std::memset(to, 0, run);
        continue;
      }
      const char* from = in + static_cast<std::size_t>(i / output_block * input_block + row * block) * size;
      touch(from, run, false);
      std::memcpy(to, from, run);
    }
  };
  return task;
}

// Where an output element comes from: output strides, then the input's.
Index strided(const Divisors& output, const Strides& input, int rank) {
  return [=](std::int64_t i) {
    std::int64_t place = 0;
    for (int d = 0; d < rank; ++d) {
      place += i / output.items[d].value * input.items[d];
      i %= output.items[d].value;
    }
    return place;
  };
}

// <type>(rank, input strides, in, output strides, out, count)
Task transpose(const Launch& launch) {
  return move(launch.address(2), writable(launch.address(4)), size_of(launch, 0), launch.argument<std::int32_t>(5),
              strided(launch.argument<Divisors>(3), launch.argument<Strides>(1), launch.argument<std::int32_t>(0)));
}

// <type, ...>(m, n, elements of a matrix, in, out): the matrices are the grid's third dimension.
Task transpose_matrices(const Launch& launch) {
  const std::int64_t m = launch.argument<std::int64_t>(0), n = launch.argument<std::int64_t>(1);
  const std::int64_t matrix = launch.argument<std::int64_t>(2);
  return move(launch.address(3), writable(launch.address(4)), size_of(launch, 0), matrix * launch.grid.z,
              [=](std::int64_t i) { return i / matrix * matrix + i % matrix % m * n + i % matrix / m; });
}

// (out, in, columns of the input, rows) of halves
Task transpose_halves(const Launch& launch) {
  const std::int64_t columns = launch.argument<std::int32_t>(2), rows = launch.argument<std::int32_t>(3);
  return move(launch.address(1), writable(launch.address(0)), 2, rows * columns,
              [=](std::int64_t i) { return i % rows * columns + i / rows; });
}
// (in, step, out, step, count) of halves: a step of 0 repeats one element
Task copy_halves(const Launch& launch) {
  const std::int64_t from = launch.argument<std::int32_t>(1), to = launch.argument<std::int32_t>(3);
  return move(
      launch.address(0), writable(launch.address(2)), 2, launch.argument<std::int32_t>(4),
      [=](std::int64_t i) { return i * from; }, [=](std::int64_t i) { return i * to; });
}

// Both kernels of rank 4 take their coordinates from the grid (two dimensions) and from blocks of rows (the others).
Task transpose_rank_4(const Launch& launch, std::size_t bytes, std::int64_t unit, std::int64_t rows) {
  const auto input = launch.argument<Strides>(0), output = launch.argument<Strides>(2);
  const std::int64_t columns = launch.block.x, planes = launch.grid.y;
  const auto at = [=](const Strides& strides, std::int64_t i) {
    const std::int64_t d3 = i % columns, d2 = i / columns % rows, d1 = i / columns / rows % planes;
    const std::int64_t d0 = i / columns / rows / planes;
    return (d0 * strides.items[0] + d1 * strides.items[1] + d2 * strides.items[2]) / unit + d3 * strides.items[3];
  };
  return move(
      launch.address(1), writable(launch.address(3)), bytes, columns * rows * planes * launch.grid.z,
      [=](std::int64_t i) { return at(input, i); }, [=](std::int64_t i) { return at(output, i); });
}
// <bytes of an element>(input strides, in, output strides, out, rows, units): a thread moves a unit of 16 bytes.
Task transpose_units(const Launch& launch) {
  return transpose_rank_4(launch, 16, 16 / std::stol(launch.parameter(0)), launch.argument<std::int64_t>(4));
}
// (input strides, in, output strides, out, bytes of an element, rows, count)
Task transpose_elements(const Launch& launch) {
  return transpose_rank_4(launch, launch.argument<std::uint64_t>(4), 1, launch.argument<std::int64_t>(5));
}

// <type>(count, in, out, output stride, input strides)
Task expand_rank_2(const Launch& launch) {
  const std::int64_t width = launch.divisor(3);
  const std::int64_t row = launch.argument<std::int32_t>(4), column = launch.argument<std::int32_t>(5);
  return move(launch.address(1), writable(launch.address(2)), size_of(launch, 0), launch.argument<std::int32_t>(0),
              [=](std::int64_t i) { return i / width * row + i % width * column; });
}
// <type, ...>(rank, count, in, out, output strides, input strides)
Task expand(const Launch& launch) {
  return move(launch.address(2), writable(launch.address(3)), size_of(launch, 0), launch.argument<std::int32_t>(1),
              strided(launch.argument<Divisors>(4), launch.argument<Strides>(5), launch.argument<std::int32_t>(0)));
}

// <is the gradient, rank, type>(starts, steps, input strides, output strides, in, out, count)
Task slice(const Launch& launch) {
  if (launch.flag(0)) throw Unknown{};
  const int rank = std::stoi(launch.parameter(1));
  const auto starts = launch.argument<Strides>(0), steps = launch.argument<Strides>(1);
  const auto input = launch.argument<Strides>(2);
  const auto output = launch.argument<Divisors>(3);
  const auto source = [=](std::int64_t i) {
    std::int64_t place = 0;
    for (int d = 0; d < rank; ++d) {
      // The last stride is one, on both sides, and not passed.
      const std::int64_t divisor = d == rank - 1 ? 1 : output.items[d].value;
      place += (starts.items[d] + i / divisor * steps.items[d]) * (d == rank - 1 ? 1 : input.items[d]);
      i %= divisor;
    }
    return place;
  };
  return move(launch.address(4), writable(launch.address(5)), size_of(launch, 2), launch.argument<std::int32_t>(6),
              source);
}

// Concat and Split are one another's inverse: a whole tensor, and the parts it has along an axis.
struct Parts {
  std::int64_t including, inside;      // elements of one row along the axis, with and without the axis
  std::vector<const char*> parts;      // by value, or
  const char* const* table = nullptr;  // on the device
  std::int64_t same = 0;               // length of the axis in every part, or
  const std::int64_t *sizes = nullptr, *ends = nullptr, *which = nullptr;  // on the device, for each part and place
};

// Moves between the whole and its parts; runs on the device, since it reads its tables.
void move_parts(const Parts& parts, char* whole, std::size_t size, std::int64_t count, bool join) {
  const std::int64_t axis = parts.including / parts.inside;
  if (parts.which) touch(parts.which, static_cast<std::size_t>(axis) * sizeof *parts.which, false);
  std::map<std::int64_t, std::int64_t> reached;  // elements, by part
  const auto address = [&](std::int64_t part) {
    if (!parts.table) return parts.parts.at(static_cast<std::size_t>(part));
    touch(&parts.table[part], sizeof parts.table[part], false);
    return parts.table[part];
  };
  for (std::int64_t i = 0; i < count; i += parts.inside) {
    const std::int64_t outer = i / parts.including, place = i % parts.including / parts.inside;
    const std::int64_t part = parts.which ? parts.which[place] : place / parts.same;
    const std::int64_t length = parts.which ? parts.sizes[part] : parts.same;
    const std::int64_t start = parts.which ? (part ? parts.ends[part - 1] : 0) : part * parts.same;
    const std::int64_t at = (outer * length + place - start) * parts.inside;
    const std::size_t run = static_cast<std::size_t>(parts.inside) * size;
    char* const one = whole + static_cast<std::size_t>(i) * size;
    char* const other = writable(address(part)) + static_cast<std::size_t>(at) * size;
    reached[part] = std::max(reached[part], at + parts.inside);
    std::memcpy(join ? one : other, join ? other : one, run);
  }
  for (const auto& [part, elements] : reached) touch(address(part), static_cast<std::size_t>(elements) * size, !join);
}

Task parts_task(const Parts& parts, const char* whole, std::size_t size, std::int64_t count, bool join) {
  return {"",
          [=] { move_parts(parts, writable(whole), size, count, join); },
          {{whole, static_cast<std::size_t>(count) * size, join}}};
}

void take_table(const Launch& launch, std::size_t index, const std::string& type, Parts& parts) {
  if (type.find("TArray") == std::string::npos) {
    parts.table = launch.argument<const char* const*>(index);
    return;
  }
  const auto array = launch.argument<Array<const char*, 32>>(index);
  parts.parts.assign(array.items, array.items + array.length);
}

// <type, table>(including, inside, length of the axis, out, parts, count)
Task concat_same(const Launch& launch) {
  Parts parts{launch.divisor(0), launch.divisor(1), {}, nullptr, launch.divisor(2)};
  take_table(launch, 4, launch.parameter(1), parts);
  return parts_task(parts, launch.address(3), size_of(launch, 0), launch.argument<std::int32_t>(5), true);
}
// <type>(including, inside, sizes, ends, which, out, parts, count)
Task concat(const Launch& launch) {
  Parts parts{launch.divisor(0), launch.divisor(1), {}, launch.argument<const char* const*>(6)};
  parts.sizes = launch.argument<const std::int64_t*>(2);
  parts.ends = launch.argument<const std::int64_t*>(3);
  parts.which = launch.argument<const std::int64_t*>(4);
  return parts_task(parts, launch.address(5), size_of(launch, 0), launch.argument<std::int32_t>(7), true);
}
// <type, table>(including, inside, length of the axis, number of parts, in, parts, count)
Task split_same(const Launch& launch) {
  Parts parts{launch.divisor(0), launch.divisor(1), {}, nullptr, launch.divisor(2)};
  take_table(launch, 5, launch.parameter(1), parts);
  return parts_task(parts, launch.address(4), size_of(launch, 0), launch.argument<std::int32_t>(6), false);
}
// <type>(including, inside, sizes, ends, which, number of parts, in, parts, count)
Task split(const Launch& launch) {
  Parts parts{launch.divisor(0), launch.divisor(1), {}, launch.argument<const char* const*>(7)};
  parts.sizes = launch.argument<const std::int64_t*>(2);
  parts.ends = launch.argument<const std::int64_t*>(3);
  parts.which = launch.argument<const std::int64_t*>(4);
  return parts_task(parts, launch.address(6), size_of(launch, 0), launch.argument<std::int32_t>(8), false);
}

// <type of indices>(batch dimensions, dimensions, slices, slices a batch, elements a batch, indices a slice, elements that
// an index steps over, indices, offsets): where each slice of GatherND starts
Task slice_offsets(const Launch& launch) {
  const std::int64_t batch_dimensions = launch.argument<std::int64_t>(0);
  const auto dimensions = launch.argument<Strides>(1);
  const std::int64_t slices = launch.argument<std::int64_t>(2), per_batch = launch.argument<std::int64_t>(3);
  const std::int64_t batch = launch.argument<std::int64_t>(4), width = launch.argument<std::int64_t>(5);
  const Elements steps(*find_element("long"), launch.address(6)), indices = launch.elements(7, 0);
  const Elements offsets(*find_element("long"), launch.address(8));
  return {"",
          [=] {
            for (std::int64_t i = 0; i < slices; ++i) {
              Number at = i / per_batch * batch;
              for (std::int64_t k = 0; k < width; ++k) {
                const Number index = indices.get(i * width + k);
                at += (index < 0 ? index + dimensions.items[batch_dimensions + k] : index) * steps.get(k);
              }
              offsets.set(i, at);
            }
          },
          {range(steps, width, false), range(indices, slices * width, false), range(offsets, slices, true)}};
}

// <type>(slices, in, out, elements of a slice, offsets)
Task gather_slices(const Launch& launch) {
  const std::int64_t slices = launch.argument<std::int64_t>(0);
  const std::size_t run = static_cast<std::size_t>(launch.argument<std::int64_t>(3)) * size_of(launch, 0);
  const std::size_t size = size_of(launch, 0);
  const char* in = launch.address(1);
  char* out = writable(launch.address(2));
  const Elements offsets(*find_element("long"), launch.address(4));
  Task task;
  task.accesses = {range(offsets, slices, false), {out, static_cast<std::size_t>(slices) * run, true}};
  task.body = [=] {
    for (std::int64_t i = 0; i < slices; ++i) {
      const char* from = in + static_cast<std::int64_t>(offsets.get(i)) * static_cast<std::int64_t>(size);
      touch(from, run, false);
      std::memcpy(out + static_cast<std::size_t>(i) * run, from, run);
    }
  };
  return task;
}

// <type>(start, step, count, out)
Task range_of_numbers(const Launch& launch) {
  const Elements out = launch.elements(3, 0);
  const std::int64_t count = launch.argument<std::int32_t>(2);
  const auto first = launch.bytes(0, out.type->size), step = launch.bytes(1, out.type->size);
  const Number start = out.type->load(first.data()), by = out.type->load(step.data());
  return {"",
          [=] {
            for (std::int64_t i = 0; i < count; ++i) out.set(i, start + by * i);
          },
          {range(out, count, true)}};
}

}  // namespace

const std::vector<Kernel>& movement_kernels() {
  static const auto& table = *new std::vector<Kernel>{
      {"_Fill", fill},
      {"_FillFromDataPtrKernel", fill_from},
      {"_GatherKernel", gather},
      {"TransposeKernel", transpose},
      {"Transpose3DKernel", transpose_matrices},
      {"Transpose4DKernelParallelizeMultipleElementsPerThreadInInnermostDim", transpose_units},
      {"Transpose4DKernelParallelizeOneElementPerThread", transpose_elements},
      {"transposeNoOverlap", transpose_halves},
      {"CopyVectorHalf", copy_halves},
      {"ExpandKernel2D", expand_rank_2},
      {"ExpandKernel", expand},
      {"_SliceKernel", slice},
      {"_ConcatKernelSameConcatDim", concat_same},
      {"_ConcatKernel", concat},
      {"_SplitKernelSameSplitDim", split_same},
      {"_SplitKernel", split},
      {"_ComputeSliceOffsetsKernel", slice_offsets},
      {"_GatherNDKernel", gather_slices},
      {"RangeKernel", range_of_numbers},
  };
  return table;
}

}  // namespace hipsim::provider
