// The call log: one JSON object a line.
#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "failures.h"
#include "queue.h"
#include "report.h"
#include "settings.h"

namespace hipsim {
namespace {

thread_local CurrentCall current;

std::FILE* log_file() {
  static std::FILE* const file = [] {
    const std::string& path = settings().log;
    if (path.empty()) return static_cast<std::FILE*>(nullptr);
    return path == "-" ? stderr : std::fopen(path.c_str(), "ae");
  }();
  return file;
}

int thread_number() {
  static std::atomic<int> threads{0};
  thread_local const int number = threads++;
  return number;
}

std::string format_list(const char* text, std::va_list list) {
  std::va_list again;
  va_copy(again, list);
  std::string line(static_cast<std::size_t>(std::vsnprintf(nullptr, 0, text, again)) + 1, '\0');
  va_end(again);
  std::vsnprintf(&line[0], line.size(), text, list);
  line.pop_back();
  return line;
}

}  // namespace

const CurrentCall& current_call() { return current; }

std::string format(const char* text, ...) {
  std::va_list list;
  va_start(list, text);
  std::string line = format_list(text, list);
  va_end(list);
  return line;
}

std::string place(const void* address) {
  Dl_info info;
  if (!dladdr(address, &info) || !info.dli_fname) return "unknown code";
  const char* slash = std::strrchr(info.dli_fname, '/');
  return format("%s+0x%zx", slash ? slash + 1 : info.dli_fname,
                static_cast<std::size_t>(static_cast<const char*>(address) - static_cast<const char*>(info.dli_fbase)));
}

std::string quote(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return quoted + '"';
}

void write_log(const std::string& fields) {
  std::FILE* file = log_file();
  if (!file) return;
  const std::string line = format("{\"pid\": %d, \"thread\": %d, ", getpid(), thread_number()) + fields + "}\n";
  std::fputs(line.c_str(), file);
  std::fflush(file);
}

int call(const char* function, const void* caller, const char* text, ...) {
  static std::atomic<std::uint64_t> calls{0};
  current = {function, caller, ++calls};
  const int injected = injected_failure(function);
  if (log_file()) {
    std::va_list list;
    va_start(list, text);
    const std::string arguments = format_list(text, list);
    va_end(list);
    write_log(format("\"number\": %llu, \"call\": ", static_cast<unsigned long long>(current.number)) +
              quote(function) + ", \"args\": " + quote(arguments) + ", \"by\": " + quote(place(caller)) +
              (injected ? format(", \"injected\": %d", injected) : std::string()));
  }
  if (injected) return injected;
  if (const char* task = running_task()) {
    found("call inside the device", format("%s is called by %s, which runs on a stream", function, task));
    return 401;  // hipErrorIllegalState
  }
  return 0;
}

void note(const char* text, ...) {
  if (!log_file()) return;
  std::va_list list;
  va_start(list, text);
  const std::string line = format_list(text, list);
  va_end(list);
  write_log("\"note\": " + quote(line));
}

}  // namespace hipsim

// A line of its own in the log, by which a test finds the part it looks for.
HIPSIM_API void hipsim_mark(const char* text) {
  if (hipsim::log_file()) hipsim::write_log("\"mark\": " + hipsim::quote(text));
}
