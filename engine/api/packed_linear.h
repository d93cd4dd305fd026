// Integer weights stored as compressed-tensors "pack-quantized" (reference/quantization.md 1.4): shared by the int
// strategies with 16-bit activations and by int4_w4a8.
//
//   weight_packed      I32 [N, ceil(K b / 32)]  stored = signed code + 2^(b-1), dense bitstream along K, low first
//   weight_scale       F32/F16/BF16 [N, G]
//   weight_zero_point  I32 [ceil(N b / 32), G]  asymmetric only; signed zero + 2^(b-1), packed down dimension 0
//   weight_shape       I64 (older files I32) [2] = N, K
//   weight_g_idx       I32 [K]                  optional, files only: the group of each input
//   input_scale        [1], input_zero_point I8 [1]  static 8-bit activations only
// w = (code - zero) * scale, one f32 product.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "engine/api/stored_tensors.h"
#include "engine/quant/integer_grid.h"
#include "engine/quant/packing.h"

namespace sage::linear_strategies {

template <const char* kName, int kBits, bool kRoundsActivations = false>
struct PackedLinear {
  static constexpr int kBias = 1 << (kBits - 1);

  static absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, N, K));
    SAGE_RETURN_IF_ERROR(CheckGroupSize(kName, spec.group_size, K));
    if (spec.act_order) {
      return Refuse(kName, "ACT_ORDER_NOT_SUPPORTED",
                    "act_order must be false: groups are runs of consecutive inputs, got act_order=true");
    }
    if (!(spec.clip_ratio >= 0 && spec.clip_ratio < 1)) {
      return Refuse(kName, "BAD_CLIP_RATIO", absl::StrCat("clip_ratio must be in [0, 1), got ", spec.clip_ratio));
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
    SAGE_RETURN_IF_ERROR(CheckPlan(plan, spec, N, K, G));
    StoredLinear stored;
    stored.spec = spec;
    stored.spec.strategy = kName;
    stored.N = N;
    stored.K = K;
    const int64_t words = PackedWords(K, kBits);
    SAGE_ASSIGN_OR_RETURN(Tensor * packed, AddTensor(&stored, "weight_packed", DType::kI32, {N, words}));
    SAGE_ASSIGN_OR_RETURN(Tensor * scales, AddTensor(&stored, "weight_scale", spec.scale_dtype, {N, G}));
    SAGE_ASSIGN_OR_RETURN(Tensor * shape, AddTensor(&stored, "weight_shape", DType::kI64, {2}));
    shape->as<int64_t>()[0] = N;
    shape->as<int64_t>()[1] = K;
    std::vector<uint8_t> zeros(static_cast<size_t>(N * G));
    SAGE_RETURN_IF_ERROR(ForEachRow(kName, weight, threads, [&](int64_t n, const float* row) -> absl::Status {
      std::vector<uint8_t> codes(static_cast<size_t>(K));
      for (int64_t g = 0; g < G; ++g) {
        const int64_t begin = g * group;
        const IntegerGrid grid = GridOf(row + begin, group, spec, plan, n * G + g);
        if (!std::isfinite(grid.scale)) return ScaleOutOfRange(spec, n, g);
        for (int64_t k = begin; k < begin + group; ++k) {
          const int code =
              plan.codes.empty() ? CodeOf(row[k], grid, kBits) : plan.codes[static_cast<size_t>(n * K + k)];
          codes[static_cast<size_t>(k)] = static_cast<uint8_t>(code + kBias);
        }
        StoreScale(grid.scale, n * G + g, scales);
        zeros[static_cast<size_t>(n * G + g)] = static_cast<uint8_t>(grid.zero + kBias);
      }
      PackCodes(codes.data(), K, kBits, packed->as<uint32_t>() + n * words);
      return absl::OkStatus();
    }));
    if (!spec.symmetric) {
      SAGE_ASSIGN_OR_RETURN(Tensor * zero_words,
                            AddTensor(&stored, "weight_zero_point", DType::kI32, {PackedWords(N, kBits), G}));
      PackCodesByColumn(zeros.data(), N, G, kBits, zero_words->as<uint32_t>());
    }
    return stored;
  }

  static absl::Status DequantizeRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
    SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
    SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
    std::vector<uint8_t> codes(static_cast<size_t>(stored.K));
    std::vector<IntegerGrid> grids(static_cast<size_t>(parts.G));
    for (int64_t n = n_begin; n < n_end; ++n, out += stored.K) {
      parts.UnpackRow(n, stored.K, codes.data(), grids.data());
      for (int64_t k = 0; k < stored.K; ++k) {
        const int64_t g = parts.g_idx.empty() ? k / parts.group : parts.g_idx[static_cast<size_t>(k)];
        out[k] = ValueOf(codes[static_cast<size_t>(k)] - kBias, grids[static_cast<size_t>(g)]);
      }
    }
    return absl::OkStatus();
  }

  static absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const StoredLinear& stored,
                                                           std::shared_ptr<const void> keep_alive,
                                                           const Backend& backend, Priority priority,
                                                           ThreadPool& threads) {
    SAGE_ASSIGN_OR_RETURN(LinearWeight weight, BeginWeight(stored, nullptr));  // codes are copied: the map may go
    SAGE_ASSIGN_OR_RETURN(Parts parts, Open(stored));
    IntegerWeight& integer = weight.integer;
    const int64_t K = stored.K, G = parts.G;
    integer.bits = kBits;
    integer.codes_signed = true;
    integer.group_size = parts.group;
    integer.g_idx = parts.g_idx;
    integer.codes.resize(static_cast<size_t>(stored.N * K));
    integer.scale.resize(static_cast<size_t>(stored.N * G));
    if (parts.has_zero) integer.offset.resize(integer.scale.size());
    threads.ParallelFor(stored.N, 16, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> codes(static_cast<size_t>(K));
      std::vector<IntegerGrid> grids(static_cast<size_t>(G));
      for (int64_t n = begin; n < end; ++n) {
        parts.UnpackRow(n, K, codes.data(), grids.data());
        int8_t* to = integer.codes.data() + n * K;
        for (int64_t k = 0; k < K; ++k) to[k] = static_cast<int8_t>(codes[static_cast<size_t>(k)] - kBias);
        for (int64_t g = 0; g < G; ++g) {
          const IntegerGrid& grid = grids[static_cast<size_t>(g)];
          integer.scale[static_cast<size_t>(n * G + g)] = grid.scale;
          if (parts.has_zero)
            integer.offset[static_cast<size_t>(n * G + g)] = -grid.scale * static_cast<float>(grid.zero);
        }
      }
    });
    SAGE_RETURN_IF_ERROR(CheckFinite(stored, "weight_scale", integer.scale));
    if constexpr (kRoundsActivations) SAGE_RETURN_IF_ERROR(ReadActivations(stored, &integer.activations));
    const int64_t query_group = G == 1 ? -1 : parts.group;
    return backend.BindLinear(QueryOf(kName, stored, query_group, !parts.has_zero, priority), std::move(weight),
                              threads);
  }

 private:
  // The stored tensors after every check.
  struct Parts {
    int64_t group = 0, G = 0;
    bool has_zero = false;
    TensorView packed, scale, zero;
    std::vector<int32_t> g_idx;

    void UnpackRow(int64_t n, int64_t K, uint8_t* codes, IntegerGrid* grids) const {
      UnpackCodes(packed.as<uint8_t>() + n * PackedWords(K, kBits) * 4, K, kBits, codes);
      for (int64_t g = 0; g < G; ++g) {
        grids[g].scale = LoadFloat(scale, n * G + g);
        grids[g].zero = has_zero ? UnpackColumnCode(zero.data, G, kBits, n, g) - kBias : 0;
      }
    }
  };

  static absl::StatusOr<Parts> Open(const StoredLinear& stored) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, stored.N, stored.K));
    const int64_t N = stored.N, K = stored.K;
    if (stored.spec.group_size != -1 && stored.spec.group_size < 1) {
      return Refuse(kName, "BAD_GROUP_SIZE",
                    absl::StrCat("group_size must be -1 or positive, got ", stored.spec.group_size));
    }
    Parts parts;
    parts.group = stored.spec.group_size == -1 ? K : std::min<int64_t>(stored.spec.group_size, K);
    parts.G = (K + parts.group - 1) / parts.group;
    SAGE_ASSIGN_OR_RETURN(parts.packed,
                          RequireTensor(stored, "weight_packed", {DType::kI32}, {N, PackedWords(K, kBits)}));
    SAGE_ASSIGN_OR_RETURN(
        parts.scale, RequireTensor(stored, "weight_scale", {DType::kF32, DType::kF16, DType::kBF16}, {N, parts.G}));
    parts.has_zero = stored.tensors.count("weight_zero_point") != 0;
    if (parts.has_zero == stored.spec.symmetric) {
      return Refuse(kName, "BAD_TENSOR",
                    absl::StrCat("'weight_zero_point' must be present exactly when symmetric=false, ",
                                 "got symmetric=", stored.spec.symmetric));
    }
    if (parts.has_zero) {
      SAGE_ASSIGN_OR_RETURN(
          parts.zero, RequireTensor(stored, "weight_zero_point", {DType::kI32}, {PackedWords(N, kBits), parts.G}));
    }
    if (stored.tensors.count("weight_g_idx") != 0) {
      SAGE_ASSIGN_OR_RETURN(const TensorView g_idx, RequireTensor(stored, "weight_g_idx", {DType::kI32}, {K}));
      parts.g_idx.resize(static_cast<size_t>(K));
      std::memcpy(parts.g_idx.data(), g_idx.data, g_idx.bytes);
      for (const int32_t g : parts.g_idx) {
        if (g < 0 || g >= parts.G) {
          return Refuse(kName, "BAD_TENSOR", absl::StrCat("'weight_g_idx' must be in 0 .. ", parts.G - 1, ", got ", g));
        }
      }
    }
    return parts;
  }

  static absl::Status CheckPlan(const LayerPlan& plan, const LinearSpec& spec, int64_t N, int64_t K, int64_t G) {
    if (!plan.g_idx.empty()) {
      return Refuse(kName, "ACT_ORDER_NOT_SUPPORTED", "the plan must keep the order of inputs, got a g_idx");
    }
    const size_t scales = static_cast<size_t>(N * G);
    const bool sizes_ok = (plan.scale.empty() || plan.scale.size() == scales) &&
                          (plan.zero.empty() || plan.zero.size() == scales) &&
                          (plan.codes.empty() || plan.codes.size() == static_cast<size_t>(N * K));
    if (!sizes_ok) {
      return Refuse(kName, "BAD_PLAN",
                    absl::StrCat("the plan must hold ", scales, " scales and zeros and ", N * K, " codes, got ",
                                 plan.scale.size(), ", ", plan.zero.size(), " and ", plan.codes.size()));
    }
    const bool needs_zero = !spec.symmetric && !plan.scale.empty();
    if ((plan.scale.empty() && (!plan.zero.empty() || !plan.codes.empty())) || (needs_zero && plan.zero.empty())) {
      return Refuse(kName, "BAD_PLAN", "a plan with codes or zeros must have scales, and zeros too when asymmetric");
    }
    for (const float scale : plan.scale) {
      if (!(std::isfinite(scale) && scale > 0)) {
        return Refuse(kName, "BAD_PLAN", absl::StrCat("scales must be positive and finite, got ", scale));
      }
    }
    for (const float zero : plan.zero) {
      const bool whole = zero >= MinCode(kBits) && zero <= MaxCode(kBits) && zero == std::floor(zero);
      if (!whole || (spec.symmetric && zero != 0)) {
        return Refuse(kName, "BAD_PLAN",
                      absl::StrCat("zeros must be signed whole codes ", MinCode(kBits), " .. ", MaxCode(kBits),
                                   ", and 0 when symmetric, got ", zero));
      }
    }
    for (const int8_t code : plan.codes) {
      if (code < MinCode(kBits) || code > MaxCode(kBits)) {
        return Refuse(
            kName, "BAD_PLAN",
            absl::StrCat("codes must be ", MinCode(kBits), " .. ", MaxCode(kBits), ", got ", static_cast<int>(code)));
      }
    }
    return absl::OkStatus();
  }

  // `at` is n * G + g.
  static IntegerGrid GridOf(const float* weights, int64_t count, const LinearSpec& spec, const LayerPlan& plan,
                            int64_t at) {
    if (plan.scale.empty()) {
      return GridFromWeights(weights, count, kBits, spec.symmetric, spec.scale_dtype, spec.clip_ratio);
    }
    IntegerGrid grid;
    grid.scale = RoundToDType(plan.scale[static_cast<size_t>(at)], spec.scale_dtype);
    if (grid.scale == 0.0f) grid.scale = MachineEpsilon(spec.scale_dtype);
    if (!plan.zero.empty()) grid.zero = static_cast<int32_t>(plan.zero[static_cast<size_t>(at)]);
    return grid;
  }

  static absl::Status ScaleOutOfRange(const LinearSpec& spec, int64_t n, int64_t g) {
    return Refuse(kName, "SCALE_OUT_OF_RANGE",
                  absl::StrCat("scales must fit ", std::string(DTypeName(spec.scale_dtype)), ", row ", n, ", group ", g,
                               " does not; choose scale_dtype BF16 or F32"));
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
