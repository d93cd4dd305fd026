// Weights as 8-bit floats with f32 arithmetic: shared by fp8_w8a16 and fp8_w8a8 (reference/quantization.md 1.4, 1.6).
//
//   weight        F8_E4M3 or F8_E5M2 [N, K]
//   weight_scale  F32, F16 or BF16, multiplied: [1] or [] (a tensor), [N, 1] or [N] (a channel), or
//                 [ceil(N / block_rows), ceil(K / group_size)] (blocks, the last of each kind may be short)
//   input_scale   [1] or []  fp8_w8a8 only: the static scale of activations; without it they are dynamic
// w = value(code) * scale, one f32 product. fp8_w8a8 rounds a row of activations x to e4m3(x / s) * s first, with s of
// the token, of each activation_group_size inputs of it, or static.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>

#include "engine/api/stored_tensors.h"
#include "engine/quant/fp8.h"
#include "engine/quant/integer_grid.h"

namespace sage::linear_strategies {

template <const char* kName, bool kRoundsActivations>
struct Fp8Linear {
  static absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, N, K));
    const bool blocks = spec.group_size >= 16 && spec.block_rows >= 2;
    const bool whole_rows = spec.group_size == -1 && (spec.block_rows == 1 || spec.block_rows == -1);
    if (!blocks && !whole_rows) {
      return Refuse(
          kName, "GROUP_SIZE_NOT_SUPPORTED",
          absl::StrCat("group_size must be -1 with block_rows 1 (a scale a row) or -1 (one scale), or both at "
                       "least 16 and 2 (blocks), got group_size=",
                       spec.group_size, ", block_rows=", spec.block_rows),
          {{"group_size", absl::StrCat(spec.group_size)}, {"allowed", "-1"}});
    }
    const bool activation_ok =
        spec.activation_group_size == -1 || (kRoundsActivations && spec.activation_group_size >= 16);
    if (!spec.symmetric || spec.act_order || spec.clip_ratio != 0 || spec.double_quant || !activation_ok ||
        !spec.activation_symmetric) {
      return Refuse(kName, "FIELD_NOT_SUPPORTED",
                    absl::StrCat("symmetric=true, act_order=false, clip_ratio=0, double_quant=false, "
                                 "activation_symmetric=true and activation_group_size=-1",
                                 kRoundsActivations ? " or at least 16" : "", " are the only choices, got symmetric=",
                                 spec.symmetric, ", act_order=", spec.act_order, ", clip_ratio=", spec.clip_ratio,
                                 ", double_quant=", spec.double_quant, ", activation_symmetric=",
                                 spec.activation_symmetric, ", activation_group_size=", spec.activation_group_size));
    }
    return CheckScaleDType(kName, spec.scale_dtype);
  }

  static absl::StatusOr<StoredLinear> Quantize(const TensorView& weight, const LinearSpec& spec, const LayerPlan& plan,
                                               ThreadPool& threads) {
    SAGE_RETURN_IF_ERROR(CheckWeight(kName, weight));
    const int64_t N = weight.dim(0), K = weight.dim(1);
    SAGE_RETURN_IF_ERROR(Check(spec, N, K));
    if (!IsEmpty(plan))
      return Refuse(kName, "PLAN_NOT_SUPPORTED", "scales and codes follow from the weights, got a plan");
    StoredLinear stored;
    stored.spec = spec;
    stored.spec.strategy = kName;
    stored.N = N;
    stored.K = K;
    const Grid grid(spec, N, K);
    const DType dtype = spec.fp8_e5m2 ? DType::kF8E5M2 : DType::kF8E4M3;
    const float largest = spec.fp8_e5m2 ? kMaxE5M2 : kMaxE4M3;
    SAGE_ASSIGN_OR_RETURN(Tensor * codes, AddTensor(&stored, "weight", dtype, {N, K}));
    SAGE_ASSIGN_OR_RETURN(Tensor * scales, AddTensor(&stored, "weight_scale", spec.scale_dtype, grid.shape));
    // Largest magnitudes of each row's blocks, then of the blocks: the order does not matter for a maximum.
    std::vector<float> rows(static_cast<size_t>(N * grid.columns)), scale(static_cast<size_t>(grid.count()));
    SAGE_RETURN_IF_ERROR(ForEachRow(kName, weight, threads, [&](int64_t n, const float* row) {
      for (int64_t k = 0; k < K; ++k) {
        float& most = rows[static_cast<size_t>(n * grid.columns + k / grid.block_columns)];
        most = std::max(most, std::fabs(row[k]));
      }
      return absl::OkStatus();
    }));
    for (int64_t i = 0; i < N * grid.columns; ++i) {
      float& most = scale[static_cast<size_t>(i / grid.columns / grid.block_rows * grid.columns + i % grid.columns)];
      most = std::max(most, rows[static_cast<size_t>(i)]);
    }
    for (size_t i = 0; i < scale.size(); ++i) {
      scale[i] = RoundToDType(scale[i] / largest, spec.scale_dtype);
      if (scale[i] == 0.0f) scale[i] = MachineEpsilon(spec.scale_dtype);
      if (!std::isfinite(scale[i])) {
        return Refuse(kName, "SCALE_OUT_OF_RANGE",
                      absl::StrCat("scales must fit ", std::string(DTypeName(spec.scale_dtype)), ", block ", i,
                                   " does not; choose scale_dtype BF16 or F32"));
      }
      StoreScale(scale[i], static_cast<int64_t>(i), scales);
    }
    SAGE_RETURN_IF_ERROR(ForEachRow(kName, weight, threads, [&](int64_t n, const float* row) {
      for (int64_t k = 0; k < K; ++k) {
        const float value = row[k] / scale[static_cast<size_t>(grid.At(n, k))];
        codes->as<uint8_t>()[n * K + k] = spec.fp8_e5m2 ? EncodeE5M2(value) : EncodeE4M3(value);
      }
      return absl::OkStatus();
    }));
    return stored;
  }

  static absl::Status DequantizeRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
    SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
    SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
    float values[256];
    for (int i = 0; i < 256; ++i) {
      values[i] = parts.e5m2 ? DecodeE5M2(static_cast<uint8_t>(i)) : DecodeE4M3(static_cast<uint8_t>(i));
    }
    const int64_t K = stored.K;
    for (int64_t n = n_begin; n < n_end; ++n) {
      const uint8_t* codes = parts.codes.template as<uint8_t>() + n * K;
      for (int64_t k = 0; k < K;) {
        const float scale = LoadFloat(parts.scale, parts.grid.At(n, k));
        const int64_t end = std::min(K, (k / parts.grid.block_columns + 1) * parts.grid.block_columns);
        for (; k < end; ++k) *out++ = values[codes[k]] * scale;
      }
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
    w.kind = parts.e5m2 ? FloatCodeWeight::Kind::kE5M2 : FloatCodeWeight::Kind::kE4M3;
    w.codes = parts.codes.template as<uint8_t>();
    w.bytes = parts.codes.bytes;
    w.block_rows = parts.grid.block_rows;
    w.block_columns = parts.grid.block_columns;
    w.scale.resize(static_cast<size_t>(parts.grid.count()));
    LoadFloats(parts.scale, 0, parts.grid.count(), w.scale.data());
    if constexpr (kRoundsActivations) {
      w.activations.kind = FloatActivations::Kind::kDynamic;
      w.activations.group_size = stored.spec.activation_group_size;
      if (stored.tensors.count("input_scale") != 0) {
        SAGE_ASSIGN_OR_RETURN(w.activations.scale, ReadInputScale(stored));
        w.activations.kind = FloatActivations::Kind::kStatic;
      }
    }
    return backend.BindLinear(QueryOf(kName, stored, stored.spec.group_size, true, priority), std::move(weight),
                              threads);
  }

 private:
  // Which scale a weight has.
  struct Grid {
    int64_t block_rows = 1, block_columns = 1, rows = 1, columns = 1;
    Shape shape;

    Grid() = default;
    Grid(const LinearSpec& spec, int64_t N, int64_t K)
        : block_rows(spec.block_rows == -1 ? N : spec.block_rows),
          block_columns(spec.group_size == -1 ? K : spec.group_size),
          rows((N + block_rows - 1) / block_rows),
          columns((K + block_columns - 1) / block_columns),
          shape(spec.block_rows == -1 ? Shape{1} : Shape{rows, columns}) {}
    int64_t count() const { return rows * columns; }
    int64_t At(int64_t n, int64_t k) const { return n / block_rows * columns + k / block_columns; }
  };

  struct Parts {
    Grid grid;
    bool e5m2 = false;
    TensorView codes, scale;
  };

  static absl::StatusOr<Parts> Open(const StoredLinear& stored) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, stored.N, stored.K));
    const LinearSpec& spec = stored.spec;
    if ((spec.group_size != -1 && spec.group_size < 1) || (spec.block_rows != -1 && spec.block_rows < 1) ||
        (spec.activation_group_size != -1 && spec.activation_group_size < 1)) {
      return Refuse(kName, "BAD_GROUP_SIZE",
                    absl::StrCat("group_size, block_rows and activation_group_size must be -1 or positive, got ",
                                 spec.group_size, ", ", spec.block_rows, " and ", spec.activation_group_size));
    }
    Parts parts;
    parts.grid = Grid(spec, stored.N, stored.K);
    SAGE_ASSIGN_OR_RETURN(parts.codes,
                          RequireTensor(stored, "weight", {DType::kF8E4M3, DType::kF8E5M2}, {stored.N, stored.K}));
    parts.e5m2 = parts.codes.dtype == DType::kF8E5M2;
    // One scale may be a scalar and a column of scales may lack its second dimension: the same values.
    Shape shape = parts.grid.shape;
    const auto it = stored.tensors.find("weight_scale");
    if (it != stored.tensors.end()) {
      const Shape& given = it->second.shape;
      if (parts.grid.count() == 1 && (given.empty() || given == Shape{1} || given == Shape{1, 1})) shape = given;
      if (parts.grid.columns == 1 && given == Shape{parts.grid.rows}) shape = given;
    }
    SAGE_ASSIGN_OR_RETURN(parts.scale,
                          RequireTensor(stored, "weight_scale", {DType::kF32, DType::kF16, DType::kBF16}, shape));
    return parts;
  }

  static absl::StatusOr<float> ReadInputScale(const StoredLinear& stored) {
    const Shape shape = stored.tensors.at("input_scale").shape.empty() ? Shape{} : Shape{1};
    SAGE_ASSIGN_OR_RETURN(const TensorView view,
                          RequireTensor(stored, "input_scale", {DType::kF32, DType::kF16, DType::kBF16}, shape));
    const float scale = LoadFloat(view, 0);
    if (std::isfinite(scale) && scale > 0) return scale;
    return Refuse(kName, "BAD_TENSOR", absl::StrCat("'input_scale' must be positive and finite, got ", scale));
  }

  static void StoreScale(float scale, int64_t at, Tensor* scales) {
    if (scales->dtype() == DType::kF32) {
      scales->as<float>()[at] = scale;
    } else {
      scales->as<uint16_t>()[at] = scales->dtype() == DType::kF16 ? FloatToF16(scale) : FloatToBF16(scale);
    }
  }
};

}  // namespace sage::linear_strategies
