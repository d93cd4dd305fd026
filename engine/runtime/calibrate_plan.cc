// Resolves a CalibrationSpec: names to plug-ins, group size to a number, patterns to modules, files to sha256.
#include "engine/runtime/calibrate_plan.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/api/ct_config.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/calibrate_overrides.h"
#include "engine/runtime/dataset.h"
#include "engine/runtime/output_format.h"
#include "engine/runtime/tensor_parallel_check.h"

namespace sage {
namespace {

constexpr int kFp8Block = 128;  // rows and inputs that share a scale, as DeepSeek and llm-compressor have it

absl::StatusOr<DType> ScaleDType(const std::string& word, DType model) {
  if (word.empty() || word == "auto") return model;
  if (word == "f32" || word == "fp32" || word == "float32") return DType::kF32;
  if (word == "f16" || word == "fp16" || word == "float16") return DType::kF16;
  if (word == "bf16" || word == "bfloat16") return DType::kBF16;
  return InvalidInput("BAD_SCALE_PRECISION",
                      absl::StrCat("scale_precision: must be fp32, fp16 or bf16, got '", word, "'"));
}

absl::Status CheckNumbers(const CalibrationSpec& spec) {
  if (!(spec.clip_ratio >= 0 && spec.clip_ratio < 1)) {
    return InvalidInput("BAD_CLIP_RATIO",
                        absl::StrCat("clip_ratio: must be in [0, 1), 0 = off, got ", spec.clip_ratio));
  }
  if (spec.samples < 1 || spec.samples > 1'000'000) {
    return InvalidInput("BAD_SAMPLES", absl::StrCat("samples: must be in [1, 1000000], got ", spec.samples));
  }
  if (spec.sequence_length < 1 || spec.sequence_length > 1'048'576) {
    return InvalidInput("BAD_SEQUENCE_LENGTH",
                        absl::StrCat("sequence_length: must be in [1, 1048576], got ", spec.sequence_length));
  }
  if (spec.max_memory < 0) {
    return InvalidInput("BAD_MAX_MEMORY",
                        absl::StrCat("max_memory: must be 0 (no cap) or bytes, got ", spec.max_memory));
  }
  if (spec.exclude.size() > 1000) return InvalidInput("TOO_MANY_PATTERNS", "exclude: at most 1000 patterns");
  return absl::OkStatus();
}

std::string CommonGroupSizes(const std::vector<LinearSlot>& slots) {
  int64_t common = 0;
  for (const LinearSlot& slot : slots) common = std::gcd(common, slot.K);
  return absl::StrJoin(GroupSizesFor(common), ", ");
}

absl::Status MustDivide(const LinearStrategyDef& strategy, const std::vector<LinearSlot>& slots, int group_size,
                        const LinearSlot& slot) {
  const std::string allowed = CommonGroupSizes(slots);
  return InvalidInput(
      "GROUP_SIZE_MUST_DIVIDE_K",
      absl::StrCat(std::string(strategy.name), ": group_size must divide K, got K=", slot.K, " (", slot.name,
                   "), group_size=", group_size,
                   "; sizes that divide every layer: ", allowed.empty() ? "none, use -1 (one scale a row)" : allowed),
      {{"allowed", allowed.empty() ? "-1" : allowed}, {"layer", slot.name}, {"K", absl::StrCat(slot.K)}});
}

absl::Status CheckAll(const LinearStrategyDef& strategy, const LinearSpec& spec, const std::vector<LinearSlot>& slots) {
  for (const LinearSlot& slot : slots) {
    const absl::Status status = strategy.check(spec, slot.N, slot.K);
    if (!status.ok()) return Annotate(status, slot.name);
  }
  return absl::OkStatus();
}

const LinearSlot* FirstNotDivided(const std::vector<LinearSlot>& slots, int group_size) {
  for (const LinearSlot& slot : slots) {
    if (slot.K % group_size != 0) return &slot;
  }
  return nullptr;
}

// A size is worth choosing by itself only when the default backend can run it.
bool HasKernel(const Backend* backend, const LinearSpec& spec) {
  if (backend == nullptr) return true;
  LinearKernelQuery query;
  query.strategy = spec.strategy;
  query.group_size = spec.group_size;
  query.symmetric = spec.symmetric;
  return !backend->SelectLinear(query).kernel.empty();
}

// "auto": the largest size in 16..256 that divides K of every layer, or one scale a row where none does: smaller groups
// cost more than their accuracy is worth, larger ones lose what groups are for. Whoever names a size may have any that
// divides. The answer and the artifact say which it was.
absl::StatusOr<int> AutomaticGroupSize(const LinearStrategyDef& strategy, LinearSpec spec,
                                       const std::vector<LinearSlot>& slots) {
  absl::StatusOr<std::unique_ptr<Backend>> backend = OpenBackend("cpu");
  for (int size = 256; size >= 16; --size) {
    spec.group_size = size;
    if (FirstNotDivided(slots, size) == nullptr && CheckAll(strategy, spec, slots).ok() &&
        HasKernel(backend.ok() ? backend->get() : nullptr, spec)) {
      return size;
    }
  }
  return -1;
}

// Scales keep the model's dtype where the strategy's files can; some hold f16 only.
absl::StatusOr<DType> ResolveScaleDType(const std::string& word, const CalibrationPlan& plan, const LinearSlot& slot) {
  SAGE_ASSIGN_OR_RETURN(const DType wanted, ScaleDType(word, plan.source->float_dtype()));
  const auto held = [&](DType dtype) {
    LinearSpec probe = plan.linear;
    probe.group_size = -1;
    probe.scale_dtype = dtype;
    return GetErrorReason(plan.strategy->check(probe, slot.N, slot.K)).reason != "BAD_SCALE_DTYPE";
  };
  if (!word.empty() && word != "auto") {
    // F32 stands for F16 where a file holds nothing else.
    if (wanted == DType::kF32 && held(DType::kF16) && !held(DType::kBF16)) {
      return InvalidInput("BAD_SCALE_DTYPE", absl::StrCat("scale_precision: ", std::string(plan.strategy->name),
                                                          " stores F16 scales only, got '", word, "'"));
    }
    return wanted;
  }
  for (const DType dtype : {wanted, DType::kF16, DType::kF32}) {
    if (held(dtype)) return dtype;
  }
  return wanted;
}

// How static ranges of what a model computes (not of weights) are cut, by the method's name.
RangeSpec RangeOf(const CalibrationSpec& spec) {
  RangeSpec out;
  if (spec.method == "percentile") out.rule = RangeRule::kPercentile;
  if (spec.method == "mse") out.rule = RangeRule::kMse;
  if (spec.method == "kl") out.rule = RangeRule::kKl;
  if (spec.clip_ratio > 0) out.percentile = 100.0 * (1.0 - spec.clip_ratio);
  return out;
}

// Weights keep their dtype: only the KV cache is calibrated, or the model rotated.
absl::Status PlanPlainWeights(const CalibrationSpec& spec, CalibrationPlan& plan) {
  const std::vector<LinearSlot>& slots = plan.source->linears();
  if (!spec.exclude.empty() || !spec.overrides.empty()) {
    return InvalidInput("NOTHING_TO_EXCLUDE",
                        absl::StrCat(spec.exclude.empty() ? "override" : "exclude",
                                     ": weight_dtype none keeps all weights as they are; kv_exclude "
                                     "names layers that keep a 16-bit KV cache"));
  }
  for (const LinearSlot& slot : slots) {
    SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, plan.source->Stored(slot));
    SAGE_ASSIGN_OR_RETURN(plan.strategy, FindLinearStrategy(stored.spec.strategy));
    if (plan.strategy->quantizes) {
      return InvalidInput("KV_ONLY_NEEDS_FLOAT_WEIGHTS",
                          absl::StrCat("weight_dtype: none keeps weights as they are, and ", slot.name,
                                       " is stored as ", stored.spec.strategy));
    }
    plan.ignored.push_back(slot.name);
  }
  const std::string& format = spec.format;
  if (!format.empty() && format != "compressed_tensors" && format != "compressed-tensors") {
    return InvalidInput(
        "UNSUPPORTED_OUTPUT_FORMAT",
        absl::StrCat("format: plain weights with a KV plan are compressed_tensors, got '", format, "'"));
  }
  plan.linear.strategy = std::string(plan.strategy->name);
  plan.linear.group_size = -1;
  const Json scheme = plan.kv.Scheme();
  if (!scheme.is_null()) plan.quantization_config = CompressedTensorsKvOnlyConfig(scheme);
  for (const CheckpointFormatDef* def : CheckpointFormats()) {
    if (def->name == (scheme.is_null() ? "safetensors" : "compressed_tensors")) plan.format = def;
  }
  if (plan.format == nullptr) return absl::InternalError("calibrate: this build lacks a format for plain weights");
  return absl::OkStatus();
}

// Empty when weights stay as they are.
absl::StatusOr<std::string> WeightStrategy(const CalibrationSpec& spec) {
  if (spec.weight_dtype == "none" && spec.activation_dtype.empty()) return std::string();
  return ResolveLinearStrategy(spec.weight_dtype, spec.activation_dtype);
}

absl::Status CheckKnown(const CalibrationSpec& spec, CalibrationPlan& plan) {
  SAGE_ASSIGN_OR_RETURN(const std::string name, WeightStrategy(spec));
  if (name.empty()) {
    if (plan.kv.calibrates || spec.rotate) return PlanPlainWeights(spec, plan);
    return InvalidInput("NOTHING_TO_QUANTIZE",
                        "weight_dtype: 'none' leaves nothing to do; a static 8-bit kv_quantization needs a dataset, or "
                        "rotate");
  }
  SAGE_ASSIGN_OR_RETURN(plan.strategy, FindLinearStrategy(name));
  if (!plan.strategy->quantizes || plan.strategy->quantize == nullptr) {
    return InvalidInput(
        "NOTHING_TO_QUANTIZE",
        absl::StrCat("weight_dtype: ", name, " stores weights as they are; give int4 or int8, or use convert"));
  }
  SAGE_ASSIGN_OR_RETURN(plan.format, FindOutputFormat(spec.format, *plan.strategy));
  SAGE_ASSIGN_OR_RETURN(plan.strategy, StrategyIn(*plan.format, *plan.strategy));
  if (plan.calibrator->integer_grid && !plan.strategy->integer_grid) {
    return InvalidInput("METHOD_NEEDS_INTEGER_GRID",
                        absl::StrCat("method: ", std::string(plan.calibrator->name), " chooses integer codes, and ",
                                     name, " stores others; use minmax"),
                        {{"method", std::string(plan.calibrator->name)}, {"strategy", name}});
  }
  if (plan.calibrator->needs_activations && spec.dataset.empty()) {
    return InvalidInput("DATASET_NEEDED", absl::StrCat("dataset: must be given, ", std::string(plan.calibrator->name),
                                                       " looks at what the layers read"));
  }
  if (spec.act_order && plan.calibrator->name != "gptq") {
    return InvalidInput("ACT_ORDER_NEEDS_GPTQ", absl::StrCat("act_order: is an order of gptq's, got method ",
                                                             std::string(plan.calibrator->name)));
  }
  if (spec.gptq_asymmetric_correction && plan.calibrator->name != "gptq") {
    return InvalidInput("CORRECTION_NEEDS_GPTQ", absl::StrCat("gptq_asymmetric_correction: goes with method gptq, got ",
                                                              std::string(plan.calibrator->name)));
  }
  if (spec.gptq_f64 && !plan.calibrator->solves_by_gptq) {
    return InvalidInput("F64_NEEDS_GPTQ",
                        absl::StrCat("gptq_f64: goes with gptq, awq+gptq, autoround and qat, got method ",
                                     std::string(plan.calibrator->name)));
  }
  return absl::OkStatus();
}

// Scales and codes that only some strategies know: refused elsewhere, never ignored.
absl::Status PlanVariant(const CalibrationSpec& spec, CalibrationPlan& plan) {
  const bool fp8 = plan.strategy->weight_dtype == "fp8";
  const std::string name(plan.strategy->name), &grain = spec.weight_granularity, &codes = spec.fp8_format;
  if (!grain.empty() && grain != "tensor" && grain != "channel" && grain != "block") {
    return InvalidInput("BAD_WEIGHT_GRANULARITY",
                        absl::StrCat("weight_granularity: must be tensor, channel or block, got '", grain, "'"));
  }
  if (!codes.empty() && codes != "e4m3" && codes != "e5m2") {
    return InvalidInput("BAD_FP8_FORMAT", absl::StrCat("fp8_format: must be e4m3 or e5m2, got '", codes, "'"));
  }
  if (!fp8 && !(grain.empty() && codes.empty())) {
    return InvalidInput("FIELD_NOT_SUPPORTED",
                        absl::StrCat(grain.empty() ? "fp8_format" : "weight_granularity",
                                     ": belongs to fp8 weights (group_size says it of integers), "
                                     "got ",
                                     name));
  }
  if (spec.double_quant && plan.strategy->weight_dtype != "nf4" && plan.strategy->weight_dtype != "fp4") {
    return InvalidInput("FIELD_NOT_SUPPORTED", absl::StrCat("double_quant: belongs to nf4 and fp4, got ", name));
  }
  plan.linear.double_quant = spec.double_quant;
  plan.linear.fp8_e5m2 = codes == "e5m2";
  plan.linear.solve_in_f64 = spec.gptq_f64;
  plan.gptq_correction = spec.gptq_asymmetric_correction;
  if (grain == "tensor") plan.linear.block_rows = -1;
  if (grain != "block") return absl::OkStatus();
  if (spec.group_size != 0 && spec.group_size != kFp8Block) {
    return InvalidInput("GROUP_SIZE_NOT_SUPPORTED", absl::StrCat("group_size: blocks of fp8 are ", kFp8Block, " x ",
                                                                 kFp8Block, ", got ", spec.group_size));
  }
  if (plan.linear.static_activations) {
    return InvalidInput("FIELD_NOT_SUPPORTED",
                        "activation_scheme: blocks of fp8 go with dynamic activations, got static");
  }
  plan.linear.block_rows = plan.linear.group_size = kFp8Block;
  if (plan.strategy->activation_bits == 8) plan.linear.activation_group_size = kFp8Block;
  return absl::OkStatus();
}

absl::Status ReadDatasetSummary(const CalibrationSpec& spec, CalibrationPlan& plan) {
  plan.dataset = nullptr;
  if (spec.dataset.empty()) return absl::OkStatus();
  SAGE_ASSIGN_OR_RETURN(const Dataset dataset, ReadDataset(spec.dataset, spec.dataset_field, spec.dataset_name));
  SAGE_RETURN_IF_ERROR(CheckDatasetIds(dataset, plan.source->config().V));
  plan.dataset = {{"name", dataset.name},
                  {"sha256", dataset.sha256},
                  {"kind", dataset.kind},
                  {"entries", static_cast<int64_t>(dataset.entries.size())},
                  {"bytes", dataset.file_bytes}};
  return absl::OkStatus();
}

Json CanonicalSpec(const CalibrationSpec& spec, const CalibrationPlan& plan) {
  return {{"engine", kEngineVersion},
          {"method", std::string(plan.calibrator->name)},
          {"strategy", plan.linear.strategy},
          {"group_size", plan.linear.group_size},
          {"symmetric", plan.linear.symmetric},
          {"act_order", plan.act_order},
          {"clip_ratio", plan.linear.clip_ratio},
          {"scale_precision", std::string(DTypeName(plan.linear.scale_dtype))},
          {"kv", plan.kv.Manifest(nullptr)},
          {"static_activations", plan.static_activations},
          {"activation_asymmetric", plan.activation_asymmetric},
          {"range", {{"rule", static_cast<int>(plan.range.rule)}, {"percentile", plan.range.percentile}}},
          {"ignored", plan.ignored},
          {"overrides", OverridesRecord(plan)},
          {"format", std::string(plan.format->name)},
          {"dataset", plan.dataset},
          {"samples", spec.samples},
          {"sequence_length", spec.sequence_length},
          {"seed", spec.seed},
          {"source_sha256", plan.source_sha256},
          {"variant",
           {{"block_rows", plan.linear.block_rows},
            {"fp8_e5m2", plan.linear.fp8_e5m2},
            {"double_quant", plan.linear.double_quant},
            {"gptq_correction", plan.gptq_correction},
            {"gptq_f64", plan.linear.solve_in_f64}}}};
}

}  // namespace

