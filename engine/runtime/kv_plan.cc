// Reads KV plans and scales of checkpoints. Every number comes from outside: counts and values are checked before use,
// and a scale that should be there and is not is an error, never 1.
//
// Names of scales, all relative to model.layers.N.self_attn (reference/quantization.md 1.5):
//   k_scale, v_scale                                 compressed-tensors, ours      [1], [KH] or [KH, 1, 1]
//   k_proj.k_scale, v_proj.v_scale                   ModelOpt                      [1]
//   k_proj.output_scale, v_proj.output_scale         older llm-compressor          [1]
//   qkv_proj.k_scale, qkv_proj.v_scale               fused                         [1]
//   kv_scale                                         oldest vLLM, one for both     [1]
//   {k,v}_proj.kv_cache_scale, .kv_cache_offset      msModelSlim C8, ours          [KH * D]; x = (code - offset) scale
#include "engine/runtime/kv_plan.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/file.h"
#include "engine/base/glob.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/calibrate_plan.h"

namespace sage {
namespace {

constexpr int64_t kMostSinkTokens = 1024;
constexpr size_t kMostConfigBytes = size_t{16} << 20;

std::string AttentionOf(int64_t layer) { return absl::StrCat("model.layers.", layer, ".self_attn"); }

// What a checkpoint says about its KV cache.
struct StoredKv {
  std::string strategy;  // empty: nothing
  bool calibrated = false;
  std::vector<int64_t> wide;
  int64_t sink_tokens = 0;
  std::string source;  // for notes
};

struct ScaleNames {
  const char *k, *v;
};
constexpr ScaleNames kScaleNames[] = {{"k_scale", "v_scale"},
                                      {"k_proj.k_scale", "v_proj.v_scale"},
                                      {"k_proj.output_scale", "v_proj.output_scale"},
                                      {"qkv_proj.k_scale", "qkv_proj.v_scale"},
                                      {"kv_scale", "kv_scale"}};

std::string Named(int64_t layer, std::string_view suffix) {
  return absl::StrCat(AttentionOf(layer), ".", std::string(suffix));
}

bool HasScale(const Checkpoint& checkpoint, int64_t layer) {
  return std::any_of(std::begin(kScaleNames), std::end(kScaleNames), [&](const ScaleNames& names) {
    return checkpoint.HasTensor(Named(layer, names.k)) || checkpoint.HasTensor(Named(layer, names.v));
  });
}

bool HasChannelScale(const Checkpoint& checkpoint, int64_t layer) {
  return checkpoint.HasTensor(Named(layer, "k_proj.kv_cache_scale")) ||
         checkpoint.HasTensor(Named(layer, "v_proj.kv_cache_scale"));
}

absl::StatusOr<std::vector<float>> ReadValues(const Checkpoint& checkpoint, const std::string& name, int64_t most) {
  SAGE_ASSIGN_OR_RETURN(const TensorView view, checkpoint.GetTensor(name));
  const int64_t count = view.elements();
  if (!IsFloat(view.dtype) || count < 1 || count > most ||
      view.bytes != static_cast<size_t>(count) * DTypeSize(view.dtype)) {
    return InvalidInput("BAD_KV_SCALES",
                        absl::StrCat(checkpoint.path(), ": ", name, ": must be 1 to ", most, " floats, got ",
                                     std::string(DTypeName(view.dtype)), " ", ShapeText(view.shape)));
  }
  std::vector<float> out(static_cast<size_t>(count));
  SAGE_RETURN_IF_ERROR(ToFloat(view, out.data()));
  return out;
}

absl::Status Missing(const Checkpoint& checkpoint, const std::string& what) {
  return InvalidInput("KV_SCALES_MISSING",
                      absl::StrCat(checkpoint.path(), ": ", what,
                                   " must be there, because the checkpoint says that its KV scales are static; start "
                                   "with a KV strategy of your own to ignore them"));
}

absl::StatusOr<std::shared_ptr<const KvLayerScales>> ReadScales(const Checkpoint& checkpoint, const DecoderConfig& c,
                                                                int64_t layer, bool channels) {
  auto out = std::make_shared<KvLayerScales>();
  const int64_t width = static_cast<int64_t>(c.KH) * c.D;
  if (channels && HasChannelScale(checkpoint, layer)) {
    for (const bool key : {true, false}) {
      const std::string prefix = Named(layer, key ? "k_proj.kv_cache_" : "v_proj.kv_cache_");
      KvScales& scales = key ? out->k : out->v;
      if (!checkpoint.HasTensor(prefix + "scale")) return Missing(checkpoint, prefix + "scale");
      SAGE_ASSIGN_OR_RETURN(scales.scale, ReadValues(checkpoint, prefix + "scale", width));
      if (!checkpoint.HasTensor(prefix + "offset")) continue;
      SAGE_ASSIGN_OR_RETURN(scales.zero, ReadValues(checkpoint, prefix + "offset", width));
      const bool none = std::all_of(scales.zero.begin(), scales.zero.end(), [](float z) { return z == 0.0f; });
      if (none) scales.zero.clear();
    }
    return std::shared_ptr<const KvLayerScales>(std::move(out));
  }
  for (const ScaleNames& names : kScaleNames) {
    const std::string k = Named(layer, names.k), v = Named(layer, names.v);
    if (!checkpoint.HasTensor(k) && !checkpoint.HasTensor(v)) continue;
    if (!checkpoint.HasTensor(k)) return Missing(checkpoint, k);
    if (!checkpoint.HasTensor(v)) return Missing(checkpoint, v);
    SAGE_ASSIGN_OR_RETURN(out->k.scale, ReadValues(checkpoint, k, c.KH));
    SAGE_ASSIGN_OR_RETURN(out->v.scale, ReadValues(checkpoint, v, c.KH));
    return std::shared_ptr<const KvLayerScales>(std::move(out));
  }
  return Missing(checkpoint, channels ? Named(layer, "k_proj.kv_cache_scale") : Named(layer, "k_scale"));
}

// kv_cache_scheme of compressed-tensors.
absl::Status ReadScheme(const Checkpoint& checkpoint, const Json& scheme, StoredKv* out) {
  const auto refuse = [&] {
    return MakeError(absl::StatusCode::kUnimplemented, "KV_SCHEME_NOT_SUPPORTED",
                     absl::StrCat(checkpoint.path(),
                                  ": kv_cache_scheme must be symmetric 8-bit floats or integers by tensor or "
                                  "attn_head, got ",
                                  DumpJson(scheme).substr(0, 200)));
  };
  if (!scheme.is_object()) return refuse();
  SAGE_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(scheme, "num_bits", 8));
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(scheme, "type", "float"));
  SAGE_ASSIGN_OR_RETURN(const std::string strategy, JsonString(scheme, "strategy", "tensor"));
  SAGE_ASSIGN_OR_RETURN(const bool symmetric, JsonBool(scheme, "symmetric", true));
  const auto dynamic = scheme.find("dynamic");
  const bool is_dynamic = dynamic != scheme.end() && *dynamic == true;
  const bool is_static = dynamic == scheme.end() || dynamic->is_null() || *dynamic == false;
  if (bits != 8 || (type != "float" && type != "int") || !symmetric || (!is_dynamic && !is_static)) return refuse();
  if (is_static && strategy != "tensor" && strategy != "attn_head") return refuse();
  out->strategy = type == "float" ? "fp8_e4m3" : "int8_per_token";
  out->calibrated = is_static;
  out->source = "kv_cache_scheme";
  return absl::OkStatus();
}

