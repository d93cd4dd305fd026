// GPTQ folders (AutoGPTQ, GPTQModel, transformers): 2-, 3-, 4- and 8-bit weights, formats "gptq" and "gptq_v2".
//
// Tensors of a module: qweight, qzeros, scales, g_idx and bias as in engine/api/gptq_linear.h. The config is
// config.json's quantization_config or quantize_config.json; its "dynamic" rules change bits, group size and order of
// single modules or exclude them. What a module is follows from its own tensors and must agree with the config; modules
// without qweight are plain. A symmetric file whose zeros are those of the other format than it says is read by its
// zeros, and the notes say so. Source: quantization.md 1.1.
#include <cstring>
#include <limits>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/api/gptq_linear.h"
#include "engine/api/hf_folder.h"
#include "engine/api/module_pattern.h"
#include "engine/api/quantization_config.h"
#include "engine/base/status.h"
#include "engine/quant/packing.h"

namespace sage::checkpoint_formats {
namespace {

constexpr char kGptqMethod[] = "gptq";
constexpr char kGptqSideFile[] = "quantize_config.json";
constexpr size_t kMaxRules = 256;

// How the words of one module are to be read.
struct Scheme {
  int64_t bits = 0;
  int64_t group_size = -1;
  bool desc_act = false;
  std::optional<bool> sym;  // absent: the zeros decide
};

struct Rule {
  ModulePattern pattern;
  bool exclude = false;
  Json overrides;
};

absl::Status GptqUnsupported(const std::string& path, const std::string& rule) {
  return MakeError(absl::StatusCode::kUnimplemented, "CHECKPOINT_FORMAT_NOT_SUPPORTED", absl::StrCat(path, ": ", rule));
}

// Fields that `values` has, over what `scheme` says already.
absl::Status ApplyFields(const std::string& where, const Json& values, Scheme* scheme) {
  const auto bad = [&](const std::string& rule) {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID", absl::StrCat(where, ": ", rule));
  };
  SAGE_ASSIGN_OR_RETURN(scheme->bits, JsonInt(values, "bits", scheme->bits));
  if (scheme->bits < 1 || scheme->bits > 32) return bad(absl::StrCat("bits must be 2, 3, 4 or 8, got ", scheme->bits));
  if (!IsGptqBits(static_cast<int>(scheme->bits))) {
    return GptqUnsupported(where, absl::StrCat("bits must be 2, 3, 4 or 8, got ", scheme->bits));
  }
  SAGE_ASSIGN_OR_RETURN(scheme->group_size, JsonInt(values, "group_size", scheme->group_size));
  if (scheme->group_size != -1 &&
      (scheme->group_size < 1 || scheme->group_size > std::numeric_limits<int32_t>::max())) {
    return bad(absl::StrCat("group_size must be -1 or positive, got ", scheme->group_size));
  }
  SAGE_ASSIGN_OR_RETURN(scheme->desc_act, JsonBool(values, "desc_act", scheme->desc_act));
  if (values.contains("sym") && !values["sym"].is_null()) {
    SAGE_ASSIGN_OR_RETURN(scheme->sym, JsonBool(values, "sym", true));
  }
  SAGE_ASSIGN_OR_RETURN(const std::string pack, JsonString(values, "pack_dtype", "int32"));
  if (pack != "int32")
    return GptqUnsupported(where, absl::StrCat("pack_dtype must be int32, got '", pack.substr(0, 60), "'"));
  return absl::OkStatus();
}

class GptqCheckpoint final : public Checkpoint {
 public:
  explicit GptqCheckpoint(std::unique_ptr<HfFolder> folder) : folder_(std::move(folder)) {}

