// Preloaded into a command: /dev/kfd and /sys/class/kfd are looked for below $HIPSIM_ROOT, so that a program which asks
// the system for AMD GPUs finds those of the simulated machine.  A file without permissions is refused to root, too.
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

// The path below the simulated machine's root, or the path itself.
class Place {
 public:
  explicit Place(const char* path) : path_(path) {
    const char* root = std::getenv("HIPSIM_ROOT");
    if (!path || !root || !(below(path, "/dev/kfd") || below(path, "/sys/class/kfd"))) return;
    moved_ = std::snprintf(text_, sizeof text_, "%s%s", root, path) < static_cast<int>(sizeof text_);
    if (moved_) path_ = text_;
  }
  operator const char*() const { return path_; }
  // Root may open anything, which the user whom a test stands for may not.
  bool refused() const {
    struct stat file;
    static const auto next =
        reinterpret_cast<int (*)(int, const char*, struct stat*, int)>(dlsym(RTLD_NEXT, "fstatat"));
    const bool closed = moved_ && next && next(AT_FDCWD, path_, &file, 0) == 0 && (file.st_mode & 0777) == 0;
    if (closed) errno = EACCES;
    return closed;
  }

 private:
  static bool below(const char* path, const char* folder) {
    const std::size_t length = std::strlen(folder);
    return std::strncmp(path, folder, length) == 0 && (path[length] == '\0' || path[length] == '/');
  }
  const char* path_;
  bool moved_ = false;
  char text_[4096];
};

template <class Function>
Function following(Function, const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

mode_t mode_of(int flags, std::va_list arguments) {
  return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

#define SHIM extern "C" __attribute__((visibility("default")))
// The function of this name that the program would have called.
#define NEXT(name) static const auto next = following(&name, #name)

#define OPEN(name)                                          \
  SHIM int name(const char* path, int flags, ...) {         \
    NEXT(name);                                             \
    std::va_list arguments;                                 \
    va_start(arguments, flags);                             \
    const mode_t mode = mode_of(flags, arguments);          \
    va_end(arguments);                                      \
    const Place place(path);                                \
    return place.refused() ? -1 : next(place, flags, mode); \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                \
  SHIM int name(int folder, const char* path, int flags, ...) {     \
    NEXT(name);                                                     \
    std::va_list arguments;                                         \
    va_start(arguments, flags);                                     \
    const mode_t mode = mode_of(flags, arguments);                  \
    va_end(arguments);                                              \
    const Place place(path);                                        \
    return place.refused() ? -1 : next(folder, place, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name)                                       \
  SHIM FILE* name(const char* path, const char* mode) {   \
    NEXT(name);                                           \
    const Place place(path);                              \
    return place.refused() ? nullptr : next(place, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

SHIM int access(const char* path, int mode) noexcept {
  NEXT(access);
  const Place place(path);
  return mode != F_OK && place.refused() ? -1 : next(place, mode);
}
SHIM int faccessat(int folder, const char* path, int mode, int flags) noexcept {
  NEXT(faccessat);
  const Place place(path);
  return mode != F_OK && place.refused() ? -1 : next(folder, place, mode, flags);
}
SHIM DIR* opendir(const char* path) {
  NEXT(opendir);
  return next(Place(path));
}
SHIM ssize_t readlink(const char* path, char* text, std::size_t size) noexcept {
  NEXT(readlink);
  return next(Place(path), text, size);
}
SHIM int statx(int folder, const char* path, int flags, unsigned mask, struct statx* file) noexcept {
  NEXT(statx);
  return next(folder, Place(path), flags, mask, file);
}

// The calls of glibc 2.33 and later, and those that programs built for an older one make: by name, since no header
// declares them all.  Their structures are one on this machine, and pass through.
#define STAT(name)                                                     \
  SHIM int hipsim_##name(const char* path, void* file) __asm__(#name); \
  SHIM int hipsim_##name(const char* path, void* file) {               \
    static const auto next = following(&hipsim_##name, #name);         \
    return next(Place(path), file);                                    \
  }
#define STAT_AT(name)                                                                         \
  SHIM int hipsim_##name(int folder, const char* path, void* file, int flags) __asm__(#name); \
  SHIM int hipsim_##name(int folder, const char* path, void* file, int flags) {               \
    static const auto next = following(&hipsim_##name, #name);                                \
    return next(folder, Place(path), file, flags);                                            \
  }
#define OLD_STAT(name)                                                              \
  SHIM int hipsim_##name(int version, const char* path, void* file) __asm__(#name); \
  SHIM int hipsim_##name(int version, const char* path, void* file) {               \
    static const auto next = following(&hipsim_##name, #name);                      \
    return next(version, Place(path), file);                                        \
  }
STAT(stat)
STAT(stat64)
STAT(lstat)
STAT(lstat64)
STAT_AT(fstatat)
STAT_AT(fstatat64)
OLD_STAT(__xstat)
OLD_STAT(__xstat64)
OLD_STAT(__lxstat)
OLD_STAT(__lxstat64)
