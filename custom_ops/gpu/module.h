// Kernels on the device: finding the code object for it, loading it, launching from it.
#pragma once
#include <cstdint>

#include "ort/status.h"

namespace rocline::gpu {

enum class Vendor { amd, nvidia };

// The stream that ONNX Runtime gave this run.
struct Stream {
  void* handle = nullptr;
};

struct Grid {
  std::int64_t x = 1;
  unsigned y = 1, z = 1;
};

struct Driver;

// One kernel of a loaded code object.
class Function {
 public:
  // Queues the kernel on `stream`; the arguments must be exactly the kernel's parameters, type for type.
  template <class... Args>
  Status launch(Stream stream, Grid grid, unsigned block, unsigned shared_bytes, const Args&... args) const {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&args))...};
    return launch_raw(stream, grid, block, shared_bytes, pointers);
  }
  // Asked for in create() where launches take more than 48 KB of dynamic shared memory.
  Status allow_shared(unsigned bytes) const;

 private:
  friend Status find(Vendor, const char*, const char*, Function&);
  Status launch_raw(Stream stream, Grid grid, unsigned block, unsigned shared_bytes, void** arguments) const;

  const Driver* driver_ = nullptr;
  void* handle_ = nullptr;
  char name_[64] = "";
};

// Loads the code object of op `folder` for the current device, once a process and device, and finds `entry` in it.
Status find(Vendor vendor, const char* folder, const char* entry, Function& function);

}  // namespace rocline::gpu
