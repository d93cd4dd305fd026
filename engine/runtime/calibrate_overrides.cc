// Parses overrides, settles each module's scheme and gathers modules of one scheme for the format's config.
#include "engine/runtime/calibrate_overrides.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/base/glob.h"
#include "engine/base/status.h"
#include "engine/runtime/output_format.h"

namespace sage {
namespace {

constexpr size_t kMostOverrides = 1000;

absl::Status Bad(const std::string& text, const std::string& rule) {
  return MakeError(absl::StatusCode::kInvalidArgument, "BAD_OVERRIDE",
                   absl::StrCat("override '", text.substr(0, 200), "': ", rule));
}

absl::StatusOr<int> Whole(const std::string& text, const std::string& key, const std::string& value) {
  int out = 0;
  if (!absl::SimpleAtoi(value, &out)) return Bad(text, absl::StrCat(key, " must be a whole number, got '", value, "'"));
  return out;
}

absl::StatusOr<bool> Truth(const std::string& text, const std::string& key, const std::string& value) {
  if (value == "true") return true;
  if (value == "false") return false;
  return Bad(text, absl::StrCat(key, " must be true or false, got '", value, "'"));
}

absl::StatusOr<LinearOverride> Parse(const std::string& text) {
  LinearOverride out;
  out.text = text;
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0) return Bad(text, "must be PATTERN=key:value,...");
  out.pattern = text.substr(0, equals);
  const std::vector<std::string> parts = absl::StrSplit(text.substr(equals + 1), ',');
  for (const std::string& part : parts) {
    const size_t colon = part.find(':');
    const std::string key = part.substr(0, colon), value = colon == std::string::npos ? "" : part.substr(colon + 1);
    if (key == "bits") {
      SAGE_ASSIGN_OR_RETURN(out.bits, Whole(text, key, value));
      if (*out.bits < 2 || *out.bits > 8) return Bad(text, absl::StrCat("bits must be 2..8, got ", *out.bits));
    } else if (key == "group_size") {
      SAGE_ASSIGN_OR_RETURN(out.group_size, Whole(text, key, value));
      if (*out.group_size != -1 && *out.group_size < 1) {
        return Bad(text, absl::StrCat("group_size must be -1 or positive, got ", *out.group_size));
      }
    } else if (key == "symmetric") {
      SAGE_ASSIGN_OR_RETURN(out.symmetric, Truth(text, key, value));
    } else if (key == "exclude") {
      SAGE_ASSIGN_OR_RETURN(out.exclude, Truth(text, key, value));
    } else {
      return Bad(text, absl::StrCat("keys are bits, group_size, symmetric and exclude, got '", key.substr(0, 60), "'"));
    }
  }
  return out;
}

// The strategy of `bits` that is otherwise like `like` and that the format holds.
absl::StatusOr<const LinearStrategyDef*> StrategyOfBits(int bits, const CalibrationPlan& plan,
                                                        const LinearOverride& by) {
  if (bits == plan.strategy->weight_bits) return plan.strategy;
  std::vector<std::string> held;
  for (const LinearStrategyDef* def : LinearStrategies()) {
    if (def->activation_bits != plan.strategy->activation_bits || !def->integer_grid || !def->quantizes ||
        !FormatHolds(*plan.format, *def)) {
      continue;
    }
    if (def->weight_bits == bits) return def;
    held.push_back(absl::StrCat(def->weight_bits));
  }
  return MakeError(
      absl::StatusCode::kInvalidArgument, "OVERRIDE_NOT_HELD",
      absl::StrCat("override '", by.text, "': ", std::string(plan.format->name), " holds [", absl::StrJoin(held, ", "),
                   "] bits with ", plan.strategy->activation_bits, "-bit activations, got ", bits),
      {{"bits", absl::StrJoin(held, ",")}});
}

// What all overrides that match say together, later ones last; the last one that matched is named in errors.
std::optional<LinearOverride> Merged(const std::vector<LinearOverride>& overrides, const std::string& module,
                                     std::vector<bool>* used) {
  std::optional<LinearOverride> out;
  for (size_t i = 0; i < overrides.size(); ++i) {
    const LinearOverride& next = overrides[i];
    if (!GlobMatch(next.pattern, module)) continue;
    if (used != nullptr) (*used)[i] = true;
    if (!out.has_value()) out.emplace();
    out->text = next.text;
    if (next.bits.has_value()) out->bits = next.bits;
    if (next.group_size.has_value()) out->group_size = next.group_size;
    if (next.symmetric.has_value()) out->symmetric = next.symmetric;
    if (next.exclude.has_value()) out->exclude = next.exclude;
  }
  return out;
}

absl::StatusOr<LinearChoice> Resolve(const LinearOverride& by, const CalibrationPlan& plan, const LinearSlot& slot) {
  LinearChoice out = {plan.strategy, plan.linear, plan.act_order};
  SAGE_ASSIGN_OR_RETURN(out.strategy, StrategyOfBits(by.bits.value_or(plan.strategy->weight_bits), plan, by));
  out.linear.strategy = std::string(out.strategy->name);
  out.linear.act_order = plan.act_order && out.strategy->stores_g_idx;
  if (by.symmetric.has_value()) out.linear.symmetric = *by.symmetric;
  const int asked = by.group_size.value_or(plan.linear.group_size);
  SAGE_ASSIGN_OR_RETURN(out.linear.group_size, ResolveGroupSize(*out.strategy, out.linear, {slot}, asked, false));
  SAGE_RETURN_IF_ERROR(out.strategy->check(out.linear, slot.N, slot.K));
  return out;
}

// For an override that matches no quantized module: true when it says that of its modules, false when it matches none
// at all. OVERRIDE_HAS_NO_EFFECT when it asks for something else.
absl::StatusOr<bool> OnlyExcludes(const LinearOverride& by, const std::vector<LinearSlot>& all) {
  for (const LinearSlot& slot : all) {
    if (!GlobMatch(by.pattern, slot.name)) continue;
    if (by.exclude.value_or(false) && !by.bits && !by.group_size && !by.symmetric) return true;
    return MakeError(
        absl::StatusCode::kInvalidArgument, "OVERRIDE_HAS_NO_EFFECT",
        absl::StrCat(
            "override '", by.text, "': names only modules that keep their stored weights, such as ", slot.name,
            slot.layer < 0 ? " (head_quantization of an engine quantizes the head when it starts)" : " (excluded)"));
  }
  return false;
}

}  // namespace