// "kv_quant_plan" of sage_quant.json.
absl::Status ReadManifestPlan(const std::string& path, const Json& plan, int64_t layers, StoredKv* out) {
  const auto bad = [&](const std::string& rule) {
    return InvalidInput("BAD_MANIFEST", absl::StrCat(path, ": sage_quant.json: kv_quant_plan: ", rule));
  };
  if (!plan.is_object()) return bad("must be an object");
  SAGE_ASSIGN_OR_RETURN(out->strategy, JsonString(plan, "strategy", ""));
  if (out->strategy.empty()) return absl::OkStatus();
  const auto def = FindKvStrategy(out->strategy);
  if (!def.ok()) return bad(std::string(def.status().message()));
  SAGE_ASSIGN_OR_RETURN(const std::string scales, JsonString(plan, "scales", "dynamic"));
  if (scales != "dynamic" && scales != "calibrated") return bad("scales must be dynamic or calibrated");
  out->calibrated = scales == "calibrated";
  SAGE_ASSIGN_OR_RETURN(out->sink_tokens, JsonInt(plan, "sink_tokens", 0));
  if (!CheckSinkTokens(out->sink_tokens).ok()) return bad(absl::StrCat("sink_tokens is ", out->sink_tokens));
  const auto wide = plan.find("layers_16bit");
  if (wide != plan.end()) {
    if (!wide->is_array()) return bad("layers_16bit must be an array");
    for (const Json& layer : *wide) {
      if (!layer.is_number_integer() || layer.get<int64_t>() < 0 || layer.get<int64_t>() >= layers) {
        return bad(absl::StrCat("layers_16bit must hold layers below ", layers));
      }
      out->wide.push_back(layer.get<int64_t>());
    }
  }
  out->source = "sage_quant.json";
  return absl::OkStatus();
}

