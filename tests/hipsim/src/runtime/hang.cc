// A program that waits for work that does not end is ended, with what each stream stands at.
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <thread>

#include "queue.h"
#include "settings.h"

namespace hipsim {
namespace {

using Time = std::chrono::steady_clock;

std::condition_variable_any& changed = *new std::condition_variable_any;
Time::time_point last_progress;
unsigned waiting = 0;

[[noreturn]] void give_up() {
  std::string text = format("nothing has ended for %u s", settings().hang_s);
  for (const Queue* queue : all_queues())
    if (!queue->waiting.empty())
      text += std::string("; ") + (queue->busy ? "running: " : "next: ") + describe(*queue->waiting.front());
  found("hang", text);
  std::_Exit(86);
}

void watch() {
  for (;;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    const Lock held = lock();
    if (waiting && Time::now() - last_progress > std::chrono::seconds(settings().hang_s)) give_up();
  }
}

}  // namespace

void progress() {
  last_progress = Time::now();
  changed.notify_all();
}

void wait_for_progress(Lock& held) { changed.wait(held); }

Waiting::Waiting() {
  static const bool watched = (std::thread(watch).detach(), true);
  (void)watched;
  if (waiting++ == 0) last_progress = Time::now();
}
Waiting::~Waiting() { --waiting; }

}  // namespace hipsim
