// The module interface: our own code objects, whose kernels run on the host.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>

#include "../runtime/errors.h"
#include "code_object.h"
#include "host_kernels.h"

using namespace hipsim;

namespace {

struct Module {
  CodeObject object;
};
struct Function {
  HostKernel kernel;
};
// A module may stay loaded until the process ends, with all its functions: they are no leaks.
std::mutex& mutex = *new std::mutex;
std::set<const Module*>& modules = *new std::set<const Module*>;

bool loaded(const Module* module) {
  const std::lock_guard<std::mutex> guard(mutex);
  return modules.count(module) != 0;
}

int load(Module** module, const void* image) {
  if (!module || !image) return kErrorInvalidValue;
  CodeObject object;
  if (!read_code_object(image, object)) return kErrorInvalidImage;
  if (!runs_on(object.machine, architecture().name)) return kErrorNoBinaryForGpu;
  *module = new Module{std::move(object)};
  const std::lock_guard<std::mutex> guard(mutex);
  modules.insert(*module);
  return kSuccess;
}

}  // namespace

HIPSIM_API int hipModuleLoadData(Module** module, const void* image) {
  HIP_CALL("image=%p", image);
  return fail_if(load(module, image));
}
HIPSIM_API int hipModuleLoadDataEx(Module** module, const void* image, unsigned, int*, void**) {
  HIP_CALL("image=%p", image);
  return fail_if(load(module, image));
}
HIPSIM_API int hipModuleLoad(Module** module, const char* path) {
  HIP_CALL("%s", path);
  std::FILE* file = std::fopen(path, "rb");
  if (!file) return fail(kErrorFileNotFound);
  std::fseek(file, 0, SEEK_END);
  std::vector<char> image(static_cast<std::size_t>(std::ftell(file)) + sizeof(std::uint64_t));
  std::rewind(file);
  const std::size_t read = std::fread(image.data(), 1, image.size(), file);
  std::fclose(file);
  return fail_if(read < 64 ? kErrorInvalidImage : load(module, image.data()));
}
HIPSIM_API int hipModuleUnload(Module* module) {
  HIP_CALL("module=%p", static_cast<void*>(module));
  {
    const std::lock_guard<std::mutex> guard(mutex);
    if (!modules.erase(module)) return fail(kErrorInvalidHandle);
  }
  delete module;
  return kSuccess;
}
HIPSIM_API int hipModuleGetFunction(Function** function, Module* module, const char* name) {
  HIP_CALL("module=%p, %s", static_cast<void*>(module), name);
  if (!function || !name) return fail(kErrorInvalidValue);
  if (!loaded(module)) return fail(kErrorInvalidHandle);
  if (!module->object.kernels.count(name)) return fail(kErrorNotFound);
  auto made_now = std::make_unique<Function>();
  if (!find_host_kernel(name, made_now->kernel)) {
    finding("unknown kernel", "%s of a code object has no version for the host", name);
    return fail(kErrorNotFound);
  }
  *function = made_now.release();
  return kSuccess;
}
HIPSIM_API int hipModuleLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned threads,
                                     unsigned block_y, unsigned block_z, unsigned shared_bytes, hipStream_t stream,
                                     void** arguments, void** extra) {
  HIP_CALL("%s, grid=(%u, %u, %u), block=%u, stream=%s", function ? function->kernel.entry->name : "null", x, y, z,
           threads, stream_name(stream).c_str());
  if (!function || !arguments || extra) return fail(kErrorInvalidValue);
  if (!x || !y || !z || !threads || threads > 1024 || block_y != 1 || block_z != 1)
    return fail(kErrorInvalidConfiguration);
  // The emulated kernels have no memory that a launch adds.
  if (shared_bytes) return fail(kErrorNotSupported);
  const KernelEntry& entry = *function->kernel.entry;
  const std::shared_ptr<void> copy(std::aligned_alloc(64, (entry.bytes + 63) / 64 * 64), std::free);
  entry.copy(copy.get(), arguments);
  const auto body = [kernel = function->kernel, copy, x, y, z, threads] {
    run_host_kernel(kernel, copy.get(), {x, y, z}, threads);
  };
  return fail_if(enqueue(stream, {entry.name, body, {}}));
}
