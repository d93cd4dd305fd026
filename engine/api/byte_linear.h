// Integer weights stored one byte a code, as compressed-tensors "int-quantized" (reference/quantization.md 1.4):
// int8_w8a8.
//
//   weight             I8 [N, K]      signed codes
//   weight_scale       F32/F16/BF16 [N, G]
//   weight_zero_point  I8 [N, G]      asymmetric only, signed
//   input_scale        [1] or []      static activations only; without it each token has its own scale, amax / 127.5
//   input_zero_point   I8 [1] or []   static asymmetric activations only, signed
// w = (code - zero) * scale, one f32 product; x is rounded to scale * (code - zero) with 8-bit codes first.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/api/grid_plan.h"
#include "engine/api/stored_tensors.h"
#include "engine/quant/integer_grid.h"

namespace sage::linear_strategies {

inline const int8_t* BytesOf(const TensorView& view) { return view.as<int8_t>(); }

template <const char* kName, int kBits>
struct ByteLinear {
  static absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, N, K));
    SAGE_RETURN_IF_ERROR(CheckGroupSize(kName, spec.group_size, K));
    if (spec.act_order || !(spec.clip_ratio >= 0 && spec.clip_ratio < 1)) {
      return Refuse(kName, "FIELD_NOT_SUPPORTED",
                    absl::StrCat("act_order must be false and clip_ratio in [0, 1), got act_order=", spec.act_order,
                                 ", clip_ratio=", spec.clip_ratio));
    }
    SAGE_RETURN_IF_ERROR(CheckScaleDType(kName, spec.scale_dtype));
    return RefuseFloatFields(kName, spec);
  }

  static absl::StatusOr<StoredLinear> Quantize(const TensorView& weight, const LinearSpec& spec, const LayerPlan& plan,
                                               ThreadPool& threads) {
    SAGE_RETURN_IF_ERROR(CheckWeight(kName, weight));
    const int64_t N = weight.dim(0), K = weight.dim(1);
    SAGE_RETURN_IF_ERROR(Check(spec, N, K));
    const int64_t group = spec.group_size == -1 ? K : spec.group_size, G = K / group;
    const size_t scales_wanted = static_cast<size_t>(N * G);
    const bool planned = !plan.scale.empty();
    if (!plan.g_idx.empty() || (planned && plan.scale.size() != scales_wanted) ||
        (!plan.zero.empty() && (plan.zero.size() != scales_wanted || spec.symmetric)) ||
        (!plan.codes.empty() && (!planned || plan.codes.size() != static_cast<size_t>(N * K)))) {
      return Refuse(kName, "BAD_PLAN",
                    "a plan must hold [N, G] scales, zeros only when asymmetric, [N, K] codes, no g_idx");
    }
    StoredLinear stored;
    stored.spec = spec;
    stored.spec.strategy = kName;
    stored.N = N;
    stored.K = K;
    SAGE_ASSIGN_OR_RETURN(Tensor * codes, AddTensor(&stored, "weight", DType::kI8, {N, K}));
    SAGE_ASSIGN_OR_RETURN(Tensor * scales, AddTensor(&stored, "weight_scale", spec.scale_dtype, {N, G}));
    Tensor* zeros = nullptr;
    if (!spec.symmetric) {
      SAGE_ASSIGN_OR_RETURN(zeros, AddTensor(&stored, "weight_zero_point", DType::kI8, {N, G}));
    }
    SAGE_RETURN_IF_ERROR(ForEachRow(kName, weight, threads, [&](int64_t n, const float* row) -> absl::Status {
      for (int64_t g = 0; g < G; ++g) {
        const size_t at = static_cast<size_t>(n * G + g);
        IntegerGrid grid =
            planned ? IntegerGrid{RoundToDType(plan.scale[at], spec.scale_dtype), 0}
                    : GridFromWeights(row + g * group, group, kBits, spec.symmetric, spec.scale_dtype, spec.clip_ratio);
        if (!plan.zero.empty()) grid.zero = static_cast<int32_t>(plan.zero[at]);
        if (grid.scale == 0.0f) grid.scale = MachineEpsilon(spec.scale_dtype);
        if (!std::isfinite(grid.scale)) {
          return Refuse(
              kName, "SCALE_OUT_OF_RANGE",
              absl::StrCat("scales must fit ", std::string(DTypeName(spec.scale_dtype)), ", row ", n, " does not"));
        }
        for (int64_t k = g * group; k < (g + 1) * group; ++k) {
          const int code =
              plan.codes.empty() ? CodeOf(row[k], grid, kBits) : plan.codes[static_cast<size_t>(n * K + k)];
          if (code < MinCode(kBits) || code > MaxCode(kBits))
            return Refuse(kName, "BAD_PLAN", "a code is out of range");
          codes->as<int8_t>()[n * K + k] = static_cast<int8_t>(code);
        }
        StoreFloat(grid.scale, n * G + g, scales);
        if (zeros != nullptr) zeros->as<int8_t>()[at] = static_cast<int8_t>(grid.zero);
      }
      return absl::OkStatus();
    }));
    return stored;
  }

  static absl::Status DequantizeRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
    SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
    SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
    const int8_t* codes = BytesOf(parts.codes);
    for (int64_t n = n_begin; n < n_end; ++n) {
      for (int64_t k = 0; k < stored.K; ++k) {
        const int64_t at = n * parts.G + k / parts.group;
        const int zero = parts.zeros.empty() ? 0 : BytesOf(parts.zeros)[at];
        *out++ = static_cast<float>(codes[n * stored.K + k] - zero) * LoadFloat(parts.scales, at);
      }
    }
    return absl::OkStatus();
  }

  static absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const StoredLinear& stored, std::shared_ptr<const void>,
                                                           const Backend& backend, Priority priority,
                                                           ThreadPool& threads) {
    SAGE_ASSIGN_OR_RETURN(LinearWeight weight, BeginWeight(stored, nullptr));  // everything is copied
    SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
    IntegerWeight& integer = weight.integer;
    integer.bits = kBits;
    integer.group_size = parts.group;
    integer.codes.assign(BytesOf(parts.codes), BytesOf(parts.codes) + parts.codes.bytes);
    for (const int8_t code : integer.codes) {
      if (code < MinCode(kBits) || code > MaxCode(kBits)) {
        return Refuse(kName, "BAD_TENSOR",
                      absl::StrCat("codes must be ", MinCode(kBits), " .. ", MaxCode(kBits), ", got ", int{code}));
      }
    }
    integer.scale.resize(static_cast<size_t>(stored.N * parts.G));
    LoadFloats(parts.scales, 0, stored.N * parts.G, integer.scale.data());
    SAGE_RETURN_IF_ERROR(CheckFinite(stored, "weight_scale", integer.scale));
    if (!parts.zeros.empty()) {
      for (int64_t i = 0; i < stored.N * parts.G; ++i) {
        integer.offset.push_back(-integer.scale[static_cast<size_t>(i)] * static_cast<float>(BytesOf(parts.zeros)[i]));
      }
    }
    SAGE_RETURN_IF_ERROR(ReadActivations(stored, &integer.activations));
    return backend.BindLinear(QueryOf(kName, stored, stored.spec.group_size, parts.zeros.empty(), priority),
                              std::move(weight), threads);
  }

 private:
  struct Parts {
    int64_t G = 0, group = 0;
    TensorView codes, scales, zeros;
  };

  static absl::StatusOr<Parts> Open(const StoredLinear& stored) {
    SAGE_RETURN_IF_ERROR(Check(stored.spec, stored.N, stored.K));
    Parts parts;
    parts.group = stored.spec.group_size == -1 ? stored.K : stored.spec.group_size;
    parts.G = stored.K / parts.group;
    SAGE_ASSIGN_OR_RETURN(parts.codes, RequireTensor(stored, "weight", {DType::kI8}, {stored.N, stored.K}));
    SAGE_ASSIGN_OR_RETURN(parts.scales, RequireTensor(stored, "weight_scale", {DType::kF32, DType::kF16, DType::kBF16},
                                                      {stored.N, parts.G}));
    if (stored.spec.symmetric) return parts;
    SAGE_ASSIGN_OR_RETURN(parts.zeros, RequireTensor(stored, "weight_zero_point", {DType::kI8}, {stored.N, parts.G}));
    return parts;
  }

  static void StoreFloat(float value, int64_t at, Tensor* to) {
    if (to->dtype() == DType::kF32) {
      to->as<float>()[at] = value;
    } else {
      to->as<uint16_t>()[at] = to->dtype() == DType::kF16 ? FloatToF16(value) : FloatToBF16(value);
    }
  }
};

}  // namespace sage::linear_strategies
