// The accesses of a kernel that runs on the host: each one is looked at before it happens.
#pragma once
#include <cstddef>
#include <cstdint>

namespace hipsim {

// Called before an access of the kernel that this thread runs.  Its own variables, its library's and its arguments
// pass; the rest must be memory of the device.
void check_access(const void* address, std::size_t bytes, bool writes);

// While it lives, this thread runs a kernel.
class KernelAccesses {
 public:
  KernelAccesses(const char* kernel, std::uintptr_t image, std::uintptr_t image_end, const void* arguments,
                 std::size_t bytes);
  ~KernelAccesses();
  KernelAccesses(const KernelAccesses&) = delete;
};

}  // namespace hipsim
