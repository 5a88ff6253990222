// Events.
#include "events.h"

#include <chrono>
#include <limits>
#include <map>

#include "capture.h"
#include "errors.h"
#include "streams.h"

namespace hipsim {
namespace {

constexpr const char* kKind = "hipEvent";
constexpr unsigned kBlockingSync = 1, kDisableTiming = 2, kInterprocess = 4;
// hipEventDisableSystemFence, hipEventReleaseToDevice, hipEventReleaseToSystem
constexpr unsigned kFences = 0x20000000 | 0x40000000 | 0x80000000;

std::map<hipEvent_t, EventState>& events = *new std::map<hipEvent_t, EventState>;

double now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(since).count();
}

EventState* find_event(hipEvent_t event) {
  if (alive(kKind, event)) return &events[event];
  if (!events.count(event))
    finding("invalid handle", "%s gets the event %p, which is none", current_call().function,
            static_cast<void*>(event));
  return nullptr;
}

// Why the host may neither wait for an event nor ask about it; kSuccess if it may.
int refuse_host(const EventState* state) {
  if (!state) return kErrorInvalidHandle;
  if (state->capture && active(*state->capture)) {
    invalidate(*state->capture);
    return kErrorCapturedEvent;
  }
  return refuse_in_capture();
}

int create(hipEvent_t* event, unsigned flags) {
  if (!event || flags & ~(kBlockingSync | kDisableTiming | kInterprocess | kFences)) return fail(kErrorInvalidValue);
  const Lock held = lock();
  const auto number = events.size() + 1;
  *event = reinterpret_cast<hipEvent_t>(0x520000000000 + number * 0x100);
  events[*event].timed = !(flags & kDisableTiming);
  made(kKind, *event, "e" + std::to_string(number));
  return kSuccess;
}

}  // namespace

std::string event_name(hipEvent_t event) {
  return format("e%zu", (reinterpret_cast<std::size_t>(event) - 0x520000000000) / 0x100);
}

}  // namespace hipsim

using namespace hipsim;

HIPSIM_API int hipEventCreateWithFlags(hipEvent_t* event, unsigned flags) {
  HIP_CALL("flags=%u", flags);
  return create(event, flags);
}
HIPSIM_API int hipEventCreate(hipEvent_t* event) {
  HIP_CALL("");
  return create(event, 0);
}
HIPSIM_API int hipEventDestroy(hipEvent_t event) {
  HIP_CALL("event=%s", event_name(event).c_str());
  const Lock held = lock();
  if (!find_event(event)) return fail(kErrorInvalidHandle);
  gone(kKind, event);
  events[event] = {};
  return kSuccess;
}
HIPSIM_API int hipEventRecord(hipEvent_t event, hipStream_t stream) {
  HIP_CALL("event=%s, stream=%s", event_name(event).c_str(), stream_name(stream).c_str());
  Lock held = lock();
  EventState* state = find_event(event);
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (!state) return fail(kErrorInvalidHandle);
  if (const int refused = refuse_implicit_capture(*queue)) return fail(refused);
  if (queue->capture) {
    state->recorded = nullptr;
    state->capture = queue->capture;
    state->node = mark_node(*queue);
    return kSuccess;
  }
  const auto reached = std::make_shared<double>(0);
  const OperationPtr recorded = push(held, *queue, {"record " + event_name(event), [=] { *reached = now(); }, {}});
  *state = {recorded, recorded->clock, state->timed, reached};
  return kSuccess;
}
HIPSIM_API int hipEventRecordWithFlags(hipEvent_t event, hipStream_t stream, unsigned) {
  return hipEventRecord(event, stream);
}
HIPSIM_API int hipStreamWaitEvent(hipStream_t stream, hipEvent_t event, unsigned flags) {
  HIP_CALL("stream=%s, event=%s", stream_name(stream).c_str(), event_name(event).c_str());
  if (flags) return fail(kErrorInvalidValue);
  Lock held = lock();
  const EventState* state = find_event(event);
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (!state) return fail(kErrorInvalidHandle);
  if (state->capture) return fail_if(join_capture(*queue, *state->capture, state->node));
  if (queue->capture) {
    // An event from outside would tie the graph to one moment.
    if (!state->recorded) return kSuccess;
    invalidate(*queue->capture);
    return fail(kErrorStreamCaptureIsolation);
  }
  if (!state->recorded) return kSuccess;
  Push order;
  order.after = {state->recorded};
  order.seen = &state->clock;
  push(held, *queue, {"wait for " + event_name(event), nullptr, {}}, order);
  return kSuccess;
}
HIPSIM_API int hipEventSynchronize(hipEvent_t event) {
  HIP_CALL("event=%s", event_name(event).c_str());
  Lock held = lock();
  const EventState* state = find_event(event);
  if (const int refused = refuse_host(state)) return fail(refused);
  wait(held, OperationPtr(state->recorded));
  return kSuccess;
}
HIPSIM_API int hipEventQuery(hipEvent_t event) {
  HIP_CALL("event=%s", event_name(event).c_str());
  Lock held = lock();
  const EventState* state = find_event(event);
  if (const int refused = refuse_host(state)) return fail(refused);
  return poll(held, OperationPtr(state->recorded)) ? kSuccess : kErrorNotReady;
}
HIPSIM_API int hipEventElapsedTime(float* milliseconds, hipEvent_t start, hipEvent_t stop) {
  HIP_CALL("start=%s, stop=%s", event_name(start).c_str(), event_name(stop).c_str());
  if (!milliseconds) return fail(kErrorInvalidValue);
  const Lock held = lock();
  const EventState *first = find_event(start), *second = find_event(stop);
  if (!first || !second || !first->timed || !second->timed || !first->recorded || !second->recorded)
    return fail(kErrorInvalidHandle);
  if (!first->recorded->done || !second->recorded->done) return kErrorNotReady;
  *milliseconds = static_cast<float>(*second->milliseconds - *first->milliseconds);
  return kSuccess;
}
