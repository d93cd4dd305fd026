// Plans, collects, solves and names the static scales of a KV cache.
//
// fp8: largest |x| / 448 (e4m3) or / 57344 (e5m2) of a tensor. int8: largest / 127 of a kv head. int8_per_channel:
// largest / 127 of a channel, or of V with zero points (max - min) / 255.
//
// A rotary pair turns with the position, and texts of a calibration are shorter than what is served: a channel of K
// that stood near 0 in all of them may hold the whole pair later. So the range of K is that of the norms of its pairs,
// which no rotation changes; without it int8_per_channel calibrated on 512 positions lost 6% of perplexity at 2048. An
// 8-bit float keeps its relative precision whatever the scale, so a range is never cut for it by squared error or
// divergence, only by percentile.
#include "engine/runtime/kv_calibration.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/api/ct_config.h"
#include "engine/base/status.h"
#include "engine/quant/fp8.h"
#include "engine/runtime/kv_plan.h"

namespace sage {
namespace {

constexpr int64_t kChannelBins = 512;

bool IsFloatKv(const std::string& strategy) { return strategy.compare(0, 3, "fp8") == 0; }

// Norms of the rotary pairs (i, i + D / 2), in the places of both members.
std::vector<float> PairNorms(const float* x, int64_t heads, int64_t D) {
  std::vector<float> out(x, x + heads * D);
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = h * D; i < h * D + D / 2; ++i) {
      const size_t a = static_cast<size_t>(i), b = static_cast<size_t>(i + D / 2);
      out[a] = out[b] = std::sqrt(x[a] * x[a] + x[b] * x[b]);
    }
  }
  return out;
}

}  // namespace

bool KvCalibration::IsWide(int64_t layer) const { return std::find(wide.begin(), wide.end(), layer) != wide.end(); }

// e5m2 has a range so wide that its scales would be subnormal in f16.
DType KvCalibration::ScaleDType(DType model) const {
  return granularity == KvGranularity::kChannel || strategy == "fp8_e5m2" ? DType::kF32 : model;
}

Json KvCalibration::Scheme() const {
  // e5m2 and channels have no word there; others would read them as e4m3 and tensors.
  if (!calibrates || (strategy != "fp8_e4m3" && strategy != "int8_per_token")) return nullptr;
  return CompressedTensorsKvScheme(IsFloatKv(strategy), granularity == KvGranularity::kHead);
}

Json KvCalibration::Manifest(const Json& layers) const {
  const bool fp8 = IsFloatKv(strategy), int8 = strategy.compare(0, 4, "int8") == 0;
  Json out = {{"strategy", strategy},      {"dtype", fp8 ? "fp8" : int8 ? "int8" : "none"},
              {"block_size", 16},          {"group_size", 0},
              {"scale_precision", "fp32"}, {"scales", calibrates ? "calibrated" : "dynamic"},
              {"layers_16bit", wide},      {"sink_tokens", sink_tokens}};
  if (!calibrates) return out;
  out["granularity"] = granularity == KvGranularity::kTensor ? "tensor"
                       : granularity == KvGranularity::kHead ? "head"
                                                             : "channel";
  out["symmetric"] = !asymmetric;
  out["layers"] = layers;
  return out;
}

absl::StatusOr<KvCalibration> PlanKvCalibration(const CalibrationSpec& spec, const RangeSpec& range, int64_t layers) {
  KvCalibration out;
  absl::StatusOr<std::string> strategy = ResolveKvStrategy(spec.kv_quantization);
  if (!strategy.ok()) return Annotate(strategy.status(), "kv_quantization");
  out.strategy = *std::move(strategy);
  const bool eight = IsEightBitKv(out.strategy);
  const std::string& word = spec.kv_scales;
  if (!word.empty() && word != "auto" && word != "static" && word != "dynamic") {
    return InvalidInput("BAD_KV_SCALES", absl::StrCat("kv_scales: must be auto, static or dynamic, got '", word, "'"));
  }
  if (!eight && (word == "static" || !spec.kv_include.empty() || !spec.kv_exclude.empty() || spec.kv_sink_tokens != 0 ||
                 spec.kv_asymmetric)) {
    return InvalidInput("KV_NOT_QUANTIZED",
                        absl::StrCat("kv_quantization: static scales, layers, sink tokens and zero points belong to "
                                     "strategies of 8 bits, got ",
                                     out.strategy));
  }
  if (word == "static" && spec.dataset.empty()) {
    return InvalidInput("DATASET_NEEDED",
                        "dataset: must be given, static KV scales come from what it makes layers cache");
  }
  SAGE_RETURN_IF_ERROR(CheckSinkTokens(spec.kv_sink_tokens));
  out.calibrates = eight && word != "dynamic" && !spec.dataset.empty();
  const bool channels = out.strategy == "int8_per_channel";
  if (spec.kv_asymmetric && (!channels || !out.calibrates)) {
    return InvalidInput("KV_ASYMMETRIC_NEEDS_CHANNELS",
                        absl::StrCat("kv_asymmetric: zero points belong to static int8_per_channel, got ",
                                     out.calibrates ? "static " : "dynamic ", out.strategy));
  }
  out.asymmetric = spec.kv_asymmetric;
  out.granularity = channels                  ? KvGranularity::kChannel
                    : IsFloatKv(out.strategy) ? KvGranularity::kTensor
                                              : KvGranularity::kHead;
  out.range = range;
  if (IsFloatKv(out.strategy) && range.rule != RangeRule::kPercentile) out.range.rule = RangeRule::kMinMax;
  out.sink_tokens = spec.kv_sink_tokens;
  if (!eight) return out;
  SAGE_ASSIGN_OR_RETURN(out.wide, ExcludedKvLayers(spec.kv_include, spec.kv_exclude, layers));
  return out;
}