absl::StatusOr<std::vector<LinearOverride>> ParseOverrides(const std::vector<std::string>& texts) {
  if (texts.size() > kMostOverrides) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TOO_MANY_PATTERNS",
                     absl::StrCat("override: at most ", kMostOverrides, ", got ", texts.size()));
  }
  std::vector<LinearOverride> out;
  for (const std::string& text : texts) {
    SAGE_ASSIGN_OR_RETURN(LinearOverride parsed, Parse(text));
    out.push_back(std::move(parsed));
  }
  return out;
}

void ExcludeOverridden(const std::vector<LinearOverride>& overrides, const std::vector<LinearSlot>& slots,
                       std::vector<std::string>* ignored) {
  for (const LinearSlot& slot : slots) {
    if (slot.layer < 0) continue;
    const std::optional<LinearOverride> merged = Merged(overrides, slot.name, nullptr);
    if (!merged.has_value() || !merged->exclude.has_value()) continue;
    const auto at = std::find(ignored->begin(), ignored->end(), slot.name);
    if (*merged->exclude && at == ignored->end()) ignored->push_back(slot.name);
    if (!*merged->exclude && at != ignored->end()) ignored->erase(at);
  }
}

std::vector<LinearSlot> WithoutOwnGroupSize(const std::vector<LinearOverride>& overrides,
                                            const std::vector<LinearSlot>& slots) {
  std::vector<LinearSlot> out;
  for (const LinearSlot& slot : slots) {
    const std::optional<LinearOverride> merged = Merged(overrides, slot.name, nullptr);
    if (!merged.has_value() || !merged->group_size.has_value()) out.push_back(slot);
  }
  return out;
}

