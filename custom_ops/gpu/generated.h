// Tables that build.py writes while the library is built.
#pragma once

namespace rocline::gpu {

// An op's kernel.hip with its headers written out: what hiprtc compiles where no code object fits.
struct KernelSource {
  const char* folder;
  const char* text;
};
// Ends with a null folder.
extern const KernelSource kernel_sources[];

// The generic target whose code objects run on an architecture.
struct Family {
  const char* architecture;
  const char* generic;
};
// Ends with a null architecture.
extern const Family families[];

}  // namespace rocline::gpu
