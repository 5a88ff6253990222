// Faults on memory that hipsim made are reported before they end the process.  With HIPSIM_PROTECT=1 the host faults on
// device memory too, while no operation runs.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

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

bool handled(const void* pointer, bool is_write) {
  const Lock held = lock_unless_mine();
  const Allocation* allocation = find_allocation(pointer);
  if (!allocation) return false;
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  const bool freed = !allocation->freed.empty(), inside = address < allocation->end();
  if (allocation->kind == Kind::pinned && !freed && inside) return excuse_fault(address, is_write);
  const Operation* operation = running_operation();
  found(freed    ? "use after free"
        : inside ? "host access"
                 : "out of bounds",
        (operation ? describe(*operation) : std::string("the program itself")) + (is_write ? " writes " : " reads ") +
            describe_range(address, address + 1) + (freed ? "; freed by " + allocation->freed : std::string()));
  return false;
}

void on_fault(int number, siginfo_t* info, void* context) {
  constexpr long kWrite = 2;  // of the page fault's error code
  const bool is_write = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & kWrite;
  if (handled(info->si_addr, is_write)) return;
  if (next_handler.sa_flags & SA_SIGINFO) return next_handler.sa_sigaction(number, info, context);
  if (next_handler.sa_handler != SIG_DFL && next_handler.sa_handler != SIG_IGN) return next_handler.sa_handler(number);
  signal(number, SIG_DFL);  // the instruction faults again
}

}  // namespace

void watch_faults() {
  static const bool watched = [] {
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &next_handler);
    return true;
  }();
  (void)watched;
}

void open_memory() {
  if (operations_running++ == 0 && settings().protect) set_all(PROT_READ | PROT_WRITE);
}
void close_memory() {
  if (--operations_running > 0) return;
  if (settings().protect) set_all(PROT_NONE);
  close_freed();
}
bool operations_run() { return operations_running > 0; }
void protect_new(void* start, std::size_t bytes) {
  if (settings().protect && operations_running == 0) mprotect(start, bytes, PROT_NONE);
}

}  // namespace hipsim
