// With HIPSIM_PROTECT=1, in threaded and lazy mode: the host faults on pinned memory that queued work is still to read
// (when it writes there) or to write.
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
  const Operation* operation;
  std::uintptr_t start, end;
  bool writes;
  bool running, reported;
};
std::vector<Flight>& flights = *new std::vector<Flight>;

bool watched() { return settings().protect && settings().mode != Mode::sync; }

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
  for (std::uintptr_t page = flight.start / kPage * kPage; page < flight.end; page += kPage)
    mprotect(reinterpret_cast<void*>(page), kPage, protection(page));
}

}  // namespace

void flight_queued(const Operation& operation) {
  if (!watched()) return;
  for (const Access& access : operation.task.accesses) {
    const Allocation* allocation = find_allocation(access.address);
    if (!allocation || allocation->kind != Kind::pinned || !allocation->freed.empty()) continue;
    const auto start = reinterpret_cast<std::uintptr_t>(access.address);
    flights.push_back(
        {&operation, start, std::min(start + access.bytes, allocation->end()), access.writes, false, false});
    protect(flights.back());
  }
}

void flight_runs(const Operation& operation) {
  for (Flight& flight : flights)
    if (flight.operation == &operation) {
      flight.running = true;
      protect(flight);
    }
}

void flight_landed(const Operation& operation) {
  for (std::size_t i = flights.size(); i-- > 0;)
    if (flights[i].operation == &operation) {
      const Flight landed = flights[i];
      flights.erase(flights.begin() + static_cast<std::ptrdiff_t>(i));
      protect(landed);
    }
}

bool excuse_fault(std::uintptr_t address, bool is_write) {
  const Operation* here = running_operation();
  // A function of the program may touch what later work of its stream is to use.
  const auto waits_for_this = [here](const Operation& queued) {
    return here && queued.clock.of(here->queue->index) >= here->epoch;
  };
  for (Flight& flight : flights)
    if (!flight.running && !flight.reported && flight.start <= address && address < flight.end &&
        (flight.writes || is_write) && !waits_for_this(*flight.operation)) {
      found("host access", (here ? describe(*here) : std::string("the program itself")) +
                               (is_write ? " writes " : " reads ") + describe_range(address, address + 1) + ", which " +
                               describe(*flight.operation) + " is still to " + (flight.writes ? "write" : "read"));
      flight.reported = true;
      protect(flight);
    }
  // It may go on: what else lies on the page is its own.
  return mprotect(reinterpret_cast<void*>(address / kPage * kPage), kPage, PROT_READ | PROT_WRITE) == 0;
}

}  // namespace hipsim
