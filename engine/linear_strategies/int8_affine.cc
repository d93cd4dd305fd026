// Eight-bit codes with a scale and an offset for every 16 or 32 inputs: what a GGUF reader makes of K-quants, IQ4 and
// Q5 tensors, without loss. Not a method to quantize with.
//
//   codes   I8  [N, K]
//   scale   F32 [N, G]
//   offset  F32 [N, G]  optional
// w = scale * code + offset: product rounded to f32, then the sum.
#include <cstring>

#include "engine/api/stored_tensors.h"

namespace sage::linear_strategies {
namespace {

constexpr char kName[] = "int8_affine";

absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) {
  SAGE_RETURN_IF_ERROR(CheckSize(kName, N, K));
  if ((spec.group_size != 16 && spec.group_size != 32) || K % spec.group_size != 0) {
    return Refuse(kName, "GROUP_SIZE_MUST_DIVIDE_K",
                  absl::StrCat("group_size must be 16 or 32 and divide K, got K=", K, ", group_size=", spec.group_size),
                  {{"K", absl::StrCat(K)}, {"group_size", absl::StrCat(spec.group_size)}, {"allowed", "32, 16"}});
  }
  return RefuseFloatFields(kName, spec);
}

absl::StatusOr<StoredLinear> Quantize(const TensorView&, const LinearSpec&, const LayerPlan&, ThreadPool&) {
  return MakeError(
      absl::StatusCode::kUnimplemented, "READ_ONLY_STRATEGY",
      "int8_affine: holds tensors repacked from GGUF and quantizes nothing; ask for int8_w8a16 or int4_w4a16");
}

struct Parts {
  int64_t G = 0;
  TensorView codes, scale, offset;
};

absl::StatusOr<Parts> Open(const StoredLinear& stored) {
  SAGE_RETURN_IF_ERROR(Check(stored.spec, stored.N, stored.K));
  Parts parts;
  parts.G = stored.K / stored.spec.group_size;
  SAGE_ASSIGN_OR_RETURN(parts.codes, RequireTensor(stored, "codes", {DType::kI8}, {stored.N, stored.K}));
  SAGE_ASSIGN_OR_RETURN(parts.scale, RequireTensor(stored, "scale", {DType::kF32}, {stored.N, parts.G}));
  if (stored.tensors.count("offset") != 0) {
    SAGE_ASSIGN_OR_RETURN(parts.offset, RequireTensor(stored, "offset", {DType::kF32}, {stored.N, parts.G}));
  }
  return parts;
}

absl::Status DequantizeRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
  SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
  SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
  const int64_t group = stored.spec.group_size;
  for (int64_t i = n_begin * parts.G; i < n_end * parts.G; ++i) {
    const int8_t* codes = parts.codes.as<int8_t>() + i * group;
    const float scale = LoadFloat(parts.scale, i);
    for (int64_t k = 0; k < group; ++k) *out++ = scale * static_cast<float>(codes[k]);
    if (parts.offset.empty()) continue;
    const float offset = LoadFloat(parts.offset, i);
    for (int64_t k = 0; k < group; ++k) out[k - group] += offset;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const StoredLinear& stored, std::shared_ptr<const void> keep_alive,
                                                  const Backend& backend, Priority priority, ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(LinearWeight weight, BeginWeight(stored, nullptr));  // everything is copied
  SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
  IntegerWeight& integer = weight.integer;
  integer.bits = 8;
  integer.codes_signed = true;
  integer.group_size = stored.spec.group_size;
  integer.codes.assign(parts.codes.as<int8_t>(), parts.codes.as<int8_t>() + parts.codes.bytes);
  integer.scale.resize(static_cast<size_t>(stored.N * parts.G));
  std::memcpy(integer.scale.data(), parts.scale.data, parts.scale.bytes);
  if (!parts.offset.empty()) {
    integer.offset.resize(integer.scale.size());
    std::memcpy(integer.offset.data(), parts.offset.data, parts.offset.bytes);
  }
  // The same arithmetic as int8_w8a16, so its kernels serve it.
  return backend.BindLinear(QueryOf("int8_w8a16", stored, integer.group_size, parts.offset.empty(), priority),
                            std::move(weight), threads);
}

}  // namespace

extern const LinearStrategyDef kInt8Affine;
const LinearStrategyDef kInt8Affine = {
    .name = kName,
    .summary = "8-bit codes, scale and offset for 16 or 32 inputs: GGUF K-quants, IQ4 and Q5, repacked without loss",
    .weight_dtype = "affine8",
    .weight_bits = 8,
    .activation_bits = 16,
    .quantizes = false,
    .tolerance = 1e-2,
    .check = Check,
    .quantize = Quantize,
    .dequantize_rows = DequantizeRows,
    .bind = Bind,
};

}  // namespace sage::linear_strategies
