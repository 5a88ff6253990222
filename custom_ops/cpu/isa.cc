#include <cstdlib>
#include <cstring>

#include "cpu/dispatch.h"

namespace rocline::cpu {

Isa isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Isa best = avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
  const char* limit = std::getenv("ROCLINE_CPU");
  if (limit && std::strcmp(limit, "baseline") == 0) return Isa::baseline;
  if (limit && std::strcmp(limit, "avx2") == 0 && avx2) return Isa::avx2;
  return best;
#else
  return Isa::baseline;
#endif
}

}  // namespace rocline::cpu
