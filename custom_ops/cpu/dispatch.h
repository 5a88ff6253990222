// A CPU kernel is one source file, cpu.cc, that the build compiles once for each instruction set; the best one that the
// machine runs is chosen when the library is loaded.
//
//   in op.cc:   ROCLINE_CPU_KERNEL(add_scale, const cpu::Pool&, DType, const void* a, ...);   then add_scale(...)
//   in cpu.cc:  namespace rocline::ROCLINE_ISA { void add_scale(const cpu::Pool&, DType, const void* a, ...) { ... } }
#pragma once

namespace rocline::cpu {

enum class Isa { baseline, avx2, avx512 };
// What this machine runs, or less where the variable ROCLINE_CPU (baseline, avx2, avx512) says so.
Isa isa();

}  // namespace rocline::cpu

#if defined(__x86_64__)
#define ROCLINE_CPU_KERNEL(name, ...)                                             \
  namespace rocline::baseline { void name(__VA_ARGS__); }                         \
  namespace rocline::avx2 { void name(__VA_ARGS__); }                             \
  namespace rocline::avx512 { void name(__VA_ARGS__); }                           \
  static void (*const name)(__VA_ARGS__) =                                        \
      ::rocline::cpu::isa() == ::rocline::cpu::Isa::avx512 ? &rocline::avx512::name \
      : ::rocline::cpu::isa() == ::rocline::cpu::Isa::avx2 ? &rocline::avx2::name   \
                                                           : &rocline::baseline::name
#else
#define ROCLINE_CPU_KERNEL(name, ...)                     \
  namespace rocline::baseline { void name(__VA_ARGS__); } \
  static void (*const name)(__VA_ARGS__) = &rocline::baseline::name
#endif
