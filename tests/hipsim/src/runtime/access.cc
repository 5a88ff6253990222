#include "access.h"

#include "memory.h"
#include "settings.h"

namespace hipsim {
namespace {

std::uintptr_t number(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

// Each kind of mistake of a task is reported once.
void report(const char* kind, const Operation& operation, const std::string& text) {
  found(kind, describe(operation) + " " + text, operation.task.name + operation.queue->name);
}

bool check_access(const Operation& operation, const Access& access) {
  if (access.bytes == 0) return true;
  const char* verb = access.writes ? "writes" : "reads";
  const std::uintptr_t start = number(access.address), end = start + access.bytes;
  const Allocation* allocation = find_allocation(access.address);
  if (!allocation) {
    if (operation.copy) return true;
    report("illegal address", operation,
           format("%s %zu bytes at %p, which is not memory of the device", verb, access.bytes, access.address));
    return false;
  }
  if (!allocation->freed.empty()) {
    report("use after free", operation,
           std::string(verb) + " " + describe_range(start, end) + "; freed by " + allocation->freed);
    return false;
  }
  if (end > allocation->end()) {
    report("out of bounds", operation, std::string(verb) + " " + describe_range(start, end));
    return false;
  }
  check_race(operation, start, end, access.writes);
  return true;
}

}  // namespace

bool check_accesses(const Operation& operation) {
  bool permitted = true;
  for (const Access& access : operation.task.accesses) permitted &= check_access(operation, access);
  return permitted;
}

bool touch(const void* address, std::size_t bytes, bool writes) {
  const Operation* operation = running_operation();
  if (!operation) return true;
  const Lock held = lock();
  // A kernel's own variables are no allocations.
  if (!find_allocation(address)) return false;
  check_access(*operation, {address, bytes, writes});
  return true;
}

}  // namespace hipsim
