#include "capture.h"

#include <algorithm>

#include "errors.h"
#include "graphs.h"
#include "streams.h"

namespace hipsim {
namespace {

std::vector<Capture*>& captures = *new std::vector<Capture*>;
thread_local CaptureMode thread_mode = CaptureMode::global;

int branch_of(const Capture& capture, const Queue& queue) {
  return static_cast<int>(std::find(capture.branches.begin(), capture.branches.end(), &queue) -
                          capture.branches.begin());
}

void leave(Capture& capture) {
  for (Queue* queue : capture.branches) {
    queue->capture = nullptr;
    queue->capture_node = -1;
    queue->capture_after.clear();
  }
  captures.erase(std::find(captures.begin(), captures.end(), &capture));
}

// Whether everything that was captured lies before the end of the stream that began it.
bool joined(const Capture& capture) {
  std::vector<bool> reached(capture.graph.nodes.size());
  std::vector<int> open = capture.branches.front()->capture_after;
  if (capture.branches.front()->capture_node >= 0) open.push_back(capture.branches.front()->capture_node);
  while (!open.empty()) {
    const auto node = static_cast<std::size_t>(open.back());
    open.pop_back();
    if (reached[node]) continue;
    reached[node] = true;
    open.insert(open.end(), capture.graph.nodes[node].after.begin(), capture.graph.nodes[node].after.end());
  }
  return std::all_of(reached.begin(), reached.end(), [](bool one) { return one; });
}

}  // namespace

void add_node(Queue& queue, Task task, bool copy, bool calls_host) {
  Capture& capture = *queue.capture;
  Node node{std::move(task), branch_of(capture, queue), std::move(queue.capture_after), copy, calls_host};
  if (queue.capture_node >= 0) node.after.push_back(queue.capture_node);
  queue.capture_after.clear();
  queue.capture_node = static_cast<int>(capture.graph.nodes.size());
  capture.graph.nodes.push_back(std::move(node));
}

int mark_node(Queue& queue) {
  if (queue.capture_after.size() + (queue.capture_node >= 0) != 1)
    add_node(queue, {"event", nullptr, {}}, false, false);
  return queue.capture_node >= 0 && queue.capture_after.empty() ? queue.capture_node : queue.capture_after.front();
}

int join_capture(Queue& queue, Capture& capture, int node) {
  if (!active(capture)) return kErrorCapturedEvent;
  if (queue.capture && queue.capture != &capture) {
    invalidate(*queue.capture);
    invalidate(capture);
    return kErrorStreamCaptureMerge;
  }
  if (&queue == &null_queue()) {
    invalidate(capture);
    return kErrorStreamCaptureImplicit;
  }
  if (!queue.capture) {
    queue.capture = &capture;
    capture.branches.push_back(&queue);
  }
  queue.capture_after.push_back(node);
  return kSuccess;
}

bool active(const Capture& capture) { return std::find(captures.begin(), captures.end(), &capture) != captures.end(); }

void invalidate(Capture& capture) { capture.valid = false; }

int refuse_in_capture() {
  bool refused = false;
  for (Capture* capture : captures) {
    const bool own = capture->thread == std::this_thread::get_id();
    const bool concerns = capture->mode == CaptureMode::global || (capture->mode == CaptureMode::thread_local_ && own);
    if (!concerns || thread_mode == CaptureMode::relaxed || (thread_mode == CaptureMode::thread_local_ && !own))
      continue;
    invalidate(*capture);
    refused = true;
  }
  return refused ? kErrorStreamCaptureUnsupported : kSuccess;
}

int refuse_wait_in_capture(Queue& queue) {
  if (queue.capture) {
    invalidate(*queue.capture);
    return kErrorStreamCaptureUnsupported;
  }
  return refuse_implicit_capture(queue);
}

int refuse_implicit_capture(Queue& queue) {
  if (&queue != &null_queue()) return kSuccess;
  bool refused = false;
  for (Capture* capture : captures)
    for (const Queue* branch : capture->branches)
      if (branch->blocking && capture->mode != CaptureMode::relaxed) {
        invalidate(*capture);
        refused = true;
      }
  return refused ? kErrorStreamCaptureImplicit : kSuccess;
}

}  // namespace hipsim

using namespace hipsim;

HIPSIM_API int hipStreamBeginCapture(hipStream_t stream, int mode) {
  HIP_CALL("stream=%s, mode=%d", stream_name(stream).c_str(), mode);
  const Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (mode < 0 || mode > 2) return fail(kErrorInvalidValue);
  if (queue == &null_queue()) return fail(kErrorStreamCaptureUnsupported);
  if (queue->capture) return fail(kErrorIllegalState);
  auto* capture = new Capture{};
  capture->branches = {queue};
  capture->mode = static_cast<CaptureMode>(mode);
  capture->thread = std::this_thread::get_id();
  queue->capture = capture;
  captures.push_back(capture);
  return kSuccess;
}
HIPSIM_API int hipStreamEndCapture(hipStream_t stream, hipGraph_t* graph) {
  HIP_CALL("stream=%s", stream_name(stream).c_str());
  const Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (!graph) return fail(kErrorInvalidValue);
  *graph = nullptr;
  Capture* capture = queue->capture;
  if (!capture) return fail(kErrorIllegalState);
  if (capture->branches.front() != queue) return fail(kErrorStreamCaptureUnmatched);
  if (capture->mode != CaptureMode::relaxed && capture->thread != std::this_thread::get_id())
    return fail(kErrorStreamCaptureWrongThread);
  const int failed = !capture->valid     ? kErrorStreamCaptureInvalidated
                     : !joined(*capture) ? kErrorStreamCaptureUnjoined
                                         : kSuccess;
  leave(*capture);  // and is never deleted: events refer to it
  if (failed) return fail(failed);
  *graph = make_graph(std::move(capture->graph));
  return kSuccess;
}
HIPSIM_API int hipStreamIsCapturing(hipStream_t stream, int* status) {
  HIP_CALL("stream=%s", stream_name(stream).c_str());
  const Lock held = lock();
  const Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (!status) return fail(kErrorInvalidValue);
  *status = !queue->capture ? 0 : queue->capture->valid ? 1 : 2;
  return kSuccess;
}
HIPSIM_API int hipThreadExchangeStreamCaptureMode(int* mode) {
  HIP_CALL("");
  if (!mode || *mode < 0 || *mode > 2) return fail(kErrorInvalidValue);
  const auto before = static_cast<int>(thread_mode);
  thread_mode = static_cast<CaptureMode>(*mode);
  *mode = before;
  return kSuccess;
}
