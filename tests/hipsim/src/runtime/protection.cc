// Faults on memory that hipsim made are reported before they end the process.  With HIPSIM_PROTECT=1 the host faults on
// device memory too, while no operation runs.
#include <signal.h>
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

struct sigaction next_handler;

// Only a thread that holds no lock can be helped: one that faults within the simulator just ends.
void on_fault(int number, siginfo_t* info, void* context) {
  Lock held(lock_for_faults(), std::try_to_lock);
  if (held) {
    const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
    const Allocation* allocation = find_allocation(info->si_addr);
    if (allocation) {
      const Operation* operation = running_operation();
      const char* kind = !allocation->freed.empty()       ? "use after free"
                         : address >= allocation->end() ? "out of bounds"
                                                         : "host access";
      found(kind, (operation ? describe(*operation) : std::string("the program itself")) + " touches " +
                      describe_range(address, address + 1) +
                      (allocation->freed.empty() ? std::string() : "; freed by " + allocation->freed));
    }
  }
  if (next_handler.sa_flags & SA_SIGINFO) return next_handler.sa_sigaction(number, info, context);
  if (next_handler.sa_handler != SIG_DFL && next_handler.sa_handler != SIG_IGN) return next_handler.sa_handler(number);
  signal(number, SIG_DFL);  // the instruction faults again
}

}  // namespace

void watch_faults() {
  static const bool watched = [] {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &next_handler);
    return true;
  }();
  (void)watched;
}

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
