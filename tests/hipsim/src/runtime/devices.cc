// The device: one, or none.
#include <cstdio>
#include <cstring>
#include <map>

#include "errors.h"
#include "properties.h"
#include "settings.h"

namespace hipsim {
namespace {

constexpr int kVersion = 70226015;  // of HIP in ROCm 7.2

// "gfx90a" and ":sramecc+:xnack-" of HIPSIM_ARCH; by the major version of the ISA, 9 has waves of 64.
struct Chosen {
  std::string name, features;
  Architecture architecture;
};

const Chosen& chosen() {
  static const Chosen& instance = *[] {
    auto* made = new Chosen;
    const std::string& text = settings().arch;
    const std::size_t colon = std::min(text.find(':'), text.size());
    made->name = text.substr(0, colon);
    made->features = text.substr(colon);
    const bool data_centre = made->name == "gfx90a" || made->name == "gfx942" || made->name == "gfx950";
    if (made->features.empty() && data_centre) made->features = ":sramecc+:xnack-";
    const std::string digits = made->name.size() > 5 ? made->name.substr(3) : "90a";
    const auto major = static_cast<unsigned>(std::strtoul(digits.substr(0, digits.size() - 2).c_str(), nullptr, 10));
    const auto minor = static_cast<unsigned>(digits[digits.size() - 2] - '0');
    const auto step = static_cast<unsigned>(std::strtoul(digits.substr(digits.size() - 1).c_str(), nullptr, 16));
    made->architecture = {made->name.c_str(), made->features.c_str(), major == 9 ? 64u : 32u,
                          major * 10000 + minor * 100 + step};
    return made;
  }();
  return instance;
}

int check_device(int device) {
  if (settings().devices == 0) return kErrorNoDevice;
  return device < 0 || device >= settings().devices ? kErrorInvalidDevice : kSuccess;
}

Properties properties() {
  const Architecture& chip = architecture();
  Properties made{};
  std::snprintf(made.name, sizeof made.name, "hipsim %s (simulated)", chip.name);
  std::snprintf(made.gcnArchName, sizeof made.gcnArchName, "%s%s", chip.name, chip.features);
  std::memcpy(made.uuid, "hipsim-device-00", sizeof made.uuid);
  made.totalGlobalMem = settings().memory;
  made.sharedMemPerBlock = made.sharedMemPerBlockOptin = 65536;
  made.sharedMemPerMultiprocessor = made.maxSharedMemoryPerMultiProcessor = 65536;
  made.regsPerBlock = made.regsPerMultiprocessor = 65536;
  made.warpSize = static_cast<int>(chip.wave);
  made.memPitch = 0x7fffffff;
  made.maxThreadsPerBlock = 1024;
  for (int& size : made.maxThreadsDim) size = 1024;
  made.maxGridSize[0] = 0x7fffffff;
  made.maxGridSize[1] = made.maxGridSize[2] = 65535;
  made.clockRate = 1700000;
  made.totalConstMem = 0x7fffffff;
  made.major = static_cast<int>(chip.gfx_target_version / 10000);
  made.minor = static_cast<int>(chip.gfx_target_version / 100 % 100);
  made.textureAlignment = made.texturePitchAlignment = 256;
  made.multiProcessorCount = 104;
  made.canMapHostMemory = made.concurrentKernels = made.unifiedAddressing = 1;
  made.asyncEngineCount = 2;
  made.memoryClockRate = 1600000;
  made.memoryBusWidth = 4096;
  made.l2CacheSize = 8 << 20;
  made.maxThreadsPerMultiProcessor = 2048;
  made.maxBlocksPerMultiProcessor = 32;
  made.streamPrioritiesSupported = made.hostRegisterSupported = made.memoryPoolsSupported = 1;
  made.canUseHostPointerForRegisteredMem = made.cooperativeLaunch = made.isLargeBar = 1;
  made.pciBusID = 3;
  made.clockInstructionRate = 100000;
  return made;
}

// hipDeviceAttribute_t, those that a program here asks for.
bool attribute(int which, int& value) {
  const Properties known = properties();
  switch (which) {
    case 2: value = known.asyncEngineCount; return true;
    case 3: value = known.canMapHostMemory; return true;
    case 5: value = known.clockRate; return true;
    case 8: value = known.concurrentKernels; return true;
    case 10: value = known.cooperativeLaunch; return true;
    case 16: value = known.integrated; return true;
    case 19: value = known.l2CacheSize; return true;
    case 23: value = known.major; return true;
    case 56: value = known.maxThreadsPerBlock; return true;
    case 59: value = known.memoryBusWidth; return true;
    case 60: value = known.memoryClockRate; return true;
    case 61: value = known.minor; return true;
    case 63: value = known.multiProcessorCount; return true;
    case 71: value = known.regsPerBlock; return true;
    case 74: value = static_cast<int>(known.sharedMemPerBlock); return true;
    case 85: value = known.unifiedAddressing; return true;
    case 87: value = known.warpSize; return true;
    case 88: value = known.memoryPoolsSupported; return true;
    default: return false;
  }
}

}  // namespace

const Architecture& architecture() { return chosen().architecture; }

}  // namespace hipsim

