#include "accesses.h"

#include "../sim.h"

namespace hipsim {
namespace {

constexpr std::uintptr_t kStack = 128 << 10;      // of a fiber, as emulate/fibers.h has them
constexpr std::uintptr_t kScheduler = 512 << 10;  // more than the emulation itself needs of its thread's stack
constexpr std::uintptr_t kPage = 4096;
constexpr int kRuns = 32;

// Neighbouring accesses of one kind, of which the device is told in one piece.
struct Run {
  std::uintptr_t start = 0, end = 0;
  bool writes = false;
  unsigned long used = 0;  // when it grew last; 0 for a free one
};

struct Running {
  const char* kernel = nullptr;
  std::uintptr_t image = 0, image_end = 0, arguments = 0, arguments_end = 0;
  std::uintptr_t stack = 0;  // of the thread, on which the fibers are made
  Run runs[kRuns];
  unsigned long now = 0;
  bool reported = false;
};
thread_local Running running;

void tell(Run& run) {
  if (run.used && run.end > run.start && !touch(reinterpret_cast<void*>(run.start), run.end - run.start, run.writes) &&
      !running.reported) {
    running.reported = true;
    finding("illegal address", "kernel %s %s %p, which is not memory of the device", running.kernel,
            run.writes ? "writes" : "reads", reinterpret_cast<void*>(run.start));
  }
  run.used = 0;
}

}  // namespace

void check_access(const void* address, std::size_t bytes, bool writes) {
  const auto start = reinterpret_cast<std::uintptr_t>(address), end = start + bytes;
  const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  // Most accesses are to the fiber's own stack: known without the thread's state, which takes a call to find.
  if (start - here + kStack < 2 * kStack) return;
  Running& self = running;
  if (!self.kernel || self.stack - here < kScheduler || (start >= self.image && end <= self.image_end) ||
      (start >= self.arguments && end <= self.arguments_end))
    return;
  ++self.now;
  Run* oldest = &self.runs[0];
  for (Run& run : self.runs) {
    if (run.used && run.writes == writes && start >= run.start && start <= run.end) {
      // A fault at the next page would come before the report: told up to here first.
      const bool next_page = end > run.end && (end - 1) / kPage != run.start / kPage;
      if (!next_page) {
        if (end > run.end) run.end = end;
        run.used = self.now;
        return;
      }
      tell(run);
      oldest = &run;
      break;
    }
    if (run.used < oldest->used) oldest = &run;
  }
  tell(*oldest);
  *oldest = {start, end, writes, self.now};
  // The first access of a run is looked at now, so that what is wrong is reported before it faults.
  const bool known = touch(address, bytes, writes);
  if (!known) tell(*oldest);
}

KernelAccesses::KernelAccesses(const char* kernel, std::uintptr_t image, std::uintptr_t image_end,
                               const void* arguments, std::size_t bytes) {
  running = {};
  running.kernel = kernel;
  running.image = image;
  running.image_end = image_end;
  running.arguments = reinterpret_cast<std::uintptr_t>(arguments);
  running.arguments_end = running.arguments + bytes;
  running.stack = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
}
KernelAccesses::~KernelAccesses() {
  for (Run& run : running.runs) tell(run);
  running.kernel = nullptr;
}

}  // namespace hipsim