absl::StatusOr<int> ResolveGroupSize(const LinearStrategyDef& strategy, LinearSpec spec,
                                     const std::vector<LinearSlot>& slots, int asked, bool automatic) {
  if (automatic) return AutomaticGroupSize(strategy, std::move(spec), slots);
  if (asked == -1) return -1;
  if (asked < -1)
    return InvalidInput("BAD_GROUP_SIZE", absl::StrCat("group_size: must be -1, 0 or positive, got ", asked));
  if (asked > 0) {
    const LinearSlot* slot = FirstNotDivided(slots, asked);
    if (slot != nullptr) return MustDivide(strategy, slots, asked, *slot);
    return asked;
  }
  // Others serve 8-bit weights with 8-bit activations by row only.
  if (strategy.integer_grid && strategy.weight_bits == 8 && strategy.activation_bits == 8) return -1;
  bool grouped = false;  // whether the strategy knows groups at all
  for (const int size : {128, 64, 32}) {
    spec.group_size = size;
    if (!strategy.check(spec, size, 4 * size).ok()) continue;
    grouped = true;
    if (FirstNotDivided(slots, size) == nullptr && CheckAll(strategy, spec, slots).ok()) return size;
  }
  spec.group_size = -1;
  if (!grouped || (!strategy.integer_grid && CheckAll(strategy, spec, slots).ok())) return -1;
  return MustDivide(strategy, slots, 32, *FirstNotDivided(slots, 32));
}

