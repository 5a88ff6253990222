// What a compiler calls before each access of a program that it instruments for races (-fsanitize=thread): here it goes
// to the module interface, which checks the kernel's accesses.  Compiled itself without instrumentation, once into each
// library of kernels.
#include <cstddef>
#include <cstring>

#define CALLBACK extern "C" __attribute__((visibility("default")))

using Access = void(const void* address, std::size_t bytes, bool writes);
// Set by the module interface when it loads the library.
CALLBACK Access* hipsim_access;
Access* hipsim_access = nullptr;

#define SIZE(bytes)                                                                                   \
  CALLBACK void __tsan_read##bytes(void* address) { hipsim_access(address, bytes, false); }           \
  CALLBACK void __tsan_write##bytes(void* address) { hipsim_access(address, bytes, true); }           \
  CALLBACK void __tsan_unaligned_read##bytes(void* address) { hipsim_access(address, bytes, false); } \
  CALLBACK void __tsan_unaligned_write##bytes(void* address) { hipsim_access(address, bytes, true); } \
  CALLBACK void __tsan_read_write##bytes(void* address) { hipsim_access(address, bytes, true); }
SIZE(1)
SIZE(2)
SIZE(4)
SIZE(8)
SIZE(16)
CALLBACK void __tsan_read_range(void* address, std::size_t bytes) { hipsim_access(address, bytes, false); }
CALLBACK void __tsan_write_range(void* address, std::size_t bytes) { hipsim_access(address, bytes, true); }
CALLBACK void* __tsan_memcpy(void* to, const void* from, std::size_t bytes) {
  hipsim_access(from, bytes, false);
  hipsim_access(to, bytes, true);
  return std::memcpy(to, from, bytes);
}
CALLBACK void* __tsan_memmove(void* to, const void* from, std::size_t bytes) {
  hipsim_access(from, bytes, false);
  hipsim_access(to, bytes, true);
  return std::memmove(to, from, bytes);
}
CALLBACK void* __tsan_memset(void* to, int value, std::size_t bytes) {
  hipsim_access(to, bytes, true);
  return std::memset(to, value, bytes);
}
CALLBACK void __tsan_init() {}
CALLBACK void __tsan_func_entry(void*) {}
CALLBACK void __tsan_func_exit() {}
