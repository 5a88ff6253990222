// The few calls of a GPU runtime that kernels need; HIP's module functions and CUDA's driver functions are alike.
#pragma once
#include "gpu/dynamic.h"
#include "gpu/module.h"

namespace rocline::gpu {

struct Driver {
  Vendor vendor;
  void* library = nullptr;
  int (*device)(int*) = nullptr;
  int (*load)(void** module, const void* image) = nullptr;
  int (*function)(void** function, void* module, const char* name) = nullptr;
  int (*launch)(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared_bytes,
                void* stream, void** arguments, void** extra) = nullptr;
  // NVIDIA only: more than 48 KB of shared memory for a launch has to be asked for.
  int (*set_attribute)(void* function, int attribute, int value) = nullptr;

  // The architecture of a device: "gfx942", "sm_90".
  Status architecture(int device, Text<64>& name) const;
  // Turns a result into a status: "what: hipErrorNoDevice".
  Status check(int result, const char* what) const;
};

// The driver of a vendor, found once a process.
Status driver_of(Vendor vendor, const Driver*& driver);

}  // namespace rocline::gpu
