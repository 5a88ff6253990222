#include "gpu/dynamic.h"

#include <dlfcn.h>

#include <initializer_list>

// glibc 2.34 moved these into libc under a new version; the old one keeps the library loadable from glibc 2.28 on.
#if defined(__x86_64__) && defined(__GLIBC__)
__asm__(".symver dlopen, dlopen@GLIBC_2.2.5");
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
__asm__(".symver dladdr, dladdr@GLIBC_2.2.5");
#endif

namespace rocline::gpu {

void* open_library(const char* const* names) {
  for (int flags : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW | RTLD_LOCAL})
    for (const char* const* name = names; *name; ++name)
      if (void* library = dlopen(*name, flags)) return library;
  return nullptr;
}

void* symbol(void* library, const char* name) { return dlsym(library, name); }

Path own_folder() {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<void*>(&own_folder), &info) || !info.dli_fname) return Path(".");
  const char* slash = std::strrchr(info.dli_fname, '/');
  return slash ? Path("%.*s", static_cast<int>(slash - info.dli_fname), info.dli_fname) : Path(".");
}

}  // namespace rocline::gpu
