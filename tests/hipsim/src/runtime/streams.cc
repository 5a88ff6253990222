// Streams.
#include "streams.h"

#include <map>

#include "capture.h"
#include "errors.h"

namespace hipsim {
namespace {

struct Known {
  Queue* queue;
  unsigned flags;
  int priority;
};
constexpr const char* kKind = "hipStream";
constexpr unsigned kNonBlocking = 1;
const hipStream_t kLegacy = reinterpret_cast<hipStream_t>(1), kPerThread = reinterpret_cast<hipStream_t>(2);

std::map<hipStream_t, Known>& streams = *new std::map<hipStream_t, Known>;

Queue& thread_queue() {
  static int made = 0;
  thread_local Queue& queue = make_queue("thread" + std::to_string(++made), true);
  return queue;
}

int create(hipStream_t* stream, unsigned flags, int priority) {
  if (!stream || flags > kNonBlocking) return fail(kErrorInvalidValue);
  const Lock held = lock();
  const auto number = streams.size() + 1;
  const bool blocking = !(flags & kNonBlocking);
  Queue& queue = make_queue("s" + std::to_string(number), blocking);
  // No address of this process: who follows it faults.
  *stream = reinterpret_cast<hipStream_t>(0x510000000000 + number * 0x100);
  streams[*stream] = {&queue, flags, priority};
  made(kKind, *stream, queue.name);
  write_log(format("\"stream\": \"%s\", \"handle\": %llu, \"blocking\": %s", queue.name.c_str(),
                   reinterpret_cast<unsigned long long>(*stream), blocking ? "true" : "false"));
  return kSuccess;
}

const Known* find(hipStream_t stream) {
  const auto known = streams.find(stream);
  return known == streams.end() ? nullptr : &known->second;
}

}  // namespace

Queue* find_queue(hipStream_t stream) {
  if (!stream || stream == kLegacy) return &null_queue();
  if (stream == kPerThread) return &thread_queue();
  if (alive(kKind, stream)) return streams[stream].queue;
  if (!find(stream))
    finding("invalid handle", "%s gets the stream %p, which is none", current_call().function,
            static_cast<void*>(stream));
  return nullptr;
}

std::string stream_name(hipStream_t stream) {
  const Lock held = lock();
  if (!stream || stream == kLegacy) return "null";
  if (stream == kPerThread) return thread_queue().name;
  const Known* known = find(stream);
  return known ? known->queue->name : "invalid";
}

int enqueue(hipStream_t stream, Task task) {
  Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return kErrorContextIsDestroyed;
  if (const int refused = refuse_implicit_capture(*queue)) return refused;
  push(held, *queue, std::move(task));
  return kSuccess;
}

}  // namespace hipsim

using namespace hipsim;

HIPSIM_API int hipStreamCreateWithPriority(hipStream_t* stream, unsigned flags, int priority) {
  HIP_CALL("flags=%u, priority=%d", flags, priority);
  return create(stream, flags, priority);
}
HIPSIM_API int hipStreamCreateWithFlags(hipStream_t* stream, unsigned flags) {
  HIP_CALL("flags=%u", flags);
  return create(stream, flags, 0);
}
HIPSIM_API int hipStreamCreate(hipStream_t* stream) {
  HIP_CALL("");
  return create(stream, 0, 0);
}
HIPSIM_API int hipStreamDestroy(hipStream_t stream) {
  HIP_CALL("stream=%s", stream_name(stream).c_str());
  const Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue || !find(stream)) return fail(kErrorContextIsDestroyed);
  if (queue->capture) invalidate(*queue->capture);
  gone(kKind, stream);  // what is queued still runs; the host learns nothing about it
  return kSuccess;
}
HIPSIM_API int hipStreamSynchronize(hipStream_t stream) {
  HIP_CALL("stream=%s", stream_name(stream).c_str());
  Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (const int refused = refuse_wait_in_capture(*queue)) return fail(refused);
  wait_queue(held, *queue);
  return kSuccess;
}
HIPSIM_API int hipStreamQuery(hipStream_t stream) {
  HIP_CALL("stream=%s", stream_name(stream).c_str());
  Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (const int refused = refuse_wait_in_capture(*queue)) return fail(refused);
  return poll(held, queue->last) ? kSuccess : kErrorNotReady;
}
HIPSIM_API int hipDeviceSynchronize() {
  HIP_CALL("");
  Lock held = lock();
  if (const int refused = refuse_in_capture()) return fail(refused);
  wait_device(held);
  return kSuccess;
}
HIPSIM_API int hipLaunchHostFunc(hipStream_t stream, void (*function)(void*), void* argument) {
  HIP_CALL("stream=%s", stream_name(stream).c_str());
  if (!function) return fail(kErrorInvalidValue);
  Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (const int refused = refuse_implicit_capture(*queue)) return fail(refused);
  Push host;
  host.calls_host = true;
  push(held, *queue, {"host function", [=] { function(argument); }, {}}, host);
  return kSuccess;
}
HIPSIM_API int hipStreamAddCallback(hipStream_t stream, void (*function)(hipStream_t, int, void*), void* argument,
                                    unsigned flags) {
  HIP_CALL("stream=%s", stream_name(stream).c_str());
  if (!function || flags) return fail(kErrorInvalidValue);
  Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (queue->capture) return fail(kErrorStreamCaptureUnsupported);
  Push host;
  host.calls_host = true;
  push(held, *queue, {"stream callback", [=] { function(stream, kSuccess, argument); }, {}}, host);
  return kSuccess;
}
HIPSIM_API int hipStreamGetFlags(hipStream_t stream, unsigned* flags) {
  HIP_CALL("stream=%s", stream_name(stream).c_str());
  const Lock held = lock();
  if (!flags) return fail(kErrorInvalidValue);
  if (!find_queue(stream)) return fail(kErrorContextIsDestroyed);
  *flags = find(stream) ? find(stream)->flags : 0;
  return kSuccess;
}
HIPSIM_API int hipStreamGetPriority(hipStream_t stream, int* priority) {
  HIP_CALL("stream=%s", stream_name(stream).c_str());
  const Lock held = lock();
  if (!priority) return fail(kErrorInvalidValue);
  if (!find_queue(stream)) return fail(kErrorContextIsDestroyed);
  *priority = find(stream) ? find(stream)->priority : 0;
  return kSuccess;
}
HIPSIM_API int hipDeviceGetStreamPriorityRange(int* least, int* greatest) {
  HIP_CALL("");
  *least = 1;
  *greatest = -1;
  return kSuccess;
}
HIPSIM_API int hipStreamGetDevice(hipStream_t stream, int* device) {
  HIP_CALL("stream=%s", stream_name(stream).c_str());
  const Lock held = lock();
  if (!find_queue(stream)) return fail(kErrorContextIsDestroyed);
  *device = 0;
  return kSuccess;
}
HIPSIM_API int hipGetStreamDeviceId(hipStream_t) { return 0; }
