// With HIPSIM_PROTECT=1 the host faults on pinned memory that queued work reads (when it writes there) or writes, until
// it knows that the work is done: from a wait or a query, or since a function of the program ran behind the work.  So what
// is found does not depend on when the work runs.
#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "access.h"
#include "memory.h"
#include "settings.h"

namespace hipsim {
namespace {

constexpr std::uintptr_t kPage = 4096;

struct Flight {
  OperationPtr operation;
  std::uintptr_t start, end;
  bool writes;
  bool running, reported;
};
std::vector<Flight>& flights = *new std::vector<Flight>;
// What the functions of the program that have run were behind.
Clock& seen_by_functions = *new Clock;

bool known(const Operation& operation, const Clock& clock) {
  return clock.of(operation.queue->index) >= operation.epoch;
}

int protection(std::uintptr_t page) {
  int allowed = PROT_READ | PROT_WRITE;
  for (const Flight& flight : flights) {
    if (flight.end <= page || flight.start >= page + kPage || flight.reported) continue;
    if (flight.running) return PROT_READ | PROT_WRITE;
    allowed &= flight.writes ? PROT_NONE : PROT_READ;
  }
  return allowed;
}

void protect(const Flight& flight) {
  const Allocation* allocation = find_allocation(reinterpret_cast<const void*>(flight.start));
  if (!allocation || !allocation->freed.empty()) return;
  for (std::uintptr_t page = flight.start / kPage * kPage; page < flight.end; page += kPage)
    mprotect(reinterpret_cast<void*>(page), kPage, protection(page));
}

}  // namespace

void flight_queued(const OperationPtr& operation) {
  if (!settings().protect) return;
  for (const Access& access : operation->task.accesses) {
    const Allocation* allocation = find_allocation(access.address);
    if (!allocation || allocation->kind != Kind::pinned || !allocation->freed.empty()) continue;
    const auto start = reinterpret_cast<std::uintptr_t>(access.address);
    flights.push_back(
        {operation, start, std::min(start + access.bytes, allocation->end()), access.writes, false, false});
    protect(flights.back());
  }
}

void flight_runs(const Operation& operation, bool running) {
  for (Flight& flight : flights)
    if (flight.operation.get() == &operation) {
      flight.running = running;
      protect(flight);
    }
  if (!running && operation.calls_host) {
    seen_by_functions.join(operation.clock);
    flights_known();
  }
}

void flights_known() {
  for (std::size_t i = flights.size(); i-- > 0;) {
    const Flight flight = flights[i];
    if (!known(*flight.operation, host_clock()) && !known(*flight.operation, seen_by_functions)) continue;
    flights.erase(flights.begin() + static_cast<std::ptrdiff_t>(i));
    protect(flight);
  }
}

bool excuse_fault(std::uintptr_t address, bool is_write) {
  const Operation* here = running_operation();
  // A function of the program may touch what work uses that comes before it, or after it.
  const auto ordered = [here](const Operation& other) {
    return here && (known(other, here->clock) || known(*here, other.clock));
  };
  for (Flight& flight : flights)
    if (!flight.running && !flight.reported && flight.start <= address && address < flight.end &&
        (flight.writes || is_write) && !ordered(*flight.operation)) {
      found("host access", (here ? describe(*here) : std::string("the program itself")) +
                               (is_write ? " writes " : " reads ") + describe_range(address, address + 1) + ", which " +
                               describe(*flight.operation) + (flight.writes ? " writes" : " reads") +
                               "; nothing has waited for that");
      flight.reported = true;
      protect(flight);
    }
  // It may go on: what else lies on the page is its own.
  return mprotect(reinterpret_cast<void*>(address / kPage * kPage), kPage, PROT_READ | PROT_WRITE) == 0;
}

}  // namespace hipsim
