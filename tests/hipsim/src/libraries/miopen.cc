// libMIOpen.so.1: handles, tensors, softmax and reductions, on the handle's stream.
#include <cmath>

#include "../elements.h"
#include "../sim.h"

namespace {

using hipsim::Element;
using hipsim::Elements;
using hipsim::find_element;
using hipsim::Number;

enum { kSuccess = 0, kInvalidValue = 2, kBadParm = 3, kInternalError = 5, kNotImplemented = 6 };

struct Handle {
  hipStream_t stream = nullptr;
};
struct Tensor {
  int type = 1;
  std::vector<std::int64_t> lengths, strides;
};
struct Reduce {
  int operation = 0, indices = 0;
};
struct Activation {
  int mode = 0;
  double alpha = 0, beta = 0, gamma = 0;
};

template <class Object>
int create(const char* kind, Object** object) {
  if (!object) return kBadParm;
  *object = new Object;
  hipsim::made(kind, *object);
  return kSuccess;
}
template <class Object>
int destroy(const char* kind, Object* object) {
  if (!hipsim::alive(kind, object)) return kBadParm;
  hipsim::gone(kind, object);
  delete object;
  return kSuccess;
}

constexpr const char* kHandle = "MIOpen handle";
constexpr const char* kTensor = "MIOpen tensor descriptor";
constexpr const char* kReduce = "MIOpen reduction descriptor";
constexpr const char* kActivation = "MIOpen activation descriptor";

// miopenDataType_t.
const Element* element_of(const Tensor& tensor) {
  switch (tensor.type) {
    case 0: return find_element("__half");
    case 1: return find_element("float");
    case 2: return find_element("int");
    case 3: return find_element("signed char");
    case 5: return find_element("onnxruntime::BFloat16");
    case 6: return find_element("double");
    case 9: return find_element("long");
    default: return nullptr;
  }
}

std::int64_t count(const Tensor& tensor) {
  std::int64_t all = 1;
  for (std::int64_t length : tensor.lengths) all *= length;
  return all;
}
// The place of element `i` in order of its coordinates; a dimension that is 1 in `tensor` is repeated.
std::int64_t place(const Tensor& shape, const Tensor& tensor, std::int64_t i) {
  std::int64_t at = 0;
  for (std::size_t d = shape.lengths.size(); d-- > 0; i /= shape.lengths[d])
    if (tensor.lengths[d] != 1) at += i % shape.lengths[d] * tensor.strides[d];
  return at;
}
hipsim::Access whole(const Tensor& tensor, const void* data, bool writes) {
  std::int64_t last = 0;
  for (std::size_t d = 0; d < tensor.lengths.size(); ++d) last += (tensor.lengths[d] - 1) * tensor.strides[d];
  return {data, static_cast<std::size_t>(last + 1) * element_of(tensor)->size, writes};
}
Number scalar(const Tensor& tensor, const void* value) {
  return tensor.type == 6 ? Elements(*find_element("double"), value).get(0)
                          : Elements(*find_element("float"), value).get(0);
}

}  // namespace

HIPSIM_API const char* miopenGetErrorString(int code) {
  switch (code) {
    case kSuccess: return "miopenStatusSuccess";
    case 1: return "miopenStatusNotInitialized";
    case kInvalidValue: return "miopenStatusInvalidValue";
    case kBadParm: return "miopenStatusBadParm";
    case 4: return "miopenStatusAllocFailed";
    case kInternalError: return "miopenStatusInternalError";
    case kNotImplemented: return "miopenStatusNotImplemented";
    default: return "miopenStatusUnknownError";
  }
}

HIPSIM_API int miopenCreate(Handle** handle) {
  HIPSIM_CALL("%p", static_cast<void*>(handle));
  return create(kHandle, handle);
}
HIPSIM_API int miopenDestroy(Handle* handle) {
  HIPSIM_CALL("handle=%p", static_cast<void*>(handle));
  return destroy(kHandle, handle);
}
HIPSIM_API int miopenSetStream(Handle* handle, hipStream_t stream) {
  HIPSIM_CALL("handle=%p, stream=%s", static_cast<void*>(handle), hipsim::stream_name(stream).c_str());
  if (!hipsim::alive(kHandle, handle)) return kBadParm;
  handle->stream = stream;
  return kSuccess;
}

