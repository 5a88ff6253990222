// A program that waits for work that does not end is ended, with what each stream stands at.
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <thread>

#include "queue.h"
#include "settings.h"

namespace hipsim {
namespace {

constexpr unsigned kLooksPerSecond = 5;

std::condition_variable_any& changed = *new std::condition_variable_any;
unsigned waiting = 0;
// How often in a row the watcher has seen somebody wait and nothing end.  Not seconds: a process that the machine did
// not run for a while does not hang.
unsigned looks = 0;

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
    std::this_thread::sleep_for(std::chrono::milliseconds(1000 / kLooksPerSecond));
    const Lock held = lock();
    if (waiting && ++looks > kLooksPerSecond * settings().hang_s) give_up();
  }
}

}  // namespace

void progress() {
  looks = 0;
  changed.notify_all();
}

void wait_for_progress(Lock& held) { changed.wait(held); }

Waiting::Waiting() {
  static const bool watched = (std::thread(watch).detach(), true);
  (void)watched;
  if (waiting++ == 0) looks = 0;
}
Waiting::~Waiting() { --waiting; }

}  // namespace hipsim
