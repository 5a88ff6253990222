// What the module interface reads of an AMD code object: for which GPU it is, and which kernels it has.
#pragma once
#include <set>
#include <string>

namespace hipsim {

struct CodeObject {
  unsigned machine = 0;  // EF_AMDGPU_MACH
  std::set<std::string> kernels;
};

// Reads an ELF file of unknown length (LLVM: "User Guide for AMDGPU Backend", ELF Code Object); false if it is none.
bool read_code_object(const void* image, CodeObject& object);
// Whether a code object for `machine` runs on a GPU of that name: its own, or one for its family.
bool runs_on(unsigned machine, const std::string& architecture);

}  // namespace hipsim
