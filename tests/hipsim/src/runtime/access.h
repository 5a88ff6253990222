// Checks of what operations read and write: bounds, use after free, races; and the protection of device memory.
#pragma once
#include <cstdint>

#include "queue.h"

namespace hipsim {

// Before an operation runs, with the lock held: false where running it would fault.
bool check_accesses(const Operation& operation);
// Forgets who read and wrote memory that is no more.
void forget_accesses(std::uintptr_t start, std::uintptr_t end);

// Around each operation, with the lock held.  With HIPSIM_PROTECT device memory is closed while none runs, so that the
// host faults on it; what was freed meanwhile is closed for good.
void open_memory();
void close_memory();
bool operations_run();
void protect_new(void* start, std::size_t bytes);
// From now on a fault on memory that hipsim made is a finding.
void watch_faults();

// flights.cc: the same for pinned memory, from the time that work on it is queued until the host knows that it is done.
void flight_queued(const OperationPtr& operation);
void flight_runs(const Operation& operation, bool running);
// The host has learned something.
void flights_known();
// Reports a fault of the host on pinned memory if work in flight forbids it; true where the program may go on.
bool excuse_fault(std::uintptr_t address, bool is_write);

// races.cc: notes an access, and reports earlier ones that nothing orders before it.
void check_race(const Operation& operation, std::uintptr_t start, std::uintptr_t end, bool writes);

}  // namespace hipsim
