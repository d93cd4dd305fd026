// Quantizes to, reads and binds the tensors of GPTQ layers.
#include "engine/api/gptq_linear.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/api/stored_tensors.h"
#include "engine/api/zero_point_plan.h"
#include "engine/quant/integer_grid.h"
#include "engine/quant/packing.h"

namespace sage {

Json GptqQuantizationConfig(const LinearSpec& spec, int bits, const std::vector<std::string>& ignored) {
  const char* format = GptqZerosOf(spec) == GptqZeros::kV1 ? "gptq" : "gptq_v2";
  Json config = {{"bits", bits},
                 {"group_size", spec.group_size},
                 {"desc_act", spec.act_order},
                 {"sym", spec.symmetric},
                 {"lm_head", false},
                 {"quant_method", "gptq"},
                 {"method", "gptq"},
                 {"checkpoint_format", format},
                 {"format", format},
                 {"pack_dtype", "int32"},
                 {"meta", {{"quantizer", {"sagequant:1.0.0"}}, {"true_sequential", true}, {"static_groups", false}}}};
  for (const std::string& module : ignored) {
    if (module == "lm_head") continue;  // "lm_head": false says it
    config["dynamic"][absl::StrCat("-:^", absl::StrReplaceAll(module, {{".", "\\."}}), "$")] = Json::object();
  }
  return config;
}

absl::StatusOr<Json> MergeGptqConfigs(Json config, const std::vector<MixedModules>& mixed) {
  for (const MixedModules& part : mixed) {
    if (part.config["checkpoint_format"] != config["checkpoint_format"]) {
      return MakeError(absl::StatusCode::kInvalidArgument, "MIXED_SCHEMES_NOT_HELD",
                       absl::StrCat("gptq: the zeros of one folder are all of one version (gptq for symmetric layers, "
                                    "gptq_v2 for asymmetric ones), got both; override ",
                                    part.modules.front(), " to the same symmetry or use --format compressed_tensors"));
    }
    for (const std::string& module : part.modules) {
      config["dynamic"][absl::StrCat("+:^", absl::StrReplaceAll(module, {{".", "\\."}}), "$")] = {
          {"bits", part.config["bits"]},
          {"group_size", part.config["group_size"]},
          {"desc_act", part.config["desc_act"]},
          {"sym", part.config["sym"]}};
    }
  }
  return config;
}

namespace linear_strategies {
namespace {

// The stored tensors after every check.
struct GptqParts {
  int bits = 0;
  int64_t N = 0, K = 0, G = 0, group = 0;
  GptqZeros version = GptqZeros::kV2;
  TensorView qweight, qzeros, scales;
  std::vector<int32_t> g_idx;  // [K], empty when groups are consecutive

