// A program that waits for work that will never end is ended, with what each stream stands at.
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>

#include "queue.h"
#include "settings.h"

namespace hipsim {
namespace {

using Time = std::chrono::steady_clock;

std::condition_variable& changed = *new std::condition_variable;
Time::time_point last_progress;

[[noreturn]] void give_up(const Operation& wanted) {
  std::string text = format("nothing ended for %u s, and %s waits for ", settings().hang_s, current_call().function) +
                     describe(wanted);
  for (const Queue* queue : all_queues())
    if (!queue->waiting.empty())
      text += std::string("; ") + (queue->busy ? "running: " : "next: ") + describe(*queue->waiting.front());
  found("hang", text);
  std::_Exit(86);
}

}  // namespace

void progress() {
  last_progress = Time::now();
  changed.notify_all();
}

void wait_for_progress(Lock& held, const Operation* wanted) {
  if (!wanted) return changed.wait(held);
  const Time::time_point begin = Time::now();
  while (changed.wait_for(held, std::chrono::seconds(1)) == std::cv_status::timeout)
    if (Time::now() - std::max(begin, last_progress) > std::chrono::seconds(settings().hang_s)) give_up(*wanted);
}

}  // namespace hipsim
