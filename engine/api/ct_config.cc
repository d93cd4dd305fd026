// Builds compressed-tensors' quantization_config.
#include "engine/api/ct_config.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/api/checkpoint_format.h"

namespace sage {
namespace {

// Keys of QuantizationArgs that every group of ours has.
Json Arguments(int bits, const char* type, bool symmetric, const char* strategy) {
  return {{"num_bits", bits},       {"type", type},
          {"symmetric", symmetric}, {"strategy", strategy},
          {"group_size", nullptr},  {"dynamic", false},
          {"actorder", nullptr},    {"block_structure", nullptr},
          {"observer", "minmax"},   {"observer_kwargs", Json::object()}};
}

// input_activations of a layer with 8-bit activations.
Json ActivationsOf(const LinearSpec& spec, bool floats) {
  if (spec.static_activations) return CompressedTensorsStaticActivations(floats, spec.activation_symmetric);
  const bool groups = spec.activation_group_size > 0;
  Json out = Arguments(8, floats ? "float" : "int", spec.activation_symmetric, groups ? "group" : "token");
  if (groups) out["group_size"] = spec.activation_group_size;
  out["dynamic"] = true;
  out["observer"] = nullptr;
  return out;
}

// Keys of every configuration of ours.
Json Configuration(const char* format, const std::vector<std::string>& ignore, const Json& groups) {
  return {{"quant_method", "compressed-tensors"},
          {"version", "0.12.0"},
          {"format", format},
          {"quantization_status", "compressed"},
          {"global_compression_ratio", nullptr},
          {"ignore", ignore},
          {"config_groups", groups},
          {"kv_cache_scheme", nullptr},
          {"sparsity_config", Json::object()},
          {"transform_config", Json::object()}};
}

}  // namespace

Json CompressedTensorsKvScheme(bool floats, bool by_head) {
  return Arguments(8, floats ? "float" : "int", true, by_head ? "attn_head" : "tensor");
}

Json CompressedTensorsStaticActivations(bool floats, bool symmetric) {
  return Arguments(8, floats ? "float" : "int", symmetric, "tensor");
}

Json CompressedTensorsKvOnlyConfig(const Json& scheme) {
  Json out = Configuration("dense", {}, Json::object());
  out["kv_cache_scheme"] = scheme;
  return out;
}

absl::StatusOr<Json> CompressedTensorsConfig(const LinearSpec& spec, const LinearStrategyDef& strategy,
                                             const std::vector<std::string>& ignored) {
  const bool integer = strategy.integer_grid && strategy.name.compare(0, 3, "int") == 0;
  const bool fp8 = strategy.weight_dtype == "fp8";
  if (!integer && !fp8) return CannotStore("compressed_tensors", strategy);
  const bool small = strategy.activation_bits == 8, grouped = integer && spec.group_size > 0;
  const char* format = fp8                                  ? "float-quantized"
                       : small && strategy.weight_bits == 8 ? "int-quantized"
                                                            : "pack-quantized";
  const bool whole = fp8 && spec.block_rows == -1;
  Json weights = Arguments(strategy.weight_bits, fp8 ? "float" : "int", spec.symmetric,
                           grouped ? "group"
                           : whole ? "tensor"
                                   : "channel");
  if (grouped) weights["group_size"] = spec.group_size;
  if (spec.act_order) weights["actorder"] = "group";
  if (fp8 && spec.group_size > 0) {
    weights["strategy"] = "block";
    weights["block_structure"] = {spec.block_rows, spec.group_size};
  }
  // compressed-tensors means e4m3 by 8-bit floats and knows no word for e5m2. It refuses words that it does not know,
  // which is what it should do here: taken for e4m3 the codes would be read as other numbers.
  if (fp8 && spec.fp8_e5m2) weights["float_format"] = "e5m2";
  const Json group = {{"targets", {"Linear"}},
                      {"weights", weights},
                      {"input_activations", small ? ActivationsOf(spec, fp8) : Json(nullptr)},
                      {"output_activations", nullptr},
                      {"format", format}};
  std::vector<std::string> ignore = ignored;
  if (std::find(ignore.begin(), ignore.end(), "lm_head") == ignore.end()) ignore.push_back("lm_head");
  return Configuration(format, ignore, {{"group_0", group}});
}

absl::StatusOr<Json> MergeCompressedTensorsConfigs(Json config, const std::vector<MixedModules>& mixed) {
  int next = 1;
  for (const MixedModules& part : mixed) {
    Json group = part.config["config_groups"]["group_0"];
    group["targets"] = part.modules;
    if (group["format"] != config["format"]) config["format"] = "mixed-precision";
    config["config_groups"][absl::StrCat("group_", next++)] = std::move(group);
  }
  return config;
}

}  // namespace sage
