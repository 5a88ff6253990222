// Elements in the simulated device's memory, by the name that C++ gives their type in a kernel's signature.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace hipsim {

// Holds every value of every type below exactly: its mantissa has 64 bits.
using Number = long double;

struct BFloat16 {
  std::uint16_t bits = 0;

  BFloat16() = default;
  explicit BFloat16(Number value) {
    const float narrow = static_cast<float>(value);
    std::uint32_t wide;
    std::memcpy(&wide, &narrow, sizeof wide);
    // A NaN keeps its sign and gets a mantissa that rounding cannot carry away.
    bits = narrow != narrow ? static_cast<std::uint16_t>(wide >> 16 | 0x40)
                            : static_cast<std::uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  explicit operator Number() const {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};

struct Element {
  std::string_view name;
  std::size_t size;
  Number (*load)(const void* at);
  void (*store)(void* at, Number value);
};

template <class T>
Number load_element(const void* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return static_cast<Number>(value);
}
template <class T>
void store_element(void* at, Number value) {
  const T narrow = static_cast<T>(value);
  std::memcpy(at, &narrow, sizeof narrow);
}
template <class T>
constexpr Element element(std::string_view name) {
  return {name, sizeof(T), load_element<T>, store_element<T>};
}

inline constexpr Element kElements[] = {
    element<float>("float"),
    element<_Float16>("__half"),
    element<BFloat16>("onnxruntime::BFloat16"),
    element<double>("double"),
    element<bool>("bool"),
    element<std::int8_t>("signed char"),
    element<std::uint8_t>("unsigned char"),
    element<std::int16_t>("short"),
    element<std::uint16_t>("unsigned short"),
    element<std::int32_t>("int"),
    element<std::uint32_t>("unsigned int"),
    element<std::int64_t>("long"),
    element<std::uint64_t>("unsigned long"),
};

// Null for a type that is none of these.
inline const Element* find_element(std::string_view name) {
  for (const Element& each : kElements)
    if (each.name == name) return &each;
  return nullptr;
}

// Elements at an address, counted from it.
struct Elements {
  const Element* type;
  char* data;

  Elements(const Element& element, const void* address)
      : type(&element), data(const_cast<char*>(static_cast<const char*>(address))) {}
  Number get(std::int64_t at) const { return type->load(data + at * static_cast<std::int64_t>(type->size)); }
  void set(std::int64_t at, Number value) const {
    type->store(data + at * static_cast<std::int64_t>(type->size), value);
  }
  explicit operator bool() const { return data != nullptr; }
};

}  // namespace hipsim
