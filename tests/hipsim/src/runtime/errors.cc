// Error codes, and the last error of each thread.
#include "errors.h"

namespace hipsim {
namespace {
thread_local int last_error = kSuccess;
}
int fail(int code) { return last_error = code; }
}  // namespace hipsim

HIPSIM_API const char* hipGetErrorName(int code) {
  switch (code) {
#define HIPSIM_NAME(name, value) \
  case value: return "hip" #name;
    HIPSIM_ERRORS(HIPSIM_NAME)
#undef HIPSIM_NAME
    default: return "hipErrorUnknown";
  }
}
HIPSIM_API const char* hipGetErrorString(int code) { return hipGetErrorName(code); }
HIPSIM_API int hipDrvGetErrorName(int code, const char** text) { return *text = hipGetErrorName(code), 0; }
HIPSIM_API int hipDrvGetErrorString(int code, const char** text) { return *text = hipGetErrorString(code), 0; }
HIPSIM_API int hipGetLastError() {
  const int code = hipsim::last_error;
  hipsim::last_error = hipsim::kSuccess;
  return code;
}
HIPSIM_API int hipExtGetLastError() { return hipGetLastError(); }
HIPSIM_API int hipPeekAtLastError() { return hipsim::last_error; }
