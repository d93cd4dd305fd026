// Shared by the strategies of this folder: checked access to the tensors of a StoredLinear, which may come from
// outside.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/api/linear_strategy.h"
#include "engine/base/status.h"
#include "engine/tensor/float_convert.h"

namespace sage::linear_strategies {

inline absl::Status Refuse(std::string_view strategy, std::string_view reason, const std::string& text,
                           const std::map<std::string, std::string>& metadata = {}) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat(std::string(strategy), ": ", text),
                   metadata);
}

inline absl::Status CheckSize(std::string_view strategy, int64_t N, int64_t K) {
  if (N >= 1 && K >= 1 && N <= std::numeric_limits<int32_t>::max() && K <= std::numeric_limits<int32_t>::max()) {
    return absl::OkStatus();
  }
  return Refuse(strategy, "BAD_LAYER_SHAPE", absl::StrCat("N and K must be 1 .. 2147483647, got N=", N, ", K=", K));
}

// One scale a row (-1), or groups that fill it.
inline absl::Status CheckGroupSize(std::string_view strategy, int64_t group_size, int64_t K) {
  if (group_size == -1 || (group_size >= 1 && K % group_size == 0)) return absl::OkStatus();
  const std::string allowed = absl::StrJoin(GroupSizesFor(K), ", ");
  return Refuse(strategy, "GROUP_SIZE_MUST_DIVIDE_K",
                absl::StrCat(group_size >= 1 ? "group_size must divide K" : "group_size must be -1 or divide K",
                             ", got K=", K, ", group_size=", group_size,
                             "; sizes that do: ", allowed.empty() ? "none but -1 (per channel)" : allowed),
                {{"K", absl::StrCat(K)}, {"group_size", absl::StrCat(group_size)}, {"allowed", allowed}});
}

inline absl::Status CheckScaleDType(std::string_view strategy, DType dtype) {
  if (dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16) return absl::OkStatus();
  return Refuse(strategy, "BAD_SCALE_DTYPE",
                absl::StrCat("scale_dtype must be F32, F16 or BF16, got ", std::string(DTypeName(dtype))));
}

// For formats that know no other precision.
inline absl::Status CheckWholeScales(std::string_view strategy, DType dtype) {
  if (dtype == DType::kF32) return absl::OkStatus();
  return Refuse(
      strategy, "BAD_SCALE_DTYPE",
      absl::StrCat("scale_dtype must be F32, the precision of the file format, got ", std::string(DTypeName(dtype))));
}

// For strategies that know none of these fields.
inline absl::Status RefuseFloatFields(std::string_view strategy, const LinearSpec& spec) {
  if (spec.block_rows == 1 && !spec.double_quant && spec.activation_group_size == -1 && !spec.fp8_e5m2) {
    return absl::OkStatus();
  }
  return Refuse(strategy, "FIELD_NOT_SUPPORTED",
                absl::StrCat("block_rows=1, double_quant=false, activation_group_size=-1 and fp8_e5m2=false are the "
                             "only choices, got block_rows=",
                             spec.block_rows, ", double_quant=", spec.double_quant,
                             ", activation_group_size=", spec.activation_group_size, ", fp8_e5m2=", spec.fp8_e5m2));
}

// The named tensor when it has one of the dtypes, exactly the shape, and all of its bytes.
inline absl::StatusOr<TensorView> RequireTensor(const StoredLinear& stored, const std::string& name,
                                                std::initializer_list<DType> dtypes, const Shape& shape) {
  const auto it = stored.tensors.find(name);
  if (it == stored.tensors.end()) {
    return Refuse(stored.spec.strategy, "MISSING_TENSOR", absl::StrCat("tensor '", name, "' must be present"));
  }
  const TensorView& view = it->second;
  bool dtype_ok = false;
  for (const DType dtype : dtypes) dtype_ok = dtype_ok || view.dtype == dtype;
  SAGE_ASSIGN_OR_RETURN(const int64_t count, ElementCount(shape));
  if (!dtype_ok || view.shape != shape || view.data == nullptr ||
      view.bytes != static_cast<size_t>(count) * DTypeSize(view.dtype)) {
    return Refuse(stored.spec.strategy, "BAD_TENSOR",
                  absl::StrCat("tensor '", name, "' must be ", std::string(DTypeName(*dtypes.begin())), " ",
                               ShapeText(shape), ", got ", std::string(DTypeName(view.dtype)), " ",
                               ShapeText(view.shape), " of ", view.bytes, " bytes"));
  }
  return view;
}