KvStatistics::KvStatistics(const KvCalibration& plan, int KH, int D, ThreadPool& threads)
    : plan_(plan), KH_(KH), D_(D), threads_(threads) {
  const bool channels = plan.granularity == KvGranularity::kChannel;
  const size_t units = static_cast<size_t>(channels ? KH_ * D_ : plan.granularity == KvGranularity::kHead ? KH_ : 1);
  const RangeObserver empty = channels ? RangeObserver(plan.range, kChannelBins) : RangeObserver(plan.range);
  k_.assign(units, empty);
  v_.assign(units, empty);
}

absl::Status KvStatistics::AddSample(const float* keys, const float* v, int64_t M) {
  const int64_t begin = plan_.sink_tokens, width = KH_ * D_, units = static_cast<int64_t>(k_.size());
  if (M <= begin) return absl::OkStatus();
  const std::vector<float> norms = PairNorms(keys, M * KH_, D_);
  const float* const k = norms.data();
  const int64_t own = width / units;  // values of a unit in a row
  std::vector<absl::Status> results(static_cast<size_t>(2 * units));
  threads_.ParallelFor(2 * units, 1, [&](int64_t first, int64_t last) {
    std::vector<float> values(static_cast<size_t>((M - begin) * own));
    for (int64_t i = first; i < last; ++i) {
      const float* const from = (i < units ? k : v) + i % units * own;
      for (int64_t m = begin; m < M; ++m) {
        std::copy_n(from + m * width, own, values.begin() + (m - begin) * own);
      }
      RangeObserver& unit = (i < units ? k_ : v_)[static_cast<size_t>(i % units)];
      results[static_cast<size_t>(i)] = unit.Add(values.data(), static_cast<int64_t>(values.size()));
    }
  });
  for (const absl::Status& status : results) SAGE_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::StatusOr<KvLayerScales> KvStatistics::Solve(DType dtype) const {
  KvLayerScales out;
  const float largest = plan_.strategy == "fp8_e4m3" ? kMaxE4M3 : plan_.strategy == "fp8_e5m2" ? kMaxE5M2 : 0.0f;
  for (const bool key : {true, false}) {
    KvScales& to = key ? out.k : out.v;
    for (const RangeObserver& unit : key ? k_ : v_) {
      absl::StatusOr<ActivationRange> range = unit.Solve();
      if (!range.ok()) {
        return Annotate(range.status(),
                        absl::StrCat("kv scales (no sample is longer than the ", plan_.sink_tokens, " sink tokens)"));
      }
      if (key) range->low = -(range->high = range->most());
      const StaticGrid grid = GridOfRange(*range, !plan_.asymmetric, dtype);
      to.scale.push_back(largest > 0 ? FloatScaleOfRange(*range, largest, dtype) : grid.scale);
      if (plan_.asymmetric) to.zero.push_back(grid.zero);
    }
  }
  return out;
}

double KvStatistics::absmax(bool key) const {
  double most = 0;
  for (const RangeObserver& unit : key ? k_ : v_) most = std::max(most, unit.absmax());
  return most;
}

absl::StatusOr<std::vector<NamedTensor>> KvScaleTensors(const KvCalibration& plan, const KvLayerScales& scales,
                                                        int64_t layer, DType dtype) {
  std::vector<NamedTensor> out;
  const std::string prefix = absl::StrCat("model.layers.", layer, ".self_attn.");
  const auto add = [&](const std::string& name, const std::vector<float>& values, const Shape& shape,
                       DType stored) -> absl::Status {
    SAGE_ASSIGN_OR_RETURN(NamedTensor tensor, ConvertFloats(prefix + name, values.data(), shape, stored));
    out.push_back(std::move(tensor));
    return absl::OkStatus();
  };
  for (const bool key : {true, false}) {
    const KvScales& from = key ? scales.k : scales.v;
    const int64_t count = static_cast<int64_t>(from.scale.size());
    if (plan.granularity != KvGranularity::kChannel) {
      const Shape shape = plan.granularity == KvGranularity::kHead ? Shape{count, 1, 1} : Shape{1};
      SAGE_RETURN_IF_ERROR(add(key ? "k_scale" : "v_scale", from.scale, shape, dtype));
      continue;
    }
    // A layer whose entry exists is quantized, to those who read these names.
    if (plan.IsWide(layer)) continue;
    const std::string name = key ? "k_proj.kv_cache_" : "v_proj.kv_cache_";
    std::vector<float> zero = from.zero;
    zero.resize(from.scale.size());
    SAGE_RETURN_IF_ERROR(add(name + "scale", from.scale, {count}, dtype));
    SAGE_RETURN_IF_ERROR(add(name + "offset", zero, {count}, dtype));
  }
  return out;
}

Json DescribeKvScales(const KvLayerScales& scales, int64_t layer, double k_absmax, double v_absmax) {
  const auto side = [](const KvScales& from, double absmax) {
    const auto [least, most] = std::minmax_element(from.scale.begin(), from.scale.end());
    Json out = {{"absmax", absmax}, {"least_scale", *least}, {"largest_scale", *most}};
    if (from.scale.size() <= 64 && from.zero.empty()) out["scale"] = from.scale;
    return out;
  };
  return {{"layer", layer}, {"k", side(scales.k, k_absmax)}, {"v", side(scales.v, v_absmax)}};
}

}  // namespace sage
