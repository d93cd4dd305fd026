// Matches schemes with formats, and takes stored integers apart by what their strategy hands to a backend.
#include "engine/runtime/output_format.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/api/backend.h"
#include "engine/base/status.h"
#include "engine/quant/integer_grid.h"

namespace sage {
namespace {

// Binding turns every file layout into the canonical integers; this backend keeps them and runs nothing.
class CanonicalTaker final : public Backend {
 public:
  std::string_view name() const override { return "canonical form"; }
  std::string capability() const override { return ""; }
  const Kernels& kernels() const override { return kernels_; }
  KernelChoice SelectLinear(const LinearKernelQuery&) const override { return {}; }
  absl::StatusOr<std::unique_ptr<BoundLinear>> BindLinear(const LinearKernelQuery&, LinearWeight weight,
                                                          ThreadPool&) const override {
    taken = std::move(weight);
    return std::unique_ptr<BoundLinear>();
  }
  absl::StatusOr<std::unique_ptr<KvKernel>> BindKv(std::string_view, const KvLayout&) const override {
    return absl::UnimplementedError("canonical form: has no KV cache");
  }
  std::vector<std::string> ListKernels() const override { return {}; }

  mutable LinearWeight taken;

 private:
  Kernels kernels_{};
};

}  // namespace

bool FormatHolds(const CheckpointFormatDef& format, const LinearStrategyDef& strategy) {
  LinearSpec probe;
  probe.strategy = std::string(strategy.name);
  return format.write_config != nullptr && format.write_config(probe, strategy, {}).ok();
}

absl::StatusOr<const CheckpointFormatDef*> FindOutputFormat(const std::string& word,
                                                            const LinearStrategyDef& strategy) {
  std::vector<std::string> written;
  if (word == "fp8") {  // what others call compressed-tensors' float-quantized
    if (strategy.weight_dtype != "fp8") return CannotStore(word, strategy);
    return FindOutputFormat("compressed_tensors", strategy);
  }
  for (const CheckpointFormatDef* def : CheckpointFormats()) {
    if (def->write_config == nullptr) continue;
    written.emplace_back(def->name);
    const bool named = word == def->name || (word == "compressed-tensors" && def->name == "compressed_tensors");
    if (named || (word.empty() && FormatHolds(*def, strategy))) return def;
  }
  const std::string candidates = absl::StrJoin(written, ", ");
  return MakeError(absl::StatusCode::kUnimplemented, "UNSUPPORTED_OUTPUT_FORMAT",
                   absl::StrCat("format: artifacts are written as [", candidates, "], got '", word, "' for ",
                                std::string(strategy.name)),
                   {{"candidates", candidates}});
}

absl::StatusOr<const LinearStrategyDef*> StrategyIn(const CheckpointFormatDef& format,
                                                    const LinearStrategyDef& strategy) {
  if (FormatHolds(format, strategy)) return &strategy;
  for (const LinearStrategyDef* def : LinearStrategies()) {
    if (def->weight_bits == strategy.weight_bits && def->activation_bits == strategy.activation_bits &&
        def->integer_grid == strategy.integer_grid &&
        (def->integer_grid || def->weight_dtype == strategy.weight_dtype) && FormatHolds(format, *def)) {
      return def;
    }
  }
  // A format may have a grid of its own for the same word: int8 in bitsandbytes is LLM.int8's.
  for (const LinearStrategyDef* def : LinearStrategies()) {
    if (def->weight_dtype == "bnb_" + std::string(strategy.weight_dtype) &&
        def->activation_bits == strategy.activation_bits && FormatHolds(format, *def)) {
      return def;
    }
  }
  return CannotStore(format.name, strategy);
}

absl::StatusOr<LayerPlan> PlanOfStored(const StoredLinear& stored, ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* strategy, FindLinearStrategy(stored.spec.strategy));
  if (!strategy->integer_grid) return CannotStore("integer codes", *strategy);
  CanonicalTaker taker;
  SAGE_RETURN_IF_ERROR(strategy->bind(stored, nullptr, taker, Priority::kMemory, threads).status());
  IntegerWeight& integer = taker.taken.integer;
  LayerPlan plan;
  // Unsigned codes count from zero, those of a plan from -2^(b-1); both ends of a difference move together.
  const int shift = integer.codes_signed ? 0 : -MinCode(strategy->weight_bits);
  plan.zero.resize(integer.offset.size());
  for (size_t i = 0; i < plan.zero.size(); ++i) {
    plan.zero[i] = std::round(-integer.offset[i] / integer.scale[i]) - static_cast<float>(shift);
  }
  for (int8_t& code : integer.codes) {
    code = static_cast<int8_t>((integer.codes_signed ? code : static_cast<uint8_t>(code)) - shift);
  }
  if (stored.spec.symmetric) plan.zero.clear();
  plan.scale = std::move(integer.scale);
  plan.codes = std::move(integer.codes);
  if (stored.spec.act_order) plan.g_idx = std::move(integer.g_idx);
  return plan;
}

}  // namespace sage