inline absl::Status CheckRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end) {
  if (n_begin >= 0 && n_begin <= n_end && n_end <= stored.N) return absl::OkStatus();
  return MakeError(
      absl::StatusCode::kOutOfRange, "ROWS_OUT_OF_RANGE",
      absl::StrCat(stored.spec.strategy, ": rows must lie in 0 .. ", stored.N, ", got ", n_begin, " .. ", n_end));
}

// Element i of an F32, F16, BF16 or F64 tensor that may lie at any address of a map.
inline float LoadFloat(const TensorView& view, int64_t i) {
  const uint8_t* at = view.as<uint8_t>() + static_cast<size_t>(i) * DTypeSize(view.dtype);
  if (view.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  if (view.dtype == DType::kF64) {
    double value;
    std::memcpy(&value, at, sizeof(value));
    return static_cast<float>(value);
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return view.dtype == DType::kF16 ? F16ToFloat(bits) : BF16ToFloat(bits);
}

inline void LoadFloats(const TensorView& view, int64_t begin, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = LoadFloat(view, begin + i);
}

// A scale that is no number makes every product of its group none: said when the layer is bound, not at a forward.
inline absl::Status CheckFinite(const StoredLinear& stored, const char* tensor, const std::vector<float>& values) {
  const auto at = std::find_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
  if (at == values.end()) return absl::OkStatus();
  return Refuse(stored.spec.strategy, "NON_FINITE_TENSOR",
                absl::StrCat("'", tensor, "' must be finite, got ", *at, " among its ", values.size(), " values"));
}

inline absl::Status CheckWeight(std::string_view strategy, const TensorView& weight) {
  if (!IsFloat(weight.dtype) || weight.shape.size() != 2) {
    return Refuse(strategy, "BAD_WEIGHT",
                  absl::StrCat("weight must be a float matrix [N, K], got ", std::string(DTypeName(weight.dtype)), " ",
                               ShapeText(weight.shape)));
  }
  SAGE_RETURN_IF_ERROR(CheckSize(strategy, weight.dim(0), weight.dim(1)));
  if (weight.data == nullptr || weight.bytes != static_cast<size_t>(weight.elements()) * DTypeSize(weight.dtype)) {
    return Refuse(
        strategy, "BAD_WEIGHT",
        absl::StrCat("weight must hold all of its values, got ", weight.bytes, " bytes for ", ShapeText(weight.shape)));
  }
  return absl::OkStatus();
}

inline absl::Status NonFiniteWeight(std::string_view strategy, int64_t row, int64_t column, float value) {
  return Refuse(strategy, "NON_FINITE_WEIGHT",
                absl::StrCat("weights must be finite, got ", value, " at row ", row, ", column ", column),
                {{"row", absl::StrCat(row)}, {"column", absl::StrCat(column)}});
}

// The first error by row, whichever thread met it first: messages must not depend on the number of threads.
class FirstError {
 public:
  void Set(int64_t row, absl::Status status) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (status_.ok() || row < row_) {
      row_ = row;
      status_ = std::move(status);
    }
  }
  const absl::Status& status() const { return status_; }

 private:
  std::mutex mutex_;
  int64_t row_ = 0;
  absl::Status status_;
};

// Reads row n and checks that it is finite.
inline absl::Status LoadFiniteRow(std::string_view strategy, const TensorView& weight, int64_t n, float* row) {
  const int64_t K = weight.dim(1);
  LoadFloats(weight, n * K, K, row);
  for (int64_t k = 0; k < K; ++k) {
    if (!std::isfinite(row[k])) return NonFiniteWeight(strategy, n, k, row[k]);
  }
  return absl::OkStatus();
}

// Calls body(row number, row as f32) for every row on the pool's threads and returns the error of the lowest row.
template <typename Body>
absl::Status ForEachRow(std::string_view strategy, const TensorView& weight, ThreadPool& threads, const Body& body) {
  FirstError error;
  threads.ParallelFor(weight.dim(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(weight.dim(1)));
    for (int64_t n = begin; n < end; ++n) {
      absl::Status status = LoadFiniteRow(strategy, weight, n, row.data());
      if (status.ok()) status = body(n, row.data());
      if (!status.ok()) {
        error.Set(n, std::move(status));
        return;  // later rows of this range come after it anyway
      }
    }
  });
  return error.status();
}

