// The user's cache of code objects that were compiled at first use.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gpu/image.h"

namespace rocline::gpu {
namespace {

constexpr long long kCacheBytes = 64 << 20;

void make_folders(const Path& path) {
  Path part = path;
  for (std::size_t i = 1; i < part.length; ++i)
    if (part.text[i] == '/') {
      part.text[i] = '\0';
      mkdir(part.text, 0755);
      part.text[i] = '/';
    }
  mkdir(part.text, 0700);
}

// Size and age of a file.  statx: the older calls got a new symbol version in glibc 2.33.
bool describe(const char* path, struct statx& file) {
  return statx(AT_FDCWD, path, 0, STATX_SIZE | STATX_MTIME, &file) == 0;
}

// Drops the oldest file until the rest fits.  Another process may do the same: a file that is gone already is fine.
void trim(const Path& folder) {
  for (;;) {
    DIR* directory = opendir(folder.c_str());
    if (!directory) return;
    long long total = 0, oldest_time = 0;
    Path oldest;
    while (const dirent* entry = readdir(directory)) {
      const Path path("%s/%s", folder.c_str(), entry->d_name);
      struct statx file;
      if (entry->d_name[0] == '.' || !describe(path.c_str(), file)) continue;
      total += static_cast<long long>(file.stx_size);
      const long long time = file.stx_mtime.tv_sec * 1000000000LL + file.stx_mtime.tv_nsec;
      if (oldest.length == 0 || time < oldest_time) {
        oldest = path;
        oldest_time = time;
      }
    }
    closedir(directory);
    if (total <= kCacheBytes || unlink(oldest.c_str()) != 0) return;
  }
}

}  // namespace

Path cache_folder() {
  const char* chosen = std::getenv("ROCLINE_CACHE");
  if (chosen && *chosen) return Path("%s", chosen);
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  if (xdg && *xdg == '/') return Path("%s/rocline/code_objects", xdg);
  const char* home = std::getenv("HOME");
  return Path("%s/.cache/rocline/code_objects", home && *home ? home : "/tmp");
}

bool read_cache(const char* file_name, Image& image) {
  const Path path("%s/%s", cache_folder().c_str(), file_name);
  if (!read_file(path.c_str(), image) || image.size < 4 || std::memcmp(image.bytes, "\177ELF", 4) != 0) return false;
  utimensat(AT_FDCWD, path.c_str(), nullptr, 0);  // used now: the last to be dropped
  return true;
}

void write_cache(const char* file_name, const Image& image) {
  const Path folder = cache_folder();
  make_folders(folder);
  const Path path("%s/%s", folder.c_str(), file_name), staged("%s/.%s.%d", folder.c_str(), file_name, getpid());
  std::FILE* file = std::fopen(staged.c_str(), "wb");
  if (!file) return;
  const bool written = std::fwrite(image.bytes, 1, image.size, file) == image.size;
  if (std::fclose(file) != 0 || !written || std::rename(staged.c_str(), path.c_str()) != 0) {
    unlink(staged.c_str());
    return;
  }
  trim(folder);
}

}  // namespace rocline::gpu

extern "C" __attribute__((visibility("default"))) const char* rocline_cache_folder() {
  static rocline::gpu::Path path;
  path = rocline::gpu::cache_folder();
  return path.c_str();
}
