// ONNX Runtime's C ABI as far as custom operators need it, declared by ourselves: no wheel ships the headers.
//
// The function table (OrtApi) only grows at its end, so a slot keeps its index for ever; upstream holds that with
// static_asserts of its own.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rocline::ort {

// Asked of the runtime at registration: ONNX Runtime 1.17 and newer answer it.
constexpr std::uint32_t kApiVersion = 17;

struct Status;
struct Value;
struct TensorInfo;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;

enum class Elem : int { undefined = 0, f32 = 1, u8 = 2, i8 = 3, i32 = 6, i64 = 7, boolean = 9, f16 = 10, bf16 = 16 };
enum class Memory : int { cpu_input = -2, cpu_output = -1, device = 0 };
enum class Arity : int { required = 0, optional = 1 };
enum class Error : int { fail = 1, invalid_argument = 2, not_implemented = 9 };

struct Api {
  void* slot[1];  // more than 276 of them
};

struct ApiBase {
  const Api* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

template <unsigned Index, class Result, class... Args>
struct Function {
  static constexpr unsigned index = Index;
  Result operator()(const Api* api, Args... args) const {
    return reinterpret_cast<Result (*)(Args...)>(api->slot[Index])(args...);
  }
};

inline constexpr Function<0, Status*, Error, const char*> CreateStatus{};
inline constexpr Function<2, const char*, const Status*> GetErrorMessage{};
inline constexpr Function<93, void, Status*> ReleaseStatus{};

inline constexpr Function<26, Status*, const char*, Domain**> CreateCustomOpDomain{};
inline constexpr Function<27, Status*, Domain*, const struct CustomOp*> CustomOpDomain_Add{};
inline constexpr Function<28, Status*, SessionOptions*, Domain*> AddCustomOpDomain{};

inline constexpr Function<51, Status*, Value*, void**> GetTensorMutableData{};
inline constexpr Function<57, Status*, TensorInfo**> CreateTensorTypeAndShapeInfo{};
inline constexpr Function<58, Status*, TensorInfo*, Elem> SetTensorElementType{};
inline constexpr Function<59, Status*, TensorInfo*, const std::int64_t*, std::size_t> SetDimensions{};
inline constexpr Function<60, Status*, const TensorInfo*, Elem*> GetTensorElementType{};
inline constexpr Function<61, Status*, const TensorInfo*, std::size_t*> GetDimensionsCount{};
inline constexpr Function<62, Status*, const TensorInfo*, std::int64_t*, std::size_t> GetDimensions{};
inline constexpr Function<63, Status*, const TensorInfo*, const char**, std::size_t> GetSymbolicDimensions{};
inline constexpr Function<65, Status*, const Value*, TensorInfo**> GetTensorTypeAndShape{};
inline constexpr Function<99, void, TensorInfo*> ReleaseTensorTypeAndShapeInfo{};
inline constexpr Function<271, Status*, TensorInfo*, const char**, std::size_t> SetSymbolicDimensions{};

inline constexpr Function<85, Status*, const KernelInfo*, const char*, float*> KernelInfoGetAttribute_float{};
inline constexpr Function<86, Status*, const KernelInfo*, const char*, std::int64_t*> KernelInfoGetAttribute_int64{};
inline constexpr Function<87, Status*, const KernelInfo*, const char*, char*, std::size_t*>
    KernelInfoGetAttribute_string{};

inline constexpr Function<88, Status*, const KernelContext*, std::size_t*> KernelContext_GetInputCount{};
inline constexpr Function<89, Status*, const KernelContext*, std::size_t*> KernelContext_GetOutputCount{};
inline constexpr Function<90, Status*, const KernelContext*, std::size_t, const Value**> KernelContext_GetInput{};
inline constexpr Function<91, Status*, KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**>
    KernelContext_GetOutput{};
inline constexpr Function<193, Status*, const KernelContext*, void**> KernelContext_GetGPUComputeStream{};
inline constexpr Function<274, Status*, const KernelContext*, void (*)(void*, std::size_t), std::size_t, std::size_t,
                          void*>
    KernelContext_ParallelFor{};

inline constexpr Function<267, Status*, const ShapeContext*, std::size_t*> ShapeInferContext_GetInputCount{};
inline constexpr Function<268, Status*, const ShapeContext*, std::size_t, TensorInfo**>
    ShapeInferContext_GetInputTypeShape{};
inline constexpr Function<270, Status*, const ShapeContext*, std::size_t, const TensorInfo*>
    ShapeInferContext_SetOutputTypeShape{};

// OrtCustomOp: version 17 reads up to GetEndVersion, 18 and newer the four after it too.
struct CustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  Elem (*GetInputType)(const CustomOp*, std::size_t);
  std::size_t (*GetInputTypeCount)(const CustomOp*);
  Elem (*GetOutputType)(const CustomOp*, std::size_t);
  std::size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Arity (*GetInputCharacteristic)(const CustomOp*, std::size_t);
  Arity (*GetOutputCharacteristic)(const CustomOp*, std::size_t);
  Memory (*GetInputMemoryType)(const CustomOp*, std::size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  std::size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  std::size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};
static_assert(sizeof(CustomOp) == 8 + 25 * sizeof(void*), "OrtCustomOp has a version and 25 function pointers");

}  // namespace rocline::ort