bool CalibrationPlan::Quantizes(const LinearSlot& slot) const {
  return std::find(ignored.begin(), ignored.end(), slot.name) == ignored.end();
}

LinearChoice CalibrationPlan::ChoiceOf(std::string_view module) const {
  const auto it = overrides.find(module);
  return it != overrides.end() ? it->second : LinearChoice{strategy, linear, act_order};
}

namespace {

// Static 8-bit activations are one scale of each linear's input, in compressed-tensors' words.
absl::Status PlanActivations(const CalibrationSpec& spec, CalibrationPlan& plan) {
  const std::string& word = spec.activation_scheme;
  if (!word.empty() && word != "dynamic" && word != "static") {
    return InvalidInput("BAD_ACTIVATION_SCHEME",
                        absl::StrCat("activation_scheme: must be dynamic or static, got '", word, "'"));
  }
  const bool integers = plan.strategy->activation_bits == 8 && plan.strategy->integer_grid;
  if (spec.activation_asymmetric && (!integers || plan.format->name != "compressed_tensors")) {
    return InvalidInput("ACTIVATION_ZERO_POINT_NOT_SUPPORTED",
                        absl::StrCat("activation_asymmetric: zero points belong to 8-bit integer activations in "
                                     "compressed_tensors, got ",
                                     std::string(plan.strategy->name), " in ", std::string(plan.format->name)));
  }
  plan.activation_asymmetric = spec.activation_asymmetric;
  plan.linear.activation_symmetric = !spec.activation_asymmetric;
  if (word != "static") return absl::OkStatus();
  if (plan.strategy->activation_bits != 8 || plan.format->name != "compressed_tensors") {
    return InvalidInput("STATIC_ACTIVATIONS_NOT_SUPPORTED",
                        absl::StrCat("activation_scheme: static is for 8-bit activations in compressed_tensors, got ",
                                     std::string(plan.strategy->name), " in ", std::string(plan.format->name)));
  }
  if (spec.dataset.empty()) {
    return InvalidInput("DATASET_NEEDED",
                        "dataset: must be given, static activation scales come from what layers read");
  }
  plan.static_activations = true;
  plan.linear.static_activations = true;
  return absl::OkStatus();
}

// Everything about the weights: which, to what, in which groups, stored how.
absl::Status PlanLinears(const CalibrationSpec& spec, CalibrationPlan& plan) {
  SAGE_ASSIGN_OR_RETURN(const std::vector<LinearOverride> overrides, ParseOverrides(spec.overrides));
  SAGE_ASSIGN_OR_RETURN(plan.ignored, ResolveExclude(plan.source->linears(), spec.exclude));
  ExcludeOverridden(overrides, plan.source->linears(), &plan.ignored);
  std::vector<LinearSlot> slots;
  for (const LinearSlot& slot : plan.source->linears()) {
    if (plan.Quantizes(slot)) slots.push_back(slot);
  }
  if (slots.empty()) return InvalidInput("NOTHING_TO_QUANTIZE", "exclude: leaves no linear layer to quantize");
  plan.linear.strategy = std::string(plan.strategy->name);
  plan.linear.symmetric = !spec.asymmetric;
  // Only a strategy that stores g_idx differs; the others take gptq's order with the groups as they lie.
  plan.linear.act_order = spec.act_order && plan.strategy->stores_g_idx;
  plan.act_order = spec.act_order;
  plan.linear.clip_ratio = spec.clip_ratio;
  SAGE_RETURN_IF_ERROR(PlanActivations(spec, plan));
  SAGE_RETURN_IF_ERROR(PlanVariant(spec, plan));
  SAGE_ASSIGN_OR_RETURN(plan.linear.scale_dtype, ResolveScaleDType(spec.scale_precision, plan, slots[0]));
  // The common size need not fit layers that have their own.
  std::vector<LinearSlot> common = WithoutOwnGroupSize(overrides, slots);
  if (common.empty()) common = slots;
  if (plan.linear.group_size == -1) {
    SAGE_ASSIGN_OR_RETURN(plan.linear.group_size,
                          ResolveGroupSize(*plan.strategy, plan.linear, common, spec.group_size, spec.group_size_auto));
  }
  SAGE_ASSIGN_OR_RETURN(plan.overrides, ResolveOverrides(overrides, plan, slots));
  SAGE_RETURN_IF_ERROR(CheckTensorParallel(plan, slots, spec.tensor_parallel));
  slots.erase(std::remove_if(slots.begin(), slots.end(),
                             [&](const LinearSlot& slot) { return plan.overrides.count(slot.name) > 0; }),
              slots.end());
  SAGE_RETURN_IF_ERROR(CheckAll(*plan.strategy, plan.linear, slots));
  SAGE_ASSIGN_OR_RETURN(plan.quantization_config, MixedQuantizationConfig(plan));
  const Json scheme = plan.kv.Scheme();
  if (plan.format->name == "compressed_tensors") plan.quantization_config["kv_cache_scheme"] = scheme;
  return absl::OkStatus();
}

// kl cuts the ranges of static integers that a model computes: without any it would be minmax under another name.
absl::Status CheckRangeRule(const CalibrationPlan& plan) {
  if (plan.range.rule != RangeRule::kKl) return absl::OkStatus();
  const bool activations = plan.static_activations && plan.strategy->weight_dtype != "fp8";
  const bool cache = plan.kv.calibrates && plan.kv.range.rule == RangeRule::kKl;
  if (activations || cache) return absl::OkStatus();
  return InvalidInput(
      "METHOD_HAS_NO_RANGE",
      absl::StrCat("method: kl cuts the ranges of static 8-bit integers, and there are none to cut: give "
                   "activation_scheme static with int8 activations, or a static int8 kv_quantization; "
                   "use minmax for ",
                   std::string(plan.strategy->name), " alone"));
}

}  // namespace

