// Stream capture, and the graphs that it makes.
#pragma once
#include <thread>
#include <vector>

#include "queue.h"

namespace hipsim {

struct Node {
  Task task;
  int branch;              // which of the captured streams
  std::vector<int> after;  // nodes, all of them earlier
  bool copy, calls_host;
};
struct GraphState {
  std::vector<Node> nodes;
};

enum class CaptureMode { global, thread_local_, relaxed };

struct Capture {
  GraphState graph;
  std::vector<Queue*> branches;  // the first is the stream that began it
  CaptureMode mode;
  std::thread::id thread;
  bool valid = true;
};

// All of these with the lock held.

// Makes a node of a captured stream's work.
void add_node(Queue& queue, Task task, bool copy, bool calls_host);
// For an event recorded in a capture: the node that ends what the stream has captured so far.
int mark_node(Queue& queue);
// A stream waits for an event of a capture, and becomes part of it.
int join_capture(Queue& queue, Capture& capture, int node);
bool active(const Capture& capture);
void invalidate(Capture& capture);

// Each returns the error for a call that capture forbids, after spoiling the captures it concerns, or 0.
// A call that allocates, frees or waits for the device.
int refuse_in_capture();
// A call that waits for a stream or asks about it.
int refuse_wait_in_capture(Queue& queue);
// Work on the null stream while a blocking stream is captured.
int refuse_implicit_capture(Queue& queue);

}  // namespace hipsim
