// The calls that an op makes on ONNX Runtime.
#include <atomic>

#include "ort/op.h"

namespace rocline {
namespace {

// Owns a TensorTypeAndShapeInfo.
struct Info {
  const ort::Api* api;
  ort::TensorInfo* info = nullptr;
  explicit Info(const ort::Api* owner) : api(owner) {}
  Info(const Info&) = delete;
  ~Info() {
    if (info) ort::ReleaseTensorTypeAndShapeInfo(api, info);
  }
  Status call(ort::Status* status) const { return Status::from(api, status); }
};

Status rank_of(const Info& owner, const ort::TensorInfo* info, int& rank) {
  std::size_t count = 0;
  ROCLINE_TRY(owner.call(ort::GetDimensionsCount(owner.api, info, &count)));
  if (count > Shape::max_rank)
    return Status::error(ort::Error::invalid_argument, "a tensor of rank %zu, at most %d is supported", count,
                         Shape::max_rank);
  rank = static_cast<int>(count);
  return {};
}

Status describe(const ort::Api* api, const ort::Value* value, Tensor& tensor) {
  Info owner(api);
  ROCLINE_TRY(owner.call(ort::GetTensorTypeAndShape(api, value, &owner.info)));
  ROCLINE_TRY(owner.call(ort::GetTensorElementType(api, owner.info, &tensor.dtype)));
  ROCLINE_TRY(rank_of(owner, owner.info, tensor.shape.rank));
  ROCLINE_TRY(owner.call(ort::GetDimensions(api, owner.info, tensor.shape.dims, tensor.shape.rank)));
  ROCLINE_TRY(owner.call(ort::GetTensorMutableData(api, const_cast<ort::Value*>(value), &tensor.data)));
  tensor.present = true;
  return {};
}

bool has(const ort::Api* api, ort::Status* status) {
  if (status) ort::ReleaseStatus(api, status);
  return !status;
}

// Good where the node does not have the attribute; an error where it has one of another type than `expected`.
Status absent(const ort::Api* api, const ort::KernelInfo* info, const char* name, const char* expected) {
  float number = 0;
  std::int64_t whole = 0;
  std::size_t length = 0;
  const char* found = has(api, ort::KernelInfoGetAttribute_float(api, info, name, &number))           ? "a float"
                      : has(api, ort::KernelInfoGetAttribute_int64(api, info, name, &whole))          ? "an int"
                      : has(api, ort::KernelInfoGetAttribute_string(api, info, name, nullptr, &length)) ? "a string"
                                                                                                      : nullptr;
  if (!found) return {};
  return Status::error(ort::Error::invalid_argument, "attribute '%s': %s, expected %s", name, found, expected);
}

}  // namespace

Status Creation::attribute(const char* name, float& value) const {
  float found = 0;
  if (!has(api_, ort::KernelInfoGetAttribute_float(api_, info_, name, &found))) return absent(api_, info_, name, "a float");
  value = found;
  return {};
}

Status Creation::attribute(const char* name, std::int64_t& value) const {
  std::int64_t found = 0;
  if (!has(api_, ort::KernelInfoGetAttribute_int64(api_, info_, name, &found))) return absent(api_, info_, name, "an int");
  value = found;
  return {};
}

Status Creation::attribute(const char* name, char* value, std::size_t size) const {
  std::size_t needed = 0;
  // With no room given ONNX Runtime answers with the size alone.
  if (!has(api_, ort::KernelInfoGetAttribute_string(api_, info_, name, nullptr, &needed)))
    return absent(api_, info_, name, "a string");
  if (needed > size)
    return Status::error(ort::Error::invalid_argument, "attribute '%s': %zu characters, expected at most %zu", name,
                         needed - 1, size - 1);
  return Status::from(api_, ort::KernelInfoGetAttribute_string(api_, info_, name, value, &size));
}

Status Creation::function(const char* entry, gpu::Function& function) const {
  return function_named(Text<96>("%s_%s", entry, suffix_of(dtype_)).c_str(), function);
}

Status Creation::function_named(const char* entry, gpu::Function& function) const {
  if (provider_ == Provider::cpu) return {};
  const gpu::Vendor vendor = provider_ == Provider::cuda ? gpu::Vendor::nvidia : gpu::Vendor::amd;
  return gpu::find(vendor, folder_, entry, function);
}

Status Inference::inputs(int& count) const {
  std::size_t given = 0;
  ROCLINE_TRY(Status::from(api_, ort::ShapeInferContext_GetInputCount(api_, context_, &given)));
  count = static_cast<int>(given);
  return {};
}

Status Inference::input(int index, SymbolicShape& shape) const {
  Info owner(api_);  // the context keeps what it hands out: nothing here is released
  ort::TensorInfo* info = nullptr;
  ROCLINE_TRY(owner.call(ort::ShapeInferContext_GetInputTypeShape(api_, context_, index, &info)));
  ROCLINE_TRY(rank_of(owner, info, shape.rank));
  std::int64_t sizes[Shape::max_rank] = {};
  const char* symbols[Shape::max_rank] = {};
  ROCLINE_TRY(owner.call(ort::GetDimensions(api_, info, sizes, shape.rank)));
  ROCLINE_TRY(owner.call(ort::GetSymbolicDimensions(api_, info, symbols, shape.rank)));
  for (int i = 0; i < shape.rank; ++i) shape.dims[i] = {sizes[i], symbols[i] ? symbols[i] : ""};
  return {};
}

Status Inference::output(int index, const SymbolicShape& shape) const {
  // ONNX Runtime shows a tensor of unknown rank as a scalar; left alone, it infers the type without the shape.
  if (shape.rank == 0) return {};
  const Argument& argument = schema_.outputs[index];
  // ONNX Runtime does not say which optional outputs a node has, and writes past the end for one that is not there.
  if (argument.arity == ort::Arity::optional) return {};
  std::int64_t sizes[Shape::max_rank] = {};
  const char* symbols[Shape::max_rank] = {};
  // ONNX Runtime takes a size of -1 without a symbol for a number, and computes reshapes with it. Equal symbols mean
  // equal sizes, so that each unknown size has its own.
  static std::atomic<unsigned> unknown{0};
  Text<32> made[Shape::max_rank];
  for (int i = 0; i < shape.rank; ++i) {
    sizes[i] = shape.dims[i].size;
    symbols[i] = shape.dims[i].symbol;
    if (sizes[i] < 0 && !*symbols[i]) {
      made[i] = Text<32>("rocline_unknown_%u", unknown++);
      symbols[i] = made[i].c_str();
    }
  }
  Info owner(api_);
  DType dtype = argument.dtype;
  // ONNX Runtime infers with the first of the kernels that share a name, whichever dtype it is for.
  for (int i = 0; dtype == T && i < Schema::count(schema_.inputs); ++i)
    if (schema_.inputs[i].dtype == T) {
      ort::TensorInfo* info = nullptr;
      ROCLINE_TRY(owner.call(ort::ShapeInferContext_GetInputTypeShape(api_, context_, i, &info)));
      ROCLINE_TRY(owner.call(ort::GetTensorElementType(api_, info, &dtype)));
    }
  ROCLINE_TRY(owner.call(ort::CreateTensorTypeAndShapeInfo(api_, &owner.info)));
  ROCLINE_TRY(owner.call(ort::SetTensorElementType(api_, owner.info, dtype)));
  ROCLINE_TRY(owner.call(ort::SetDimensions(api_, owner.info, sizes, shape.rank)));
  ROCLINE_TRY(owner.call(ort::SetSymbolicDimensions(api_, owner.info, symbols, shape.rank)));
  return owner.call(ort::ShapeInferContext_SetOutputTypeShape(api_, context_, index, owner.info));
}

Status Inference::output_like(int index, int source) const {
  SymbolicShape shape;
  ROCLINE_TRY(input(source, shape));
  return output(index, shape);
}

Status Context::read_inputs() {
  std::size_t given = 0;
  ROCLINE_TRY(Status::from(api_, ort::KernelContext_GetInputCount(api_, context_, &given)));
  const int declared = Schema::count(schema_.inputs);
  for (int i = 0; i < declared; ++i) {
    Tensor& tensor = inputs_[i];
    tensor.name = schema_.inputs[i].name;
    const ort::Value* value = nullptr;
    if (static_cast<std::size_t>(i) < given)
      ROCLINE_TRY(Status::from(api_, ort::KernelContext_GetInput(api_, context_, i, &value)));
    if (value)
      ROCLINE_TRY(describe(api_, value, tensor));
    else if (schema_.inputs[i].arity == ort::Arity::required)
      return Status::error(ort::Error::invalid_argument, "input '%s' is missing", tensor.name);
  }
  return {};
}

Status Context::output(int index, const Shape& shape, Tensor& tensor) {
  tensor.name = schema_.outputs[index].name;
  tensor.shape = shape;
  std::size_t wanted = 0;
  ROCLINE_TRY(Status::from(api_, ort::KernelContext_GetOutputCount(api_, context_, &wanted)));
  if (static_cast<std::size_t>(index) >= wanted) return {};
  ort::Value* value = nullptr;
  ROCLINE_TRY(
      Status::from(api_, ort::KernelContext_GetOutput(api_, context_, index, shape.dims, shape.rank, &value)));
  return value ? describe(api_, value, tensor) : Status{};
}

Status Context::stream(gpu::Stream& stream) const {
  return Status::from(api_, ort::KernelContext_GetGPUComputeStream(api_, context_, &stream.handle));
}

Status Context::refuse(const Tensor& tensor, const char* wanted, ...) const {
  Text<512> expected;
  std::va_list args;
  va_start(args, wanted);
  expected.length = std::vsnprintf(expected.text, sizeof expected.text, wanted, args);
  va_end(args);
  return Status::error(ort::Error::invalid_argument, "input '%s': %s %s, expected %s", tensor.name,
                       name_of(tensor.dtype), tensor.shape.text().c_str(), expected.c_str());
}

void Context::parallel_for(void* context, void (*body)(void*, std::size_t), std::size_t parts, void* argument) {
  auto& self = *static_cast<Context*>(context);
  self.pool_status_ =
      Status::from(self.api_, ort::KernelContext_ParallelFor(self.api_, self.context_, body, parts, 0, argument));
}

}  // namespace rocline
