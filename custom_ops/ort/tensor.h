// Element types, shapes and tensors as an op sees them.
#pragma once
#include <cstdint>

#include "cpu/types.h"
#include "ort/status.h"

namespace rocline {

using DType = ort::Elem;

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    case DType::i32: return "int32";
    case DType::i64: return "int64";
    case DType::u8: return "uint8";
    case DType::i8: return "int8";
    case DType::boolean: return "bool";
    default: return "undefined";
  }
}

// The suffix of kernel entry points: add_scale_f16.
inline const char* suffix_of(DType dtype) {
  return dtype == DType::f16 ? "f16" : dtype == DType::bf16 ? "bf16" : "f32";
}

// Calls `function` with a value of the C++ type of a floating dtype (float, half, bfloat).
template <class F>
auto visit_float(DType dtype, F&& function) {
  switch (dtype) {
    case DType::f16: return function(half{});
    case DType::bf16: return function(bfloat{});
    default: return function(float{});
  }
}

struct Shape {
  static constexpr int max_rank = 8;
  int rank = 0;
  std::int64_t dims[max_rank] = {};

  Shape() = default;
  template <class... Dims>
  explicit Shape(std::int64_t first, Dims... rest)
      : rank(1 + sizeof...(rest)), dims{first, static_cast<std::int64_t>(rest)...} {
    static_assert(1 + sizeof...(rest) <= max_rank);
  }

  // A negative index counts from the end: shape[-1] is the innermost dimension.
  std::int64_t& operator[](int index) { return dims[index < 0 ? rank + index : index]; }
  std::int64_t operator[](int index) const { return dims[index < 0 ? rank + index : index]; }

  std::int64_t elements() const { return elements(0, rank); }
  std::int64_t elements(int first, int last) const {
    std::int64_t n = 1;
    for (int i = first; i < last; ++i) n *= dims[i];
    return n;
  }
  bool operator==(const Shape& other) const {
    if (rank != other.rank) return false;
    for (int i = 0; i < rank; ++i)
      if (dims[i] != other.dims[i]) return false;
    return true;
  }
  bool operator!=(const Shape& other) const { return !(*this == other); }

  Text<192> text() const {
    Text<192> out("[");
    for (int i = 0; i < rank; ++i) out.append(i ? ", %lld" : "%lld", static_cast<long long>(dims[i]));
    out.append("]");
    return out;
  }
};

struct Tensor {
  const char* name = "";
  DType dtype = DType::undefined;
  Shape shape;
  void* data = nullptr;  // null: an optional input that the node leaves off, or a tensor of no elements
  bool present = false;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  std::int64_t elements() const { return shape.elements(); }
};

}  // namespace rocline
