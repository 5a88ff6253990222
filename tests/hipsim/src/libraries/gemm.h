// C = alpha * op(A) * op(B) + beta * C on the CPU, column-major, as hipBLAS and rocBLAS define it.
#pragma once
#include "../elements.h"
#include "../sim.h"

namespace hipsim {

struct Matrix {
  const void* data;
  const Element* type;
  bool transposed;
  std::int64_t leading;  // elements from one column to the next
  std::int64_t stride;   // elements from one matrix of the batch to the next
};

struct Gemm {
  std::int64_t m, n, k, batch;
  Number alpha, beta;
  Matrix a, b, c;
};

// Null if the product can be computed, else what is wrong with it.
const char* invalid(const Gemm& gemm);
// The work and the memory that it touches.
Task gemm_task(const char* name, const Gemm& gemm);

}  // namespace hipsim
