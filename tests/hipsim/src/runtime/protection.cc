// HIPSIM_PROTECT=1: the host cannot touch device memory while no operation runs.
#include <sys/mman.h>

#include "access.h"
#include "memory.h"
#include "settings.h"

namespace hipsim {
namespace {

int operations_running = 0;

void set_all(int protection) {
  for (const auto& [start, allocation] : allocations())
    if (allocation.kind == Kind::device && allocation.freed.empty())
      mprotect(reinterpret_cast<void*>(start), allocation.mapped - 4096, protection);
}

}  // namespace

void open_memory() {
  if (settings().protect && operations_running++ == 0) set_all(PROT_READ | PROT_WRITE);
}
void close_memory() {
  if (settings().protect && --operations_running == 0) set_all(PROT_NONE);
}
void protect_new(void* start, std::size_t bytes) {
  if (settings().protect && operations_running == 0) mprotect(start, bytes, PROT_NONE);
}

}  // namespace hipsim