absl::StatusOr<std::vector<std::string>> ResolveExclude(const std::vector<LinearSlot>& slots,
                                                        const std::vector<std::string>& patterns) {
  std::vector<bool> used(patterns.size(), false);
  std::vector<std::string> ignored;
  for (const LinearSlot& slot : slots) {
    bool out = slot.layer < 0;
    for (size_t i = 0; i < patterns.size(); ++i) {
      if (!GlobMatch(patterns[i], slot.name)) continue;
      out = true;
      used[i] = true;
    }
    if (out) ignored.push_back(slot.name);
  }
  for (size_t i = 0; i < patterns.size(); ++i) {
    if (used[i] || GlobMatch(patterns[i], "lm_head") || GlobMatch(patterns[i], "model.embed_tokens")) continue;
    return MakeError(
        absl::StatusCode::kInvalidArgument, "PATTERN_MATCHES_NOTHING",
        absl::StrCat("exclude: must name a linear module such as ", slots.front().name, ", got '", patterns[i], "'"));
  }
  return ignored;
}

absl::StatusOr<std::map<std::string, LinearOverride>> MergeOverrides(const std::vector<LinearOverride>& overrides,
                                                                     const std::vector<LinearSlot>& slots,
                                                                     const std::vector<LinearSlot>& all) {
  std::map<std::string, LinearOverride> out;
  std::vector<bool> used(overrides.size());
  for (const LinearSlot& slot : slots) {
    std::optional<LinearOverride> merged = Merged(overrides, slot.name, &used);
    if (merged.has_value()) out[slot.name] = *std::move(merged);
  }
  for (size_t i = 0; i < overrides.size(); ++i) {
    if (used[i]) continue;
    SAGE_ASSIGN_OR_RETURN(const bool excludes, OnlyExcludes(overrides[i], all));
    if (excludes) continue;
    return MakeError(absl::StatusCode::kInvalidArgument, "PATTERN_MATCHES_NOTHING",
                     absl::StrCat("override '", overrides[i].text, "': the pattern must name a linear module such as ",
                                  all.front().name));
  }
  return out;
}

absl::StatusOr<std::map<std::string, LinearChoice, std::less<>>> ResolveOverrides(
    const std::vector<LinearOverride>& overrides, const CalibrationPlan& plan, const std::vector<LinearSlot>& slots) {
  std::map<std::string, LinearChoice, std::less<>> out;
  SAGE_ASSIGN_OR_RETURN(const auto merged, MergeOverrides(overrides, slots, plan.source->linears()));
  for (const LinearSlot& slot : slots) {
    const auto by = merged.find(slot.name);
    if (by == merged.end()) continue;
    absl::StatusOr<LinearChoice> choice = Resolve(by->second, plan, slot);
    if (!choice.ok()) return Annotate(choice.status(), absl::StrCat("override '", by->second.text, "': ", slot.name));
    if (choice->strategy == plan.strategy && choice->linear.group_size == plan.linear.group_size &&
        choice->linear.symmetric == plan.linear.symmetric) {
      continue;
    }
    out[slot.name] = *std::move(choice);
  }
  return out;
}

absl::StatusOr<Json> MixedQuantizationConfig(const CalibrationPlan& plan) {
  SAGE_ASSIGN_OR_RETURN(Json config, plan.format->write_config(plan.linear, *plan.strategy, plan.ignored));
  if (plan.overrides.empty()) return config;
  if (plan.format->merge_configs == nullptr) {
    return MakeError(absl::StatusCode::kInvalidArgument, "MIXED_SCHEMES_NOT_HELD",
                     absl::StrCat("override: ", std::string(plan.format->name),
                                  " folders store every layer alike (exclude is possible); use --format "
                                  "compressed_tensors or gptq"));
  }
  std::map<std::tuple<std::string, int, bool>, MixedModules> parts;
  for (const auto& [module, choice] : plan.overrides) {
    MixedModules& part = parts[{choice.linear.strategy, choice.linear.group_size, choice.linear.symmetric}];
    part.modules.push_back(module);
    part.spec = choice.linear;
    part.strategy = choice.strategy;
  }
  std::vector<MixedModules> mixed;
  for (auto& [key, part] : parts) {
    SAGE_ASSIGN_OR_RETURN(part.config, plan.format->write_config(part.spec, *part.strategy, {}));
    mixed.push_back(std::move(part));
  }
  return plan.format->merge_configs(std::move(config), mixed);
}

Json OverridesRecord(const CalibrationPlan& plan) {
  Json out = Json::object();
  for (const auto& [module, choice] : plan.overrides) {
    out[module] = {{"strategy", choice.linear.strategy},
                   {"group_size", choice.linear.group_size},
                   {"symmetric", choice.linear.symmetric}};
  }
  return out;
}

}  // namespace sage
