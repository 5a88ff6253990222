// What the simulated libraries share.  libamdhip64 defines these (runtime/); hipBLAS, MIOpen, the emulated kernels and
// the module interface use them.
//
// A new function goes into a .cc file of the library it belongs to, as HIPSIM_API with HIPSIM_CALL first; a new library
// or folder of sources goes into LIBRARIES in build.py.  What the provider needs and no file defines is stubbed by
// build.py: it reports itself and returns the library's "not supported".
//
// No function here may be called while a lock of the simulator is held; a task's body runs with none held.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#define HIPSIM_API extern "C" __attribute__((visibility("default")))

struct Stream;
using hipStream_t = Stream*;

// What follows is seen by the other libraries.  (An attribute of the namespace would reach its definitions in GCC, and
// nowhere else.)
#pragma GCC visibility push(default)
namespace hipsim {

// A range of memory that a task reads or writes.
struct Access {
  const void* address;
  std::size_t bytes;
  bool writes;
};

// Work for a stream.
struct Task {
  std::string name;
  std::function<void()> body;
  std::vector<Access> accesses;
};

struct Dim3 {
  unsigned x, y, z;
};

// What HIPSIM_ARCH chose.
struct Architecture {
  const char* name;             // "gfx90a"
  const char* features;         // ":sramecc+:xnack-" or ""
  unsigned wave;                // 64 or 32
  unsigned gfx_target_version;  // as /sys/class/kfd writes it: 90010
};
const Architecture& architecture();

// Starts a call of a library's function: writes it to the call log, and returns the code that fault injection wants it
// to fail with, or 0.  `format` describes the arguments as "name=value, ...".
int call(const char* function, const void* caller, const char* format, ...) __attribute__((format(printf, 3, 4)));
// First in every function of the libraries: logs the call and returns the code that was injected.
#define HIPSIM_CALL(...)                                                                                        \
  do {                                                                                                          \
    if (const int injected = hipsim::call(__func__, __builtin_return_address(0), __VA_ARGS__)) return injected; \
  } while (false)
// A line in the log that is no call.
void note(const char* format, ...) __attribute__((format(printf, 1, 2)));
// "null", "s1", "invalid"
std::string stream_name(hipStream_t stream);
// Queues work; the code of hipErrorInvalidHandle for a stream that is none.  While the stream is captured it becomes
// a node of the graph.
int enqueue(hipStream_t stream, Task task);
// Called by a running task about an access that its list did not name: bounds, use after free, races.  False where the
// address is no memory that the device knows.
bool touch(const void* address, std::size_t bytes, bool writes);
// A finding that makes the exit status 86: "unknown kernel ...".
void finding(const char* kind, const char* format, ...) __attribute__((format(printf, 2, 3)));
// Objects that must be gone at exit ("hipblas handle", ...), by pointer.
void made(const char* kind, const void* object);
void gone(const char* kind, const void* object);
bool alive(const char* kind, const void* object);

// Makes the task that stands for one launch of a kernel of the provider's, by its demangled name; false for a kernel
// that is not emulated (provider/).
bool emulate(const std::string& name, Dim3 grid, Dim3 block, void** arguments, Task& task);

}  // namespace hipsim
#pragma GCC visibility pop
