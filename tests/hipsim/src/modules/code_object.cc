#include "code_object.h"

#include <elf.h>

#include <cstring>

namespace hipsim {
namespace {

constexpr unsigned kMachineMask = 0xff;
constexpr unsigned short kAmdGpu = 224;

// EF_AMDGPU_MACH of each GPU that the package is built for, and of the family's generic target.
struct Machine {
  const char* architecture;
  unsigned own, family;
};
constexpr Machine kMachines[] = {
    {"gfx900", 0x2c, 0x51},  {"gfx906", 0x2f, 0x51},  {"gfx908", 0x30, 0},     {"gfx90a", 0x3f, 0},
    {"gfx942", 0x4c, 0x5f},  {"gfx950", 0x4f, 0x5f},  {"gfx1030", 0x36, 0x53}, {"gfx1036", 0x45, 0x53},
    {"gfx1100", 0x41, 0x54}, {"gfx1101", 0x46, 0x54}, {"gfx1102", 0x47, 0x54}, {"gfx1103", 0x44, 0x54},
    {"gfx1150", 0x43, 0x54}, {"gfx1151", 0x4a, 0x54}, {"gfx1152", 0x55, 0x54}, {"gfx1153", 0x58, 0x54},
    {"gfx1200", 0x48, 0x59}, {"gfx1201", 0x4e, 0x59},
};

template <class Header>
const Header* at(const char* start, std::size_t offset) {
  return reinterpret_cast<const Header*>(start + offset);
}

}  // namespace

bool read_code_object(const void* image, CodeObject& object) {
  const char* start = static_cast<const char*>(image);
  if (!image || std::memcmp(start, "\177ELF\2\1", 6) != 0) return false;
  const auto* header = at<Elf64_Ehdr>(start, 0);
  if (header->e_machine != kAmdGpu || header->e_shentsize != sizeof(Elf64_Shdr)) return false;
  object.machine = header->e_flags & kMachineMask;
  for (unsigned i = 0; i < header->e_shnum; ++i) {
    const auto* section = at<Elf64_Shdr>(start, header->e_shoff + i * sizeof(Elf64_Shdr));
    if (section->sh_type != SHT_DYNSYM) continue;
    const auto* names = at<Elf64_Shdr>(start, header->e_shoff + section->sh_link * sizeof(Elf64_Shdr));
    for (std::size_t offset = 0; offset < section->sh_size; offset += sizeof(Elf64_Sym)) {
      const auto* symbol = at<Elf64_Sym>(start, section->sh_offset + offset);
      std::string name = start + names->sh_offset + symbol->st_name;
      // A kernel NAME has a descriptor NAME.kd.
      if (name.size() > 3 && name.compare(name.size() - 3, 3, ".kd") == 0)
        object.kernels.insert(name.substr(0, name.size() - 3));
    }
  }
  return true;
}

bool runs_on(unsigned machine, const std::string& architecture) {
  for (const Machine& each : kMachines)
    if (each.architecture == architecture) return machine == each.own || (each.family && machine == each.family);
  return false;
}

}  // namespace hipsim
