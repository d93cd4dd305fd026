// Groups layers by how they are stored, then finds the strategy of the target that takes each group.
#include "engine/runtime/convert_schemes.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/runtime/output_format.h"
#include "engine/tensor/float_convert.h"

namespace sage {
namespace {

// Scales of one scheme may have several dtypes: each tensor says its own.
bool SameScheme(const LinearSpec& a, const LinearSpec& b) {
  return a.strategy == b.strategy && a.group_size == b.group_size && a.symmetric == b.symmetric &&
         a.act_order == b.act_order && a.block_rows == b.block_rows && a.double_quant == b.double_quant &&
         a.activation_group_size == b.activation_group_size && a.static_activations == b.static_activations &&
         a.activation_symmetric == b.activation_symmetric;
}

size_t IndexOf(std::vector<ConvertedScheme>& schemes, const LinearSpec& spec, const LinearStrategyDef* strategy) {
  for (size_t i = 0; i < schemes.size(); ++i) {
    if (SameScheme(schemes[i].spec, spec)) return i;
  }
  schemes.push_back({spec, strategy, {}});
  return schemes.size() - 1;
}

// The spec of layers rewritten as `wanted`; scales take the target's dtype where it cannot hold the source's.
absl::Status ChooseSpec(const LinearStrategyDef& wanted, const std::vector<LinearSlot>& slots, LinearSpec* spec) {
  spec->strategy = std::string(wanted.name);
  for (const DType dtype : {spec->scale_dtype, DType::kF16, DType::kF32}) {
    spec->scale_dtype = dtype;
    if (GetErrorReason(wanted.check(*spec, slots[0].N, slots[0].K)).reason != "BAD_SCALE_DTYPE") break;
  }
  for (const LinearSlot& slot : slots) {
    const absl::Status status = wanted.check(*spec, slot.N, slot.K);
    if (!status.ok()) return Annotate(status, slot.name);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<StoredActivations> ActivationsOf(const StoredLinear& stored) {
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
  StoredActivations out;
  out.bits = std::min(16, def->activation_bits);
  if (out.bits != 8) return out;
  out.group_size = stored.spec.activation_group_size;
  out.symmetric = stored.spec.activation_symmetric;
  const auto scale = stored.tensors.find("input_scale"), zero = stored.tensors.find("input_zero_point");
  if (scale == stored.tensors.end()) return out;
  out.fixed = true;
  out.symmetric = true;  // the zero says it
  SAGE_RETURN_IF_ERROR(ToFloat(scale->second, &out.scale));
  if (zero != stored.tensors.end()) out.zero = static_cast<float>(*zero->second.as<int8_t>());
  return out;
}

absl::Status ConvertedLayers::Add(const ArtifactSource& source, const LinearSlot& slot) {
  SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, source.Stored(slot));
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
  if (!def->quantizes) {
    ignored_.push_back(slot.name);
    return absl::OkStatus();
  }
  LinearSpec spec = stored.spec;
  spec.static_activations = def->activation_bits == 8 && stored.tensors.count("input_scale") > 0;
  if (spec.static_activations) spec.activation_symmetric = stored.tensors.count("input_zero_point") == 0;
  scheme_of_[slot.name] = IndexOf(schemes_, spec, def);
  return absl::OkStatus();
}

// One scale a row is also one group of all inputs: such a layer belongs to the scheme with groups of that size.
void ConvertedLayers::JoinWholeRows(const ArtifactSource& source) {
  for (const LinearSlot& slot : source.linears()) {
    const auto it = scheme_of_.find(slot.name);
    if (it == scheme_of_.end() || schemes_[it->second].spec.group_size != -1) continue;
    LinearSpec grouped = schemes_[it->second].spec;
    grouped.group_size = static_cast<int>(slot.K);
    for (size_t i = 0; i < schemes_.size(); ++i) {
      if (SameScheme(schemes_[i].spec, grouped)) it->second = i;
    }
  }
}

absl::Status ConvertedLayers::Retarget(const ArtifactSource& source, const std::string& format) {
  std::vector<ConvertedScheme> targets;
  std::vector<size_t> target_of(schemes_.size());
  for (size_t i = 0; i < schemes_.size(); ++i) {
    std::vector<LinearSlot> slots;
    for (const LinearSlot& slot : source.linears()) {
      const auto it = scheme_of_.find(slot.name);
      if (it != scheme_of_.end() && it->second == i) slots.push_back(slot);
    }
    if (slots.empty()) continue;  // all of it joined another
    const LinearStrategyDef* from = schemes_[i].strategy;
    SAGE_ASSIGN_OR_RETURN(format_, FindOutputFormat(format, *from));
    SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* wanted, StrategyIn(*format_, *from));
    // Another strategy takes the codes only when both are integers of the same grid.
    if (wanted != from && !(from->integer_grid && wanted->integer_grid)) return CannotStore(format_->name, *from);
    LinearSpec spec = schemes_[i].spec;
    if (wanted != from) SAGE_RETURN_IF_ERROR(ChooseSpec(*wanted, slots, &spec));
    target_of[i] = IndexOf(targets, spec, wanted);
  }
  for (auto& [module, index] : scheme_of_) {
    index = target_of[index];
    targets[index].modules.push_back(module);
  }
  schemes_ = std::move(targets);
  return absl::OkStatus();
}

void ConvertedLayers::Count() {
  for (size_t i = 0; i < schemes_.size(); ++i) {
    if (schemes_[i].modules.size() > schemes_[most_].modules.size()) most_ = i;
  }
}

absl::StatusOr<ConvertedLayers> ConvertedLayers::Plan(const ArtifactSource& source, const std::string& format) {
  ConvertedLayers out;
  for (const LinearSlot& slot : source.linears()) SAGE_RETURN_IF_ERROR(out.Add(source, slot));
  if (out.schemes_.empty()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NOTHING_QUANTIZED",
                     absl::StrCat(format, ": the source has no quantized layer; use calibrate"));
  }
  out.JoinWholeRows(source);
  SAGE_RETURN_IF_ERROR(out.Retarget(source, format));
  out.Count();
  return out;
}

const ConvertedScheme* ConvertedLayers::Of(const std::string& module) const {
  const auto it = scheme_of_.find(module);
  return it == scheme_of_.end() ? nullptr : &schemes_[it->second];
}

absl::StatusOr<Json> ConvertedLayers::Config() const {
  SAGE_ASSIGN_OR_RETURN(Json config, format_->write_config(most().spec, *most().strategy, ignored_));
  std::vector<MixedModules> mixed;
  for (size_t i = 0; i < schemes_.size(); ++i) {
    if (i == most_) continue;
    const ConvertedScheme& scheme = schemes_[i];
    SAGE_ASSIGN_OR_RETURN(Json part, format_->write_config(scheme.spec, *scheme.strategy, {}));
    mixed.push_back({scheme.modules, scheme.spec, scheme.strategy, std::move(part)});
  }
  if (mixed.empty()) return config;
  if (format_->merge_configs == nullptr) {
    return MakeError(absl::StatusCode::kUnimplemented, "MIXED_SCHEMES_NOT_HELD",
                     absl::StrCat(mixed[0].modules[0], ": ", std::string(format_->name),
                                  " folders store every quantized layer alike, and this one differs from ",
                                  most().modules[0], "; convert to compressed_tensors or gptq"));
  }
  return format_->merge_configs(std::move(config), mixed);
}

}  // namespace sage
