// librocm_smi64.so.1: how much memory a device has.
#include "../sim.h"

namespace {
constexpr std::uint64_t kMemory = 16ull << 30;
enum { kInvalidArguments = 1 };
}  // namespace

HIPSIM_API int rsmi_init(std::uint64_t flags) {
  HIPSIM_CALL("%llu", static_cast<unsigned long long>(flags));
  return 0;
}
HIPSIM_API int rsmi_shut_down() {
  HIPSIM_CALL("%s", "");
  return 0;
}
HIPSIM_API int rsmi_dev_memory_total_get(std::uint32_t device, int, std::uint64_t* bytes) {
  HIPSIM_CALL("device=%u", device);
  if (!bytes) return kInvalidArguments;
  *bytes = kMemory;
  return 0;
}
HIPSIM_API int rsmi_dev_memory_usage_get(std::uint32_t device, int, std::uint64_t* bytes) {
  HIPSIM_CALL("device=%u", device);
  if (!bytes) return kInvalidArguments;
  *bytes = 0;
  return 0;
}