  const Json& config() const override { return folder_->config(); }
  const Json& generation_config() const override { return folder_->generation_config(); }
  std::string_view format() const override { return kGptqMethod; }
  std::string path() const override { return folder_->path(); }
  std::vector<std::string> linear_names() const override {
    std::vector<std::string> out = folder_->DenseLinearNames();
    for (const std::string& module : QuantizedNames()) out.push_back(module);
    return out;
  }
  std::vector<std::string> tensor_names() const override {
    std::vector<std::string> out;
    for (const auto& [name, view] : folder_->tensors()) out.push_back(name);
    return out;
  }
  bool HasTensor(std::string_view name) const override { return folder_->Find(name) != nullptr; }
  bool HasLinear(std::string_view module) const override {
    const std::string name(module);
    return HasTensor(name + ".qweight") || HasTensor(name + ".weight");
  }
  absl::StatusOr<TensorView> GetTensor(std::string_view name) const override { return folder_->Get(name); }
  absl::StatusOr<StoredLinear> GetLinear(std::string_view module) const override {
    const std::string name(module);
    if (!HasTensor(name + ".qweight")) {
      if (HasTensor(name + ".qzeros")) return Bad(name, "qweight must be present beside qzeros");
      return folder_->GetDense(module);
    }
    if (HasTensor(name + ".weight")) return Bad(name, "must have either weight or qweight, got both");
    return GetQuantized(name);
  }
  std::vector<std::string> notes() const override;
  absl::StatusOr<std::string> Fingerprint() const override { return folder_->Fingerprint(); }
  size_t file_bytes() const override { return folder_->file_bytes(); }

  absl::Status ReadConfig(const QuantizationConfig& config);

 private:
  // The zeros of one module as the file has them.
  struct Zeros {
    bool symmetric = false;
    GptqZeros version = GptqZeros::kV1;
    bool mislabelled = false;
  };

  absl::Status Bad(const std::string& module, const std::string& rule) const {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(folder_->path(), ": ", module, ": ", rule));
  }
  std::vector<std::string> QuantizedNames() const {
    std::vector<std::string> out;
    for (const auto& [name, view] : folder_->tensors()) {
      if (absl::EndsWith(name, ".qweight")) out.push_back(name.substr(0, name.size() - 8));
    }
    return out;
  }
  absl::StatusOr<Scheme> SchemeOf(const std::string& module) const;
  absl::StatusOr<StoredLinear> GetQuantized(const std::string& module) const;
  absl::Status ReadWords(const std::string& module, const Scheme& scheme, StoredLinear* out) const;
  absl::Status ReadOrder(const std::string& module, const Scheme& scheme, int64_t G, StoredLinear* out) const;
  absl::StatusOr<Zeros> ReadZeros(const std::string& module, const Scheme& scheme, const StoredLinear& stored) const;
  absl::Status NormaliseZeros(const Zeros& zeros, int bits, StoredLinear* out) const;

