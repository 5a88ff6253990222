// Copies and fills, with HIP's rules of what the host waits for.
//
// Between two places on the device no copy makes the host wait, and no fill does.  A copy to memory of the host that is
// not pinned does.  An asynchronous copy from such memory takes the bytes at once, into a staging buffer, and may reach
// the device later: ROCm waits there in some cases and versions, and no program may rely on it.
#include <cstring>

#include "capture.h"
#include "errors.h"
#include "memory.h"
#include "streams.h"

namespace hipsim {
namespace {

enum { kHostToHost, kHostToDevice, kDeviceToHost, kDeviceToDevice, kDefault };
const char* const kKinds[] = {"H2H", "H2D", "D2H", "D2D", "default"};

enum class Place { pageable, pinned, device };

Place place_of(const Allocation* allocation) {
  if (!allocation) return Place::pageable;
  return allocation->kind == Kind::device ? Place::device : Place::pinned;
}

// Rows of a copy; a flat one has one row.
struct Shape {
  std::size_t width, height, to_pitch, from_pitch;
};

struct Copy {
  void* to;
  const void* from;
  Shape shape;
  int kind;
  bool host_waits;  // even where nothing is pageable
};

// Bounds and use after free are findings; the call fails too, as on a device.
bool valid_end(const void* address, std::size_t bytes, const char* verb) {
  const Allocation* allocation = find_allocation(address);
  const auto start = reinterpret_cast<std::uintptr_t>(address);
  if (!allocation) return true;
  if (!allocation->freed.empty()) {
    found("use after free", std::string(current_call().function) + " " + verb + " " +
                                describe_range(start, start + bytes) + "; freed by " + allocation->freed);
    return false;
  }
  if (start + bytes <= allocation->end()) return true;
  found("out of bounds",
        std::string(current_call().function) + " " + verb + " " + describe_range(start, start + bytes));
  return false;
}

int copy(hipStream_t stream, const Copy& wanted) {
  const Shape shape = wanted.shape;
  if (!shape.width || !shape.height) return kSuccess;
  Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (wanted.kind < 0 || wanted.kind > kDefault) return fail(kErrorInvalidMemcpyDirection);
  if (!wanted.to || !wanted.from) return fail(kErrorInvalidValue);
  const std::size_t to_bytes = (shape.height - 1) * shape.to_pitch + shape.width;
  const std::size_t from_bytes = (shape.height - 1) * shape.from_pitch + shape.width;
  if (!valid_end(wanted.to, to_bytes, "writes") || !valid_end(wanted.from, from_bytes, "reads"))
    return fail(kErrorInvalidValue);
  const Place to = place_of(find_allocation(wanted.to)), from = place_of(find_allocation(wanted.from));
  const bool to_device = wanted.kind == kHostToDevice || wanted.kind == kDeviceToDevice;
  const bool from_device = wanted.kind == kDeviceToHost || wanted.kind == kDeviceToDevice;
  if ((to_device && to == Place::pageable) || (from_device && from == Place::pageable)) {
    finding("wrong direction", "%s is told %s, but %p is pageable memory of the host", current_call().function,
            kKinds[wanted.kind], to_device && to == Place::pageable ? wanted.to : wanted.from);
    return fail(kErrorInvalidValue);
  }
  const bool pageable = to == Place::pageable || from == Place::pageable;
  const bool on_device = to == Place::device && from == Place::device;
  const bool staged = !wanted.host_waits && from == Place::pageable && to != Place::pageable && !queue->capture;
  const bool host_waits = (pageable && !staged) || (wanted.host_waits && !on_device);
  if (const int refused = wanted.host_waits ? refuse_wait_in_capture(*queue) : refuse_implicit_capture(*queue))
    return fail(refused);
  if (wanted.host_waits)
    if (const int refused = refuse_in_capture()) return fail(refused);
  std::vector<Access> accesses;
  for (std::size_t row = 0; row < shape.height; ++row) {
    if (!staged)
      accesses.push_back({static_cast<const char*>(wanted.from) + row * shape.from_pitch, shape.width, false});
    accesses.push_back({static_cast<char*>(wanted.to) + row * shape.to_pitch, shape.width, true});
  }
  const auto* first = static_cast<const char*>(wanted.from);
  const auto staging = std::make_shared<std::vector<char>>(first, first + (staged ? from_bytes : 0));
  const auto run = [wanted, shape, staged, staging] {
    const char* from_first = staged ? staging->data() : static_cast<const char*>(wanted.from);
    for (std::size_t row = 0; row < shape.height; ++row)
      std::memmove(static_cast<char*>(wanted.to) + row * shape.to_pitch, from_first + row * shape.from_pitch,
                   shape.width);
  };
  const auto letter = [](Place place) { return place == Place::device ? 'D' : 'H'; };
  const std::string name = format("%s(%c2%c)", current_call().function, letter(from), letter(to));
  Push options;
  options.copy = true;
  const OperationPtr operation = push(held, *queue, {name, run, std::move(accesses)}, options);
  if (operation && host_waits) wait(held, operation);
  return kSuccess;
}

Shape flat(std::size_t bytes) { return {bytes, 1, bytes, bytes}; }

const char* kind_name(int kind) { return kind < 0 || kind > kDefault ? "?" : kKinds[kind]; }

int fill(hipStream_t stream, void* to, std::size_t count, std::uint32_t value, std::size_t width) {
  if (!count) return kSuccess;
  Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (!to) return fail(kErrorInvalidValue);
  const Allocation* allocation = find_allocation(to);
  if (!allocation || !valid_end(to, count * width, "writes")) return fail(kErrorInvalidValue);
  if (const int refused = refuse_implicit_capture(*queue)) return fail(refused);
  const auto run = [=] {
    for (std::size_t i = 0; i < count; ++i) std::memcpy(static_cast<char*>(to) + i * width, &value, width);
  };
  push(held, *queue, {current_call().function, run, {{to, count * width, true}}});
  return kSuccess;
}

}  // namespace
}  // namespace hipsim

