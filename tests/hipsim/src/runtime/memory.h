// Allocations of the device and pinned memory of the host.
#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "objects.h"
#include "queue.h"

namespace hipsim {

enum class Kind { device, pinned, registered };

struct Allocation {
  std::uintptr_t start;
  std::size_t bytes;   // as asked for
  std::size_t mapped;  // whole pages, with a page behind the end that nobody may touch
  Kind kind;
  std::string made;   // by which call
  std::string freed;  // by which call; empty while it lives
  unsigned flags = 0;

  std::uintptr_t end() const { return start + bytes; }
};

// All of these with the lock held.
int allocate(void** pointer, std::size_t bytes, Kind kind, unsigned flags = 0);
int register_host(void* pointer, std::size_t bytes, unsigned flags);
// A later use is a finding, or faults.  `kind` must be the allocation's.
int release(void* pointer, Kind kind, const std::string& by = made_by());
// Lets freed memory fault, once no operation runs: one that races with the free may be in the middle of it.
void close_freed();
// The allocation whose pages `address` lies in, freed ones too; nullptr if there is none.
Allocation* find_allocation(const void* address);
std::size_t device_memory_used();
const std::map<std::uintptr_t, Allocation>& allocations();
// "bytes 16 to 32 of the 4096 bytes that hipMalloc (call 3, by ..) made"
std::string describe_range(std::uintptr_t start, std::uintptr_t end);

}  // namespace hipsim
