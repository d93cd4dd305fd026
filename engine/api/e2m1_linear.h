// Weights as E2M1 codes with a stored scale for 16 or 32 inputs, as compressed-tensors stores microscaling formats:
// shared by mxfp4_w4a16 and nvfp4_w4a16 (reference/peer-checkpoint-notes.md).
//
//   weight_packed        U8 [N, K / 2], the first of two codes in the low nibble
//   weight_scale         mxfp4: U8 (or F8_E8M0) [N, K / 32], 2^(byte - 127); nvfp4: F8_E4M3 [N, K / 16]
//   weight_global_scale  F32 [1], nvfp4 only: what the scales are divided by
// w = value(code) * scale, one f32 product; nvfp4: scale = e4m3 / global, one f32 division.
#pragma once

#include <algorithm>
#include <bit>
#include <memory>
#include <utility>

#include "engine/api/stored_tensors.h"
#include "engine/quant/fp8.h"
#include "engine/quant/nf4.h"

namespace sage::linear_strategies {

template <const char* kName, int kGroup, bool kGlobalScale>
struct E2m1Linear {
  static constexpr DType kScaleType = kGlobalScale ? DType::kF8E4M3 : DType::kU8;

  static absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, N, K));
    if ((spec.group_size != -1 && spec.group_size != kGroup) || K % kGroup != 0) {
      return Refuse(kName, "GROUP_SIZE_MUST_DIVIDE_K",
                    absl::StrCat("group_size must be ", kGroup, " (or -1, which means it) and divide K, got K=", K,
                                 ", group_size=", spec.group_size),
                    {{"K", absl::StrCat(K)},
                     {"group_size", absl::StrCat(spec.group_size)},
                     {"allowed", K % kGroup == 0 ? absl::StrCat(kGroup) : ""}});
    }
    if (!spec.symmetric || spec.act_order || spec.clip_ratio != 0) {
      return Refuse(kName, "FIELD_NOT_SUPPORTED",
                    absl::StrCat("symmetric=true, act_order=false and clip_ratio=0 are the only choices, got "
                                 "symmetric=",
                                 spec.symmetric, ", act_order=", spec.act_order, ", clip_ratio=", spec.clip_ratio));
    }
    return RefuseFloatFields(kName, spec);
  }

  static absl::StatusOr<StoredLinear> Quantize(const TensorView& weight, const LinearSpec& spec, const LayerPlan& plan,
                                               ThreadPool& threads) {
    SAGE_RETURN_IF_ERROR(CheckWeight(kName, weight));
    const int64_t N = weight.dim(0), K = weight.dim(1);
    SAGE_RETURN_IF_ERROR(Check(spec, N, K));
    if (!IsEmpty(plan)) {
      return Refuse(kName, "PLAN_NOT_SUPPORTED", "scales and codes follow from the weights, got a plan");
    }
    StoredLinear stored;
    stored.spec = spec;
    stored.spec.strategy = kName;
    stored.spec.group_size = kGroup;
    stored.N = N;
    stored.K = K;
    SAGE_ASSIGN_OR_RETURN(Tensor * packed, AddTensor(&stored, "weight_packed", DType::kU8, {N, K / 2}));
    SAGE_ASSIGN_OR_RETURN(Tensor * scales, AddTensor(&stored, "weight_scale", kScaleType, {N, K / kGroup}));
    float global = 1.0f;
    if constexpr (kGlobalScale) {
      SAGE_ASSIGN_OR_RETURN(global, GlobalScale(weight, threads));
      SAGE_ASSIGN_OR_RETURN(Tensor * to, AddTensor(&stored, "weight_global_scale", DType::kF32, {1}));
      to->as<float>()[0] = global;
    }
    SAGE_RETURN_IF_ERROR(ForEachRow(kName, weight, threads, [&](int64_t n, const float* row) {
      for (int64_t g = 0; g < K / kGroup; ++g) {
        const uint8_t code = ScaleCode(row + g * kGroup, global);
        scales->as<uint8_t>()[n * (K / kGroup) + g] = code;
        const float scale = ScaleOf(code, global);
        for (int64_t k = g * kGroup; k < (g + 1) * kGroup; ++k) {
          const uint8_t value = EncodeE2m1(scale > 0 ? row[k] / scale : 0.0f);
          packed->as<uint8_t>()[(n * K + k) / 2] |= static_cast<uint8_t>(k % 2 == 0 ? value : value << 4);
        }
      }
      return absl::OkStatus();
    }));
    return stored;
  }

  static absl::Status DequantizeRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
    SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
    SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
    for (int64_t i = n_begin * stored.K; i < n_end * stored.K; ++i) {
      const uint8_t byte = parts.codes.template as<uint8_t>()[i / 2];
      *out++ = kE2m1Table[i % 2 == 0 ? byte & 15 : byte >> 4] * parts.Scale(i / kGroup);
    }
    return absl::OkStatus();
  }

  static absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const StoredLinear& stored,
                                                           std::shared_ptr<const void> keep_alive,
                                                           const Backend& backend, Priority priority,
                                                           ThreadPool& threads) {
    SAGE_ASSIGN_OR_RETURN(LinearWeight weight, BeginWeight(stored, std::move(keep_alive)));
    SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
    FloatCodeWeight& w = weight.floats;
    w.kind = FloatCodeWeight::Kind::kTable16;
    w.codes = parts.codes.template as<uint8_t>();
    w.bytes = parts.codes.bytes;
    w.table.assign(kE2m1Table.begin(), kE2m1Table.end());
    w.block_columns = kGroup;
    w.scale.resize(static_cast<size_t>(stored.N * (stored.K / kGroup)));
    for (size_t i = 0; i < w.scale.size(); ++i) w.scale[i] = parts.Scale(static_cast<int64_t>(i));
    return backend.BindLinear(QueryOf(kName, stored, kGroup, true, priority), std::move(weight), threads);
  }

 private:
  // The stored tensors after every check.
  struct Parts {
    TensorView codes, scales;
    float global = 1.0f;
    float Scale(int64_t i) const { return ScaleOf(scales.as<uint8_t>()[i], global); }
  };

  static float ScaleOf(uint8_t code, float global) {
    return kGlobalScale ? DecodeE4M3(code) / global : DecodeE8M0(code);
  }

  static absl::StatusOr<Parts> Open(const StoredLinear& stored) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, stored.N, stored.K));
    const int64_t N = stored.N, K = stored.K;
    if (K % kGroup != 0) {
      return Refuse(kName, "GROUP_SIZE_MUST_DIVIDE_K", absl::StrCat("K must be a multiple of ", kGroup, ", got ", K));
    }
    Parts parts;
    SAGE_ASSIGN_OR_RETURN(parts.codes, RequireTensor(stored, "weight_packed", {DType::kU8}, {N, K / 2}));
    SAGE_ASSIGN_OR_RETURN(
        parts.scales, RequireTensor(stored, "weight_scale", {kScaleType, kGlobalScale ? kScaleType : DType::kF8E8M0},
                                    {N, K / kGroup}));
    if constexpr (kGlobalScale) {
      SAGE_ASSIGN_OR_RETURN(const TensorView global, RequireTensor(stored, "weight_global_scale", {DType::kF32}, {1}));
      parts.global = LoadFloat(global, 0);
      if (!(std::isfinite(parts.global) && parts.global > 0)) {
        return Refuse(kName, "BAD_TENSOR",
                      absl::StrCat("'weight_global_scale' must be positive and finite, got ", parts.global));
      }
    }
    return parts;
  }

  static float LargestOf(const float* values) {
    float most = 0;
    for (int i = 0; i < kGroup; ++i) most = std::max(most, std::fabs(values[i]));
    return most;
  }

  // Maps the largest weight of the matrix onto the largest scale and code.
  static absl::StatusOr<float> GlobalScale(const TensorView& weight, ThreadPool& threads) {
    std::vector<float> rows(static_cast<size_t>(weight.dim(0)));
    SAGE_RETURN_IF_ERROR(ForEachRow(kName, weight, threads, [&](int64_t n, const float* row) {
      float most = 0;
      for (int64_t k = 0; k < weight.dim(1); ++k) most = std::max(most, std::fabs(row[k]));
      rows[static_cast<size_t>(n)] = most;
      return absl::OkStatus();
    }));
    const float most = *std::max_element(rows.begin(), rows.end());
    const float global = kMaxE4M3 * 6.0f / most;
    return std::isfinite(global) && global > 0 ? global : 1.0f;
  }

  // mxfp4: the exponent that brings the largest magnitude below 8 = 2 * the last power of two; nvfp4: nearest e4m3.
  static uint8_t ScaleCode(const float* values, float global) {
    const float most = LargestOf(values);
    if constexpr (kGlobalScale) return EncodeE4M3(most / 6.0f * global);
    const int exponent = static_cast<int>(std::bit_cast<uint32_t>(most) >> 23);  // biased by 127, 0 for subnormals
    return static_cast<uint8_t>(std::max(exponent - 2, 0));
  }
};

}  // namespace sage::linear_strategies
