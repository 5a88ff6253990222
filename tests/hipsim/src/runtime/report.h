// What the simulator says: the call log, findings, and objects that must be gone at exit.
#pragma once
#include <cstdint>
#include <string>

#include "../sim.h"

namespace hipsim {

// The call of a library that this thread is in, or was in last.
struct CurrentCall {
  const char* function = "";
  const void* caller = nullptr;  // return address
  std::uint64_t number = 0;      // as in the call log
};
const CurrentCall& current_call();

// "libonnxruntime_providers_rocm.so+0x1234"
std::string place(const void* address);
std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));

// Writes an object of the call log: {"number": .., ...}.
void write_log(const std::string& fields);
std::string quote(const std::string& text);
// A finding whose text is ready; of those with one key only the first counts, until the program takes it.
void found(const std::string& kind, const std::string& text, const std::string& key = "");
// Like made(), with words about the object for the report.
void made(const char* kind, const void* object, const std::string& details);

}  // namespace hipsim