// Adds an owned, zeroed tensor under `name` and returns it.
inline absl::StatusOr<Tensor*> AddTensor(StoredLinear* stored, const std::string& name, DType dtype, Shape shape) {
  SAGE_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(dtype, std::move(shape)));
  stored->owned.push_back(std::make_shared<Tensor>(std::move(tensor)));
  stored->tensors[name] = stored->owned.back()->view();
  return stored->owned.back().get();
}

// N, K, bias and keep_alive of the canonical form.
inline absl::StatusOr<LinearWeight> BeginWeight(const StoredLinear& stored, std::shared_ptr<const void> keep_alive) {
  SAGE_RETURN_IF_ERROR(CheckSize(stored.spec.strategy, stored.N, stored.K));
  LinearWeight weight;
  weight.N = stored.N;
  weight.K = stored.K;
  weight.keep_alive = std::move(keep_alive);
  if (stored.bias.empty()) return weight;
  if (!IsFloat(stored.bias.dtype) || stored.bias.shape != Shape{stored.N} ||
      stored.bias.bytes != static_cast<size_t>(stored.N) * DTypeSize(stored.bias.dtype)) {
    return Refuse(stored.spec.strategy, "BAD_BIAS",
                  absl::StrCat("bias must be float [", stored.N, "], got ", std::string(DTypeName(stored.bias.dtype)),
                               " ", ShapeText(stored.bias.shape)));
  }
  weight.bias.resize(static_cast<size_t>(stored.N));
  LoadFloats(stored.bias, 0, stored.N, weight.bias.data());
  SAGE_RETURN_IF_ERROR(CheckFinite(stored, "bias", weight.bias));
  return weight;
}

// 8-bit integer activations: by token, or by the stored input_scale (and input_zero_point).
inline absl::Status ReadActivations(const StoredLinear& stored, IntegerActivations* out) {
  out->eight_bits = true;
  out->symmetric = stored.spec.activation_symmetric;
  const auto scale = stored.tensors.find("input_scale");
  if (scale == stored.tensors.end()) return absl::OkStatus();
  const TensorView& view = scale->second;
  const std::string& name = stored.spec.strategy;
  if (!IsFloat(view.dtype) || view.bytes != DTypeSize(view.dtype)) {
    return Refuse(name, "BAD_TENSOR", absl::StrCat("input_scale must be one float, got ", ShapeText(view.shape)));
  }
  out->scale = LoadFloat(view, 0);
  if (!std::isfinite(out->scale) || out->scale <= 0) {
    return Refuse(name, "BAD_TENSOR", absl::StrCat("input_scale must be positive, got ", out->scale));
  }
  const auto zero = stored.tensors.find("input_zero_point");
  if (zero == stored.tensors.end()) return absl::OkStatus();
  if (zero->second.dtype != DType::kI8 || zero->second.bytes != 1) {
    return Refuse(name, "BAD_TENSOR", "input_zero_point must be one I8");
  }
  out->zero = *zero->second.as<int8_t>();
  return absl::OkStatus();
}

inline LinearKernelQuery QueryOf(std::string_view strategy, const StoredLinear& stored, int64_t group_size,
                                 bool symmetric, Priority priority) {
  LinearKernelQuery query;
  query.strategy = std::string(strategy);
  query.N = stored.N;
  query.K = stored.K;
  query.group_size = group_size;
  query.symmetric = symmetric;
  query.priority = priority;
  return query;
}

inline bool IsEmpty(const LayerPlan& plan) {
  return plan.scale.empty() && plan.zero.empty() && plan.codes.empty() && plan.g_idx.empty();
}

}  // namespace sage::linear_strategies
