// Checks an fp8 module's tensors against its scheme and describes them as fp8_w8a16 or fp8_w8a8.
#include "engine/api/fp8_stored.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

bool IsOne(const Shape& shape) { return shape.empty() || shape == Shape{1} || shape == Shape{1, 1}; }

}  // namespace

bool HoldsFp8(const HfFolder& folder, const std::string& module) {
  const TensorView* weight = folder.Find(module + ".weight");
  return weight != nullptr && (weight->dtype == DType::kF8E4M3 || weight->dtype == DType::kF8E5M2);
}

bool ScaleFits(const Fp8Scheme& scheme, const Shape& scale, int64_t N, int64_t K) {
  const bool channel = scale == Shape{N} || scale == Shape{N, 1};
  switch (scheme.weights) {
    case Fp8Scheme::Weights::kAny:
      return IsOne(scale) || channel;
    case Fp8Scheme::Weights::kTensor:
      return IsOne(scale);
    case Fp8Scheme::Weights::kChannel:
      return channel;
    case Fp8Scheme::Weights::kBlock:
      return scheme.block_rows > 0 && scheme.block_columns > 0 &&
             scale == Shape{(N + scheme.block_rows - 1) / scheme.block_rows,
                            (K + scheme.block_columns - 1) / scheme.block_columns};
  }
  return false;
}

absl::StatusOr<StoredLinear> GetFp8(const HfFolder& folder, const std::string& module, const Fp8Scheme& scheme,
                                    const std::string& scale) {
  const auto bad = [&](const std::string& rule) {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(folder.path(), ": ", module, ": ", rule));
  };
  StoredLinear out;
  SAGE_ASSIGN_OR_RETURN(const TensorView weight, folder.Get(module + ".weight"));
  SAGE_ASSIGN_OR_RETURN(const TensorView scales, folder.Get(absl::StrCat(module, ".", scale)));
  if (!HoldsFp8(folder, module) || weight.shape.size() != 2) {
    return bad(absl::StrCat("weight must be fp8 [N, K], got ", std::string(DTypeName(weight.dtype)), " ",
                            ShapeText(weight.shape)));
  }
  out.N = weight.dim(0);
  out.K = weight.dim(1);
  if (!IsFloat(scales.dtype) || scales.dtype == DType::kF64 || !ScaleFits(scheme, scales.shape, out.N, out.K)) {
    return bad(absl::StrCat(scale, " must be F32, F16 or BF16 with the shape of the config's scheme for [", out.N, ", ",
                            out.K, "], got ", std::string(DTypeName(scales.dtype)), " ", ShapeText(scales.shape)));
  }
  out.tensors["weight"] = weight;
  out.tensors["weight_scale"] = scales;
  out.spec.scale_dtype = scales.dtype;
  out.spec.fp8_e5m2 = weight.dtype == DType::kF8E5M2;
  if (scheme.weights == Fp8Scheme::Weights::kBlock) {
    out.spec.group_size = scheme.block_columns;
    out.spec.block_rows = scheme.block_rows;
  } else {
    const bool tensor = scheme.weights != Fp8Scheme::Weights::kChannel && IsOne(scales.shape);
    out.spec.block_rows = tensor ? -1 : 1;
  }
  const bool rounds = scheme.activations != Fp8Scheme::Activations::kNone;
  out.spec.strategy = rounds ? "fp8_w8a8" : "fp8_w8a16";
  if (rounds) out.spec.activation_group_size = scheme.activation_group_size;
  if (scheme.activations == Fp8Scheme::Activations::kStatic) {
    const TensorView* input = folder.Find(module + ".input_scale");
    if (input == nullptr || !IsOne(input->shape)) {
      return bad("input_scale must be there with one value: the config says that activations are static");
    }
    out.tensors["input_scale"] = *input;
  }
  if (const TensorView* bias = folder.Find(module + ".bias")) out.bias = *bias;
  return out;
}

}  // namespace sage
