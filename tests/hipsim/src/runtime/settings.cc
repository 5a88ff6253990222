#include "settings.h"

#include <cstdio>
#include <cstdlib>

namespace hipsim {
namespace {

std::string text(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

[[noreturn]] void refuse(const char* name, const std::string& value, const char* wanted) {
  std::fprintf(stderr, "hipsim: %s is '%s', expected %s\n", name, value.c_str(), wanted);
  std::exit(2);
}

unsigned long number(const char* name, const char* otherwise) {
  const std::string value = text(name, otherwise);
  char* end = nullptr;
  const unsigned long parsed = std::strtoul(value.c_str(), &end, 10);
  if (*end) refuse(name, value, "a whole number");
  return parsed;
}

Mode mode() {
  const std::string value = text("HIPSIM_MODE", "sync");
  if (value == "sync") return Mode::sync;
  if (value == "threaded") return Mode::threaded;
  if (value == "lazy") return Mode::lazy;
  refuse("HIPSIM_MODE", value, "sync, threaded or lazy");
}

int devices() {
  const std::string value = text("HIPSIM_DEVICES", "1");
  if (value != "0" && value != "1") refuse("HIPSIM_DEVICES", value, "0 or 1");
  return value == "1";
}

}  // namespace

const Settings& settings() {
  static const Settings& instance = *new Settings{mode(),
                                                  devices(),
                                                  number("HIPSIM_MEMORY", "16384") << 20,
                                                  number("HIPSIM_PROTECT", "0") != 0,
                                                  static_cast<unsigned>(number("HIPSIM_SEED", "0")),
                                                  static_cast<unsigned>(number("HIPSIM_DELAY_US", "100")),
                                                  static_cast<unsigned>(number("HIPSIM_HANG_S", "120")),
                                                  text("HIPSIM_LOG", ""),
                                                  text("HIPSIM_REPORT", ""),
                                                  text("HIPSIM_FAIL", ""),
                                                  text("HIPSIM_ARCH", "gfx90a")};
  return instance;
}

}  // namespace hipsim
