// Functions that make and free memory.
#include "capture.h"
#include "errors.h"
#include "memory.h"
#include "settings.h"
#include "streams.h"

namespace hipsim {
namespace {

int make(void** pointer, std::size_t bytes, Kind kind, unsigned flags = 0) {
  const Lock held = lock();
  if (const int refused = refuse_in_capture()) return fail(refused);
  return fail_if(allocate(pointer, bytes, kind, flags));
}

// Freeing waits for the whole device.
int unmake(void* pointer, Kind kind) {
  if (!pointer) return kSuccess;
  Lock held = lock();
  if (const int refused = refuse_in_capture()) return fail(refused);
  wait_device(held);
  return fail_if(release(pointer, kind));
}

struct Attributes {
  int type, device;
  void *device_pointer, *host_pointer;
  int managed;
  unsigned flags;
};
enum { kUnregistered, kHost, kDevice };

}  // namespace
}  // namespace hipsim

using namespace hipsim;

HIPSIM_API int hipMalloc(void** pointer, std::size_t bytes) {
  HIP_CALL("bytes=%zu", bytes);
  return make(pointer, bytes, Kind::device);
}
HIPSIM_API int hipExtMallocWithFlags(void** pointer, std::size_t bytes, unsigned flags) {
  HIP_CALL("bytes=%zu, flags=%u", bytes, flags);
  return make(pointer, bytes, Kind::device, flags);
}
HIPSIM_API int hipFree(void* pointer) {
  HIP_CALL("pointer=%p", pointer);
  return unmake(pointer, Kind::device);
}
HIPSIM_API int hipHostMalloc(void** pointer, std::size_t bytes, unsigned flags) {
  HIP_CALL("bytes=%zu, flags=%u", bytes, flags);
  return make(pointer, bytes, Kind::pinned, flags);
}
HIPSIM_API int hipHostAlloc(void** pointer, std::size_t bytes, unsigned flags) {
  HIP_CALL("bytes=%zu, flags=%u", bytes, flags);
  return make(pointer, bytes, Kind::pinned, flags);
}
HIPSIM_API int hipMallocHost(void** pointer, std::size_t bytes) {
  HIP_CALL("bytes=%zu", bytes);
  return make(pointer, bytes, Kind::pinned);
}
HIPSIM_API int hipHostFree(void* pointer) {
  HIP_CALL("pointer=%p", pointer);
  return unmake(pointer, Kind::pinned);
}
HIPSIM_API int hipFreeHost(void* pointer) {
  HIP_CALL("pointer=%p", pointer);
  return unmake(pointer, Kind::pinned);
}
HIPSIM_API int hipHostRegister(void* pointer, std::size_t bytes, unsigned flags) {
  HIP_CALL("pointer=%p, bytes=%zu, flags=%u", pointer, bytes, flags);
  const Lock held = lock();
  if (const int refused = refuse_in_capture()) return fail(refused);
  return fail_if(register_host(pointer, bytes, flags));
}
HIPSIM_API int hipHostUnregister(void* pointer) {
  HIP_CALL("pointer=%p", pointer);
  Lock held = lock();
  if (const int refused = refuse_in_capture()) return fail(refused);
  wait_device(held);
  return release(pointer, Kind::registered) ? fail(kErrorHostMemoryNotRegistered) : kSuccess;
}
HIPSIM_API int hipHostGetDevicePointer(void** device, void* host, unsigned) {
  HIP_CALL("pointer=%p", host);
  const Lock held = lock();
  const Allocation* allocation = find_allocation(host);
  if (!device || !allocation || allocation->kind == Kind::device) return fail(kErrorInvalidValue);
  *device = host;
  return kSuccess;
}
HIPSIM_API int hipHostGetFlags(unsigned* flags, void* host) {
  HIP_CALL("pointer=%p", host);
  const Lock held = lock();
  const Allocation* allocation = find_allocation(host);
  if (!flags || !allocation || allocation->kind == Kind::device) return fail(kErrorInvalidValue);
  *flags = allocation->flags;
  return kSuccess;
}
HIPSIM_API int hipPointerGetAttributes(Attributes* attributes, const void* pointer) {
  HIP_CALL("pointer=%p", pointer);
  const Lock held = lock();
  if (!attributes || !pointer) return fail(kErrorInvalidValue);
  const Allocation* allocation = find_allocation(pointer);
  if (!allocation || !allocation->freed.empty() || reinterpret_cast<std::uintptr_t>(pointer) >= allocation->end()) {
    *attributes = {kUnregistered, 0, nullptr, nullptr, 0, 0};
    return kSuccess;
  }
  void* address = const_cast<void*>(pointer);
  const bool device = allocation->kind == Kind::device;
  *attributes = {device ? kDevice : kHost, 0, address, device ? nullptr : address, 0, allocation->flags};
  return kSuccess;
}
HIPSIM_API int hipMemGetAddressRange(void** base, std::size_t* size, void* pointer) {
  HIP_CALL("pointer=%p", pointer);
  const Lock held = lock();
  const Allocation* allocation = find_allocation(pointer);
  if (!allocation || !allocation->freed.empty()) return fail(kErrorNotFound);
  if (base) *base = reinterpret_cast<void*>(allocation->start);
  if (size) *size = allocation->bytes;
  return kSuccess;
}
HIPSIM_API int hipMemPtrGetInfo(void* pointer, std::size_t* size) {
  HIP_CALL("pointer=%p", pointer);
  const Lock held = lock();
  const Allocation* allocation = find_allocation(pointer);
  if (!size || !allocation) return fail(kErrorInvalidValue);
  *size = allocation->bytes;
  return kSuccess;
}
HIPSIM_API int hipMemGetInfo(std::size_t* free, std::size_t* total) {
  HIP_CALL("");
  const Lock held = lock();
  if (!free || !total) return fail(kErrorInvalidValue);
  *total = settings().memory;
  *free = settings().memory - device_memory_used();
  return kSuccess;
}
