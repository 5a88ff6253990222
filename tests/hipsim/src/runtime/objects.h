// Objects of all libraries that must be gone at exit.
#pragma once
#include <string>
#include <vector>

namespace hipsim {

// One line for each that is left: "hipStream s1, made by hipStreamCreate (call 7, by libfoo.so+0x12)".
std::vector<std::string> objects_left();
// "this process made it with hipMalloc (call 7, by libfoo.so+0x12)", by the call that runs now.
std::string made_by();

}  // namespace hipsim