using namespace hipsim;

#define LOG_COPY(stream) HIP_CALL("bytes=%zu, kind=%s, stream=%s", bytes, kind_name(kind), stream)

HIPSIM_API int hipMemcpy(void* to, const void* from, std::size_t bytes, int kind) {
  LOG_COPY("null");
  return copy(nullptr, {to, from, flat(bytes), kind, true});
}
HIPSIM_API int hipMemcpyWithStream(void* to, const void* from, std::size_t bytes, int kind, hipStream_t stream) {
  LOG_COPY(stream_name(stream).c_str());
  return copy(stream, {to, from, flat(bytes), kind, true});
}
HIPSIM_API int hipMemcpyAsync(void* to, const void* from, std::size_t bytes, int kind, hipStream_t stream) {
  LOG_COPY(stream_name(stream).c_str());
  return copy(stream, {to, from, flat(bytes), kind, false});
}

#define DIRECTED_COPY(suffix, direction)                                                                 \
  HIPSIM_API int hipMemcpy##suffix(void* to, void* from, std::size_t bytes) {                            \
    const int kind = direction;                                                                          \
    LOG_COPY("null");                                                                                    \
    return copy(nullptr, {to, from, flat(bytes), kind, true});                                           \
  }                                                                                                      \
  HIPSIM_API int hipMemcpy##suffix##Async(void* to, void* from, std::size_t bytes, hipStream_t stream) { \
    const int kind = direction;                                                                          \
    LOG_COPY(stream_name(stream).c_str());                                                               \
    return copy(stream, {to, from, flat(bytes), kind, false});                                           \
  }
DIRECTED_COPY(HtoD, kHostToDevice)
DIRECTED_COPY(DtoH, kDeviceToHost)
DIRECTED_COPY(DtoD, kDeviceToDevice)
#undef DIRECTED_COPY

HIPSIM_API int hipMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                           std::size_t height, int kind) {
  HIP_CALL("bytes=%zu, kind=%s, stream=null", width * height, kind_name(kind));
  return copy(nullptr, {to, from, {width, height, to_pitch, from_pitch}, kind, true});
}
HIPSIM_API int hipMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                                std::size_t width, std::size_t height, int kind, hipStream_t stream) {
  HIP_CALL("bytes=%zu, kind=%s, stream=%s", width * height, kind_name(kind), stream_name(stream).c_str());
  return copy(stream, {to, from, {width, height, to_pitch, from_pitch}, kind, false});
}
HIPSIM_API int hipMemset(void* to, int value, std::size_t bytes) {
  HIP_CALL("bytes=%zu, stream=null", bytes);
  return fill(nullptr, to, bytes, static_cast<std::uint32_t>(value), 1);
}
HIPSIM_API int hipMemsetAsync(void* to, int value, std::size_t bytes, hipStream_t stream) {
  HIP_CALL("bytes=%zu, stream=%s", bytes, stream_name(stream).c_str());
  return fill(stream, to, bytes, static_cast<std::uint32_t>(value), 1);
}
HIPSIM_API int hipMemsetD8Async(void* to, unsigned char value, std::size_t count, hipStream_t stream) {
  HIP_CALL("bytes=%zu, stream=%s", count, stream_name(stream).c_str());
  return fill(stream, to, count, value, 1);
}
HIPSIM_API int hipMemsetD16Async(void* to, unsigned short value, std::size_t count, hipStream_t stream) {
  HIP_CALL("bytes=%zu, stream=%s", 2 * count, stream_name(stream).c_str());
  return fill(stream, to, count, value, 2);
}
HIPSIM_API int hipMemsetD32Async(void* to, int value, std::size_t count, hipStream_t stream) {
  HIP_CALL("bytes=%zu, stream=%s", 4 * count, stream_name(stream).c_str());
  return fill(stream, to, count, static_cast<std::uint32_t>(value), 4);
}
