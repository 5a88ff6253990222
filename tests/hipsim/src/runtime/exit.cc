// The end of the process: what is queued runs, so that the detector sees it, and what is left is a leak.
#include <unistd.h>

#include "memory.h"
#include "objects.h"
#include "queue.h"

namespace hipsim {
namespace {

const pid_t process = getpid();  // a fork has no threads and owns nothing

__attribute__((destructor)) void at_exit() {
  if (getpid() != process) return;
  Lock held = lock();
  drain(held);
  for (const auto& [start, allocation] : allocations())
    if (allocation.freed.empty())
      found("leak", format("%zu bytes, made by ", allocation.bytes) + allocation.made);
  for (const std::string& line : objects_left()) found("leak", line);
}

}  // namespace
}  // namespace hipsim
