// half and bfloat: 16-bit floats as the host sees them, with conversions that round to nearest even and keep NaN.
//
// The functions are static: each instruction set needs its own copy, which the linker must not merge (cpu/vec.h).
#pragma once
#include <cstdint>
#include <cstring>

namespace rocline {

struct half {
  std::uint16_t bits;
};
struct bfloat {
  std::uint16_t bits;
};

namespace bits {

template <class To, class From>
static inline To cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace bits

static inline float to_float(float value) { return value; }
static inline float to_float(bfloat value) { return bits::cast<float>(std::uint32_t{value.bits} << 16); }
static inline float to_float(half value) {
  const std::uint32_t sign = (value.bits & 0x8000u) << 16, magnitude = value.bits & 0x7fffu;
  // Infinity and NaN keep their mantissa; a product by 2^112 moves the exponent of all others, subnormal ones too.
  if (magnitude >= 0x7c00u) return bits::cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  return bits::cast<float>(sign | bits::cast<std::uint32_t>(bits::cast<float>(magnitude << 13) * 0x1p112f));
}

static inline void from_float(float value, float& out) { out = value; }
static inline void from_float(float value, bfloat& out) {
  const std::uint32_t x = bits::cast<std::uint32_t>(value);
  const bool nan = (x & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<std::uint16_t>(nan ? x >> 16 | 0x40u : (x + 0x7fffu + (x >> 16 & 1)) >> 16);
}
static inline void from_float(float value, half& out) {
  const std::uint32_t x = bits::cast<std::uint32_t>(value);
  const std::uint32_t sign = x >> 16 & 0x8000u, magnitude = x & 0x7fffffffu;
  std::uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
    result = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the end
    result = bits::cast<std::uint32_t>(bits::cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  }
  out.bits = static_cast<std::uint16_t>(sign | result);
}

}  // namespace rocline
