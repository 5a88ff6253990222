// What the environment variables HIPSIM_* chose, read once.
#pragma once
#include <string>

namespace hipsim {

enum class Mode { sync, threaded, lazy };

struct Settings {
  Mode mode;             // HIPSIM_MODE
  int devices;           // HIPSIM_DEVICES: 1, or 0 for a machine without one
  std::size_t memory;    // HIPSIM_MEMORY: megabytes of device memory
  bool protect;          // HIPSIM_PROTECT: host access to device memory faults
  unsigned seed;         // HIPSIM_SEED: of the delays in threaded mode
  unsigned delay_us;     // HIPSIM_DELAY_US: the longest of them
  unsigned hang_s;       // HIPSIM_HANG_S: without progress for so long is a hang
  std::string log;       // HIPSIM_LOG: file of the call log, "-" for stderr
  std::string report;    // HIPSIM_REPORT: folder for findings, which go to stderr without it
  std::string failures;  // HIPSIM_FAIL
  std::string arch;      // HIPSIM_ARCH
};
const Settings& settings();

}  // namespace hipsim
