#include "gpu/module.h"

#include <new>

#include "gpu/image.h"
#include "gpu/lock.h"

namespace rocline::gpu {
namespace {

// A loaded code object; stays loaded, since kernels of other sessions may still use it.
struct Module {
  Vendor vendor;
  int device;
  char folder[64];
  void* handle;
  Module* next;
};

Status load(const Driver& driver, int device, const char* folder, void*& handle) {
  Text<64> architecture;
  ROCLINE_TRY(driver.architecture(device, architecture));
  Image image;
  ROCLINE_TRY(find_image(driver, folder, architecture.c_str(), image));
  return driver.check(driver.load(&handle, image.bytes),
                      Text<160>("loading the code object of %s on %s", folder, architecture.c_str()).c_str());
}

Status module_of(const Driver& driver, const char* folder, void*& handle) {
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  static Module* modules = nullptr;
  int device = 0;
  ROCLINE_TRY(driver.check(driver.device(&device), "the current device"));
  const Lock lock(mutex);
  for (const Module* module = modules; module; module = module->next)
    if (module->vendor == driver.vendor && module->device == device && std::strcmp(module->folder, folder) == 0) {
      handle = module->handle;
      return {};
    }
  ROCLINE_TRY(load(driver, device, folder, handle));
  void* memory = std::malloc(sizeof(Module));
  if (!memory) return Status::error(ort::Error::fail, "out of memory");
  auto* module = new (memory) Module{driver.vendor, device, {}, handle, modules};
  std::snprintf(module->folder, sizeof module->folder, "%s", folder);
  modules = module;
  return {};
}

}  // namespace

Status find(Vendor vendor, const char* folder, const char* entry, Function& function) {
  ROCLINE_TRY(driver_of(vendor, function.driver_));
  const Driver& driver = *function.driver_;
  void* module = nullptr;
  ROCLINE_TRY(module_of(driver, folder, module));
  std::snprintf(function.name_, sizeof function.name_, "%s", entry);
  return driver.check(driver.function(&function.handle_, module, entry), Text<128>("finding kernel %s", entry).c_str());
}

Status Function::allow_shared(unsigned bytes) const {
  constexpr int max_dynamic_shared_bytes = 8;
  // Null on AMD, where a launch may ask for all of a work-group's memory.
  if (!driver_ || !driver_->set_attribute) return {};
  return driver_->check(driver_->set_attribute(handle_, max_dynamic_shared_bytes, static_cast<int>(bytes)),
                        Text<128>("%u bytes of shared memory for kernel %s", bytes, name_).c_str());
}

Status Function::launch_raw(Stream stream, Grid grid, unsigned block, unsigned shared_bytes, void** arguments) const {
  if (!driver_) return Status::error(ort::Error::fail, "a kernel that was never found is launched");
  // HIP counts a dimension of the grid in threads, in 32 bits.
  if (grid.x <= 0 || grid.x * block > 0xffffffffLL || grid.x > 0x7fffffffLL)
    return Status::error(ort::Error::invalid_argument, "kernel %s: %lld blocks of %u threads are more than a launch has",
                         name_, static_cast<long long>(grid.x), block);
  return driver_->check(driver_->launch(handle_, static_cast<unsigned>(grid.x), grid.y, grid.z, block, 1, 1,
                                        shared_bytes, stream.handle, arguments, nullptr),
                        Text<128>("launching kernel %s", name_).c_str());
}

}  // namespace rocline::gpu
