// hipError_t: every code, with its name.
#pragma once
#include "../sim.h"

namespace hipsim {

#define HIPSIM_ERRORS(code)                    \
  code(Success, 0)                             \
  code(ErrorInvalidValue, 1)                   \
  code(ErrorOutOfMemory, 2)                    \
  code(ErrorNotInitialized, 3)                 \
  code(ErrorDeinitialized, 4)                  \
  code(ErrorProfilerDisabled, 5)               \
  code(ErrorProfilerNotInitialized, 6)         \
  code(ErrorProfilerAlreadyStarted, 7)         \
  code(ErrorProfilerAlreadyStopped, 8)         \
  code(ErrorInvalidConfiguration, 9)           \
  code(ErrorInvalidPitchValue, 12)             \
  code(ErrorInvalidSymbol, 13)                 \
  code(ErrorInvalidDevicePointer, 17)          \
  code(ErrorInvalidMemcpyDirection, 21)        \
  code(ErrorInsufficientDriver, 35)            \
  code(ErrorMissingConfiguration, 52)          \
  code(ErrorPriorLaunchFailure, 53)            \
  code(ErrorInvalidDeviceFunction, 98)         \
  code(ErrorNoDevice, 100)                     \
  code(ErrorInvalidDevice, 101)                \
  code(ErrorInvalidImage, 200)                 \
  code(ErrorInvalidContext, 201)               \
  code(ErrorContextAlreadyCurrent, 202)        \
  code(ErrorMapFailed, 205)                    \
  code(ErrorUnmapFailed, 206)                  \
  code(ErrorArrayIsMapped, 207)                \
  code(ErrorAlreadyMapped, 208)                \
  code(ErrorNoBinaryForGpu, 209)               \
  code(ErrorAlreadyAcquired, 210)              \
  code(ErrorNotMapped, 211)                    \
  code(ErrorNotMappedAsArray, 212)             \
  code(ErrorNotMappedAsPointer, 213)           \
  code(ErrorECCNotCorrectable, 214)            \
  code(ErrorUnsupportedLimit, 215)             \
  code(ErrorContextAlreadyInUse, 216)          \
  code(ErrorPeerAccessUnsupported, 217)        \
  code(ErrorInvalidKernelFile, 218)            \
  code(ErrorInvalidGraphicsContext, 219)       \
  code(ErrorInvalidSource, 300)                \
  code(ErrorFileNotFound, 301)                 \
  code(ErrorSharedObjectSymbolNotFound, 302)   \
  code(ErrorSharedObjectInitFailed, 303)       \
  code(ErrorOperatingSystem, 304)              \
  code(ErrorInvalidHandle, 400)                \
  code(ErrorIllegalState, 401)                 \
  code(ErrorNotFound, 500)                     \
  code(ErrorNotReady, 600)                     \
  code(ErrorIllegalAddress, 700)               \
  code(ErrorLaunchOutOfResources, 701)         \
  code(ErrorLaunchTimeOut, 702)                \
  code(ErrorPeerAccessAlreadyEnabled, 704)     \
  code(ErrorPeerAccessNotEnabled, 705)         \
  code(ErrorSetOnActiveProcess, 708)           \
  code(ErrorContextIsDestroyed, 709)           \
  code(ErrorAssert, 710)                       \
  code(ErrorHostMemoryAlreadyRegistered, 712)  \
  code(ErrorHostMemoryNotRegistered, 713)      \
  code(ErrorLaunchFailure, 719)                \
  code(ErrorCooperativeLaunchTooLarge, 720)    \
  code(ErrorNotSupported, 801)                 \
  code(ErrorStreamCaptureUnsupported, 900)     \
  code(ErrorStreamCaptureInvalidated, 901)     \
  code(ErrorStreamCaptureMerge, 902)           \
  code(ErrorStreamCaptureUnmatched, 903)       \
  code(ErrorStreamCaptureUnjoined, 904)        \
  code(ErrorStreamCaptureIsolation, 905)       \
  code(ErrorStreamCaptureImplicit, 906)        \
  code(ErrorCapturedEvent, 907)                \
  code(ErrorStreamCaptureWrongThread, 908)     \
  code(ErrorGraphExecUpdateFailure, 910)       \
  code(ErrorInvalidChannelDescriptor, 911)     \
  code(ErrorInvalidTexture, 912)               \
  code(ErrorInvalidResourceType, 914)          \
  code(ErrorInvalidResourceConfiguration, 915) \
  code(ErrorStreamDetached, 916)               \
  code(ErrorUnknown, 999)                      \
  code(ErrorRuntimeMemory, 1052)               \
  code(ErrorRuntimeOther, 1053)                \
  code(ErrorInvalidClusterSize, 1054)          \
  code(ErrorTbd, 1055)

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
