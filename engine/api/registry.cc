// Looks plug-ins up by name in the generated tables and resolves the short words of the wire and the CLI.
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
  return MakeError(
      absl::StatusCode::kInvalidArgument, "UNKNOWN_QUANTIZATION",
      absl::StrCat(std::string(what), ": must be a strategy [", NamesOf(LinearStrategies()),
                   "], a short word (int4, int8, fp8, nf4, fp4, none) or an artifact, got '", std::string(word), "'"),
      {{"candidates", NamesOf(LinearStrategies())}});
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
  for (const LinearStrategyDef* def : LinearStrategies()) {
    if (def->name == word) return std::string(def->name);
  }
  const LinearStrategyDef* def = MatchDtypes(word, 16);
  if (def == nullptr) return UnknownWord("quantization", word);
  return std::string(def->name);
}

absl::StatusOr<std::string> ResolveLinearStrategy(std::string_view weight_dtype, std::string_view activation_dtype) {
  int activation_bits = 16;
  std::string weight(weight_dtype);
  // Composite words ("w8a16", "w4a8") say both; a plain weight word beside them keeps its own bits.
  for (const std::string_view word : {weight_dtype, activation_dtype}) {
    const size_t a = word.find('a');
    if (word.size() >= 4 && word[0] == 'w' && a != word.npos && a > 1) {
      activation_bits = word.substr(a + 1) == "8" ? 8 : word.substr(a + 1) == "16" ? 16 : 0;
      if (word.data() == weight_dtype.data()) weight = word.substr(1, a - 1) == "8" ? "int8" : "int4";
    } else if (word.data() == activation_dtype.data() && !word.empty()) {
      // fp8 activations go with fp8 weights, int8 activations with integer ones.
      const bool eight = word == "a8" || (word == "fp8" && weight == "fp8") || (word == "int8" && weight != "fp8");
      const bool sixteen = word == "bf16" || word == "fp16" || word == "f16" || word == "a16" || word == "none";
      activation_bits = eight ? 8 : sixteen ? 16 : 0;
    }
  }
  for (const LinearStrategyDef* def : LinearStrategies()) {
    if (def->name == weight && activation_dtype.empty()) return std::string(def->name);
  }
  const LinearStrategyDef* def = MatchDtypes(weight, activation_bits);
  if (def == nullptr) {
    return UnknownWord("weight_dtype and activation_dtype",
                       absl::StrCat(std::string(weight_dtype), " + ", std::string(activation_dtype)));
  }
  return std::string(def->name);
}

absl::StatusOr<Tensor> Dequantize(const StoredLinear& stored) {
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
  SAGE_ASSIGN_OR_RETURN(Tensor out, Tensor::Allocate(DType::kF32, {stored.N, stored.K}));
  SAGE_RETURN_IF_ERROR(def->dequantize_rows(stored, 0, stored.N, out.as<float>()));
  return out;
}

std::vector<int> GroupSizesFor(int64_t K) {
  std::vector<int> out;
  for (int g = 256; g >= 16; --g) {
    if (K % g == 0) out.push_back(g);
  }
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
  return best->open(path);
}

absl::Status CannotStore(std::string_view format, const LinearStrategyDef& strategy) {
  return MakeError(
      absl::StatusCode::kUnimplemented, "UNSUPPORTED_OUTPUT_FORMAT",
      absl::StrCat("format: ", std::string(format), " does not hold layers of ", std::string(strategy.name)),
      {{"format", std::string(format)}, {"strategy", std::string(strategy.name)}});
}

}  // namespace sage
