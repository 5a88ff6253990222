#include "host_kernels.h"

#include <dirent.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>

#include "accesses.h"

namespace hipsim {
namespace {

// From where to where a loaded library's segments reach.
void find_image(void* library, HostKernel& kernel) {
  link_map* map = nullptr;
  if (dlinfo(library, RTLD_DI_LINKMAP, &map) != 0) return;
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(map->l_addr);
  const auto* segments = reinterpret_cast<const Elf64_Phdr*>(map->l_addr + header->e_phoff);
  kernel.image = map->l_addr;
  for (unsigned i = 0; i < header->e_phnum; ++i)
    if (segments[i].p_type == PT_LOAD)
      kernel.image_end =
          std::max<std::uintptr_t>(kernel.image_end, map->l_addr + segments[i].p_vaddr + segments[i].p_memsz);
}

void add_library(const std::string& path, std::map<std::string, HostKernel>& kernels) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    finding("kernel library", "%s", dlerror());
    return;
  }
  auto* entry = static_cast<const KernelEntry*>(dlsym(library, "hipsim_kernels"));
  auto* access = static_cast<decltype(&check_access)*>(dlsym(library, "hipsim_access"));
  if (!entry || !access) return;
  *access = check_access;
  HostKernel kernel;
  find_image(library, kernel);
  for (; entry->name; ++entry) {
    kernel.entry = entry;
    kernels[entry->name] = kernel;
  }
}

const std::map<std::string, HostKernel>& host_kernels() {
  static const auto& kernels = *[] {
    auto* found = new std::map<std::string, HostKernel>;
    const char* folder = std::getenv("HIPSIM_KERNELS");
    DIR* directory = folder ? opendir(folder) : nullptr;
    while (const dirent* file = directory ? readdir(directory) : nullptr) {
      const std::string name = file->d_name;
      if (name.size() > 3 && name.compare(name.size() - 3, 3, ".so") == 0)
        add_library(std::string(folder) + "/" + name, *found);
    }
    if (directory) closedir(directory);
    return found;
  }();
  return kernels;
}

}  // namespace

bool find_host_kernel(const std::string& name, HostKernel& kernel) {
  const auto found = host_kernels().find(name);
  if (found == host_kernels().end()) return false;
  kernel = found->second;
  return true;
}

void run_host_kernel(const HostKernel& kernel, const void* arguments, Dim3 grid, unsigned threads) {
  // What a block shares is static in its library, and so are its fibers: one kernel at a time.
  static std::mutex& one = *new std::mutex;
  const std::lock_guard<std::mutex> guard(one);
  const KernelAccesses accesses(kernel.entry->name, kernel.image, kernel.image_end, arguments, kernel.entry->bytes);
  kernel.entry->run(arguments, grid.x, grid.y, grid.z, threads);
}

}  // namespace hipsim
