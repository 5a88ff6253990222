// libhipblas.so.3, with the functions of rocBLAS that the provider finds through it.  A product is a task of the
// handle's stream; scalars are read from the host when it is queued (the default pointer mode).
#include <cstdio>

#include "gemm.h"

namespace {

using hipsim::Elements;
using hipsim::find_element;
using hipsim::Gemm;
using hipsim::Number;

struct Handle {
  hipStream_t stream = nullptr;
};
constexpr const char* kKind = "hipBLAS handle";

// hipblasStatus_t and rocblas_status agree on what these numbers mean only for success.
enum { kHipblasNotInitialized = 1, kHipblasInvalidValue = 3, kHipblasFailed = 6 };
enum { kRocblasInvalidHandle = 1, kRocblasNotImplemented = 2, kRocblasInvalidPointer = 3, kRocblasInternal = 6 };

// hipDataType.
const hipsim::Element* hip_type(int type) {
  switch (type) {
    case 0: return find_element("float");
    case 1: return find_element("double");
    case 2: return find_element("__half");
    case 3: return find_element("signed char");
    case 10: return find_element("int");
    case 14: return find_element("onnxruntime::BFloat16");
    default: return nullptr;
  }
}
// rocblas_datatype.
const hipsim::Element* rocblas_type(int type) {
  switch (type) {
    case 150: return find_element("__half");
    case 151: return find_element("float");
    case 152: return find_element("double");
    case 160: return find_element("signed char");
    case 162: return find_element("int");
    case 168: return find_element("onnxruntime::BFloat16");
    default: return nullptr;
  }
}
// The type of alpha and beta, by hipblasComputeType_t: 16F, 64F and 32I have their own, the others take a float.
const hipsim::Element* scalar_type(int compute) {
  switch (compute) {
    case 0:
    case 1: return find_element("__half");
    case 7:
    case 8: return find_element("double");
    case 9:
    case 10: return find_element("int");
    default: return find_element("float");
  }
}
constexpr int kNone = 111;  // the operation that leaves a matrix as it is, in both libraries

// Alpha and beta are read now, as elements of the type `scalar`.
Gemm product(int m, int n, int k, int batch, const hipsim::Element& scalar, const void* alpha, const void* beta,
             const hipsim::Matrix& a, const hipsim::Matrix& b, const hipsim::Matrix& c) {
  return {m, n, k, batch, Elements(scalar, alpha).get(0), Elements(scalar, beta).get(0), a, b, c};
}

int queue(const char* name, Handle* handle, const Gemm& gemm, int wrong, int failed) {
  if (const char* reason = hipsim::invalid(gemm)) {
    hipsim::note("%s: %s", name, reason);
    return wrong;
  }
  return hipsim::enqueue(handle->stream, hipsim::gemm_task(name, gemm)) == 0 ? 0 : failed;
}

bool known(const Handle* handle) { return hipsim::alive(kKind, handle); }

}  // namespace

#define LOG_GEMM()                                                                                  \
  HIPSIM_CALL("handle=%p, %s%s, m=%d, n=%d, k=%d, batch=%d, stream=%s", static_cast<void*>(handle), \
              ta == kNone ? "n" : "t", tb == kNone ? "n" : "t", m, n, k, batch,                     \
              known(handle) ? hipsim::stream_name(handle->stream).c_str() : "?")

HIPSIM_API int hipblasCreate(Handle** handle) {
  HIPSIM_CALL("%p", static_cast<void*>(handle));
  if (!handle) return kHipblasInvalidValue;
  *handle = new Handle;
  hipsim::made(kKind, *handle);
  return 0;
}
HIPSIM_API int hipblasDestroy(Handle* handle) {
  HIPSIM_CALL("handle=%p", static_cast<void*>(handle));
  if (!known(handle)) return kHipblasNotInitialized;
  hipsim::gone(kKind, handle);
  delete handle;
  return 0;
}
HIPSIM_API int hipblasSetStream(Handle* handle, hipStream_t stream) {
  HIPSIM_CALL("handle=%p, stream=%s", static_cast<void*>(handle), hipsim::stream_name(stream).c_str());
  if (!known(handle)) return kHipblasNotInitialized;
  handle->stream = stream;
  return 0;
}
HIPSIM_API int rocblas_set_stream(Handle* handle, hipStream_t stream) {
  HIPSIM_CALL("handle=%p, stream=%s", static_cast<void*>(handle), hipsim::stream_name(stream).c_str());
  if (!known(handle)) return kRocblasInvalidHandle;
  handle->stream = stream;
  return 0;
}
HIPSIM_API int rocblas_get_stream(Handle* handle, hipStream_t* stream) {
  HIPSIM_CALL("handle=%p", static_cast<void*>(handle));
  if (!known(handle)) return kRocblasInvalidHandle;
  if (!stream) return kRocblasInvalidPointer;
  *stream = handle->stream;
  return 0;
}
HIPSIM_API int rocblas_get_version_string(char* text, std::size_t size) {
  HIPSIM_CALL("%zu bytes", size);
  std::snprintf(text, size, "5.2.0.hipsim");
  return 0;
}