// kv_cache_quant_algo of ModelOpt: in quantization_config, or in the hf_quant_config.json of older exports.
absl::StatusOr<StoredKv> ReadModelOpt(const Checkpoint& checkpoint) {
  constexpr char kFile[] = "/hf_quant_config.json", kKey[] = "kv_cache_quant_algo";
  const Json& config = checkpoint.config();
  Json quantization = config.is_object() ? config.value("quantization_config", Json()) : Json();
  const std::string path = checkpoint.path() + kFile;
  if ((!quantization.is_object() || !quantization.contains(kKey)) && FileExists(path)) {
    SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMostConfigBytes));
    SAGE_ASSIGN_OR_RETURN(const Json whole, ParseJson(text, path));
    quantization = whole.is_object() ? whole.value("quantization", Json()) : Json();
  }
  StoredKv out;
  if (!quantization.is_object() || !quantization.contains(kKey) || quantization[kKey].is_null()) return out;
  SAGE_ASSIGN_OR_RETURN(const std::string algorithm, JsonString(quantization, kKey, ""));
  if (algorithm.empty() || algorithm == "NONE") return out;
  if (algorithm != "FP8" && algorithm != "INT8") {
    return MakeError(
        absl::StatusCode::kUnimplemented, "KV_SCHEME_NOT_SUPPORTED",
        absl::StrCat(checkpoint.path(), ": ", kKey, " must be FP8 or INT8, got '", algorithm.substr(0, 60), "'"));
  }
  out.strategy = algorithm == "FP8" ? "fp8_e4m3" : "int8_per_token";
  out.calibrated = HasScale(checkpoint, 0);  // exports without scales mean scales from the data
  out.source = kKey;
  return out;
}

