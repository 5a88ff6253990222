#include "gpu/driver.h"

#include "gpu/lock.h"

namespace rocline::gpu {
namespace {

constexpr const char* kHip[] = {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so", nullptr};
constexpr const char* kCuda[] = {"libcuda.so.1", nullptr};

template <class F>
bool resolve(const Driver& driver, const char* name, F& function) {
  function = reinterpret_cast<F>(symbol(driver.library, name));
  return function != nullptr;
}

bool resolve_all(Driver& driver) {
  if (driver.vendor == Vendor::nvidia)
    return resolve(driver, "cuCtxGetDevice", driver.device) && resolve(driver, "cuModuleLoadData", driver.load) &&
           resolve(driver, "cuModuleGetFunction", driver.function) &&
           resolve(driver, "cuLaunchKernel", driver.launch) &&
           resolve(driver, "cuFuncSetAttribute", driver.set_attribute);
  return resolve(driver, "hipGetDevice", driver.device) && resolve(driver, "hipModuleLoadData", driver.load) &&
         resolve(driver, "hipModuleGetFunction", driver.function) &&
         resolve(driver, "hipModuleLaunchKernel", driver.launch);
}

// The structure's layout has changed between versions of HIP, the name in it has not: gcnArchName is the last text that
// starts with "gfx", after the device's marketing name.
Status hip_architecture(const Driver& driver, int device, Text<64>& name) {
  int (*properties)(void*, int) = nullptr;
  if (!resolve(driver, "hipGetDevicePropertiesR0600", properties) &&
      !resolve(driver, "hipGetDeviceProperties", properties))
    return Status::error(ort::Error::fail, "the HIP runtime has no hipGetDeviceProperties");
  constexpr std::size_t size = 16384;
  char* memory = static_cast<char*>(std::calloc(1, size));
  if (!memory) return Status::error(ort::Error::fail, "out of memory");
  Status status = driver.check(properties(memory, device), "hipGetDeviceProperties");
  const char* found = nullptr;
  for (std::size_t i = 0; status.good() && i + 7 < size; ++i)
    if (std::memcmp(memory + i, "gfx", 3) == 0 && memory[i + 3] >= '0' && memory[i + 3] <= '9') found = memory + i;
  // "gfx90a:sramecc+:xnack-": the code objects are built for either setting.
  if (found)
    name = Text<64>("%.*s", static_cast<int>(std::strcspn(found, ":")), found);
  else if (status.good())
    status = Status::error(ort::Error::fail, "hipGetDeviceProperties names no gfx architecture");
  std::free(memory);
  return status;
}

Status cuda_architecture(const Driver& driver, int device, Text<64>& name) {
  int (*attribute)(int*, int, int) = nullptr;
  if (!resolve(driver, "cuDeviceGetAttribute", attribute))
    return Status::error(ort::Error::fail, "the CUDA driver has no cuDeviceGetAttribute");
  constexpr int major_version = 75, minor_version = 76;
  int major = 0, minor = 0;
  ROCLINE_TRY(driver.check(attribute(&major, major_version, device), "cuDeviceGetAttribute"));
  ROCLINE_TRY(driver.check(attribute(&minor, minor_version, device), "cuDeviceGetAttribute"));
  name = Text<64>("sm_%d%d", major, minor);
  return {};
}

}  // namespace

Status Driver::architecture(int device, Text<64>& name) const {
  return vendor == Vendor::nvidia ? cuda_architecture(*this, device, name) : hip_architecture(*this, device, name);
}

Status Driver::check(int result, const char* what) const {
  if (result == 0) return {};
  const char* name = nullptr;
  if (vendor == Vendor::nvidia) {
    int (*describe)(int, const char**) = nullptr;
    if (resolve(*this, "cuGetErrorName", describe)) describe(result, &name);
  } else {
    const char* (*describe)(int) = nullptr;
    if (resolve(*this, "hipGetErrorName", describe)) name = describe(result);
  }
  return Status::error(ort::Error::fail, "%s: %s (%d)", what, name ? name : "error", result);
}

Status driver_of(Vendor vendor, const Driver*& driver) {
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  static Driver drivers[2] = {{Vendor::amd}, {Vendor::nvidia}};
  const Lock lock(mutex);
  Driver& found = drivers[vendor == Vendor::nvidia];
  if (!found.library) {
    const char* const* names = vendor == Vendor::nvidia ? kCuda : kHip;
    void* library = open_library(names);
    if (!library)
      return Status::error(ort::Error::fail, "no %s on this machine: install %s", names[0],
                           vendor == Vendor::nvidia ? "the NVIDIA driver" : "ROCm");
    found.library = library;
    if (!resolve_all(found)) {
      found.library = nullptr;
      return Status::error(ort::Error::fail, "%s lacks a function of the module interface", names[0]);
    }
  }
  driver = &found;
  return {};
}

}  // namespace rocline::gpu
