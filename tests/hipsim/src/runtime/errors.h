// hipError_t: the codes this device returns, with their names.
#pragma once
#include "../sim.h"

namespace hipsim {

#define HIPSIM_ERRORS(code)                 \
  code(Success, 0)                          \
  code(ErrorInvalidValue, 1)                \
  code(ErrorOutOfMemory, 2)                 \
  code(ErrorNotInitialized, 3)              \
  code(ErrorDeinitialized, 4)               \
  code(ErrorInvalidConfiguration, 9)        \
  code(ErrorInvalidSymbol, 13)              \
  code(ErrorInvalidDevicePointer, 17)       \
  code(ErrorInvalidMemcpyDirection, 21)     \
  code(ErrorInsufficientDriver, 35)         \
  code(ErrorMissingConfiguration, 52)       \
  code(ErrorInvalidDeviceFunction, 98)      \
  code(ErrorNoDevice, 100)                  \
  code(ErrorInvalidDevice, 101)             \
  code(ErrorInvalidImage, 200)              \
  code(ErrorInvalidContext, 201)            \
  code(ErrorNoBinaryForGpu, 209)            \
  code(ErrorInvalidKernelFile, 218)         \
  code(ErrorFileNotFound, 301)              \
  code(ErrorSharedObjectInitFailed, 303)    \
  code(ErrorInvalidHandle, 400)             \
  code(ErrorIllegalState, 401)              \
  code(ErrorNotFound, 500)                  \
  code(ErrorNotReady, 600)                  \
  code(ErrorIllegalAddress, 700)            \
  code(ErrorLaunchOutOfResources, 701)      \
  code(ErrorLaunchTimeOut, 702)             \
  code(ErrorContextIsDestroyed, 709)        \
  code(ErrorHostMemoryAlreadyRegistered, 712) \
  code(ErrorHostMemoryNotRegistered, 713)   \
  code(ErrorLaunchFailure, 719)             \
  code(ErrorNotPermitted, 800)              \
  code(ErrorNotSupported, 801)              \
  code(ErrorStreamCaptureUnsupported, 900)  \
  code(ErrorStreamCaptureInvalidated, 901)  \
  code(ErrorStreamCaptureMerge, 902)        \
  code(ErrorStreamCaptureUnmatched, 903)    \
  code(ErrorStreamCaptureUnjoined, 904)     \
  code(ErrorStreamCaptureIsolation, 905)    \
  code(ErrorStreamCaptureImplicit, 906)     \
  code(ErrorCapturedEvent, 907)             \
  code(ErrorStreamCaptureWrongThread, 908)  \
  code(ErrorGraphExecUpdateFailure, 910)    \
  code(ErrorUnknown, 999)

enum Error : int {
#define HIPSIM_ENUMERATOR(name, value) k##name = value,
  HIPSIM_ERRORS(HIPSIM_ENUMERATOR)
#undef HIPSIM_ENUMERATOR
};

// Remembers a failure as this thread's last error, and returns it.
int fail(int code);
inline int fail_if(int code) { return code ? fail(code) : kSuccess; }

}  // namespace hipsim

// First in every function of the runtime that returns hipError_t: HIPSIM_CALL that also sets the last error.
#define HIP_CALL(...)                                                                                    \
  do {                                                                                                   \
    if (const int injected = hipsim::call(__func__, __builtin_return_address(0), __VA_ARGS__))           \
      return hipsim::fail(injected);                                                                     \
  } while (false)
