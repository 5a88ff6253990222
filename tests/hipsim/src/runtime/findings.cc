// Findings: what makes the exit status 86.  Written at once, so that a crash does not lose them.
#include <fcntl.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <vector>

#include "report.h"
#include "settings.h"

namespace hipsim {
namespace {

std::mutex& mutex = *new std::mutex;
std::string& untaken = *new std::string;
std::set<std::string>& said = *new std::set<std::string>;
constexpr std::size_t kMost = 200;

std::string report_file() { return settings().report + format("/%d.txt", getpid()); }

void append(const std::string& line) {
  int file = STDERR_FILENO;
  if (!settings().report.empty()) file = open(report_file().c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (file < 0) file = STDERR_FILENO;
  if (write(file, line.c_str(), line.size()) < 0) std::abort();
  if (file != STDERR_FILENO) close(file);
}

}  // namespace

void found(const std::string& kind, const std::string& text, const std::string& key) {
  const std::string line = "hipsim: " + kind + ": " + text + "\n";
  std::lock_guard<std::mutex> guard(mutex);
  if (said.size() > kMost || !said.insert(key.empty() ? line : kind + key).second) return;
  untaken += line;
  append(line);
  if (said.size() > kMost) append("hipsim: more than 200 findings; the others are not reported\n");
  write_log("\"finding\": " + quote(kind) + ", \"text\": " + quote(text));
}

void finding(const char* kind, const char* text, ...) {
  std::va_list list, again;
  va_start(list, text);
  va_copy(again, list);
  std::string line(static_cast<std::size_t>(std::vsnprintf(nullptr, 0, text, list)) + 1, '\0');
  std::vsnprintf(&line[0], line.size(), text, again);
  va_end(again);
  va_end(list);
  line.pop_back();
  found(kind, line);
}

}  // namespace hipsim

// For a test that plants an error: copies the findings so far into `buffer` and forgets them, so that they do not count
// at exit.  Returns their length, which may be more than was copied.
HIPSIM_API std::size_t hipsim_take_findings(char* buffer, std::size_t size) {
  using namespace hipsim;
  std::lock_guard<std::mutex> guard(mutex);
  if (size) std::snprintf(buffer, size, "%s", untaken.c_str());
  if (!settings().report.empty()) unlink(report_file().c_str());
  const std::size_t length = untaken.size();
  untaken.clear();
  said.clear();
  return length;
}

// What a function that build.py stubbed returns: the code that was injected, or else `unsupported`, after a finding.
HIPSIM_API int hipsim_unimplemented(const char* function, int unsupported) {
  if (const int injected = hipsim::call(function, __builtin_return_address(0), "")) return injected;
  hipsim::finding("unimplemented", "%s is called, which hipsim does not simulate", function);
  return unsupported;
}
