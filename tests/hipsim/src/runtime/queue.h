// Streams as queues of operations, and how they run in the three modes.
#pragma once
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "clock.h"
#include "report.h"

namespace hipsim {

struct Queue;
struct Capture;

struct Operation {
  Task task;
  Queue* queue;
  Clock clock;              // what is complete before it starts, and itself
  std::uint32_t epoch;      // its number within the stream
  std::uint64_t call;       // the call that queued it
  bool copy = false;        // may read and write memory of the host that HIP does not know
  bool calls_host = false;  // runs a function of the program
  bool done = false;
  std::vector<std::shared_ptr<Operation>> after;  // of other streams
};
using OperationPtr = std::shared_ptr<Operation>;

// "s1 (non-blocking)"
std::string describe(const Queue& queue);
// "hipMemcpyAsync(D2D) (call 12) on s1 (non-blocking)"
std::string describe(const Operation& operation);

struct Queue {
  int index;  // in clocks
  std::string name;
  bool blocking;  // waits for the null stream, and it for this one
  Clock clock;
  std::deque<OperationPtr> waiting;  // the first may be running
  OperationPtr last;
  bool busy = false, started = false;
  unsigned random;
  Capture* capture = nullptr;
  int capture_node = -1;           // the last node that the capture made of this stream's work
  std::vector<int> capture_after;  // nodes that the next one waits for
};

// A mutex that knows whether it is this thread's.
class Mutex {
 public:
  void lock() {
    mutex_.lock();
    owner_ = std::this_thread::get_id();
  }
  void unlock() {
    owner_ = std::thread::id();
    mutex_.unlock();
  }
  bool mine() const { return owner_ == std::this_thread::get_id(); }

 private:
  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{std::thread::id()};
};

// Held by every function that touches queues, events, memory or graphs; released while an operation runs.
using Lock = std::unique_lock<Mutex>;
Lock lock();
// For a handler of faults, whose thread may hold the lock already: empty then.
Lock lock_unless_mine();

// What the host knows to be complete.  One clock for the whole process: hand-overs between its threads are not seen.
Clock& host_clock();

Queue& make_queue(const std::string& name, bool blocking);
Queue& null_queue();
const std::vector<Queue*>& all_queues();

struct Push {
  std::vector<OperationPtr> after;
  const Clock* seen = nullptr;
  bool copy = false, calls_host = false;
};
// Queues an operation, and in sync mode runs it.  Returns nullptr where the stream is captured.
OperationPtr push(Lock& held, Queue& queue, Task task, const Push& push = {});

// Waits until an operation is done, and from then on the host knows it.
void wait(Lock& held, const OperationPtr& operation);
void wait_queue(Lock& held, Queue& queue);
void wait_device(Lock& held);
// For a query: whether the operation is done.  In lazy mode a query that says no lets one operation run.
bool poll(Lock& held, const OperationPtr& operation);
// Runs what is left at exit, save the program's own functions, so that the detector sees it.
void drain(Lock& held);

// The name of the task that this thread runs, or nullptr.
const char* running_task();
Operation* running_operation();

// hang.cc: operations end, and threads wait for them; none may for HIPSIM_HANG_S while somebody waits.
void progress();
void wait_for_progress(Lock& held);
class Waiting {
 public:
  Waiting();
  ~Waiting();
  Waiting(const Waiting&) = delete;
};

}  // namespace hipsim
