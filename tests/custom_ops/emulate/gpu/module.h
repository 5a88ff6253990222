// Stands in for custom_ops/gpu/module.h: a launch runs the kernel, compiled for the host, before it returns.
#pragma once
#include <dlfcn.h>

#include <cstdint>
#include <tuple>

#include "ort/status.h"

namespace rocline::gpu {

enum class Vendor { amd, nvidia };

struct Stream {
  void* handle = nullptr;
};

struct Grid {
  std::int64_t x = 1;
  unsigned y = 1, z = 1;
};

class Function {
 public:
  template <class... Args>
  Status launch(Stream, Grid grid, unsigned block, unsigned shared_bytes, const Args&... args) const {
    if (grid.x < 1 || grid.x > 0x7fffffff || grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535)
      return Status::error(ort::Error::fail, "%s: a grid of (%lld, %u, %u)", name_, static_cast<long long>(grid.x),
                           grid.y, grid.z);
    if (shared_bytes) return Status::error(ort::Error::fail, "%s: dynamic shared memory is not emulated", name_);
    struct Call {
      void (*kernel)(Args...);
      std::tuple<Args...> arguments;
    } const call{reinterpret_cast<void (*)(Args...)>(kernel_), {args...}};
    const auto body = [](const void* pointer) {
      const Call& self = *static_cast<const Call*>(pointer);
      std::apply(self.kernel, self.arguments);
    };
    emulate_(static_cast<unsigned>(grid.x), grid.y, grid.z, block, name_, body, &call);
    return {};
  }
  Status allow_shared(unsigned) const { return {}; }

 private:
  friend Status find(Vendor, const char*, const char*, Function&);
  using Emulate = void (*)(unsigned, unsigned, unsigned, unsigned, const char*, void (*)(const void*), const void*);

  void* kernel_ = nullptr;
  Emulate emulate_ = nullptr;
  char name_[64] = "";
};

// Finds `entry` in FOLDER.so beside this library.
inline Status find(Vendor, const char* folder, const char* entry, Function& function) {
  Dl_info self;
  static const char anchor = 0;
  if (!dladdr(&anchor, &self)) return Status::error(ort::Error::fail, "this library has no path");
  Text<512> path("%s", self.dli_fname);
  while (path.length && path.text[path.length - 1] != '/') --path.length;
  path.append("%s.so", folder);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return Status::error(ort::Error::fail, "%s", dlerror());
  std::snprintf(function.name_, sizeof function.name_, "%s", entry);
  function.kernel_ = dlsym(library, entry);
  function.emulate_ = reinterpret_cast<Function::Emulate>(dlsym(library, "rocline_emulate"));
  if (!function.kernel_ || !function.emulate_)
    return Status::error(ort::Error::fail, "%s has no kernel %s", path.c_str(), entry);
  return {};
}

}  // namespace rocline::gpu
