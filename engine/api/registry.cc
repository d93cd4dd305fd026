// Looks plug-ins up by name in the generated tables and resolves the short words of the wire and the CLI.
#include <algorithm>
#include <functional>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/api/absent_backends.h"
#include "engine/api/calibrator.h"
#include "engine/api/checkpoint_format.h"
#include "engine/api/kv_strategy.h"
#include "engine/api/linear_strategy.h"
#include "engine/base/file.h"
#include "engine/base/status.h"

namespace sage {
namespace {

template <typename Def>
std::string NamesOf(absl::Span<const Def* const> table) {
  return absl::StrJoin(table, ", ", [](std::string* out, const Def* def) { out->append(def->name); });
}

template <typename Def>
absl::StatusOr<const Def*> FindIn(absl::Span<const Def* const> table, std::string_view name, const char* thing,
                                  const char* reason) {
  for (const Def* def : table) {
    if (def->name == name) return def;
  }
  return MakeError(absl::StatusCode::kNotFound, reason,
                   absl::StrCat(thing, ": must be one of [", NamesOf(table), "], got '", std::string(name), "'"),
                   {{"candidates", NamesOf(table)}});
}

// "fp8" and the like must not match "fp8_w8a16" by prefix only: dtype, then activation bits.
const LinearStrategyDef* MatchDtypes(std::string_view weight_dtype, int activation_bits) {
  for (const LinearStrategyDef* def : LinearStrategies()) {
    if (def->weight_dtype == weight_dtype && def->activation_bits == activation_bits) return def;
  }
  return nullptr;
}

absl::Status UnknownWord(std::string_view what, std::string_view word) {
  return MakeError(absl::StatusCode::kInvalidArgument, "UNKNOWN_QUANTIZATION",
                   absl::StrCat(std::string(what), ": must be a strategy [", NamesOf(LinearStrategies()),
                                "], a short word (int2, int3, int4, int8, fp8, nf4, fp4, none), a composite "
                                "one (w4a16, w8a8) or an artifact, got '",
                                std::string(word), "'"),
                   {{"candidates", NamesOf(LinearStrategies())}});
}

// "w3a16": the bits of weights and activations that a composite word says; 0 for a word of another form.
struct Composite {
  int weight_bits = 0, activation_bits = 0;
};
Composite ReadComposite(std::string_view word) {
  static constexpr int kWeights[] = {2, 3, 4, 8}, kActivations[] = {8, 16};
  for (const int w : kWeights) {
    for (const int a : kActivations) {
      if (word == absl::StrCat("w", w, "a", a)) return {w, a};
    }
  }
  return {};
}

// Bits of plain activation words beside weights of `weight`; 0 for an unknown one. fp8 activations go with fp8 weights,
// int8 activations with integer ones.
int ActivationBits(std::string_view word, std::string_view weight) {
  if (word == "bf16" || word == "fp16" || word == "f16" || word == "a16" || word == "none") return 16;
  const bool eight = word == "a8" || (word == "fp8" && weight == "fp8") || (word == "int8" && weight != "fp8");
  return eight ? 8 : 0;
}

// Composite words say both; a plain weight word beside one keeps its own bits.
absl::StatusOr<std::string> ResolveWords(std::string_view what, std::string_view weight_word,
                                         std::string_view activation_word) {
  const Composite both = ReadComposite(weight_word), beside = ReadComposite(activation_word);
  const std::string weight = both.weight_bits > 0 ? absl::StrCat("int", both.weight_bits) : std::string(weight_word);
  int bits = both.activation_bits > 0 ? both.activation_bits : 16;
  if (!activation_word.empty()) {
    const int said = beside.activation_bits > 0 ? beside.activation_bits : ActivationBits(activation_word, weight);
    if (both.activation_bits > 0 && said != both.activation_bits) bits = 0;  // the words contradict each other
    if (bits > 0) bits = said;
  }
  for (const LinearStrategyDef* def : LinearStrategies()) {
    if (def->name == weight && activation_word.empty()) return std::string(def->name);
  }
  const LinearStrategyDef* def = bits > 0 ? MatchDtypes(weight, bits) : nullptr;
  if (def != nullptr) return std::string(def->name);
  return UnknownWord(what, activation_word.empty()
                               ? std::string(weight_word)
                               : absl::StrCat(std::string(weight_word), " + ", std::string(activation_word)));
}

}  // namespace

absl::StatusOr<const LinearStrategyDef*> FindLinearStrategy(std::string_view name) {
  return FindIn(LinearStrategies(), name, "linear strategy", "UNKNOWN_LINEAR_STRATEGY");
}
absl::StatusOr<const KvStrategyDef*> FindKvStrategy(std::string_view name) {
  return FindIn(KvStrategies(), name, "kv strategy", "UNKNOWN_KV_STRATEGY");
}
absl::StatusOr<const CalibratorDef*> FindCalibrator(std::string_view name) {
  return FindIn(Calibrators(), name == "rtn" ? "minmax" : name, "calibration method", "UNKNOWN_CALIBRATION_METHOD");
}

absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(std::string_view name) {
  SAGE_RETURN_IF_ERROR(CheckBackendPresent(name));
  SAGE_ASSIGN_OR_RETURN(const BackendDef* def, FindIn(Backends(), name, "backend", "UNKNOWN_BACKEND"));
  return def->open();
}

absl::StatusOr<std::string> ResolveKvStrategy(std::string_view word) {
  if (word.empty() || word == "none" || word == "auto") return std::string("bf16");
  if (word == "fp8") word = "fp8_e4m3";
  if (word == "int8") word = "int8_per_token";
  SAGE_ASSIGN_OR_RETURN(const KvStrategyDef* def, FindKvStrategy(word));
  return std::string(def->name);
}

absl::StatusOr<std::string> ResolveLinearStrategy(std::string_view word) {
  if (word.empty() || word == "none") return std::string();
  return ResolveWords("quantization", word, "");
}

absl::StatusOr<std::string> ResolveLinearStrategy(std::string_view weight_dtype, std::string_view activation_dtype) {
  return ResolveWords("weight_dtype and activation_dtype", weight_dtype, activation_dtype);
}

absl::StatusOr<Tensor> Dequantize(const StoredLinear& stored) {
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
  SAGE_ASSIGN_OR_RETURN(Tensor out, Tensor::Allocate(DType::kF32, {stored.N, stored.K}));
  SAGE_RETURN_IF_ERROR(def->dequantize_rows(stored, 0, stored.N, out.as<float>()));
  return out;
}

std::vector<int> GroupSizesFor(int64_t K) {
  std::vector<int> small, large;
  for (int64_t low = 1; low * low <= K; ++low) {
    if (K % low != 0) continue;
    for (const int64_t g : {low, K / low}) {
      if (g > 1 && g <= std::numeric_limits<int>::max()) (g < 8 ? small : large).push_back(static_cast<int>(g));
      if (low * low == K) break;
    }
  }
  std::vector<int>& out = large.empty() ? small : large;
  std::sort(out.begin(), out.end(), std::greater<>());
  return out;
}

absl::StatusOr<std::shared_ptr<Checkpoint>> OpenCheckpoint(const std::string& path) {
  if (!FileExists(path) && !IsDirectory(path)) {
    return MakeError(absl::StatusCode::kNotFound, "MODEL_NOT_FOUND",
                     absl::StrCat("model: no file or folder at ", path));
  }
  const CheckpointFormatDef* best = nullptr;
  for (const CheckpointFormatDef* def : CheckpointFormats()) {
    if ((best == nullptr || def->rank > best->rank) && def->recognize(path)) best = def;
  }
  if (best == nullptr) {
    return MakeError(absl::StatusCode::kInvalidArgument, "UNKNOWN_CHECKPOINT_FORMAT",
                     absl::StrCat(path, ": no format of [", NamesOf(CheckpointFormats()), "] recognises it"));
  }
  absl::StatusOr<std::shared_ptr<Checkpoint>> out = best->open(path);
  // Words of a config that have the wrong type say so without knowing which file they are from.
  if (!out.ok() && !absl::StrContains(out.status().message(), path)) return Annotate(out.status(), path);
  return out;
}

absl::Status CannotStore(std::string_view format, const LinearStrategyDef& strategy) {
  return MakeError(
      absl::StatusCode::kUnimplemented, "UNSUPPORTED_OUTPUT_FORMAT",
      absl::StrCat("format: ", std::string(format), " does not hold layers of ", std::string(strategy.name)),
      {{"format", std::string(format)}, {"strategy", std::string(strategy.name)}});
}

}  // namespace sage
