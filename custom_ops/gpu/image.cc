#include "gpu/image.h"

#include "gpu/generated.h"

namespace rocline::gpu {
namespace {

bool read_object(const char* root, const char* architecture, const char* folder, const char* suffix, Image& image) {
  return read_file(Path("%s/%s/%s.%s", root, architecture, folder, suffix).c_str(), image);
}

// Code for an NVIDIA architecture runs on the later ones of its major version too: sm_80 on sm_86.
bool read_cubin(const char* root, const char* folder, const char* architecture, Image& image) {
  const int version = std::atoi(architecture + 3);
  for (int candidate = version; candidate >= version / 10 * 10; --candidate)
    if (read_object(root, Text<16>("sm_%d", candidate).c_str(), folder, "cubin", image)) return true;
  return false;
}

bool read_code_object(const char* root, const char* folder, const char* architecture, Image& image) {
  if (read_object(root, architecture, folder, "co", image)) return true;
  for (const Family* family = families; family->architecture; ++family)
    if (std::strcmp(family->architecture, architecture) == 0)
      return read_object(root, family->generic, folder, "co", image);
  return false;
}

}  // namespace

bool read_file(const char* path, Image& image) {
  std::FILE* file = std::fopen(path, "rb");
  if (!file) return false;
  const bool sized = std::fseek(file, 0, SEEK_END) == 0;
  const long size = sized ? std::ftell(file) : -1;
  std::rewind(file);
  const bool whole = size > 0 && image.reserve(size) && std::fread(image.bytes, 1, size, file) == image.size;
  std::fclose(file);
  return whole;
}

Status find_image(const Driver& driver, const char* folder, const char* architecture, Image& image) {
  const auto read = driver.vendor == Vendor::nvidia ? &read_cubin : &read_code_object;
  const char* extra = std::getenv("ROCLINE_CODE_OBJECTS");
  if (extra && *extra && read(extra, folder, architecture, image)) return {};
  const Path shipped("%s/code_objects", own_folder().c_str());
  if (read(shipped.c_str(), folder, architecture, image)) return {};
  if (driver.vendor == Vendor::amd) return compile_image(folder, architecture, image);
  return Status::error(ort::Error::fail,
                       "no code object %s/%s.cubin in ROCLINE_CODE_OBJECTS (%s) or %s: build it with nvcc -cubin",
                       architecture, folder, extra ? extra : "not set", shipped.c_str());
}

}  // namespace rocline::gpu
