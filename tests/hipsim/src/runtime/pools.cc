// Memory in stream order: it may be used after its allocation in the stream's order, and not after it was freed there.
#include <cstring>

#include "capture.h"
#include "errors.h"
#include "memory.h"
#include "settings.h"
#include "streams.h"

struct MemPool;

namespace hipsim {
namespace {

MemPool* const kDefaultPool = reinterpret_cast<MemPool*>(0x550000000100);
enum { kReleaseThreshold = 4, kReservedNow, kReservedMost, kUsedNow, kUsedMost };
std::uint64_t release_threshold = 0;

int allocate_on(void** pointer, std::size_t bytes, hipStream_t stream) {
  Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  if (queue->capture) {
    invalidate(*queue->capture);
    return fail(kErrorStreamCaptureUnsupported);  // graphs with allocations of their own are not simulated
  }
  if (const int failed = allocate(pointer, bytes, Kind::device)) return fail(failed);
  // Whoever uses it must come after this.
  if (bytes) push(held, *queue, {current_call().function, nullptr, {{*pointer, bytes, true}}});
  return kSuccess;
}

}  // namespace
}  // namespace hipsim

using namespace hipsim;

HIPSIM_API int hipMallocAsync(void** pointer, std::size_t bytes, hipStream_t stream) {
  HIP_CALL("bytes=%zu, stream=%s", bytes, stream_name(stream).c_str());
  return allocate_on(pointer, bytes, stream);
}
HIPSIM_API int hipMallocFromPoolAsync(void** pointer, std::size_t bytes, MemPool* pool, hipStream_t stream) {
  HIP_CALL("bytes=%zu, stream=%s", bytes, stream_name(stream).c_str());
  return pool == kDefaultPool ? allocate_on(pointer, bytes, stream) : fail(kErrorInvalidValue);
}
HIPSIM_API int hipFreeAsync(void* pointer, hipStream_t stream) {
  HIP_CALL("pointer=%p, stream=%s", pointer, stream_name(stream).c_str());
  if (!pointer) return kSuccess;
  Lock held = lock();
  Queue* queue = find_queue(stream);
  if (!queue) return fail(kErrorContextIsDestroyed);
  const Allocation* allocation = find_allocation(pointer);
  if (queue->capture || !allocation || allocation->kind != Kind::device) return fail(kErrorInvalidValue);
  const auto run = [pointer, by = made_by()] {
    const Lock again = lock();
    release(pointer, Kind::device, by);
  };
  push(held, *queue, {current_call().function, run, {{pointer, allocation->bytes, true}}});
  return kSuccess;
}
HIPSIM_API int hipDeviceGetDefaultMemPool(MemPool** pool, int device) {
  HIP_CALL("device=%d", device);
  *pool = kDefaultPool;
  return kSuccess;
}
HIPSIM_API int hipDeviceGetMemPool(MemPool** pool, int device) {
  HIP_CALL("device=%d", device);
  *pool = kDefaultPool;
  return kSuccess;
}
HIPSIM_API int hipMemPoolTrimTo(MemPool* pool, std::size_t) {
  HIP_CALL("");
  return pool == kDefaultPool ? kSuccess : fail(kErrorInvalidValue);
}
HIPSIM_API int hipMemPoolSetAttribute(MemPool* pool, int attribute, void* value) {
  HIP_CALL("attribute=%d", attribute);
  if (pool != kDefaultPool || attribute < 1 || attribute > kUsedMost || !value) return fail(kErrorInvalidValue);
  if (attribute == kReleaseThreshold) std::memcpy(&release_threshold, value, sizeof release_threshold);
  return kSuccess;
}
HIPSIM_API int hipMemPoolGetAttribute(MemPool* pool, int attribute, void* value) {
  HIP_CALL("attribute=%d", attribute);
  if (pool != kDefaultPool || attribute < kReleaseThreshold || attribute > kUsedMost || !value)
    return fail(kErrorInvalidValue);
  const Lock held = lock();
  const std::uint64_t known = attribute == kReleaseThreshold ? release_threshold : device_memory_used();
  std::memcpy(value, &known, sizeof known);
  return kSuccess;
}