HIPSIM_API int hipblasGemmStridedBatchedEx(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha,
                                           const void* a, int a_type, int lda, long long stride_a, const void* b,
                                           int b_type, int ldb, long long stride_b, const void* beta, void* c,
                                           int c_type, int ldc, long long stride_c, int batch, int compute, int) {
  LOG_GEMM();
  if (!known(handle)) return kHipblasNotInitialized;
  if (!alpha || !beta) return kHipblasInvalidValue;
  const Gemm gemm = product(m, n, k, batch, *scalar_type(compute), alpha, beta,
                            {a, hip_type(a_type), ta != kNone, lda, stride_a},
                            {b, hip_type(b_type), tb != kNone, ldb, stride_b},
                            {c, hip_type(c_type), false, ldc, stride_c});
  return queue(__func__, handle, gemm, kHipblasInvalidValue, kHipblasFailed);
}
HIPSIM_API int hipblasGemmEx(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a,
                             int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c,
                             int c_type, int ldc, int compute, int) {
  const int batch = 1;
  LOG_GEMM();
  if (!known(handle)) return kHipblasNotInitialized;
  if (!alpha || !beta) return kHipblasInvalidValue;
  const Gemm gemm = product(m, n, k, batch, *scalar_type(compute), alpha, beta,
                            {a, hip_type(a_type), ta != kNone, lda, 0}, {b, hip_type(b_type), tb != kNone, ldb, 0},
                            {c, hip_type(c_type), false, ldc, 0});
  return queue(__func__, handle, gemm, kHipblasInvalidValue, kHipblasFailed);
}

// D = alpha * op(A) * op(B) + beta * C; only with C as D, or without C.
HIPSIM_API int rocblas_gemm_strided_batched_ex(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha,
                                               const void* a, int a_type, int lda, long long stride_a, const void* b,
                                               int b_type, int ldb, long long stride_b, const void* beta, const void* c,
                                               int, int, long long, void* d, int d_type, int ldd, long long stride_d,
                                               int batch, int compute, int, int, unsigned) {
  LOG_GEMM();
  if (!known(handle)) return kRocblasInvalidHandle;
  if (!alpha || !beta) return kRocblasInvalidPointer;
  const hipsim::Element* scalar = rocblas_type(compute);
  if (!scalar) return kRocblasNotImplemented;
  const Gemm gemm = product(m, n, k, batch, *scalar, alpha, beta,
                            {a, rocblas_type(a_type), ta != kNone, lda, stride_a},
                            {b, rocblas_type(b_type), tb != kNone, ldb, stride_b},
                            {d, rocblas_type(d_type), false, ldd, stride_d});
  if (c != d && gemm.beta != 0) return kRocblasNotImplemented;
  return queue(__func__, handle, gemm, kRocblasNotImplemented, kRocblasInternal);
}
HIPSIM_API int rocblas_gemm_ex(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a,
                               int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, const void* c,
                               int, int, void* d, int d_type, int ldd, int compute, int, int, unsigned) {
  const int batch = 1;
  LOG_GEMM();
  if (!known(handle)) return kRocblasInvalidHandle;
  if (!alpha || !beta) return kRocblasInvalidPointer;
  const hipsim::Element* scalar = rocblas_type(compute);
  if (!scalar) return kRocblasNotImplemented;
  const Gemm gemm = product(m, n, k, batch, *scalar, alpha, beta,
                            {a, rocblas_type(a_type), ta != kNone, lda, 0},
                            {b, rocblas_type(b_type), tb != kNone, ldb, 0},
                            {d, rocblas_type(d_type), false, ldd, 0});
  if (c != d && gemm.beta != 0) return kRocblasNotImplemented;
  return queue(__func__, handle, gemm, kRocblasNotImplemented, kRocblasInternal);
}