absl::StatusOr<StoredKv> ReadStored(const Checkpoint& checkpoint, int64_t layers) {
  StoredKv out, scheme;
  const Json& config = checkpoint.config();
  const Json* stored = nullptr;
  if (config.is_object() && config.contains("quantization_config") && config["quantization_config"].is_object()) {
    const auto it = config["quantization_config"].find("kv_cache_scheme");
    if (it != config["quantization_config"].end() && !it->is_null()) stored = &*it;
  }
  if (stored != nullptr) SAGE_RETURN_IF_ERROR(ReadScheme(checkpoint, *stored, &scheme));
  const absl::StatusOr<Json> manifest = ReadManifest(checkpoint.path());
  if (!manifest.ok() && !absl::IsNotFound(manifest.status())) return manifest.status();
  if (manifest.ok() && manifest->contains("kv_quant_plan")) {
    SAGE_RETURN_IF_ERROR(ReadManifestPlan(checkpoint.path(), (*manifest)["kv_quant_plan"], layers, &out));
    if (!out.strategy.empty() && !scheme.strategy.empty() &&
        (scheme.strategy != out.strategy || scheme.calibrated != out.calibrated)) {
      return InvalidInput("KV_PLAN_CONTRADICTS", absl::StrCat(checkpoint.path(), ": sage_quant.json says kv ",
                                                              out.strategy, " and kv_cache_scheme of config.json says ",
                                                              scheme.strategy, ", they must be one plan"));
    }
    if (!out.strategy.empty()) return out;
  }
  if (!scheme.strategy.empty()) return scheme;
  SAGE_ASSIGN_OR_RETURN(StoredKv modelopt, ReadModelOpt(checkpoint));
  if (!modelopt.strategy.empty()) return modelopt;
  for (int64_t l = 0; l < layers; ++l) {
    if (!HasChannelScale(checkpoint, l)) {
      out.wide.push_back(l);
    } else {
      out.strategy = "int8_per_channel";
    }
  }
  if (out.strategy.empty()) return StoredKv();
  out.calibrated = true;
  out.source = "kv_cache_scale tensors (C8)";
  return out;
}

bool NamesLayer(const std::string& pattern, int64_t layer) {
  return GlobMatch(pattern, AttentionOf(layer)) || GlobMatch(pattern, absl::StrCat("model.layers.", layer)) ||
         GlobMatch(pattern, absl::StrCat("layers.", layer));
}

}  // namespace

bool IsEightBitKv(const std::string& strategy) {
  const auto def = FindKvStrategy(strategy);
  return def.ok() && (*def)->bits <= 8;
}

absl::Status CheckSinkTokens(int64_t sink_tokens) {
  if (sink_tokens >= 0 && sink_tokens <= kMostSinkTokens) return absl::OkStatus();
  return InvalidInput("OUT_OF_RANGE",
                      absl::StrCat("kv_sink_tokens: must be in [0, ", kMostSinkTokens, "], got ", sink_tokens));
}

absl::StatusOr<Json> StoredKvPlan(const Checkpoint& checkpoint, int64_t layers) {
  SAGE_ASSIGN_OR_RETURN(const StoredKv stored, ReadStored(checkpoint, layers));
  if (stored.strategy.empty()) return Json();
  const absl::StatusOr<Json> manifest = ReadManifest(checkpoint.path());
  if (manifest.ok() && manifest->contains("kv_quant_plan")) {
    const Json& plan = (*manifest)["kv_quant_plan"];
    if (plan.is_object() && plan.value("strategy", Json()) == Json(stored.strategy)) return plan;
  }
  return Json{{"strategy", stored.strategy},
              {"scales", stored.calibrated ? "calibrated" : "dynamic"},
              {"layers_16bit", stored.wide},
              {"sink_tokens", stored.sink_tokens}};
}

absl::StatusOr<std::vector<int64_t>> ExcludedKvLayers(const std::vector<std::string>& include,
                                                      const std::vector<std::string>& exclude, int64_t layers) {
  std::vector<bool> in(static_cast<size_t>(layers), include.empty());
  for (const bool named : {true, false}) {
    for (const std::string& pattern : named ? include : exclude) {
      bool used = false;
      for (int64_t l = 0; l < layers; ++l) {
        if (!NamesLayer(pattern, l)) continue;
        in[static_cast<size_t>(l)] = named;
        used = true;
      }
      if (used) continue;
      return InvalidInput("PATTERN_MATCHES_NOTHING",
                          absl::StrCat(named ? "kv_include" : "kv_exclude", ": must name a layer such as ",
                                       AttentionOf(0), " or layers.0, got '", pattern.substr(0, 120), "'"));
    }
  }
  std::vector<int64_t> out;
  for (int64_t l = 0; l < layers; ++l) {
    if (!in[static_cast<size_t>(l)]) out.push_back(l);
  }
  return out;
}