HIPSIM_API int miopenCreateTensorDescriptor(Tensor** tensor) {
  HIPSIM_CALL("%p", static_cast<void*>(tensor));
  return create(kTensor, tensor);
}
HIPSIM_API int miopenDestroyTensorDescriptor(Tensor* tensor) {
  HIPSIM_CALL("%p", static_cast<void*>(tensor));
  return destroy(kTensor, tensor);
}
HIPSIM_API int miopenSetTensorDescriptor(Tensor* tensor, int type, int dimensions, const int* lengths,
                                         const int* strides) {
  HIPSIM_CALL("%p, type=%d, %d dimensions", static_cast<void*>(tensor), type, dimensions);
  if (!hipsim::alive(kTensor, tensor) || dimensions < 1 || !lengths) return kBadParm;
  tensor->type = type;
  tensor->lengths.assign(lengths, lengths + dimensions);
  tensor->strides.assign(static_cast<std::size_t>(dimensions), 1);
  if (strides)
    tensor->strides.assign(strides, strides + dimensions);
  else
    for (std::size_t d = tensor->lengths.size() - 1; d-- > 0;)
      tensor->strides[d] = tensor->strides[d + 1] * tensor->lengths[d + 1];
  return element_of(*tensor) ? kSuccess : kNotImplemented;
}
HIPSIM_API int miopenGetTensorDescriptorSize(Tensor* tensor, int* dimensions) {
  HIPSIM_CALL("%p", static_cast<void*>(tensor));
  if (!hipsim::alive(kTensor, tensor) || !dimensions) return kBadParm;
  *dimensions = static_cast<int>(tensor->lengths.size());
  return kSuccess;
}
HIPSIM_API int miopenGetTensorDescriptor(Tensor* tensor, int* type, int* lengths, int* strides) {
  HIPSIM_CALL("%p", static_cast<void*>(tensor));
  if (!hipsim::alive(kTensor, tensor)) return kBadParm;
  if (type) *type = tensor->type;
  for (std::size_t d = 0; d < tensor->lengths.size(); ++d) {
    if (lengths) lengths[d] = static_cast<int>(tensor->lengths[d]);
    if (strides) strides[d] = static_cast<int>(tensor->strides[d]);
  }
  return kSuccess;
}

// The provider makes and destroys these for operators that this device does not run.
HIPSIM_API int miopenCreateActivationDescriptor(Activation** activation) {
  HIPSIM_CALL("%p", static_cast<void*>(activation));
  return create(kActivation, activation);
}
HIPSIM_API int miopenDestroyActivationDescriptor(Activation* activation) {
  HIPSIM_CALL("%p", static_cast<void*>(activation));
  return destroy(kActivation, activation);
}
HIPSIM_API int miopenSetActivationDescriptor(Activation* activation, int mode, double alpha, double beta,
                                             double gamma) {
  HIPSIM_CALL("%p, mode=%d", static_cast<void*>(activation), mode);
  if (!hipsim::alive(kActivation, activation)) return kBadParm;
  *activation = {mode, alpha, beta, gamma};
  return kSuccess;
}

HIPSIM_API int miopenCreateReduceTensorDescriptor(Reduce** reduce) {
  HIPSIM_CALL("%p", static_cast<void*>(reduce));
  return create(kReduce, reduce);
}
HIPSIM_API int miopenDestroyReduceTensorDescriptor(Reduce* reduce) {
  HIPSIM_CALL("%p", static_cast<void*>(reduce));
  return destroy(kReduce, reduce);
}
HIPSIM_API int miopenSetReduceTensorDescriptor(Reduce* reduce, int operation, int, int, int indices, int) {
  HIPSIM_CALL("%p, operation=%d", static_cast<void*>(reduce), operation);
  if (!hipsim::alive(kReduce, reduce)) return kBadParm;
  *reduce = {operation, indices};
  return kSuccess;
}
HIPSIM_API int miopenGetReductionIndicesSize(Handle* handle, Reduce*, Tensor*, Tensor* out, std::size_t* bytes) {
  HIPSIM_CALL("handle=%p", static_cast<void*>(handle));
  if (!hipsim::alive(kTensor, out) || !bytes) return kBadParm;
  *bytes = static_cast<std::size_t>(count(*out)) * sizeof(std::int32_t);
  return kSuccess;
}
HIPSIM_API int miopenGetReductionWorkspaceSize(Handle* handle, Reduce*, Tensor* in, Tensor*, std::size_t* bytes) {
  HIPSIM_CALL("handle=%p", static_cast<void*>(handle));
  if (!hipsim::alive(kTensor, in) || !bytes) return kBadParm;
  *bytes = static_cast<std::size_t>(count(*in)) * element_of(*in)->size;
  return kSuccess;
}

namespace {

// miopenReduceTensorOp_t.
struct Accumulator {
  int operation;
  std::int64_t values = 0;
  double total = 0;
  std::int64_t extreme = 0;  // where a minimum or maximum was

  void add(double value) {
    const bool first = values++ == 0;
    switch (operation) {
      case 0:
      case 5: total += value; break;
      case 1: total = first ? value : total * value; break;
      case 2:
        if (first || value < total) total = value, extreme = values - 1;
        break;
      case 3:
        if (first || value > total) total = value, extreme = values - 1;
        break;
      case 4:
        if (first || std::fabs(value) > total) total = std::fabs(value), extreme = values - 1;
        break;
      case 6: total += std::fabs(value); break;
      default: total += value * value;
    }
  }
  double result() const {
    if (operation == 5) return total / static_cast<double>(values);
    return operation == 7 ? std::sqrt(total) : total;
  }
};

}  // namespace