// The matrices of a batch stand in tables on the device, which the task reads.
HIPSIM_API int rocblas_gemm_batched_ex(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha,
                                       const void* const* a, int a_type, int lda, const void* const* b, int b_type,
                                       int ldb, const void* beta, const void* const* c, int, int, void* const* d,
                                       int d_type, int ldd, int batch, int compute, int, int, unsigned) {
  LOG_GEMM();
  if (!known(handle)) return kRocblasInvalidHandle;
  const hipsim::Element* scalar = rocblas_type(compute);
  if (!alpha || !beta || !a || !b || !d) return kRocblasInvalidPointer;
  if (!scalar) return kRocblasNotImplemented;
  const Gemm one = product(m, n, k, 1, *scalar, alpha, beta, {a, rocblas_type(a_type), ta != kNone, lda, 0},
                           {b, rocblas_type(b_type), tb != kNone, ldb, 0}, {d, rocblas_type(d_type), false, ldd, 0});
  if (hipsim::invalid(one) || (reinterpret_cast<const void*>(c) != d && one.beta != 0)) return kRocblasNotImplemented;
  const std::size_t table = static_cast<std::size_t>(batch) * sizeof(void*);
  hipsim::Task task{__func__, nullptr, {{a, table, false}, {b, table, false}, {d, table, false}}};
  task.body = [=] {
    for (int i = 0; i < batch; ++i) {
      Gemm gemm = one;
      gemm.a.data = a[i];
      gemm.b.data = b[i];
      gemm.c.data = d[i];
      const hipsim::Task product = hipsim::gemm_task("", gemm);
      for (const hipsim::Access& access : product.accesses) hipsim::touch(access.address, access.bytes, access.writes);
      product.body();
    }
  };
  return hipsim::enqueue(handle->stream, std::move(task)) == 0 ? 0 : kRocblasInternal;
}

// Gemm's bias comes as a copy whose source may repeat one element (a step of 0), or as a sum of matrices.
HIPSIM_API int hipblasScopy(Handle* handle, int n, const float* x, int x_step, float* y, int y_step) {
  HIPSIM_CALL("handle=%p, n=%d, steps %d and %d", static_cast<void*>(handle), n, x_step, y_step);
  if (!known(handle)) return kHipblasNotInitialized;
  if (n <= 0) return 0;
  if (x_step < 0 || y_step < 0) return kHipblasInvalidValue;
  const auto bytes = [n](int step) { return (1 + static_cast<std::size_t>(n - 1) * step) * sizeof(float); };
  const auto body = [=] {
    for (std::int64_t i = 0; i < n; ++i) y[i * y_step] = x[i * x_step];
  };
  const int code =
      hipsim::enqueue(handle->stream, {__func__, body, {{x, bytes(x_step), false}, {y, bytes(y_step), true}}});
  return code == 0 ? 0 : kHipblasFailed;
}
HIPSIM_API int hipblasSgeam(Handle* handle, int ta, int tb, int m, int n, const float* alpha, const float* a, int lda,
                            const float* beta, const float* b, int ldb, float* c, int ldc) {
  HIPSIM_CALL("handle=%p, m=%d, n=%d", static_cast<void*>(handle), m, n);
  if (!known(handle)) return kHipblasNotInitialized;
  if (m <= 0 || n <= 0) return 0;
  const bool turn_a = ta != kNone, turn_b = tb != kNone;
  const auto bytes = [=](bool turned, int leading) {
    return sizeof(float) *
           (turned ? static_cast<std::size_t>(m - 1) * leading + n : static_cast<std::size_t>(n - 1) * leading + m);
  };
  hipsim::Task task{__func__, nullptr, {{c, bytes(false, ldc), true}}};
  const float scale_a = *alpha, scale_b = *beta;
  if (scale_a != 0) task.accesses.push_back({a, bytes(turn_a, lda), false});
  if (scale_b != 0) task.accesses.push_back({b, bytes(turn_b, ldb), false});
  task.body = [=] {
    for (std::int64_t column = 0; column < n; ++column)
      for (std::int64_t row = 0; row < m; ++row) {
        const float left = scale_a == 0 ? 0 : scale_a * a[turn_a ? row * lda + column : column * lda + row];
        const float right = scale_b == 0 ? 0 : scale_b * b[turn_b ? row * ldb + column : column * ldb + row];
        c[column * ldc + row] = left + right;
      }
  };
  return hipsim::enqueue(handle->stream, std::move(task)) == 0 ? 0 : kHipblasFailed;
}
