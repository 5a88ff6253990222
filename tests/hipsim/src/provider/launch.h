// One launch of a kernel that is built into the provider.  Its machine code cannot run here: the demangled name says
// which kernel it is and, with the template arguments, on which types; provider/*.cc hold what each kernel computes.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "../elements.h"
#include "../sim.h"

namespace hipsim::provider {

// ONNX Runtime passes shapes and strides by value: a length and room for 8 elements.
template <class T, int capacity = 8>
struct Array {
  std::int32_t length;
  T items[capacity];
};
// A divisor, with what makes dividing by it fast on a GPU.
struct Divisor {
  std::uint32_t value, multiplier, shift;
};

class Launch {
 public:
  Launch(const std::string& name, Dim3 grid, Dim3 block, void** arguments);

  Dim3 grid, block;

  // The template arguments, as C++ writes them: "float", "onnxruntime::rocm::OP_Add<float, float, float>", "true".
  const std::string& parameter(std::size_t index) const { return parameters_.at(index); }
  bool flag(std::size_t index) const { return parameter(index) == "true"; }
  // "Add" of a template argument that is a functor: onnxruntime::rocm::OP_Add<...>.
  std::string functor(std::size_t index) const;

  template <class T>
  T argument(std::size_t index) const {
    T value;
    std::memcpy(&value, arguments_[index], sizeof value);
    return value;
  }
  const char* address(std::size_t index) const { return argument<const char*>(index); }
  std::vector<char> bytes(std::size_t index, std::size_t size) const {
    const char* const from = static_cast<const char*>(arguments_[index]);
    return {from, from + size};
  }
  // An argument that points at elements of the type that a template argument names.
  Elements elements(std::size_t index, std::size_t type) const;
  // A number of elements, whose own type is a template argument ("int" or "unsigned long").
  std::int64_t count(std::size_t index, const std::string& type) const;
  std::int64_t divisor(std::size_t index) const { return argument<Divisor>(index).value; }

 private:
  std::vector<std::string> parameters_;
  void** arguments_;
};

// What one kernel does.  Throws Unknown where a template argument is none that the emulation knows.
using Make = Task (*)(const Launch&);
struct Unknown {};
struct Kernel {
  std::string_view name;  // without namespaces and template arguments
  Make make;
};

// A range of `count` elements.
inline Access range(const Elements& elements, std::int64_t count, bool writes) {
  return {elements.data, static_cast<std::size_t>(count) * elements.type->size, writes};
}
// How many elements from the first on a task reaches with indices index(0) ... index(count - 1).
template <class Index>
std::int64_t reach(std::int64_t count, const Index& index) {
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < count; ++i) most = std::max<std::int64_t>(most, index(i) + 1);
  return most;
}

const std::vector<Kernel>& attention_kernels();
const std::vector<Kernel>& elementwise_kernels();
const std::vector<Kernel>& movement_kernels();
const std::vector<Kernel>& row_kernels();

}  // namespace hipsim::provider