using namespace hipsim;

HIPSIM_API int hipInit(unsigned) {
  HIP_CALL("");
  return fail_if(check_device(0));
}
HIPSIM_API int hipGetDeviceCount(int* count) {
  HIP_CALL("");
  if (!count) return fail(kErrorInvalidValue);
  *count = settings().devices;
  return *count ? kSuccess : fail(kErrorNoDevice);
}
HIPSIM_API int hipGetDevice(int* device) {
  HIP_CALL("");
  if (!device) return fail(kErrorInvalidValue);
  *device = 0;
  return fail_if(check_device(0));
}
HIPSIM_API int hipSetDevice(int device) {
  HIP_CALL("device=%d", device);
  return fail_if(check_device(device));
}
HIPSIM_API int hipDeviceGet(int* handle, int device) {
  HIP_CALL("device=%d", device);
  if (handle) *handle = device;
  return fail_if(check_device(device));
}
HIPSIM_API int hipDeviceGetName(char* name, int size, int device) {
  HIP_CALL("device=%d", device);
  if (const int wrong = check_device(device)) return fail(wrong);
  std::snprintf(name, static_cast<std::size_t>(size), "%s", properties().name);
  return kSuccess;
}
HIPSIM_API int hipDeviceTotalMem(std::size_t* bytes, int device) {
  HIP_CALL("device=%d", device);
  *bytes = settings().memory;
  return fail_if(check_device(device));
}
HIPSIM_API int hipGetDevicePropertiesR0600(Properties* wanted, int device) {
  HIP_CALL("device=%d", device);
  if (!wanted) return fail(kErrorInvalidValue);
  if (const int wrong = check_device(device)) return fail(wrong);
  *wanted = properties();
  return kSuccess;
}
HIPSIM_API int hipDeviceGetAttribute(int* value, int which, int device) {
  HIP_CALL("attribute=%d, device=%d", which, device);
  if (!value) return fail(kErrorInvalidValue);
  if (const int wrong = check_device(device)) return fail(wrong);
  return attribute(which, *value) ? kSuccess : fail(kErrorInvalidValue);
}
HIPSIM_API int hipRuntimeGetVersion(int* version) {
  HIP_CALL("");
  *version = kVersion;
  return kSuccess;
}
HIPSIM_API int hipDriverGetVersion(int* version) {
  HIP_CALL("");
  *version = kVersion;
  return kSuccess;
}
HIPSIM_API int hipDeviceCanAccessPeer(int* possible, int, int) {
  HIP_CALL("");
  *possible = 0;
  return kSuccess;
}
