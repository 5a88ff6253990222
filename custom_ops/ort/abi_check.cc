// Holds ort/abi.h against ONNX Runtime's own headers; compiled where the build is given ONNXRUNTIME_INCLUDE_DIR.
#include <onnxruntime_c_api.h>

#include <cstddef>

#include "ort/abi.h"

namespace rocline::ort {

#define SLOT(name) \
  static_assert(offsetof(OrtApi, name) == name.index * sizeof(void*), "the slot of OrtApi::" #name " is another one")
SLOT(CreateStatus);
SLOT(GetErrorMessage);
SLOT(ReleaseStatus);
SLOT(CreateCustomOpDomain);
SLOT(CustomOpDomain_Add);
SLOT(AddCustomOpDomain);
SLOT(GetTensorMutableData);
SLOT(CreateTensorTypeAndShapeInfo);
SLOT(SetTensorElementType);
SLOT(SetDimensions);
SLOT(GetTensorElementType);
SLOT(GetDimensionsCount);
SLOT(GetDimensions);
SLOT(GetSymbolicDimensions);
SLOT(GetTensorTypeAndShape);
SLOT(ReleaseTensorTypeAndShapeInfo);
SLOT(SetSymbolicDimensions);
SLOT(KernelInfoGetAttribute_float);
SLOT(KernelInfoGetAttribute_int64);
SLOT(KernelInfoGetAttribute_string);
SLOT(KernelContext_GetInputCount);
SLOT(KernelContext_GetOutputCount);
SLOT(KernelContext_GetInput);
SLOT(KernelContext_GetOutput);
SLOT(KernelContext_GetGPUComputeStream);
SLOT(KernelContext_ParallelFor);
SLOT(ShapeInferContext_GetInputCount);
SLOT(ShapeInferContext_GetInputCount);
SLOT(ShapeInferContext_GetInputTypeShape);
SLOT(ShapeInferContext_SetOutputTypeShape);

#define FIELD(name) \
  static_assert(offsetof(OrtCustomOp, name) == offsetof(CustomOp, name), "OrtCustomOp::" #name " stands elsewhere")
FIELD(CreateKernel);
FIELD(GetName);
FIELD(GetExecutionProviderType);
FIELD(GetInputType);
FIELD(GetOutputTypeCount);
FIELD(KernelDestroy);
FIELD(GetInputCharacteristic);
FIELD(GetInputMemoryType);
FIELD(GetVariadicOutputHomogeneity);
FIELD(CreateKernelV2);
FIELD(KernelComputeV2);
FIELD(InferOutputShapeFn);
FIELD(GetEndVersion);

static_assert(static_cast<int>(Elem::f32) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(static_cast<int>(Elem::i64) == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
static_assert(static_cast<int>(Elem::f16) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
static_assert(static_cast<int>(Elem::bf16) == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);
static_assert(static_cast<int>(Error::invalid_argument) == ORT_INVALID_ARGUMENT);
static_assert(static_cast<int>(Memory::cpu_input) == OrtMemTypeCPUInput);
static_assert(static_cast<int>(Arity::optional) == INPUT_OUTPUT_OPTIONAL);

}  // namespace rocline::ort
