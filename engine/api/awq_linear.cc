// Quantizes to, reads and binds the tensors of AWQ layers.
#include "engine/api/awq_linear.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/api/stored_tensors.h"
#include "engine/api/zero_point_plan.h"
#include "engine/quant/awq_layout.h"
#include "engine/quant/integer_grid.h"

namespace sage {

Json AwqQuantizationConfig(const LinearSpec& spec, const std::vector<std::string>& ignored) {
  Json keep = nullptr;  // null: lm_head and embeddings only
  if (!ignored.empty()) {
    keep = ignored;
    if (std::find(ignored.begin(), ignored.end(), "lm_head") == ignored.end()) keep.push_back("lm_head");
  }
  return {{"quant_method", "awq"}, {"bits", 4},         {"group_size", spec.group_size},
          {"zero_point", true},    {"version", "gemm"}, {"modules_to_not_convert", keep}};
}

namespace linear_strategies {
namespace {

constexpr int kBits = 4;
constexpr int kHalf = 8;
// Outputs taken apart at once: whole cache lines of the file's rows.
constexpr int64_t kRows = 128;

// The stored tensors after every check.
struct AwqParts {
  int64_t N = 0, K = 0, G = 0, group = 0;
  TensorView qweight, scales, scaled_zeros;
  std::vector<uint8_t> zeros;  // [N, G], empty with scaled zeros

