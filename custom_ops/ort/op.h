// What an operator is made of.  docs/custom_ops.md shows an op from start to end.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "cpu/pool.h"
#include "gpu/module.h"
#include "ort/tensor.h"

namespace rocline {

// The op's own floating type: a kernel is registered for each dtype that the schema lists.
constexpr DType T = DType::undefined;

struct Argument {
  const char* name = nullptr;
  DType dtype = T;
  ort::Arity arity = ort::Arity::required;
  ort::Memory memory = ort::Memory::device;
};

constexpr Argument required(const char* name, DType dtype = T) { return {name, dtype}; }
// Optional inputs stand last and are left off the node's end: see docs/custom_ops.md.
constexpr Argument optional(const char* name, DType dtype = T) { return {name, dtype, ort::Arity::optional}; }

struct Schema {
  static constexpr int max_arguments = 12;
  const char* name;
  Argument inputs[max_arguments];
  Argument outputs[max_arguments];
  DType dtypes[3] = {DType::f32, DType::f16, DType::bf16};

  static constexpr int count(const Argument (&arguments)[max_arguments]) {
    int n = 0;
    while (n < max_arguments && arguments[n].name) ++n;
    return n;
  }
};

enum class Provider { cpu, rocm, cuda };

// What a kernel is created from: the node's attributes and, on a GPU, the code object that holds the op's kernels.
class Creation {
 public:
  Creation(const ort::Api* api, const ort::KernelInfo* info, const char* folder, DType dtype, Provider provider)
      : api_(api), info_(info), folder_(folder), dtype_(dtype), provider_(provider) {}

  // Leaves `value` as it is where the node does not have the attribute; an error where it has another type.
  Status attribute(const char* name, float& value) const;
  Status attribute(const char* name, std::int64_t& value) const;
  Status attribute(const char* name, char* value, std::size_t size) const;

  // Finds `entry` + "_" + dtype ("add_scale_f16") in the op's code object; does nothing on the CPU.
  Status function(const char* entry, gpu::Function& function) const;
  // The same, where the entry point's name has no dtype or another one.
  Status function_named(const char* entry, gpu::Function& function) const;

  DType dtype() const { return dtype_; }
  Provider provider() const { return provider_; }

 private:
  const ort::Api* api_;
  const ort::KernelInfo* info_;
  const char* folder_;
  DType dtype_;
  Provider provider_;
};

// A dimension while the model loads: a number, or a symbol (which may be empty) where it is not known yet.
struct Dim {
  std::int64_t size = -1;
  const char* symbol = "";
  bool known() const { return size >= 0; }
};

struct SymbolicShape {
  int rank = 0;
  Dim dims[Shape::max_rank];
  Dim& operator[](int index) { return dims[index < 0 ? rank + index : index]; }
  const Dim& operator[](int index) const { return dims[index < 0 ? rank + index : index]; }
};

// Shape inference while the model loads.
class Inference {
 public:
  Inference(const ort::Api* api, ort::ShapeContext* context, const Schema& schema)
      : api_(api), context_(context), schema_(schema) {}

  // How many inputs the node has; optional ones left off its end do not count.
  Status inputs(int& count) const;
  Status input(int index, SymbolicShape& shape) const;
  // Optional outputs stay without an inferred shape, whatever is given here.
  Status output(int index, const SymbolicShape& shape) const;
  // Output `index` has the shape of input `source`.
  Status output_like(int index, int source) const;

 private:
  const ort::Api* api_;
  ort::ShapeContext* context_;
  const Schema& schema_;
};

// One call of Compute.
class Context {
 public:
  Context(const ort::Api* api, ort::KernelContext* context, const Schema& schema, DType dtype)
      : api_(api), context_(context), schema_(schema), dtype_(dtype) {}

  // Absent optional inputs answer with .present == false.
  const Tensor& input(int index) const { return inputs_[index]; }
  // Allocates output `index`; .present is false where the node leaves an optional output off.
  Status output(int index, const Shape& shape, Tensor& tensor);

  DType dtype() const { return dtype_; }
  const cpu::Pool& pool() const { return pool_; }
  // The stream of this run on the device; every launch names it.
  Status stream(gpu::Stream& stream) const;

  // The error "input 'b': float32 [3], expected ...", with what was wanted as a printf format.
  __attribute__((format(printf, 3, 4))) Status refuse(const Tensor& tensor, const char* wanted, ...) const;

  Status read_inputs();
  Status pool_status() { return std::move(pool_status_); }

 private:
  static void parallel_for(void* context, void (*body)(void*, std::size_t), std::size_t parts, void* argument);

  const ort::Api* api_;
  ort::KernelContext* context_;
  const Schema& schema_;
  DType dtype_;
  Tensor inputs_[Schema::max_arguments];
  Status pool_status_;
  cpu::Pool pool_{this, &parallel_for};
};

// Base of every op: one object a node of a session.  create() runs while the session is made, cpu() or gpu() at each
// run; both must hold the rules of docs/custom_ops.md (nothing allocated, loaded or copied to the host in gpu()).
class Kernel {
 public:
  virtual ~Kernel() = default;
  static Status infer(Inference&) { return {}; }
  virtual Status create(const Creation&) { return {}; }
  virtual Status cpu(Context& context) = 0;
  virtual Status gpu(Context& context) = 0;

  static void* operator new(std::size_t size) noexcept { return std::malloc(size); }
  static void operator delete(void* memory) { std::free(memory); }
};

// A registered op.  Defining one (with ROCLINE_REGISTER) is all that it takes.
struct Op {
  const Schema& schema;
  const char* folder;
  Kernel* (*make)();
  Status (*infer)(Inference&);
  const Op* next;

  Op(const Schema& op_schema, const char* op_folder, Kernel* (*op_make)(), Status (*op_infer)(Inference&))
      : schema(op_schema), folder(op_folder), make(op_make), infer(op_infer), next(first) {
    first = this;
  }
  static const Op* first;
};

// ROCLINE_OP is the folder's name, given by the build.
#define ROCLINE_REGISTER(kernel, schema)                                                              \
  static const ::rocline::Op registered_##kernel(                                                     \
      schema, ROCLINE_OP, []() -> ::rocline::Kernel* { return new kernel; }, &kernel::infer)

}  // namespace rocline
