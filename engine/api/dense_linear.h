// Weights kept as plain floats: shared by f32, f16 and bf16. Stored as "weight" [N, K].
#pragma once

#include <memory>
#include <utility>

#include "engine/api/stored_tensors.h"

namespace sage::linear_strategies {

// `Name` is the strategy's name, `kType` the stored dtype.
template <const char* kName, DType kType>
struct DenseLinear {
  static absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, N, K));
    if (spec.group_size != -1) {
      return Refuse(kName, "FIELD_NOT_SUPPORTED",
                    absl::StrCat("group_size must be -1 (there are no scales), got ", spec.group_size));
    }
    if (!spec.symmetric || spec.act_order || spec.clip_ratio != 0) {
      return Refuse(
          kName, "FIELD_NOT_SUPPORTED",
          absl::StrCat("symmetric=true, act_order=false and clip_ratio=0 are the only choices of an unquantized "
                       "layer, got symmetric=",
                       spec.symmetric, ", act_order=", spec.act_order, ", clip_ratio=", spec.clip_ratio));
    }
    return RefuseFloatFields(kName, spec);
  }

  static absl::StatusOr<StoredLinear> Quantize(const TensorView& weight, const LinearSpec& spec, const LayerPlan& plan,
                                               ThreadPool& threads) {
    SAGE_RETURN_IF_ERROR(CheckWeight(kName, weight));
    SAGE_RETURN_IF_ERROR(Check(spec, weight.dim(0), weight.dim(1)));
    if (!IsEmpty(plan)) return Refuse(kName, "PLAN_NOT_SUPPORTED", "an unquantized layer takes no plan, got one");
    StoredLinear stored;
    stored.spec = spec;
    stored.spec.strategy = kName;
    stored.N = weight.dim(0);
    stored.K = weight.dim(1);
    SAGE_ASSIGN_OR_RETURN(Tensor * out, AddTensor(&stored, "weight", kType, weight.shape));
    const int64_t K = stored.K;
    SAGE_RETURN_IF_ERROR(
        ForEachRow(kName, weight, threads, [&](int64_t n, const float* row) { return StoreRow(row, n, K, out); }));
    return stored;
  }

  static absl::Status DequantizeRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
    SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
    SAGE_ASSIGN_OR_RETURN(const TensorView weight, RequireTensor(stored, "weight", {kType}, {stored.N, stored.K}));
    LoadFloats(weight, n_begin * stored.K, (n_end - n_begin) * stored.K, out);
    return absl::OkStatus();
  }

  static absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const StoredLinear& stored,
                                                           std::shared_ptr<const void> keep_alive,
                                                           const Backend& backend, Priority priority,
                                                           ThreadPool& threads) {
    SAGE_ASSIGN_OR_RETURN(LinearWeight weight, BeginWeight(stored, std::move(keep_alive)));
    SAGE_ASSIGN_OR_RETURN(weight.dense.values, RequireTensor(stored, "weight", {kType}, {stored.N, stored.K}));
    if (reinterpret_cast<uintptr_t>(weight.dense.values.data) % DTypeSize(kType) != 0) {
      // A file may place its data at odd addresses; kernels read aligned elements.
      SAGE_ASSIGN_OR_RETURN(Tensor copy, Tensor::Allocate(kType, {stored.N, stored.K}));
      std::memcpy(copy.as<uint8_t>(), weight.dense.values.data, weight.dense.values.bytes);
      auto owner = std::make_shared<Tensor>(std::move(copy));
      weight.dense.values = owner->view();
      weight.keep_alive = std::move(owner);
    }
    return backend.BindLinear(QueryOf(kName, stored, -1, true, priority), std::move(weight), threads);
  }

 private:
  static absl::Status StoreRow(const float* row, int64_t n, int64_t K, Tensor* out) {
    if constexpr (kType == DType::kF32) {
      std::memcpy(out->as<float>() + n * K, row, static_cast<size_t>(K) * sizeof(float));
    } else {
      uint16_t* at = out->as<uint16_t>() + n * K;
      for (int64_t k = 0; k < K; ++k) {
        at[k] = kType == DType::kF16 ? FloatToF16(row[k]) : FloatToBF16(row[k]);
        const float stored = kType == DType::kF16 ? F16ToFloat(at[k]) : BF16ToFloat(at[k]);
        if (!std::isfinite(stored)) {
          return Refuse(kName, "WEIGHT_OUT_OF_RANGE",
                        absl::StrCat("weights must fit ", std::string(DTypeName(kType)), ", got ", row[k], " at row ",
                                     n, ", column ", k));
        }
      }
    }
    return absl::OkStatus();
  }
};

}  // namespace sage::linear_strategies
