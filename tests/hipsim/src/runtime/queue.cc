#include "queue.h"

#include <chrono>
#include <cstdlib>

#include "access.h"
#include "capture.h"
#include "settings.h"

namespace hipsim {
namespace {

Mutex& mutex = *new Mutex;
std::vector<Queue*>& queues = *new std::vector<Queue*>;
thread_local Operation* running = nullptr;

// Runs the first operation of a queue that nobody runs; the lock is released meanwhile.
void run_first(Lock& held, Queue& queue) {
  const OperationPtr operation = queue.waiting.front();
  queue.busy = true;
  const bool permitted = check_accesses(*operation);
  open_memory();
  flight_runs(*operation, true);
  held.unlock();
  if (permitted && operation->task.body) {
    running = operation.get();
    operation->task.body();
    running = nullptr;
  }
  held.lock();
  close_memory();
  flight_runs(*operation, false);
  queue.waiting.pop_front();
  queue.busy = false;
  operation->done = true;
  operation->after.clear();
  operation->task.body = nullptr;
  progress();
}

// The first operation that must run before `wanted` can, which may be itself.
Queue& next_for(const Operation& wanted) {
  Queue* queue = wanted.queue;
  for (;;) {
    Queue* other = nullptr;
    for (const OperationPtr& needed : queue->waiting.front()->after)
      if (!needed->done) other = needed->queue;
    if (!other) return *queue;
    queue = other;
  }
}

// Sync and lazy mode: this thread runs what it needs.
void run_until(Lock& held, const OperationPtr& wanted) {
  const Waiting waiting;
  while (!wanted->done) {
    Queue& queue = next_for(*wanted);
    if (queue.busy)
      wait_for_progress(held);
    else
      run_first(held, queue);
  }
}

// From now on the host knows that an operation is done.
void learn(const Operation& operation) {
  host_clock().join(operation.clock);
  flights_known();
}

// Threaded mode: one of these for each stream.
void work(Queue& queue) {
  Lock held = lock();
  for (;;) {
    const auto ready = [&queue] {
      if (queue.waiting.empty()) return false;
      for (const OperationPtr& needed : queue.waiting.front()->after)
        if (!needed->done) return false;
      return true;
    };
    while (!ready()) wait_for_progress(held);
    if (const unsigned longest = settings().delay_us) {
      const auto delay = std::chrono::microseconds(static_cast<unsigned>(rand_r(&queue.random)) % longest);
      held.unlock();
      std::this_thread::sleep_for(delay);
      held.lock();
    }
    run_first(held, queue);
  }
}

}  // namespace

Lock lock() { return Lock(mutex); }
Lock lock_unless_mine() { return mutex.mine() ? Lock() : lock(); }

Clock& host_clock() {
  static Clock& clock = *new Clock;
  return clock;
}

Queue& make_queue(const std::string& name, bool blocking) {
  auto* queue = new Queue{};  // never deleted: operations and clocks refer to it
  queue->index = static_cast<int>(queues.size());
  queue->name = name;
  queue->blocking = blocking;
  queue->random = settings().seed * 7919 + static_cast<unsigned>(queue->index) + 1;
  queues.push_back(queue);
  return *queue;
}
Queue& null_queue() {
  static Queue& queue = make_queue("null", true);
  return queue;
}
const std::vector<Queue*>& all_queues() { return queues; }

std::string describe(const Queue& queue) { return queue.name + (queue.blocking ? "" : " (non-blocking)"); }
std::string describe(const Operation& operation) {
  return format("%s (call %llu) on ", operation.task.name.c_str(), static_cast<unsigned long long>(operation.call)) +
         describe(*operation.queue);
}

OperationPtr push(Lock& held, Queue& queue, Task task, const Push& options) {
  if (queue.capture) {
    add_node(queue, std::move(task), options.copy, options.calls_host);
    return nullptr;
  }
  const auto operation = std::make_shared<Operation>();
  operation->task = std::move(task);
  operation->queue = &queue;
  operation->call = current_call().number;
  operation->copy = options.copy;
  operation->calls_host = options.calls_host;
  queue.clock.join(host_clock());
  if (options.seen) queue.clock.join(*options.seen);
  const auto follow = [&](const OperationPtr& earlier) {
    if (earlier && !earlier->done) operation->after.push_back(earlier);
  };
  for (const OperationPtr& earlier : options.after) follow(earlier);
  // The null stream and the blocking streams wait for one another.
  const auto follow_queue = [&](Queue& other) {
    queue.clock.join(other.clock);
    follow(other.last);
  };
  if (&queue == &null_queue()) {
    for (Queue* other : queues)
      if (other != &queue && other->blocking) follow_queue(*other);
  } else if (queue.blocking) {
    follow_queue(null_queue());
  }
  operation->epoch = queue.clock.advance(queue.index);
  operation->clock = queue.clock;
  queue.waiting.push_back(operation);
  queue.last = operation;
  flight_queued(operation);
  if (settings().mode == Mode::sync) run_until(held, operation);
  if (settings().mode == Mode::threaded) {
    if (!queue.started) {
      queue.started = true;
      std::thread(work, std::ref(queue)).detach();
    }
    progress();
  }
  return operation;
}

void wait(Lock& held, const OperationPtr& operation) {
  if (!operation) return;
  if (settings().mode == Mode::threaded) {
    const Waiting waiting;
    while (!operation->done) wait_for_progress(held);
  } else {
    run_until(held, operation);
  }
  learn(*operation);
}

void wait_queue(Lock& held, Queue& queue) {
  // What the null stream would wait for, too.
  if (&queue == &null_queue())
    for (std::size_t i = 0; i < queues.size(); ++i)
      if (queues[i]->blocking) wait(held, queues[i]->last);
  wait(held, queue.last);
}

void wait_device(Lock& held) {
  for (std::size_t i = 0; i < queues.size(); ++i) wait(held, queues[i]->last);
}

bool poll(Lock& held, const OperationPtr& operation) {
  if (!operation || operation->done) {
    if (operation) learn(*operation);
    return true;
  }
  if (settings().mode != Mode::threaded) {
    const Waiting waiting;
    Queue& queue = next_for(*operation);
    if (!queue.busy) run_first(held, queue);
  }
  return false;
}

void drain(Lock& held) {
  for (std::size_t i = 0; i < queues.size(); ++i)
    for (const OperationPtr& operation : queues[i]->waiting)
      if (operation->calls_host && !(queues[i]->busy && operation == queues[i]->waiting.front()))
        operation->task.body = nullptr;
  wait_device(held);
}

const char* running_task() { return running ? running->task.name.c_str() : nullptr; }
Operation* running_operation() { return running; }

}  // namespace hipsim
