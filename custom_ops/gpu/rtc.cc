// Compilation at first use, for an architecture that has no code object: hiprtc, with the result in the user's cache.
#include <type_traits>

#include "gpu/generated.h"
#include "gpu/image.h"

namespace rocline::gpu {
namespace {

constexpr const char* kHiprtc[] = {"libhiprtc.so.7",     "libhiprtc.so.6",     "libhiprtc.so",    "libamdhip64.so.7",
                                   "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so", nullptr};

struct Hiprtc {
  int (*version)(int*, int*) = nullptr;
  int (*create)(void**, const char*, const char*, int, const char**, const char**) = nullptr;
  int (*compile)(void*, int, const char**) = nullptr;
  int (*log_size)(void*, std::size_t*) = nullptr;
  int (*log)(void*, char*) = nullptr;
  int (*code_size)(void*, std::size_t*) = nullptr;
  int (*code)(void*, char*) = nullptr;
  int (*destroy)(void**) = nullptr;

  bool open() {
    // Before ROCm 5.7 the compiler was part of the runtime's own library.
    for (const char* const* name = kHiprtc; *name; ++name) {
      const char* one[] = {*name, nullptr};
      void* library = open_library(one);
      const auto resolve = [library](const char* symbol_name, auto& function) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol(library, symbol_name));
        return function != nullptr;
      };
      if (library && resolve("hiprtcVersion", version) && resolve("hiprtcCreateProgram", create) &&
          resolve("hiprtcCompileProgram", compile) && resolve("hiprtcGetProgramLogSize", log_size) &&
          resolve("hiprtcGetProgramLog", log) && resolve("hiprtcGetCodeSize", code_size) &&
          resolve("hiprtcGetCode", code) && resolve("hiprtcDestroyProgram", destroy))
        return true;
    }
    return false;
  }
};

// FNV-1a, 64 bits.
struct Hash {
  std::uint64_t value = 0xcbf29ce484222325u;
  void add(const char* text) {
    for (; *text; ++text) value = (value ^ static_cast<unsigned char>(*text)) * 0x100000001b3u;
    value = (value ^ 0xffu) * 0x100000001b3u;  // "ab" + "c" is not "a" + "bc"
  }
};

const char* source_of(const char* folder) {
  for (const KernelSource* source = kernel_sources; source->folder; ++source)
    if (std::strcmp(source->folder, folder) == 0) return source->text;
  return nullptr;
}

Status build(const Hiprtc& rtc, void* program, const char* folder, const char* architecture, Image& image) {
  const Text<96> target("--offload-arch=%s", architecture);
  const char* options[] = {target.c_str(), "-O3", "-std=c++17", "-fno-math-errno"};
  if (rtc.compile(program, 4, options) != 0) {
    std::size_t size = 0;
    Image log;
    const bool readable = rtc.log_size(program, &size) == 0 && log.reserve(size + 1) && rtc.log(program, log.bytes) == 0;
    if (readable) log.bytes[size] = '\0';
    return Status::error(ort::Error::fail, "hiprtc cannot compile %s for %s: %.600s", folder, architecture,
                         readable ? log.bytes : "it gives no reason");
  }
  std::size_t size = 0;
  if (rtc.code_size(program, &size) != 0 || !image.reserve(size) || rtc.code(program, image.bytes) != 0)
    return Status::error(ort::Error::fail, "hiprtc gave no code for %s on %s", folder, architecture);
  return {};
}

}  // namespace

Status compile_image(const char* folder, const char* architecture, Image& image) {
  const char* source = source_of(folder);
  Hiprtc rtc;
  if (!source || !rtc.open())
    return Status::error(ort::Error::fail,
                         "no code object of %s for %s, and no libhiprtc to compile it: run `rocline ops build --arch %s` "
                         "on a machine with ziglang and set ROCLINE_CODE_OBJECTS, or install ROCm's hiprtc",
                         folder, architecture, architecture);
  int major = 0, minor = 0;
  rtc.version(&major, &minor);
  Hash hash;
  hash.add(source);
  hash.add(architecture);
  hash.add(Text<32>("%d.%d", major, minor).c_str());
  const Path file("%s-%s-%016llx.co", folder, architecture, static_cast<unsigned long long>(hash.value));
  if (read_cache(file.c_str(), image)) return {};
  void* program = nullptr;
  if (rtc.create(&program, source, folder, 0, nullptr, nullptr) != 0)
    return Status::error(ort::Error::fail, "hiprtc cannot take the source of %s", folder);
  Status status = build(rtc, program, folder, architecture, image);
  rtc.destroy(&program);
  if (status.good()) write_cache(file.c_str(), image);
  return status;
}

}  // namespace rocline::gpu