  int32_t Zero(int64_t n, int64_t g) const {
    const uint8_t* row = qzeros.as<uint8_t>() + g * PackedWords(N, bits) * 4;
    const int stored = UnpackColumnCode(row, 1, bits, n, 0);
    return (stored + (version == GptqZeros::kV1 ? 1 : 0)) & ((1 << bits) - 1);
  }
  float Scale(int64_t n, int64_t g) const { return LoadFloat(scales, g * N + n); }
};

absl::StatusOr<std::vector<int32_t>> ReadGroups(const StoredLinear& stored, int64_t group, int64_t G) {
  std::vector<int32_t> g_idx;
  if (stored.tensors.count("g_idx") == 0) return g_idx;
  SAGE_ASSIGN_OR_RETURN(const TensorView view, RequireTensor(stored, "g_idx", {DType::kI32}, {stored.K}));
  g_idx.resize(static_cast<size_t>(stored.K));
  std::memcpy(g_idx.data(), view.data, view.bytes);
  bool consecutive = true;
  for (int64_t k = 0; k < stored.K; ++k) {
    const int32_t g = g_idx[static_cast<size_t>(k)];
    if (g < 0 || g >= G) {
      return Refuse(stored.spec.strategy, "BAD_TENSOR",
                    absl::StrCat("'g_idx' must be in 0 .. ", G - 1, ", got ", g, " at input ", k));
    }
    consecutive = consecutive && g == k / group;
  }
  if (consecutive) g_idx.clear();
  return g_idx;
}

absl::StatusOr<GptqParts> Open(int bits, const StoredLinear& stored) {
  const std::string& name = stored.spec.strategy;
  SAGE_RETURN_IF_ERROR(CheckSize(name, stored.N, stored.K));
  const absl::Status shape = CheckGptqShape(bits, stored.N, stored.K);
  if (!shape.ok()) return Annotate(shape, name);
  if (stored.spec.group_size != -1 && stored.spec.group_size < 1) {
    return Refuse(name, "BAD_GROUP_SIZE",
                  absl::StrCat("group_size must be -1 or positive, got ", stored.spec.group_size));
  }
  GptqParts parts;
  parts.bits = bits;
  parts.N = stored.N;
  parts.K = stored.K;
  parts.group = stored.spec.group_size == -1 ? stored.K : std::min<int64_t>(stored.spec.group_size, stored.K);
  parts.G = (stored.K + parts.group - 1) / parts.group;
  parts.version = GptqZerosOf(stored.spec);
  SAGE_ASSIGN_OR_RETURN(parts.qweight,
                        RequireTensor(stored, "qweight", {DType::kI32}, {PackedWords(stored.K, bits), stored.N}));
  SAGE_ASSIGN_OR_RETURN(parts.qzeros,
                        RequireTensor(stored, "qzeros", {DType::kI32}, {parts.G, PackedWords(stored.N, bits)}));
  SAGE_ASSIGN_OR_RETURN(parts.scales,
                        RequireTensor(stored, "scales", {DType::kF16, DType::kF32, DType::kBF16}, {parts.G, stored.N}));
  SAGE_ASSIGN_OR_RETURN(parts.g_idx, ReadGroups(stored, parts.group, parts.G));
  return parts;
}

// g_idx of the plan, or consecutive groups.
absl::StatusOr<std::vector<int32_t>> GroupsOf(std::string_view name, const LinearSpec& spec, const LayerPlan& plan,
                                              int64_t K, int64_t G) {
  std::vector<int32_t> consecutive(static_cast<size_t>(K));
  for (int64_t k = 0; k < K; ++k) consecutive[static_cast<size_t>(k)] = static_cast<int32_t>(k / (K / G));
  if (plan.g_idx.empty()) {
    if (spec.act_order && plan.scale.empty() && G > 1) {
      return Refuse(name, "ACT_ORDER_NEEDS_PLAN",
                    "act_order needs a calibration method that orders inputs (gptq), got plain rounding");
    }
    return consecutive;
  }
  if (plan.g_idx.size() != consecutive.size()) {
    return Refuse(name, "BAD_PLAN", absl::StrCat("g_idx must have ", K, " entries, got ", plan.g_idx.size()));
  }
  for (const int32_t g : plan.g_idx) {
    if (g < 0 || g >= G) return Refuse(name, "BAD_PLAN", absl::StrCat("g_idx must be in 0 .. ", G - 1, ", got ", g));
  }
  if (!spec.act_order && plan.g_idx != consecutive) {
    return Refuse(name, "BAD_PLAN", "g_idx must be input / group_size when act_order is false");
  }
  return plan.g_idx;
}

// The grids of one row: from the plan, or from the range of each group's weights.
std::vector<IntegerGrid> GridsOf(const float* row, int64_t n, int bits, const LinearSpec& spec, const LayerPlan& plan,
                                 const std::vector<int32_t>& g_idx, int64_t G) {
  std::vector<IntegerGrid> grids(static_cast<size_t>(G));
  if (!plan.scale.empty()) {
    for (int64_t g = 0; g < G; ++g) grids[static_cast<size_t>(g)] = PlannedGrid(plan, n * G + g, DType::kF16);
    return grids;
  }
  std::vector<float> low(grids.size()), high(grids.size());
  for (size_t k = 0; k < g_idx.size(); ++k) {
    const size_t g = static_cast<size_t>(g_idx[k]);
    low[g] = std::min(low[g], row[k]);
    high[g] = std::max(high[g], row[k]);
  }
  for (size_t g = 0; g < grids.size(); ++g) {
    grids[g] = GridFromRange(low[g], high[g], bits, spec.symmetric, DType::kF16, spec.clip_ratio);
  }
  return grids;
}

}  // namespace

absl::Status CheckGptq(std::string_view name, int bits, const LinearSpec& spec, int64_t N, int64_t K) {
  SAGE_RETURN_IF_ERROR(CheckZeroPointSpec(name, spec, N, K));
  if (!IsGptqBits(bits) || N % 32 != 0 || K % 32 != 0) {
    return Refuse(name, "SIZE_NOT_SUPPORTED",
                  absl::StrCat("N and K must be multiples of 32, as readers of GPTQ files need, got N=", N, ", K=", K),
                  {{"N", absl::StrCat(N)}, {"K", absl::StrCat(K)}, {"multiple", "32"}});
  }
  return absl::OkStatus();
}

absl::StatusOr<StoredLinear> QuantizeGptq(std::string_view name, int bits, const TensorView& weight,
                                          const LinearSpec& spec, const LayerPlan& plan, ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckWeight(name, weight));
  const int64_t N = weight.dim(0), K = weight.dim(1);
  SAGE_RETURN_IF_ERROR(CheckGptq(name, bits, spec, N, K));
  const int64_t group = spec.group_size == -1 ? K : spec.group_size, G = K / group;
  SAGE_RETURN_IF_ERROR(CheckZeroPointPlan(name, bits, plan, spec.symmetric, N, K, G));
  SAGE_ASSIGN_OR_RETURN(const std::vector<int32_t> g_idx, GroupsOf(name, spec, plan, K, G));
  StoredLinear stored;
  stored.spec = spec;
  stored.spec.strategy = std::string(name);
  stored.spec.scale_dtype = DType::kF16;
  stored.N = N;
  stored.K = K;
  SAGE_ASSIGN_OR_RETURN(Tensor * qweight, AddTensor(&stored, "qweight", DType::kI32, {PackedWords(K, bits), N}));
  SAGE_ASSIGN_OR_RETURN(Tensor * qzeros, AddTensor(&stored, "qzeros", DType::kI32, {G, PackedWords(N, bits)}));
  SAGE_ASSIGN_OR_RETURN(Tensor * scales, AddTensor(&stored, "scales", DType::kF16, {G, N}));
  SAGE_ASSIGN_OR_RETURN(Tensor * groups, AddTensor(&stored, "g_idx", DType::kI32, {K}));
  std::memcpy(groups->as<int32_t>(), g_idx.data(), groups->bytes());
  const int half = 1 << (bits - 1);
  std::vector<uint8_t> codes(static_cast<size_t>(N * K)), zeros(static_cast<size_t>(N * G));
  SAGE_RETURN_IF_ERROR(ForEachRow(name, weight, threads, [&](int64_t n, const float* row) -> absl::Status {
    const std::vector<IntegerGrid> grids = GridsOf(row, n, bits, spec, plan, g_idx, G);
    for (int64_t g = 0; g < G; ++g) {
      const IntegerGrid& grid = grids[static_cast<size_t>(g)];
      if (!std::isfinite(grid.scale)) return ScaleOutOfF16(name, n, g);
      scales->as<uint16_t>()[g * N + n] = FloatToF16(grid.scale);
      zeros[static_cast<size_t>(n * G + g)] = static_cast<uint8_t>(grid.zero + half);
    }
    for (int64_t k = 0; k < K; ++k) {
      const size_t at = static_cast<size_t>(n * K + k);
      const IntegerGrid& grid = grids[static_cast<size_t>(g_idx[static_cast<size_t>(k)])];
      const int code = plan.codes.empty() ? CodeOf(row[k], grid, bits) : plan.codes[at];
      codes[at] = static_cast<uint8_t>(code + half);
    }
    return absl::OkStatus();
  }));
  PackGptqCodes(codes.data(), N, K, bits, qweight->as<uint32_t>());
  SAGE_RETURN_IF_ERROR(PackGptqZeros(zeros.data(), N, G, bits, GptqZerosOf(spec), qzeros->as<uint32_t>()));
  return stored;
}

absl::Status DequantizeGptqRows(int bits, const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
  SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
  SAGE_ASSIGN_OR_RETURN(const GptqParts parts, Open(bits, stored));
  constexpr int64_t kRows = 16;
  std::vector<uint8_t> codes(static_cast<size_t>(std::min(kRows, n_end - n_begin) * parts.K));
  std::vector<IntegerGrid> grids(static_cast<size_t>(parts.G));
  for (int64_t first = n_begin; first < n_end; first += kRows) {
    const int64_t last = std::min(n_end, first + kRows);
    UnpackGptqCodes(parts.qweight.data, parts.N, parts.K, bits, first, last, codes.data());
    for (int64_t n = first; n < last; ++n, out += parts.K) {
      for (int64_t g = 0; g < parts.G; ++g) grids[static_cast<size_t>(g)] = {parts.Scale(n, g), parts.Zero(n, g)};
      const uint8_t* row = codes.data() + (n - first) * parts.K;
      for (int64_t k = 0; k < parts.K; ++k) {
        const int64_t g = parts.g_idx.empty() ? k / parts.group : parts.g_idx[static_cast<size_t>(k)];
        out[k] = ValueOf(row[k], grids[static_cast<size_t>(g)]);
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<BoundLinear>> BindGptq(int bits, const StoredLinear& stored, const Backend& backend,
                                                      Priority priority, ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(LinearWeight weight, BeginWeight(stored, nullptr));
  SAGE_ASSIGN_OR_RETURN(const GptqParts parts, Open(bits, stored));
  IntegerWeight& integer = weight.integer;
  const int64_t K = parts.K, G = parts.G;
  const int half = 1 << (bits - 1);
  integer.bits = bits;
  integer.codes_signed = true;
  integer.group_size = parts.group;
  integer.g_idx = parts.g_idx;
  integer.codes.resize(static_cast<size_t>(parts.N * K));
  integer.scale.resize(static_cast<size_t>(parts.N * G));
  integer.offset.resize(integer.scale.size());
  threads.ParallelFor(parts.N, 16, [&](int64_t begin, int64_t end) {
    auto* codes = reinterpret_cast<uint8_t*>(integer.codes.data() + begin * K);
    UnpackGptqCodes(parts.qweight.data, parts.N, K, bits, begin, end, codes);
    for (int64_t i = 0; i < (end - begin) * K; ++i) codes[i] = static_cast<uint8_t>(codes[i] - half);
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t g = 0; g < G; ++g) {
        const float scale = parts.Scale(n, g);
        integer.scale[static_cast<size_t>(n * G + g)] = scale;
        integer.offset[static_cast<size_t>(n * G + g)] = -scale * static_cast<float>(parts.Zero(n, g) - half);
      }
    }
  });
  SAGE_RETURN_IF_ERROR(CheckFinite(stored, "scales", integer.scale));
  // Zeros of 2^(b-1) everywhere: the layer is symmetric whatever the file calls it.
  const bool symmetric = std::all_of(integer.offset.begin(), integer.offset.end(), [](float v) { return v == 0.0f; });
  if (symmetric) integer.offset.clear();
  const char* kernels = bits <= 4 ? "int4_w4a16" : "int8_w8a16";
  return backend.BindLinear(QueryOf(kernels, stored, G == 1 ? -1 : parts.group, symmetric, priority), std::move(weight),
                            threads);
}

}  // namespace linear_strategies
}  // namespace sage
