// RegisterCustomOps: every op of the library, for every provider and dtype, in one domain.
#include <new>

#include "gpu/lock.h"
#include "ort/op.h"

namespace rocline {

const Op* Op::first = nullptr;

namespace {

constexpr const char* kDomain = "rocline";

#if defined(ROCLINE_EMULATED)  // tests/op_emulator.py: the CPU provider runs what the device would
constexpr Provider kProviders[] = {Provider::rocm};
constexpr const char* kRocmProvider = "CPUExecutionProvider";
#else
constexpr Provider kProviders[] = {Provider::cpu, Provider::rocm, Provider::cuda};
constexpr const char* kRocmProvider = "ROCMExecutionProvider";
#endif

// One OrtCustomOp: an op for one provider and one dtype.
struct Binding : ort::CustomOp {
  const ort::Api* api;
  const Op* op;
  DType dtype;
  Provider provider;

  static const Binding& of(const ort::CustomOp* self) { return *static_cast<const Binding*>(self); }
  DType type(const Argument& argument) const { return argument.dtype == T ? dtype : argument.dtype; }
};

struct Instance {
  const Binding* binding;
  Kernel* kernel;
};

// Names the op and everything it was given.
Status explain(const Schema& schema, const Status& status, const Context* context) {
  Text<512> inputs;
  for (int i = 0; context && i < Schema::count(schema.inputs); ++i) {
    const Tensor& tensor = context->input(i);
    if (tensor.present)
      inputs.append("%s%s %s %s", inputs.length ? ", " : "", tensor.name, name_of(tensor.dtype),
                    tensor.shape.text().c_str());
  }
  return Status::error(ort::Error::invalid_argument, inputs.length ? "rocline.%s: %s (inputs: %s)" : "rocline.%s: %s%s",
                       schema.name, status.message(), inputs.c_str());
}

ort::Status* create(const ort::CustomOp* self, const ort::Api* api, const ort::KernelInfo* info, void** out) {
  const Binding& binding = Binding::of(self);
  Instance* instance = static_cast<Instance*>(std::malloc(sizeof(Instance)));
  Kernel* kernel = binding.op->make();
  Status status = instance && kernel
                      ? kernel->create({api, info, binding.op->folder, binding.dtype, binding.provider})
                      : Status::error(ort::Error::fail, "out of memory");
  if (!status.good()) {
    delete kernel;
    std::free(instance);
    return explain(binding.op->schema, status, nullptr).release_to(api);
  }
  *out = new (instance) Instance{&binding, kernel};
  return nullptr;
}

void destroy(void* pointer) {
  auto* instance = static_cast<Instance*>(pointer);
  delete instance->kernel;
  std::free(instance);
}

ort::Status* compute(void* pointer, ort::KernelContext* kernel_context) {
  const Instance& instance = *static_cast<Instance*>(pointer);
  const Binding& binding = *instance.binding;
  Context context(binding.api, kernel_context, binding.op->schema, binding.dtype);
  Status status = context.read_inputs();
  if (status.good())
    status = binding.provider == Provider::cpu ? instance.kernel->cpu(context) : instance.kernel->gpu(context);
  if (status.good()) status = context.pool_status();
  return status.good() ? nullptr : explain(binding.op->schema, status, &context).release_to(binding.api);
}

ort::Status* infer(const ort::CustomOp* self, ort::ShapeContext* shapes) {
  const Binding& binding = Binding::of(self);
  Inference inference(binding.api, shapes, binding.op->schema);
  Status status = binding.op->infer(inference);
  return status.good() ? nullptr : explain(binding.op->schema, status, nullptr).release_to(binding.api);
}

const char* provider_name(const ort::CustomOp* self) {
  switch (Binding::of(self).provider) {
    case Provider::rocm: return kRocmProvider;
    case Provider::cuda: return "CUDAExecutionProvider";
    default: return "CPUExecutionProvider";
  }
}

Binding* make_binding(const ort::Api* api, const Op* op, DType dtype, Provider provider) {
  auto* binding = static_cast<Binding*>(std::calloc(1, sizeof(Binding)));
  if (!binding) return nullptr;
  using ort::CustomOp;
  using std::size_t;
  binding->api = api;
  binding->op = op;
  binding->dtype = dtype;
  binding->provider = provider;
  binding->version = ort::kApiVersion;
  binding->GetName = [](const CustomOp* o) { return Binding::of(o).op->schema.name; };
  binding->GetExecutionProviderType = &provider_name;
  binding->GetInputType = [](const CustomOp* o, size_t i) {
    return Binding::of(o).type(Binding::of(o).op->schema.inputs[i]);
  };
  binding->GetInputTypeCount = [](const CustomOp* o) -> size_t {
    return Schema::count(Binding::of(o).op->schema.inputs);
  };
  binding->GetOutputType = [](const CustomOp* o, size_t i) {
    return Binding::of(o).type(Binding::of(o).op->schema.outputs[i]);
  };
  binding->GetOutputTypeCount = [](const CustomOp* o) -> size_t {
    return Schema::count(Binding::of(o).op->schema.outputs);
  };
  binding->GetInputCharacteristic = [](const CustomOp* o, size_t i) { return Binding::of(o).op->schema.inputs[i].arity; };
  binding->GetOutputCharacteristic = [](const CustomOp* o, size_t i) {
    return Binding::of(o).op->schema.outputs[i].arity;
  };
  binding->GetInputMemoryType = [](const CustomOp* o, size_t i) { return Binding::of(o).op->schema.inputs[i].memory; };
  const auto one = [](const CustomOp*) { return 1; };
  binding->GetVariadicInputMinArity = one;
  binding->GetVariadicInputHomogeneity = one;
  binding->GetVariadicOutputMinArity = one;
  binding->GetVariadicOutputHomogeneity = one;
  binding->GetStartVersion = one;
  binding->GetEndVersion = [](const CustomOp*) { return 0x7fffffff; };
  binding->CreateKernelV2 = &create;
  binding->KernelComputeV2 = &compute;
  binding->KernelDestroy = &destroy;
  binding->InferOutputShapeFn = &infer;
  return binding;
}

Status fill(const ort::Api* api, ort::Domain* domain) {
  for (const Op* op = Op::first; op; op = op->next)
    for (Provider provider : kProviders)
      for (DType dtype : op->schema.dtypes) {
        Binding* binding = make_binding(api, op, dtype, provider);
        if (!binding) return Status::error(ort::Error::fail, "rocline: out of memory while registering the operators");
        ROCLINE_TRY(Status::from(api, ort::CustomOpDomain_Add(api, domain, binding)));
      }
  return {};
}

// The domain must outlive every session, and ONNX Runtime takes the same one for any number of session options: it is
// made once for each runtime in the process, and never freed.
Status domain_of(const ort::Api* api, ort::Domain*& domain) {
  struct Entry {
    const ort::Api* api;
    ort::Domain* domain;
    Entry* next;
  };
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  static Entry* entries = nullptr;
  const Lock lock(mutex);
  for (Entry* entry = entries; entry; entry = entry->next)
    if (entry->api == api) {
      domain = entry->domain;
      return {};
    }
  ROCLINE_TRY(Status::from(api, ort::CreateCustomOpDomain(api, kDomain, &domain)));
  ROCLINE_TRY(fill(api, domain));
  void* memory = std::malloc(sizeof(Entry));
  if (!memory) return Status::error(ort::Error::fail, "rocline: out of memory while registering the operators");
  entries = new (memory) Entry{api, domain, entries};
  return {};
}

}  // namespace
}  // namespace rocline

extern "C" __attribute__((visibility("default"))) rocline::ort::Status* RegisterCustomOps(
    rocline::ort::SessionOptions* options, const rocline::ort::ApiBase* base) {
  using namespace rocline;
  // A runtime older than this answers null (and says so on stderr); without its table no status can be made.
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (!api) return nullptr;
  ort::Domain* domain = nullptr;
  Status status = domain_of(api, domain);
  if (!status.good()) return status.release_to(api);
  return ort::AddCustomOpDomain(api, options, domain);
}
