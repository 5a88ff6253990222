// How the provider's own kernels are known and launched: HIP's compiler registers them by name when the library is
// loaded, and a launch names the host function that stands for one.
#include <cxxabi.h>

#include <cstdlib>
#include <mutex>
#include <unordered_map>

#include "../runtime/errors.h"

using namespace hipsim;

namespace {

std::mutex& mutex = *new std::mutex;
std::unordered_map<const void*, std::string>& kernels = *new std::unordered_map<const void*, std::string>;  // mangled

struct Launched {
  Dim3 grid, block;
  std::size_t shared_bytes;
  hipStream_t stream;
};
thread_local std::vector<Launched> configurations;

std::string demangled(const std::string& name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  const std::string plain = status == 0 ? text : name;
  std::free(text);
  return plain;
}

}  // namespace

HIPSIM_API void** __hipRegisterFatBinary(const void*) { return static_cast<void**>(std::calloc(1, sizeof(void*))); }
HIPSIM_API void __hipUnregisterFatBinary(void** module) { std::free(module); }
HIPSIM_API void __hipRegisterVar(void**, void*, char*, char*, int, std::size_t, int, int) {}
HIPSIM_API void __hipRegisterFunction(void**, const void* host_function, char*, const char* name, unsigned, void*,
                                      void*, void*, void*, int*) {
  const std::lock_guard<std::mutex> guard(mutex);
  kernels[host_function] = name;
}

HIPSIM_API int __hipPushCallConfiguration(Dim3 grid, Dim3 block, std::size_t shared_bytes, hipStream_t stream) {
  configurations.push_back({grid, block, shared_bytes, stream});
  return kSuccess;
}
HIPSIM_API int __hipPopCallConfiguration(Dim3* grid, Dim3* block, std::size_t* shared_bytes, hipStream_t* stream) {
  if (configurations.empty()) return fail(kErrorMissingConfiguration);
  const Launched last = configurations.back();
  configurations.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared_bytes = last.shared_bytes;
  *stream = last.stream;
  return kSuccess;
}

HIPSIM_API int hipLaunchKernel(const void* host_function, Dim3 grid, Dim3 block, void** arguments, std::size_t,
                               hipStream_t stream) {
  std::string name;
  {
    const std::lock_guard<std::mutex> guard(mutex);
    const auto known = kernels.find(host_function);
    if (known != kernels.end()) name = demangled(known->second);
  }
  HIP_CALL("%s, grid=(%u, %u, %u), block=(%u, %u, %u), stream=%s", name.c_str(), grid.x, grid.y, grid.z, block.x,
           block.y, block.z, stream_name(stream).c_str());
  Task task;
  if (name.empty() || !emulate(name, grid, block, arguments, task)) {
    finding("unknown kernel", "%s is launched, which is not emulated",
            name.empty() ? "an unregistered function" : name.c_str());
    return fail(kErrorInvalidDeviceFunction);
  }
  return fail_if(enqueue(stream, std::move(task)));
}