  std::unique_ptr<HfFolder> folder_;
  Scheme scheme_;
  GptqZeros label_ = GptqZeros::kV1;
  std::vector<Rule> rules_;
};

absl::Status GptqCheckpoint::ReadConfig(const QuantizationConfig& config) {
  const std::string where = absl::StrCat(folder_->path(), ": ", config.source);
  SAGE_ASSIGN_OR_RETURN(const std::string format, JsonString(config.values, "checkpoint_format", "gptq"));
  SAGE_ASSIGN_OR_RETURN(const bool marlin, JsonBool(config.values, "is_marlin_format", false));
  if (marlin || (format != "gptq" && format != "gptq_v2")) {
    return GptqUnsupported(where, absl::StrCat("checkpoint_format must be gptq or gptq_v2, got '",
                                               marlin ? "marlin" : format.substr(0, 60), "'"));
  }
  label_ = format == "gptq" ? GptqZeros::kV1 : GptqZeros::kV2;
  for (const char* key : {"bits", "group_size"}) {
    if (!config.values.contains(key)) return Bad(config.source, absl::StrCat(key, " must be present"));
  }
  SAGE_RETURN_IF_ERROR(ApplyFields(where, config.values, &scheme_));
  const auto dynamic = config.values.find("dynamic");
  if (dynamic == config.values.end() || dynamic->is_null() || dynamic->is_boolean()) return absl::OkStatus();
  if (!dynamic->is_object()) return Bad(config.source, "dynamic must be an object of rules");
  if (dynamic->size() > kMaxRules) {
    return Bad(config.source, absl::StrCat("dynamic must have at most ", kMaxRules, " rules, got ", dynamic->size()));
  }
  for (const std::string& key : config.dynamic_keys) {
    Rule rule;
    rule.exclude = absl::StartsWith(key, "-:");
    rule.overrides = (*dynamic)[key];
    absl::StatusOr<ModulePattern> pattern =
        ModulePattern::Compile(rule.exclude || absl::StartsWith(key, "+:") ? key.substr(2) : key);
    if (!pattern.ok()) return Annotate(pattern.status(), absl::StrCat(where, ": dynamic"));
    rule.pattern = *std::move(pattern);
    if (!rule.exclude && !rule.overrides.is_object()) {
      return Bad(config.source, absl::StrCat("dynamic rule '", key.substr(0, 120), "' must be an object"));
    }
    rules_.push_back(std::move(rule));
  }
  return absl::OkStatus();
}

// The first rule that matches decides, as in GPTQModel.
absl::StatusOr<Scheme> GptqCheckpoint::SchemeOf(const std::string& module) const {
  Scheme scheme = scheme_;
  for (const Rule& rule : rules_) {
    SAGE_ASSIGN_OR_RETURN(const bool matches, rule.pattern.Matches(module));
    if (!matches) continue;
    const std::string name = absl::StrCat("dynamic rule '", rule.pattern.text().substr(0, 120), "'");
    if (rule.exclude) return Bad(module, absl::StrCat(name, " excludes the module, but it has a qweight"));
    for (const char* key : {"format", "checkpoint_format", "method", "quant_method", "adapter"}) {
      if (rule.overrides.contains(key) && !rule.overrides[key].is_null()) {
        return GptqUnsupported(folder_->path(), absl::StrCat(module, ": ", name, " must not override ", key));
      }
    }
    SAGE_RETURN_IF_ERROR(ApplyFields(absl::StrCat(folder_->path(), ": ", module, ": ", name), rule.overrides, &scheme));
    break;
  }
  return scheme;
}

absl::Status GptqCheckpoint::ReadWords(const std::string& module, const Scheme& scheme, StoredLinear* out) const {
  for (const char* name : {"qweight", "qzeros", "scales"}) {
    SAGE_ASSIGN_OR_RETURN(out->tensors[name], folder_->Get(absl::StrCat(module, ".", name)));
  }
  const int bits = static_cast<int>(scheme.bits);
  const TensorView &qweight = out->tensors["qweight"], &qzeros = out->tensors["qzeros"],
                   &scales = out->tensors["scales"];
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (qweight.dtype != DType::kI32 || qweight.shape.size() != 2 || qweight.dim(0) < 1 || qweight.dim(1) < 1 ||
      qweight.dim(0) > kMost / 32 || qweight.dim(1) > kMost || qweight.dim(0) * 32 % bits != 0) {
    return Bad(module, absl::StrCat("qweight must be I32 [K * ", bits, " / 32, N], got ",
                                    std::string(DTypeName(qweight.dtype)), " ", ShapeText(qweight.shape)));
  }
  out->N = qweight.dim(1);
  out->K = qweight.dim(0) * 32 / bits;
  const absl::Status whole = CheckGptqShape(bits, out->N, out->K);
  if (!whole.ok()) return Bad(module, std::string(whole.message()));
  const int64_t group = scheme.group_size == -1 ? out->K : std::min(scheme.group_size, out->K);
  const int64_t G = (out->K + group - 1) / group;
  const std::string of = absl::StrCat(" (", bits, " bits, K=", out->K, ", group_size=", scheme.group_size, "), got ");
  if (qzeros.dtype != DType::kI32 || qzeros.shape != Shape{G, PackedWords(out->N, bits)}) {
    return Bad(module, absl::StrCat("qzeros must be I32 ", ShapeText({G, PackedWords(out->N, bits)}), of,
                                    std::string(DTypeName(qzeros.dtype)), " ", ShapeText(qzeros.shape)));
  }
  if ((scales.dtype != DType::kF16 && scales.dtype != DType::kBF16 && scales.dtype != DType::kF32) ||
      scales.shape != Shape{G, out->N}) {
    return Bad(module, absl::StrCat("scales must be F16 ", ShapeText({G, out->N}), of,
                                    std::string(DTypeName(scales.dtype)), " ", ShapeText(scales.shape)));
  }
  out->spec.scale_dtype = scales.dtype;
  out->spec.group_size = G == 1 ? -1 : static_cast<int>(group);
  return ReadOrder(module, scheme, G, out);
}

absl::Status GptqCheckpoint::ReadOrder(const std::string& module, const Scheme& scheme, int64_t G,
                                       StoredLinear* out) const {
  out->spec.act_order = scheme.desc_act;
  const TensorView* g_idx = folder_->Find(module + ".g_idx");
  if (g_idx == nullptr) {
    if (!scheme.desc_act || G == 1) return absl::OkStatus();
    return Bad(module, "g_idx must be present when desc_act is true");
  }
  if (g_idx->dtype != DType::kI32 || g_idx->shape != Shape{out->K}) {
    return Bad(module, absl::StrCat("g_idx must be I32 [", out->K, "], got ", std::string(DTypeName(g_idx->dtype)), " ",
                                    ShapeText(g_idx->shape)));
  }
  const int64_t group = out->spec.group_size == -1 ? out->K : out->spec.group_size;
  for (int64_t k = 0; k < out->K; ++k) {
    int32_t g;
    std::memcpy(&g, g_idx->as<uint8_t>() + 4 * k, 4);
    if (g < 0 || g >= G) return Bad(module, absl::StrCat("g_idx must be in 0 .. ", G - 1, ", got ", g, " at ", k));
    if (g != k / group && !scheme.desc_act) {
      return Bad(module, absl::StrCat("g_idx must be input / group_size when desc_act is false, got ", g, " at ", k));
    }
  }
  out->tensors["g_idx"] = *g_idx;
  return absl::OkStatus();
}

absl::StatusOr<GptqCheckpoint::Zeros> GptqCheckpoint::ReadZeros(const std::string& module, const Scheme& scheme,
                                                                const StoredLinear& stored) const {
  Zeros out;
  out.version = label_;
  if (scheme.sym.has_value() && !*scheme.sym) return out;
  const int bits = static_cast<int>(scheme.bits), half = 1 << (bits - 1);
  const TensorView& qzeros = stored.tensors.at("qzeros");
  const GptqZeros other = label_ == GptqZeros::kV1 ? GptqZeros::kV2 : GptqZeros::kV1;
  std::vector<uint8_t> zeros(static_cast<size_t>(stored.N * qzeros.dim(0)));
  for (const GptqZeros version : {label_, other}) {
    UnpackGptqZeros(qzeros.data, stored.N, qzeros.dim(0), bits, version, zeros.data());
    size_t same = 0;
    while (same < zeros.size() && zeros[same] == half) ++same;
    if (same == zeros.size()) return Zeros{true, version, version != label_};
  }
  if (!scheme.sym.has_value()) return out;
  return Bad(module, absl::StrCat("qzeros must all mean ", half,
                                  " when sym is true: neither as gptq (zero - 1) nor as ", "gptq_v2 (zero) do they"));
}

// Into the form that gptq_linear.h fixes for the spec; copied only when the file has the other one.
absl::Status GptqCheckpoint::NormaliseZeros(const Zeros& zeros, int bits, StoredLinear* out) const {
  out->spec.symmetric = zeros.symmetric;
  const GptqZeros wanted = GptqZerosOf(out->spec);
  if (wanted == zeros.version) return absl::OkStatus();
  const TensorView stored = out->tensors["qzeros"];
  const int64_t G = stored.dim(0);
  std::vector<uint8_t> values(static_cast<size_t>(out->N * G));
  UnpackGptqZeros(stored.data, out->N, G, bits, zeros.version, values.data());
  SAGE_ASSIGN_OR_RETURN(Tensor words, Tensor::Allocate(DType::kI32, stored.shape));
  SAGE_RETURN_IF_ERROR(PackGptqZeros(values.data(), out->N, G, bits, wanted, words.as<uint32_t>()));
  out->owned.push_back(std::make_shared<Tensor>(std::move(words)));
  out->tensors["qzeros"] = out->owned.back()->view();
  return absl::OkStatus();
}

absl::StatusOr<StoredLinear> GptqCheckpoint::GetQuantized(const std::string& module) const {
  SAGE_ASSIGN_OR_RETURN(const Scheme scheme, SchemeOf(module));
  StoredLinear out;
  out.spec.strategy = absl::StrCat("gptq_w", scheme.bits, "a16");
  SAGE_RETURN_IF_ERROR(ReadWords(module, scheme, &out));
  SAGE_ASSIGN_OR_RETURN(const Zeros zeros, ReadZeros(module, scheme, out));
  SAGE_RETURN_IF_ERROR(NormaliseZeros(zeros, static_cast<int>(scheme.bits), &out));
  if (const TensorView* bias = folder_->Find(module + ".bias")) out.bias = *bias;
  return out;
}

std::vector<std::string> GptqCheckpoint::notes() const {
  int64_t mislabelled = 0;
  for (const std::string& module : QuantizedNames()) {
    const absl::StatusOr<Scheme> scheme = SchemeOf(module);
    StoredLinear stored;
    if (!scheme.ok() || !ReadWords(module, *scheme, &stored).ok()) continue;  // GetLinear says what is wrong
    const absl::StatusOr<Zeros> zeros = ReadZeros(module, *scheme, stored);
    if (zeros.ok() && zeros->mislabelled) ++mislabelled;
  }
  if (mislabelled == 0) return {};
  const bool v1 = label_ == GptqZeros::kV1;
  return {absl::StrCat("gptq: checkpoint_format says ", v1 ? "gptq" : "gptq_v2", ", but the symmetric zeros of ",
                       mislabelled, " modules are those of ", v1 ? "gptq_v2" : "gptq", "; read by the zeros")};
}

bool RecognizeGptq(const std::string& path) {
  return FolderQuantizedBy(path, kGptqMethod, kGptqSideFile, /*unnamed=*/true);
}

absl::StatusOr<std::shared_ptr<Checkpoint>> OpenGptq(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(const QuantizationConfig config, ReadQuantizationConfig(path));
  // AutoGPTQ named its weights by bits and group size.
  SAGE_ASSIGN_OR_RETURN(const std::string name, JsonString(config.values, "model_file_base_name", ""));
  SAGE_ASSIGN_OR_RETURN(std::unique_ptr<HfFolder> folder, HfFolder::Open(path, name));
  auto out = std::make_shared<GptqCheckpoint>(std::move(folder));
  SAGE_RETURN_IF_ERROR(out->ReadConfig(config));
  return std::shared_ptr<Checkpoint>(std::move(out));
}

absl::StatusOr<Json> WriteGptqConfig(const LinearSpec& spec, const LinearStrategyDef& strategy,
                                     const std::vector<std::string>& ignored) {
  if (!absl::StartsWith(std::string(strategy.name), "gptq_")) return CannotStore(kGptqMethod, strategy);
  return GptqQuantizationConfig(spec, strategy.weight_bits, ignored);
}

}  // namespace

extern const CheckpointFormatDef kGptq;
const CheckpointFormatDef kGptq = {
    .name = kGptqMethod,
    .summary = "GPTQ and GPTQModel folders: 2-, 3-, 4- and 8-bit weights, gptq and gptq_v2",
    .rank = 11,
    .recognize = RecognizeGptq,
    .open = OpenGptq,
    .write_config = WriteGptqConfig,
    .merge_configs = MergeGptqConfigs,
    .config_file = kGptqSideFile};

}  // namespace sage::checkpoint_formats
