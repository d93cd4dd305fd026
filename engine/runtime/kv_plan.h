// Which KV strategy each layer of a model takes, from what was asked and what the checkpoint carries: the plan of our
// own artifacts, a compressed-tensors kv_cache_scheme, or scales that lie beside the weights.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/checkpoint_format.h"
#include "engine/api/kv_strategy.h"
#include "engine/api/model.h"
#include "engine/base/json.h"

namespace sage {

// Words of a start request or a report.
struct KvAsked {
  std::string word;      // "", "auto": the checkpoint's own plan, else `fallback`; "none": `fallback`
  std::string fallback;  // plug-in name
  std::vector<std::string> include, exclude;  // layers; empty: the checkpoint's own
  int64_t sink_tokens = 0;                    // 0: the checkpoint's own
};

struct KvChoice {
  KvPlan plan;
  bool calibrated = false;         // scales come from the checkpoint
  std::vector<int64_t> wide;       // layers that keep 16 bits beside 8-bit ones
  std::vector<std::string> notes;  // what was taken from where
};

// INVALID_ARGUMENT: KV_SCALES_MISSING, BAD_KV_SCALES, KV_PLAN_CONTRADICTS, PATTERN_MATCHES_NOTHING. UNIMPLEMENTED
// (KV_SCHEME_NOT_SUPPORTED) for a scheme of the checkpoint that nobody overrides.
absl::StatusOr<KvChoice> ChooseKvPlan(const Checkpoint& checkpoint, const DecoderConfig& config, const KvAsked& asked,
                                      int page_tokens);

// The plan that a checkpoint carries, as "kv_quant_plan" of a manifest; null when it has none.
absl::StatusOr<Json> StoredKvPlan(const Checkpoint& checkpoint, int64_t layers);

// Layers that patterns take out of a KV strategy: those no `include` names (none given: all are named) and those an
// `exclude` names. A pattern is a glob over "model.layers.3.self_attn", "model.layers.3" and "layers.3".
absl::StatusOr<std::vector<int64_t>> ExcludedKvLayers(const std::vector<std::string>& include,
                                                      const std::vector<std::string>& exclude, int64_t layers);

// True for a strategy of 8 bits, which is what calibration and exclusion are about.
bool IsEightBitKv(const std::string& strategy);
absl::Status CheckSinkTokens(int64_t sink_tokens);  // [0, 1024]

}  // namespace sage