absl::StatusOr<CalibrationPlan> PlanCalibration(const CalibrationSpec& spec) {
  CalibrationPlan plan;
  SAGE_RETURN_IF_ERROR(CheckNumbers(spec));
  SAGE_ASSIGN_OR_RETURN(plan.calibrator, FindCalibrator(spec.method.empty() ? "minmax" : spec.method));
  SAGE_RETURN_IF_ERROR(WeightStrategy(spec).status());
  SAGE_ASSIGN_OR_RETURN(plan.source, ArtifactSource::Open(spec.model));
  if (spec.rotate) {
    SAGE_ASSIGN_OR_RETURN(auto rotation, ModelRotation::Create(plan.source->config(), spec.seed));
    plan.source->Rotate(std::move(rotation));
  }
  plan.range = RangeOf(spec);
  SAGE_ASSIGN_OR_RETURN(plan.kv, PlanKvCalibration(spec, plan.range, plan.source->config().L));
  SAGE_RETURN_IF_ERROR(CheckKnown(spec, plan));
  if (plan.strategy->quantizes) SAGE_RETURN_IF_ERROR(PlanLinears(spec, plan));
  SAGE_RETURN_IF_ERROR(CheckRangeRule(plan));
  SAGE_RETURN_IF_ERROR(ReadDatasetSummary(spec, plan));
  SAGE_ASSIGN_OR_RETURN(plan.source_sha256, plan.source->checkpoint().Fingerprint());
  plan.spec = CanonicalSpec(spec, plan);
  if (plan.source->rotation() != nullptr) plan.spec["rotation"] = plan.source->rotation()->Record();
  plan.spec_hash = Sha256Hex(DumpJson(plan.spec));
  return plan;
}

}  // namespace sage
