#include "gemm.h"

#include <algorithm>

namespace hipsim {
namespace {

// Bytes from the first element of the first matrix to the end of the last.
std::size_t extent(const Matrix& matrix, std::int64_t rows, std::int64_t columns, std::int64_t batch) {
  return static_cast<std::size_t>((batch - 1) * matrix.stride + (columns - 1) * matrix.leading + rows) *
         matrix.type->size;
}

// op(A) row by row, or op(B) column by column: `lines` runs of k values each.
std::vector<double> pack(const Matrix& matrix, std::int64_t lines, std::int64_t k, std::int64_t batch,
                         std::int64_t line_step, std::int64_t k_step) {
  const Elements from(*matrix.type, matrix.data);
  std::vector<double> packed(static_cast<std::size_t>(lines * k));
  for (std::int64_t line = 0; line < lines; ++line)
    for (std::int64_t p = 0; p < k; ++p)
      packed[static_cast<std::size_t>(line * k + p)] =
          static_cast<double>(from.get(batch * matrix.stride + line * line_step + p * k_step));
  return packed;
}

double dot(const double* a, const double* b, std::int64_t k) {
  double sums[4] = {};
  std::int64_t p = 0;
  for (; p + 4 <= k; p += 4)
    for (int i = 0; i < 4; ++i) sums[i] += a[p + i] * b[p + i];
  for (; p < k; ++p) sums[0] += a[p] * b[p];
  return sums[0] + sums[1] + sums[2] + sums[3];
}

void multiply(const Gemm& gemm) {
  const Elements c(*gemm.c.type, gemm.c.data);
  for (std::int64_t batch = 0; batch < gemm.batch; ++batch) {
    const bool ta = gemm.a.transposed, tb = gemm.b.transposed;
    const auto a = pack(gemm.a, gemm.m, gemm.k, batch, ta ? gemm.a.leading : 1, ta ? 1 : gemm.a.leading);
    const auto b = pack(gemm.b, gemm.n, gemm.k, batch, tb ? 1 : gemm.b.leading, tb ? gemm.b.leading : 1);
    for (std::int64_t column = 0; column < gemm.n; ++column)
      for (std::int64_t row = 0; row < gemm.m; ++row) {
        const std::int64_t at = batch * gemm.c.stride + column * gemm.c.leading + row;
        Number value = gemm.alpha * dot(&a[static_cast<std::size_t>(row * gemm.k)],
                                        &b[static_cast<std::size_t>(column * gemm.k)], gemm.k);
        // With beta 0 C is not read: it may hold NaN.
        if (gemm.beta != 0) value += gemm.beta * c.get(at);
        c.set(at, value);
      }
  }
}

}  // namespace

const char* invalid(const Gemm& gemm) {
  if (gemm.m < 0 || gemm.n < 0 || gemm.k < 0 || gemm.batch < 0) return "a negative size";
  if (!gemm.a.type || !gemm.b.type || !gemm.c.type) return "a data type that is not simulated";
  const std::int64_t one = 1;
  if (gemm.a.leading < std::max(one, gemm.a.transposed ? gemm.k : gemm.m) ||
      gemm.b.leading < std::max(one, gemm.b.transposed ? gemm.n : gemm.k) || gemm.c.leading < std::max(one, gemm.m))
    return "a leading dimension below the matrix's";
  if (!gemm.a.data || !gemm.b.data || !gemm.c.data) return "a null pointer";
  return nullptr;
}

Task gemm_task(const char* name, const Gemm& gemm) {
  Task task{name, [gemm] { multiply(gemm); }, {}};
  if (gemm.m == 0 || gemm.n == 0 || gemm.batch == 0) return task;
  const auto add = [&](const Matrix& matrix, std::int64_t rows, std::int64_t columns, bool writes) {
    if (matrix.transposed) std::swap(rows, columns);
    task.accesses.push_back({matrix.data, extent(matrix, rows, columns, gemm.batch), writes});
  };
  if (gemm.k > 0) {
    add(gemm.a, gemm.m, gemm.k, false);
    add(gemm.b, gemm.k, gemm.n, false);
  }
  if (gemm.beta != 0) add(gemm.c, gemm.m, gemm.n, false);
  add(gemm.c, gemm.m, gemm.n, true);
  return task;
}

}  // namespace hipsim
