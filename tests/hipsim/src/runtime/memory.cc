#include "memory.h"

#include <sys/mman.h>

#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "access.h"
#include "errors.h"
#include "settings.h"

namespace hipsim {
namespace {

constexpr std::size_t kPage = 4096;
// Freed memory keeps its addresses for as long as so many others are freed.
constexpr std::size_t kQuarantine = 4096;

std::map<std::uintptr_t, Allocation>& live_and_freed = *new std::map<std::uintptr_t, Allocation>;
std::deque<std::uintptr_t>& quarantine = *new std::deque<std::uintptr_t>;
std::vector<std::uintptr_t>& closing = *new std::vector<std::uintptr_t>;
std::size_t used = 0;

std::size_t pages(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

void* address(std::uintptr_t start) { return reinterpret_cast<void*>(start); }

}  // namespace

std::size_t device_memory_used() { return used; }
const std::map<std::uintptr_t, Allocation>& allocations() { return live_and_freed; }

int allocate(void** pointer, std::size_t bytes, Kind kind, unsigned flags) {
  if (!pointer) return kErrorInvalidValue;
  *pointer = nullptr;
  if (bytes == 0) return kSuccess;
  if (kind == Kind::device && (bytes > settings().memory || used + bytes > settings().memory)) return kErrorOutOfMemory;
  watch_faults();
  const std::size_t mapped = pages(bytes) + kPage;
  void* start = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return kErrorOutOfMemory;
  mprotect(start, mapped - kPage, PROT_READ | PROT_WRITE);
  std::memset(start, 0xff, mapped - kPage);  // not a number in every floating-point type
  const auto key = reinterpret_cast<std::uintptr_t>(start);
  live_and_freed[key] = {key, bytes, mapped, kind, made_by(), "", flags};
  if (kind == Kind::device) {
    used += bytes;
    protect_new(start, mapped - kPage);
  }
  *pointer = start;
  return kSuccess;
}

int register_host(void* pointer, std::size_t bytes, unsigned flags) {
  if (!pointer || !bytes) return kErrorInvalidValue;
  const Allocation* known = find_allocation(pointer);
  if (known && known->freed.empty()) return kErrorHostMemoryAlreadyRegistered;
  const auto key = reinterpret_cast<std::uintptr_t>(pointer);
  live_and_freed[key] = {key, bytes, bytes, Kind::registered, made_by(), "", flags};
  return kSuccess;
}

int release(void* pointer, Kind kind, const std::string& by) {
  const auto found = live_and_freed.find(reinterpret_cast<std::uintptr_t>(pointer));
  if (found == live_and_freed.end()) return kErrorInvalidValue;
  Allocation& allocation = found->second;
  if (!allocation.freed.empty()) {
    hipsim::found("double free", "the " + std::to_string(allocation.bytes) + " bytes that " + allocation.made +
                                     " made are freed by " + by + " and were by " + allocation.freed);
    return kErrorInvalidValue;
  }
  if (allocation.kind != kind) return kErrorInvalidValue;
  forget_accesses(allocation.start, allocation.end());
  if (kind == Kind::registered) {
    live_and_freed.erase(found);
    return kSuccess;
  }
  if (kind == Kind::device) used -= allocation.bytes;
  allocation.freed = by;
  closing.push_back(allocation.start);
  if (!operations_run()) close_freed();
  return kSuccess;
}

void close_freed() {
  for (const std::uintptr_t start : closing) {
    // Gives the memory back and keeps the addresses.
    mmap(address(start), live_and_freed[start].mapped, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    quarantine.push_back(start);
    if (quarantine.size() <= kQuarantine) continue;
    const Allocation& oldest = live_and_freed[quarantine.front()];
    munmap(address(oldest.start), oldest.mapped);
    live_and_freed.erase(oldest.start);
    quarantine.pop_front();
  }
  closing.clear();
}

Allocation* find_allocation(const void* pointer) {
  const auto key = reinterpret_cast<std::uintptr_t>(pointer);
  auto found = live_and_freed.upper_bound(key);
  if (found == live_and_freed.begin()) return nullptr;
  --found;
  return key < found->first + found->second.mapped ? &found->second : nullptr;
}

std::string describe_range(std::uintptr_t start, std::uintptr_t end) {
  const Allocation* allocation = find_allocation(address(start));
  if (!allocation) return format("host memory %p to %p", address(start), address(end));
  return format("bytes %zu to %zu of the %zu that ", static_cast<std::size_t>(start - allocation->start),
                static_cast<std::size_t>(end - allocation->start), allocation->bytes) +
         allocation->made + " made";
}

}  // namespace hipsim
