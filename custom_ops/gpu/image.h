// The bytes of a code object, and where they come from.
#pragma once
#include "gpu/driver.h"

namespace rocline::gpu {

// A file's contents, or a compiler's output.
struct Image {
  char* bytes = nullptr;
  std::size_t size = 0;

  Image() = default;
  Image(const Image&) = delete;
  ~Image() { std::free(bytes); }
  bool reserve(std::size_t wanted) {
    std::free(bytes);
    bytes = static_cast<char*>(std::malloc(wanted ? wanted : 1));
    size = bytes ? wanted : 0;
    return bytes != nullptr;
  }
};

bool read_file(const char* path, Image& image);

// The code object of op `folder` for `architecture`: built ahead for it, for its family, or compiled now.  Looks into
// the folder that ROCLINE_CODE_OBJECTS names, then beside the library.
Status find_image(const Driver& driver, const char* folder, const char* architecture, Image& image);

// Compiled by hiprtc and kept in the user's cache.
Status compile_image(const char* folder, const char* architecture, Image& image);

// $ROCLINE_CACHE, or rocline/code_objects below $XDG_CACHE_HOME or ~/.cache.
Path cache_folder();
bool read_cache(const char* file_name, Image& image);
// Writes a file that appears whole or not at all, and drops the least recently used ones past 64 MB.  A cache that
// cannot be written is no error: the next process compiles again.
void write_cache(const char* file_name, const Image& image);

}  // namespace rocline::gpu
