// A HIP runtime and hiprtc that compute nothing: they write down what the library asks of them.
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {
void note(const char* what, const char* detail) {
  std::FILE* log = std::fopen(std::getenv("STUB_LOG"), "a");
  std::fprintf(log, "%s %s\n", what, detail);
  std::fclose(log);
}
}  // namespace

#define STUB extern "C" __attribute__((visibility("default")))

STUB int hipGetDevice(int* device) { return *device = 0; }
STUB int hipGetDevicePropertiesR0600(void* properties, int) {
  std::strcpy(static_cast<char*>(properties), "AMD Radeon");
  std::strcpy(static_cast<char*>(properties) + 1160, std::getenv("STUB_GFX"));
  return 0;
}
STUB int hipModuleLoadData(void** module, const void* image) {
  note("load", static_cast<const char*>(image) + 4);
  *module = const_cast<char*>("module");
  return 0;
}
STUB int hipModuleGetFunction(void** function, void*, const char* name) {
  note("function", name);
  *function = const_cast<char*>("function");
  return std::strstr(name, "missing") ? 500 : 0;
}
STUB int hipModuleLaunchKernel(void*, unsigned x, unsigned y, unsigned z, unsigned block, unsigned, unsigned,
                               unsigned shared_bytes, void* stream, void** arguments, void**) {
  char text[128];
  std::snprintf(text, sizeof text, "%u %u %u x %u, %u bytes, stream %p, %d %g", x, y, z, block, shared_bytes, stream,
                *static_cast<int*>(arguments[0]), *static_cast<float*>(arguments[1]));
  note("launch", text);
  return 0;
}
STUB const char* hipGetErrorName(int code) { return code == 500 ? "hipErrorNotFound" : "hipErrorUnknown"; }

STUB int hiprtcVersion(int* major, int* minor) {
  *major = 7;
  *minor = 2;
  return 0;
}
STUB int hiprtcCreateProgram(void** program, const char* source, const char* name, int, const char**, const char**) {
  note("create", name);
  *program = const_cast<char*>(source);
  return 0;
}
STUB int hiprtcCompileProgram(void*, int, const char** options) {
  note("compile", options[0]);
  return std::strstr(options[0], "gfx666") ? 6 : 0;
}
STUB int hiprtcGetProgramLogSize(void*, std::size_t* size) { return *size = 12, 0; }
STUB int hiprtcGetProgramLog(void*, char* log) { return std::strcpy(log, "no such GPU"), 0; }
STUB int hiprtcGetCodeSize(void*, std::size_t* size) { return *size = 13, 0; }
STUB int hiprtcGetCode(void*, char* code) { return std::memcpy(code, "\177ELFcompiled", 13), 0; }
STUB int hiprtcDestroyProgram(void**) { return 0; }