  float Scale(int64_t n, int64_t g) const { return LoadFloat(scales, g * N + n); }
  float ScaledZero(int64_t n, int64_t g) const { return LoadFloat(scaled_zeros, g * N + n); }
};

absl::StatusOr<AwqParts> Open(const StoredLinear& stored) {
  const std::string& name = stored.spec.strategy;
  SAGE_RETURN_IF_ERROR(CheckSize(name, stored.N, stored.K));
  if (stored.N % 8 != 0 || (stored.spec.group_size != -1 && stored.spec.group_size < 1)) {
    return Refuse(name, "BAD_LAYER_SHAPE",
                  absl::StrCat("N must be a multiple of 8 and group_size -1 or positive, got N=", stored.N,
                               ", group_size=", stored.spec.group_size));
  }
  AwqParts parts;
  parts.N = stored.N;
  parts.K = stored.K;
  parts.group = stored.spec.group_size == -1 ? stored.K : std::min<int64_t>(stored.spec.group_size, stored.K);
  parts.G = (stored.K + parts.group - 1) / parts.group;
  SAGE_ASSIGN_OR_RETURN(parts.qweight, RequireTensor(stored, "qweight", {DType::kI32}, {parts.K, parts.N / 8}));
  SAGE_ASSIGN_OR_RETURN(parts.scales,
                        RequireTensor(stored, "scales", {DType::kF16, DType::kF32, DType::kBF16}, {parts.G, parts.N}));
  const bool scaled = stored.tensors.count("scaled_zeros") != 0;
  if (scaled == (stored.tensors.count("qzeros") != 0)) {
    return Refuse(name, "BAD_TENSOR", "either 'qzeros' or 'scaled_zeros' must be present");
  }
  if (scaled) {
    SAGE_ASSIGN_OR_RETURN(parts.scaled_zeros, RequireTensor(stored, "scaled_zeros", {DType::kF16}, {parts.G, parts.N}));
    return parts;
  }
  SAGE_ASSIGN_OR_RETURN(const TensorView qzeros,
                        RequireTensor(stored, "qzeros", {DType::kI32}, {parts.G, parts.N / 8}));
  parts.zeros.resize(static_cast<size_t>(parts.N * parts.G));
  UnpackAwqGemm(qzeros.data, parts.N, parts.G, 0, parts.N, parts.zeros.data());
  return parts;
}

void DequantizeRow(const AwqParts& parts, int64_t n, const uint8_t* codes, float* out) {
  for (int64_t g = 0; g < parts.G; ++g) {
    const int64_t end = std::min(parts.K, (g + 1) * parts.group);
    const float scale = parts.Scale(n, g);
    if (parts.zeros.empty()) {
      const float add = parts.ScaledZero(n, g);
      for (int64_t k = g * parts.group; k < end; ++k) {
        const float product = scale * static_cast<float>(codes[k]);
        out[k] = product + add;
      }
      continue;
    }
    const IntegerGrid grid = {scale, parts.zeros[static_cast<size_t>(n * parts.G + g)]};
    for (int64_t k = g * parts.group; k < end; ++k) out[k] = ValueOf(codes[k], grid);
  }
}

}  // namespace

absl::Status CheckAwq(std::string_view name, const LinearSpec& spec, int64_t N, int64_t K) {
  SAGE_RETURN_IF_ERROR(CheckZeroPointSpec(name, spec, N, K));
  if (N % 8 != 0) {
    return Refuse(name, "SIZE_NOT_SUPPORTED",
                  absl::StrCat("N must be a multiple of 8, eight outputs share a word, got N=", N, ", K=", K),
                  {{"N", absl::StrCat(N)}, {"multiple", "8"}});
  }
  if (!spec.act_order) return absl::OkStatus();
  return Refuse(name, "ACT_ORDER_NOT_SUPPORTED", "act_order must be false: the format has no g_idx, got true");
}

absl::StatusOr<StoredLinear> QuantizeAwq(std::string_view name, const TensorView& weight, const LinearSpec& spec,
                                         const LayerPlan& plan, ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckWeight(name, weight));
  const int64_t N = weight.dim(0), K = weight.dim(1);
  SAGE_RETURN_IF_ERROR(CheckAwq(name, spec, N, K));
  const int64_t group = spec.group_size == -1 ? K : spec.group_size, G = K / group;
  if (spec.symmetric && !plan.scale.empty() && plan.zero.empty()) {
    LayerPlan whole = plan;  // the file has a zero for every group: 8 means what no zero means elsewhere
    whole.zero.assign(plan.scale.size(), 0.0f);
    return QuantizeAwq(name, weight, spec, whole, threads);
  }
  SAGE_RETURN_IF_ERROR(CheckZeroPointPlan(name, kBits, plan, /*symmetric=*/false, N, K, G));
  if (!plan.g_idx.empty()) {
    return Refuse(name, "ACT_ORDER_NOT_SUPPORTED", "the plan must keep the order of inputs, got a g_idx");
  }
  StoredLinear stored;
  stored.spec = spec;
  stored.spec.strategy = std::string(name);
  stored.spec.symmetric = false;
  stored.spec.scale_dtype = DType::kF16;
  stored.N = N;
  stored.K = K;
  SAGE_ASSIGN_OR_RETURN(Tensor * qweight, AddTensor(&stored, "qweight", DType::kI32, {K, N / 8}));
  SAGE_ASSIGN_OR_RETURN(Tensor * qzeros, AddTensor(&stored, "qzeros", DType::kI32, {G, N / 8}));
  SAGE_ASSIGN_OR_RETURN(Tensor * scales, AddTensor(&stored, "scales", DType::kF16, {G, N}));
  std::vector<uint8_t> codes(static_cast<size_t>(N * K)), zeros(static_cast<size_t>(N * G));
  SAGE_RETURN_IF_ERROR(ForEachRow(name, weight, threads, [&](int64_t n, const float* row) -> absl::Status {
    for (int64_t g = 0; g < G; ++g) {
      const IntegerGrid grid = plan.scale.empty() ? GridFromWeights(row + g * group, group, kBits, /*symmetric=*/false,
                                                                    DType::kF16, spec.clip_ratio)
                                                  : PlannedGrid(plan, n * G + g, DType::kF16);
      if (!std::isfinite(grid.scale)) return ScaleOutOfF16(name, n, g);
      scales->as<uint16_t>()[g * N + n] = FloatToF16(grid.scale);
      zeros[static_cast<size_t>(n * G + g)] = static_cast<uint8_t>(grid.zero + kHalf);
      for (int64_t k = g * group; k < (g + 1) * group; ++k) {
        const size_t at = static_cast<size_t>(n * K + k);
        const int code = plan.codes.empty() ? CodeOf(row[k], grid, kBits) : plan.codes[at];
        codes[at] = static_cast<uint8_t>(code + kHalf);
      }
    }
    return absl::OkStatus();
  }));
  PackAwqGemm(codes.data(), N, K, qweight->as<uint32_t>());
  PackAwqGemm(zeros.data(), N, G, qzeros->as<uint32_t>());
  return stored;
}

absl::Status DequantizeAwqRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
  SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
  SAGE_ASSIGN_OR_RETURN(const AwqParts parts, Open(stored));
  std::vector<uint8_t> codes(static_cast<size_t>(std::min(kRows, n_end - n_begin) * parts.K));
  for (int64_t first = n_begin; first < n_end; first += kRows) {
    const int64_t last = std::min(n_end, first + kRows);
    UnpackAwqGemm(parts.qweight.data, parts.N, parts.K, first, last, codes.data());
    for (int64_t n = first; n < last; ++n, out += parts.K) {
      DequantizeRow(parts, n, codes.data() + (n - first) * parts.K, out);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<BoundLinear>> BindAwq(const StoredLinear& stored, const Backend& backend,
                                                     Priority priority, ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(LinearWeight weight, BeginWeight(stored, nullptr));
  SAGE_ASSIGN_OR_RETURN(const AwqParts parts, Open(stored));
  IntegerWeight& integer = weight.integer;
  const int64_t K = parts.K, G = parts.G;
  integer.bits = kBits;
  integer.codes_signed = true;
  integer.group_size = parts.group;
  integer.codes.resize(static_cast<size_t>(parts.N * K));
  integer.scale.resize(static_cast<size_t>(parts.N * G));
  integer.offset.resize(integer.scale.size());
  const int64_t tiles = (parts.N + kRows - 1) / kRows;
  threads.ParallelFor(tiles, 1, [&](int64_t tile_begin, int64_t tile_end) {
    const int64_t begin = tile_begin * kRows, end = std::min(parts.N, tile_end * kRows);
    auto* codes = reinterpret_cast<uint8_t*>(integer.codes.data() + begin * K);
    UnpackAwqGemm(parts.qweight.data, parts.N, K, begin, end, codes);
    for (int64_t i = 0; i < (end - begin) * K; ++i) codes[i] = static_cast<uint8_t>(codes[i] - kHalf);
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t g = 0; g < G; ++g) {
        const size_t at = static_cast<size_t>(n * G + g);
        const float scale = parts.Scale(n, g);
        integer.scale[at] = scale;
        // Codes moved down by 8: scale * code + z = scale * (code - 8) + (8 * scale + z).
        integer.offset[at] = parts.zeros.empty() ? kHalf * scale + parts.ScaledZero(n, g)
                                                 : -scale * static_cast<float>(parts.zeros[at] - kHalf);
      }
    }
  });
  SAGE_RETURN_IF_ERROR(CheckFinite(stored, "scales", integer.scale));
  SAGE_RETURN_IF_ERROR(CheckFinite(stored, parts.zeros.empty() ? "scaled_zeros" : "qzeros", integer.offset));
  return backend.BindLinear(QueryOf("int4_w4a16", stored, G == 1 ? -1 : parts.group, /*symmetric=*/false, priority),
                            std::move(weight), threads);
}

}  // namespace linear_strategies
}  // namespace sage
