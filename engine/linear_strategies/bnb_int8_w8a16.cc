// LLM.int8 weights of bitsandbytes: 8-bit codes and the largest magnitude of each row, with 16-bit activations.
//
//   weight         I8  [N, K]
//   SCB            F32 [N]
//   weight_format  U8  []   optional; 0 = rows, the only order
// w = (code * SCB) / 127 in f32.
#include <algorithm>
#include <cstring>

#include "engine/api/stored_tensors.h"
#include "engine/quant/integer_grid.h"

namespace sage::linear_strategies {
namespace {

constexpr char kName[] = "bnb_int8_w8a16";

absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) {
  SAGE_RETURN_IF_ERROR(CheckSize(kName, N, K));
  if (spec.group_size != -1) {
    return Refuse(kName, "GROUP_SIZE_NOT_SUPPORTED",
                  absl::StrCat("group_size must be -1 (one scale a row), got ", spec.group_size),
                  {{"group_size", absl::StrCat(spec.group_size)}, {"allowed", "-1"}});
  }
  if (!spec.symmetric || spec.act_order || spec.clip_ratio != 0) {
    return Refuse(kName, "FIELD_NOT_SUPPORTED",
                  absl::StrCat("symmetric=true, act_order=false and clip_ratio=0 are the only choices, got symmetric=",
                               spec.symmetric, ", act_order=", spec.act_order, ", clip_ratio=", spec.clip_ratio));
  }
  SAGE_RETURN_IF_ERROR(CheckWholeScales(kName, spec.scale_dtype));
  return RefuseFloatFields(kName, spec);
}

absl::StatusOr<StoredLinear> Quantize(const TensorView& weight, const LinearSpec& spec, const LayerPlan& plan,
                                      ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckWeight(kName, weight));
  SAGE_RETURN_IF_ERROR(Check(spec, weight.dim(0), weight.dim(1)));
  if (!IsEmpty(plan))
    return Refuse(kName, "PLAN_NOT_SUPPORTED", "scales and codes follow from the weights, got a plan");
  StoredLinear stored;
  stored.spec = spec;
  stored.spec.strategy = kName;
  stored.spec.scale_dtype = DType::kF32;  // the format has no other
  stored.N = weight.dim(0);
  stored.K = weight.dim(1);
  const int64_t K = stored.K;
  SAGE_ASSIGN_OR_RETURN(Tensor * codes, AddTensor(&stored, "weight", DType::kI8, {stored.N, K}));
  SAGE_ASSIGN_OR_RETURN(Tensor * maxima, AddTensor(&stored, "SCB", DType::kF32, {stored.N}));
  SAGE_RETURN_IF_ERROR(AddTensor(&stored, "weight_format", DType::kU8, {}).status());  // 0: rows
  SAGE_RETURN_IF_ERROR(ForEachRow(kName, weight, threads, [&](int64_t n, const float* row) {
    float absmax = 0;
    for (int64_t k = 0; k < K; ++k) absmax = std::max(absmax, std::fabs(row[k]));
    maxima->as<float>()[n] = absmax;
    const float factor = absmax > 0 ? 127.0f / absmax : 0.0f;
    if (!std::isfinite(factor)) return absl::OkStatus();  // a row of subnormals: codes stay 0
    for (int64_t k = 0; k < K; ++k) {
      codes->as<int8_t>()[n * K + k] = static_cast<int8_t>(RoundHalfEven(std::clamp(row[k] * factor, -127.0f, 127.0f)));
    }
    return absl::OkStatus();
  }));
  return stored;
}

struct Parts {
  TensorView codes, maxima;
};

absl::StatusOr<Parts> Open(const StoredLinear& stored) {
  SAGE_RETURN_IF_ERROR(CheckSize(kName, stored.N, stored.K));
  Parts parts;
  SAGE_ASSIGN_OR_RETURN(parts.codes, RequireTensor(stored, "weight", {DType::kI8}, {stored.N, stored.K}));
  SAGE_ASSIGN_OR_RETURN(parts.maxima, RequireTensor(stored, "SCB", {DType::kF32}, {stored.N}));
  for (int64_t n = 0; n < stored.N; ++n) {
    const float v = LoadFloat(parts.maxima, n);
    if (!std::isfinite(v)) return Refuse(kName, "BAD_TENSOR", absl::StrCat("'SCB' must be finite, got ", v));
  }
  const auto format = stored.tensors.find("weight_format");
  if (format != stored.tensors.end()) {
    const TensorView& view = format->second;
    if (view.dtype != DType::kU8 || view.bytes != 1 || view.as<uint8_t>()[0] != 0) {
      return Refuse(kName, "BAD_TENSOR", "'weight_format' must be one U8 of 0 (rows)");
    }
  }
  return parts;
}

absl::Status DequantizeRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
  SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
  SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
  for (int64_t n = n_begin; n < n_end; ++n) {
    const int8_t* codes = parts.codes.as<int8_t>() + n * stored.K;
    const float absmax = LoadFloat(parts.maxima, n);
    for (int64_t k = 0; k < stored.K; ++k) *out++ = static_cast<float>(codes[k]) * absmax / 127.0f;
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
  integer.group_size = stored.K;
  integer.codes.assign(parts.codes.as<int8_t>(), parts.codes.as<int8_t>() + parts.codes.bytes);
  integer.scale.resize(static_cast<size_t>(stored.N));
  for (int64_t n = 0; n < stored.N; ++n) integer.scale[static_cast<size_t>(n)] = LoadFloat(parts.maxima, n) / 127.0f;
  // The same arithmetic as int8_w8a16, so its kernels serve it.
  return backend.BindLinear(QueryOf("int8_w8a16", stored, -1, true, priority), std::move(weight), threads);
}

}  // namespace

extern const LinearStrategyDef kBnbInt8W8a16;
const LinearStrategyDef kBnbInt8W8a16 = {
    .name = kName,
    .summary = "8-bit codes over each row's largest magnitude; bitsandbytes LLM.int8",
    .weight_dtype = "bnb_int8",
    .weight_bits = 8,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = Check,
    .quantize = Quantize,
    .dequantize_rows = DequantizeRows,
    .bind = Bind,
};

}  // namespace sage::linear_strategies