absl::StatusOr<KvChoice> ChooseKvPlan(const Checkpoint& checkpoint, const DecoderConfig& config, const KvAsked& asked,
                                      int page_tokens) {
  SAGE_RETURN_IF_ERROR(CheckSinkTokens(asked.sink_tokens));
  const bool own = asked.word.empty() || asked.word == "auto", none = asked.word == "none";
  std::string strategy = asked.fallback;
  if (!own && !none) {
    SAGE_ASSIGN_OR_RETURN(strategy, ResolveKvStrategy(asked.word));
  }
  absl::StatusOr<StoredKv> found = ReadStored(checkpoint, config.L);
  KvChoice out;
  if (!found.ok()) {
    // Whoever names a strategy need not care for what the checkpoint asks.
    if (own) return found.status();
    out.notes.push_back(absl::StrCat("kv: the checkpoint's own plan is ignored: ",
                                     std::string(found.status().message()).substr(0, 300)));
    found = StoredKv();
  }
  StoredKv stored = *std::move(found);
  if (own && !stored.strategy.empty()) strategy = stored.strategy;
  if (stored.strategy.empty() && strategy == "fp8_e4m3" && HasScale(checkpoint, 0)) {
    stored = {strategy, true, {}, 0, "k_scale and v_scale tensors"};
  }
  out.calibrated = stored.calibrated && stored.strategy == strategy;
  if (out.calibrated) {
    out.notes.push_back(absl::StrCat("kv: calibrated ", strategy, " scales from ", stored.source));
  } else if (stored.calibrated) {
    out.notes.push_back(
        absl::StrCat("kv: ", strategy, " was asked for, the calibrated ", stored.strategy, " scales are not used"));
  }
  const bool eight = IsEightBitKv(strategy);
  if (eight && (!asked.include.empty() || !asked.exclude.empty())) {
    SAGE_ASSIGN_OR_RETURN(out.wide, ExcludedKvLayers(asked.include, asked.exclude, config.L));
  } else if (eight && stored.strategy == strategy) {
    out.wide = stored.wide;
  }
  const int64_t sinks = asked.sink_tokens > 0 || stored.strategy != strategy ? asked.sink_tokens : stored.sink_tokens;
  if (eight) out.plan.sink_pages = static_cast<int>((sinks + page_tokens - 1) / page_tokens);
  if (!eight && (asked.sink_tokens > 0 || !asked.include.empty() || !asked.exclude.empty())) {
    out.notes.push_back(absl::StrCat("kv: ", strategy,
                                     " keeps 16 bits or more everywhere; layers and sink tokens "
                                     "that were named change nothing"));
  }
  for (int64_t l = 0; l < config.L; ++l) {
    KvLayerPlan layer{strategy, nullptr};
    if (std::find(out.wide.begin(), out.wide.end(), l) != out.wide.end()) {
      layer.strategy = "bf16";
    } else if (out.calibrated) {
      SAGE_ASSIGN_OR_RETURN(layer.scales, ReadScales(checkpoint, config, l, strategy == "int8_per_channel"));
    }
    out.plan.layers.push_back(std::move(layer));
  }
  if (!out.wide.empty()) {
    out.notes.push_back(absl::StrCat("kv: 16 bits in layers ", absl::StrJoin(out.wide, ", ")));
  }
  if (out.plan.sink_pages > 0) {
    out.notes.push_back(absl::StrCat("kv: the first ", int64_t{out.plan.sink_pages} * page_tokens,
                                     " positions of each sequence keep 16 bits"));
  }
  return out;
}

}  // namespace sage
