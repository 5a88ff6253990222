// The end of the process: what is queued runs, so that the detector sees it, and what is left is a leak.
#include <unistd.h>

#include <set>

#include "memory.h"
#include "objects.h"
#include "queue.h"

namespace hipsim {
namespace {

std::set<std::uintptr_t>& forgiven = *new std::set<std::uintptr_t>;

const pid_t process = getpid();  // a fork has no threads and owns nothing

__attribute__((destructor)) void at_exit() {
  if (getpid() != process) return;
  Lock held = lock();
  drain(held);
  for (const auto& [start, allocation] : allocations())
    if (allocation.freed.empty() && !forgiven.count(start))
      found("leak", format("%zu bytes, made by ", allocation.bytes) + allocation.made);
  for (const std::string& line : objects_left()) found("leak", line);
}

}  // namespace
}  // namespace hipsim

// For a program that knows of a pool which lives as long as the process: memory that is there now is no leak.
HIPSIM_API void hipsim_forgive_leaks() {
  using namespace hipsim;
  const Lock held = lock();
  for (const auto& [start, allocation] : allocations())
    if (allocation.freed.empty()) forgiven.insert(start);
}
