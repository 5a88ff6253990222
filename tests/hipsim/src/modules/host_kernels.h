// The kernels of our code objects, compiled for the host (kernels.py): found by name, run with their accesses checked.
#pragma once
#include <string>

#include "../kernels/entry.h"
#include "../sim.h"

namespace hipsim {

struct HostKernel {
  const KernelEntry* entry = nullptr;
  std::uintptr_t image = 0, image_end = 0;  // where its library's own data lie
};

// False where no library in the folder that HIPSIM_KERNELS names has it.
bool find_host_kernel(const std::string& name, HostKernel& kernel);
// Runs all blocks, one after another.
void run_host_kernel(const HostKernel& kernel, const void* arguments, Dim3 grid, unsigned threads);

}  // namespace hipsim
