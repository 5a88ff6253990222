#include "failures.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "settings.h"

namespace hipsim {
namespace {

struct Failure {
  unsigned long from;  // the number of the call, from 1
  bool onwards;        // all later calls too
  int code;
};
struct Plan {
  std::mutex mutex;
  std::map<std::string, std::vector<Failure>> failures;
  std::map<std::string, unsigned long> calls;
};

[[noreturn]] void refuse(const std::string& item) {
  std::fprintf(stderr, "hipsim: HIPSIM_FAIL has '%s', expected FUNCTION:N:CODE or FUNCTION:N+:CODE\n", item.c_str());
  std::exit(2);
}

Plan& plan() {
  static Plan& instance = *[] {
    Plan* made = new Plan;
    const std::string& text = settings().failures;
    for (std::size_t from = 0; from < text.size();) {
      const std::size_t comma = std::min(text.find(',', from), text.size());
      const std::string item = text.substr(from, comma - from);
      from = comma + 1;
      char name[128], plus = 0;
      Failure failure{0, false, 0};
      const bool onwards = item.find('+') != std::string::npos;
      const int read = onwards
                           ? std::sscanf(item.c_str(), "%127[^:]:%lu%c:%d", name, &failure.from, &plus, &failure.code)
                           : std::sscanf(item.c_str(), "%127[^:]:%lu:%d", name, &failure.from, &failure.code);
      if (read != (onwards ? 4 : 3) || !failure.from || !failure.code) refuse(item);
      failure.onwards = onwards;
      made->failures[name].push_back(failure);
    }
    return made;
  }();
  return instance;
}

}  // namespace

int injected_failure(const char* function) {
  if (settings().failures.empty()) return 0;
  Plan& known = plan();
  const auto failures = known.failures.find(function);
  if (failures == known.failures.end()) return 0;
  std::lock_guard<std::mutex> guard(known.mutex);
  const unsigned long number = ++known.calls[function];
  for (const Failure& failure : failures->second)
    if (number == failure.from || (failure.onwards && number > failure.from)) return failure.code;
  return 0;
}

}  // namespace hipsim
