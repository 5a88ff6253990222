// Fault injection: HIPSIM_FAIL="hipMalloc:3:2,rocblas_gemm_ex:1+:6".
#pragma once

namespace hipsim {

// The code that this call of `function` is to fail with, or 0.  Counts the call.
int injected_failure(const char* function);

}  // namespace hipsim