HIPSIM_API int miopenReduceTensor(Handle* handle, Reduce* reduce, void* indices, std::size_t indices_bytes, void*,
                                  std::size_t, const void* alpha, Tensor* in, const void* a, const void* beta,
                                  Tensor* out, void* c) {
  HIPSIM_CALL("handle=%p", static_cast<void*>(handle));
  if (!hipsim::alive(kHandle, handle) || !hipsim::alive(kReduce, reduce) || !hipsim::alive(kTensor, in) ||
      !hipsim::alive(kTensor, out) || in->lengths.size() != out->lengths.size())
    return kBadParm;
  const Number scale = scalar(*in, alpha), keep = scalar(*in, beta);
  const bool wants_indices = reduce->indices && indices && indices_bytes;
  hipsim::Task task{__func__, nullptr, {whole(*in, a, false), whole(*out, c, true)}};
  if (keep != 0) task.accesses.push_back(whole(*out, c, false));
  if (wants_indices)
    task.accesses.push_back({indices, static_cast<std::size_t>(count(*out)) * sizeof(std::int32_t), true});
  task.body = [from = *in, to = *out, operation = reduce->operation, scale, keep, a, c, indices, wants_indices] {
    std::vector<Accumulator> sums(static_cast<std::size_t>(count(to)), Accumulator{operation});
    Tensor packed = to;
    for (std::size_t d = packed.lengths.size(), step = 1; d-- > 0; step *= static_cast<std::size_t>(packed.lengths[d]))
      packed.strides[d] = static_cast<std::int64_t>(step);
    const Elements source(*element_of(from), a), target(*element_of(to), c);
    for (std::int64_t i = 0; i < count(from); ++i)
      sums[static_cast<std::size_t>(place(from, packed, i))].add(static_cast<double>(source.get(place(from, from, i))));
    for (std::int64_t i = 0; i < count(to); ++i) {
      const Accumulator& sum = sums[static_cast<std::size_t>(i)];
      const std::int64_t at = place(to, to, i);
      target.set(at, scale * sum.result() + (keep != 0 ? keep * target.get(at) : 0));
      if (wants_indices) static_cast<std::int32_t*>(indices)[i] = static_cast<std::int32_t>(sum.extreme);
    }
  };
  return hipsim::enqueue(handle->stream, std::move(task)) == 0 ? kSuccess : kInternalError;
}

// Over all but the first dimension (mode 0, "instance") or over the second (mode 1, "channel"); algorithm 2 is log.
HIPSIM_API int miopenSoftmaxForward_V2(Handle* handle, const void* alpha, Tensor* in, const void* x, const void* beta,
                                       Tensor* out, void* y, int algorithm, int mode) {
  HIPSIM_CALL("handle=%p, algorithm=%d, mode=%d", static_cast<void*>(handle), algorithm, mode);
  if (!hipsim::alive(kHandle, handle) || !hipsim::alive(kTensor, in) || !hipsim::alive(kTensor, out) ||
      in->lengths != out->lengths || in->lengths.size() < 2)
    return kBadParm;
  if (scalar(*in, alpha) != 1 || scalar(*in, beta) != 0) return kNotImplemented;
  hipsim::Task task{__func__, nullptr, {whole(*in, x, false), whole(*out, y, true)}};
  task.body = [from = *in, to = *out, x, y, logarithm = algorithm == 2, channel = mode == 1] {
    const Elements source(*element_of(from), x), target(*element_of(to), y);
    std::int64_t inner = 1;
    for (std::size_t d = 2; channel && d < from.lengths.size(); ++d) inner *= from.lengths[d];
    const std::int64_t length = channel ? from.lengths[1] : count(from) / from.lengths[0];
    for (std::int64_t row = 0; row < count(from) / length; ++row) {
      const auto index = [&](std::int64_t i) { return row / inner * inner * length + i * inner + row % inner; };
      const auto value = [&](std::int64_t i) { return static_cast<double>(source.get(place(from, from, index(i)))); };
      double most = -INFINITY, sum = 0;
      for (std::int64_t i = 0; i < length; ++i) most = std::fmax(most, value(i));
      for (std::int64_t i = 0; i < length; ++i) sum += std::exp(value(i) - most);
      for (std::int64_t i = 0; i < length; ++i) {
        const double shifted = value(i) - most;
        target.set(place(to, to, index(i)), logarithm ? shifted - std::log(sum) : std::exp(shifted) / sum);
      }
    }
  };
  return hipsim::enqueue(handle->stream, std::move(task)) == 0 ? kSuccess : kInternalError;
}
