// Rewrites a checkpoint: as a Hugging Face folder of dequantized floats (f32, f16, bf16) or of another format's tensors
// with the same codes, or as a GGUF.
//
// What was written is opened again and every value compared with the source; `lossless` is the outcome of that
// comparison. sage_quant.json is written last, with that outcome and the sha256 of every tensor.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/api/ct_config.h"
#include "engine/base/file.h"
#include "engine/base/map_guard.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/artifact_tokenizer.h"
#include "engine/runtime/ascend_export.h"
#include "engine/runtime/convert_schemes.h"
#include "engine/runtime/gguf_export.h"
#include "engine/runtime/kv_plan.h"
#include "engine/runtime/operations.h"
#include "engine/runtime/output_format.h"

namespace sage {
namespace {

namespace fs = std::filesystem;

struct Target {
  DType dtype = DType::kF32;
  bool packed = false;  // quantized layers stay quantized, in `format`
  std::string format;
  std::optional<GgufScheme> gguf;
  bool ascend = false;
};

absl::StatusOr<Target> ParseTarget(const ConvertSpec& spec) {
  const std::string& format = spec.format;
  if (IsGgufWord(format)) {
    SAGE_ASSIGN_OR_RETURN(GgufScheme scheme, ParseGgufScheme(format, spec.types));
    return Target{DType::kF32, false, format, std::move(scheme)};
  }
  if (format == kAscendFormat) return Target{DType::kF32, false, format, {}, true};
  if (format == "f32") return Target{DType::kF32, false, format, {}};
  if (format == "f16") return Target{DType::kF16, false, format, {}};
  if (format == "bf16") return Target{DType::kBF16, false, format, {}};
  std::vector<std::string> known = {"f32", "f16", "bf16", kAscendFormat};
  for (const CheckpointFormatDef* def : CheckpointFormats()) {
    if (def->write_config == nullptr) continue;
    if (format == def->name || (format == "compressed-tensors" && def->name == "compressed_tensors")) {
      return Target{DType::kF32, true, std::string(def->name), {}};
    }
    known.emplace_back(def->name);
  }
  if (format == "fp8") return Target{DType::kF32, true, format, {}};
  known.emplace_back("fp8");
  for (std::string& word : GgufWords()) known.push_back(std::move(word));
  const std::string candidates = absl::StrJoin(known, ", ");
  return MakeError(absl::StatusCode::kUnimplemented, "UNSUPPORTED_OUTPUT_FORMAT",
                   absl::StrCat("format: must be one of [", candidates, "], got '", format, "'"),
                   {{"candidates", candidates}});
}

// Zeros of AWQ GEMV_FAST: served as they are, in no other file.
bool HasScaledZeros(const StoredLinear& stored) { return stored.tensors.count("scaled_zeros") > 0; }

struct Difference {
  double max_abs = 0;
  bool lossless = true;

  void Compare(const float* a, const float* b, int64_t count) {
    if (std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0) return;
    lossless = false;
    for (int64_t i = 0; i < count; ++i) {
      const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
      if (!(d <= max_abs) && !std::isnan(d)) max_abs = d;
    }
  }
  void Add(const Difference& other) {
    lossless = lossless && other.lossless;
    max_abs = std::max(max_abs, other.max_abs);
  }
};

class Conversion {
 public:
  Conversion(const ConvertSpec& spec, Target target, std::unique_ptr<ArtifactSource> source, ThreadPool& threads)
      : spec_(spec),
        target_(target),
        source_(std::move(source)),
        threads_(threads),
        staged_(spec.output + ".partial") {}

  absl::Status Write(const CancelToken& cancel, const ProgressFn& progress);
  absl::Status Compare(const CancelToken& cancel, const ProgressFn& progress);
  absl::StatusOr<ConvertResult> Publish();
  void Discard() const {
    std::error_code ignored;
    fs::remove_all(staged_, ignored);
  }

 private:
  absl::Status PlanLayers();
  absl::Status NoteLosses();
  bool KeepsKvPlan() const;
  Json KvScheme() const;
  absl::StatusOr<ShardRecord> WriteShardOf(int64_t shard);
  absl::Status AddPacked(const LinearSlot& slot, std::vector<NamedTensor>& tensors) const;
  absl::Status WriteFolder(const CancelToken& cancel, const ProgressFn& progress);
  absl::StatusOr<std::vector<NamedTensor>> KvScales(int64_t layer) const;
  absl::StatusOr<ShardRecord> WriteAscendShard(int64_t shard);
  absl::Status WriteOneGguf(const CancelToken& cancel, const ProgressFn& progress);
  absl::Status CompareShard(const ArtifactSource& written, int64_t shard);
  absl::Status CompareActivations(const ArtifactSource& written, const LinearSlot& slot);
  void CompareValues(const std::string& name, const float* a, const float* b, int64_t count);
  absl::StatusOr<Json> Manifest() const;

  const ConvertSpec& spec_;
  Target target_;
  std::unique_ptr<ArtifactSource> source_;
  ThreadPool& threads_;
  std::string staged_;
  std::optional<ConvertedLayers> layers_;  // when quantized layers stay quantized
  Json quantization_;                      // of the written config.json
  std::string plain_strategy_;             // of a folder without quantized layers: its dtype, or the format's word
  Json kv_plan_;                           // of the source's KV cache; null without one
  Difference difference_;
  std::map<std::string, double> changed_;
  std::vector<ShardRecord> files_;
  std::map<std::string, std::string> types_;  // of the stored tensors
  std::vector<std::string> notes_;
  Json description_ = Json::object();  // of an AscendV1 folder
};

absl::Status Conversion::PlanLayers() {
  absl::StatusOr<ConvertedLayers> layers = ConvertedLayers::Plan(*source_, target_.format);
  if (layers.ok()) {
    layers_ = *std::move(layers);
    SAGE_ASSIGN_OR_RETURN(quantization_, layers_->Config());
    for (const LinearSlot& slot : source_->linears()) {
      SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, source_->Stored(slot));
      if (layers_->Of(slot.name) == nullptr || !HasScaledZeros(stored)) continue;
      notes_.push_back("zeros of AWQ GEMV_FAST are multiplied with their scales and rounded; written as whole codes");
      break;
    }
    return absl::OkStatus();
  }
  // Plain weights whose only quantized part is the KV cache.
  const Json scheme = KvScheme();
  const bool compressed = target_.format == "compressed_tensors";
  if (GetErrorReason(layers.status()).reason != "NOTHING_QUANTIZED" || kv_plan_.is_null() || !compressed) {
    return layers.status();
  }
  SAGE_ASSIGN_OR_RETURN(const StoredLinear plain, source_->Stored(source_->linears().front()));
  plain_strategy_ = plain.spec.strategy;
  if (scheme.is_null()) return absl::OkStatus();  // the plan is in the manifest alone
  quantization_ = CompressedTensorsKvOnlyConfig(scheme);
  return absl::OkStatus();
}

// kv_cache_scheme of compressed-tensors for the plan; null where there is no word for it.
Json Conversion::KvScheme() const {
  const Json before = source_->checkpoint().config().value("quantization_config", Json());
  if (before.is_object() && before.contains("kv_cache_scheme") && !before["kv_cache_scheme"].is_null()) {
    return before["kv_cache_scheme"];
  }
  if (kv_plan_.is_null() || kv_plan_.value("scales", "") != "calibrated") return Json();
  const std::string strategy = kv_plan_.value("strategy", "");
  if (strategy != "fp8_e4m3" && strategy != "int8_per_token") return Json();
  return CompressedTensorsKvScheme(strategy == "fp8_e4m3", kv_plan_.value("granularity", "") == "head");
}

absl::Status Conversion::AddPacked(const LinearSlot& slot, std::vector<NamedTensor>& tensors) const {
  SAGE_ASSIGN_OR_RETURN(StoredLinear taken, source_->Stored(slot));
  const ConvertedScheme& scheme = *layers_->Of(slot.name);
  if (taken.spec.strategy != scheme.spec.strategy || HasScaledZeros(taken)) {
    SAGE_ASSIGN_OR_RETURN(const LayerPlan plan, PlanOfStored(taken, threads_));
    SAGE_ASSIGN_OR_RETURN(const Tensor values, Dequantize(taken));
    absl::StatusOr<StoredLinear> made = scheme.strategy->quantize(values.view(), scheme.spec, plan, threads_);
    if (!made.ok()) return Annotate(made.status(), slot.name);
    taken = *std::move(made);
  }
  const auto stored = std::make_shared<StoredLinear>(std::move(taken));
  for (const auto& [name, view] : stored->tensors) tensors.push_back({slot.name + "." + name, view, stored});
  return absl::OkStatus();
}

// Scales and zeros of a layer's KV cache under any producer's name, as they are.
absl::StatusOr<std::vector<NamedTensor>> Conversion::KvScales(int64_t layer) const {
  std::vector<NamedTensor> out;
  for (const char* name :
       {"k_scale", "v_scale", "k_zero_point", "v_zero_point", "kv_scale", "k_proj.k_scale", "v_proj.v_scale",
        "qkv_proj.k_scale", "qkv_proj.v_scale", "k_proj.output_scale", "v_proj.output_scale", "k_proj.kv_cache_scale",
        "k_proj.kv_cache_offset", "v_proj.kv_cache_scale", "v_proj.kv_cache_offset"}) {
    const std::string full = absl::StrCat("model.layers.", layer, ".self_attn.", name);
    if (!source_->checkpoint().HasTensor(full)) continue;
    SAGE_ASSIGN_OR_RETURN(const TensorView view, source_->checkpoint().GetTensor(full));
    out.push_back({full, view, nullptr});
  }
  return out;
}

absl::StatusOr<ShardRecord> Conversion::WriteShardOf(int64_t shard) {
  // Floats are rounded once, from f32, so that quantized embeddings do not pass through a third dtype.
  SAGE_ASSIGN_OR_RETURN(std::vector<NamedTensor> tensors, target_.packed ? source_->PlainTensors(shard, threads_)
                                                                         : source_->PlainValues(shard, threads_));
  for (NamedTensor& tensor : tensors) {
    if (target_.packed || tensor.view.dtype == target_.dtype) continue;
    const NamedTensor values = tensor;
    SAGE_ASSIGN_OR_RETURN(tensor,
                          ConvertFloats(values.name, values.view.as<float>(), values.view.shape, target_.dtype));
  }
  for (const LinearSlot& slot : source_->ShardLinears(shard)) {
    const bool ignored = !layers_.has_value() || layers_->Of(slot.name) == nullptr;
    SAGE_ASSIGN_OR_RETURN(NamedTensor bias, source_->Bias(slot));
    if (target_.packed && !ignored) {
      SAGE_RETURN_IF_ERROR(AddPacked(slot, tensors));
    } else {
      SAGE_ASSIGN_OR_RETURN(const TensorView dense, source_->DenseWeight(slot));
      if (!dense.empty() && (target_.packed || dense.dtype == target_.dtype)) {
        tensors.push_back({slot.name + ".weight", dense, nullptr});
      } else {
        SAGE_ASSIGN_OR_RETURN(const Tensor weight, source_->Weight(slot, threads_));
        SAGE_ASSIGN_OR_RETURN(NamedTensor out,
                              ConvertFloats(slot.name + ".weight", weight.as<float>(), {slot.N, slot.K},
                                            target_.packed ? source_->float_dtype() : target_.dtype));
        tensors.push_back(std::move(out));
      }
    }
    if (bias.view.empty()) continue;
    if (!target_.packed && bias.view.dtype != target_.dtype) {
      std::vector<float> values(static_cast<size_t>(slot.N));
      SAGE_RETURN_IF_ERROR(ToFloat(bias.view, values.data()));
      SAGE_ASSIGN_OR_RETURN(bias, ConvertFloats(bias.name, values.data(), {slot.N}, target_.dtype));
    }
    tensors.push_back(std::move(bias));
  }
  if (target_.packed) {
    SAGE_ASSIGN_OR_RETURN(std::vector<NamedTensor> scales, KvScales(shard));
    for (NamedTensor& tensor : scales) tensors.push_back(std::move(tensor));
  }
  for (const NamedTensor& tensor : tensors) types_[tensor.name] = std::string(DTypeName(tensor.view.dtype));
  return WriteShard(staged_, ShardFileName(shard, source_->shard_count()), std::move(tensors));
}

absl::StatusOr<ShardRecord> Conversion::WriteAscendShard(int64_t shard) {
  SAGE_ASSIGN_OR_RETURN(std::vector<NamedTensor> tensors, source_->PlainTensors(shard, threads_));
  const bool wide = source_->float_dtype() == DType::kF16;
  for (const LinearSlot& slot : source_->ShardLinears(shard)) {
    SAGE_ASSIGN_OR_RETURN(std::vector<NamedTensor> layer, AscendLinear(*source_, slot, wide, threads_, description_));
    for (NamedTensor& tensor : layer) tensors.push_back(std::move(tensor));
    SAGE_ASSIGN_OR_RETURN(NamedTensor bias, source_->Bias(slot));
    if (!bias.view.empty()) tensors.push_back(std::move(bias));
  }
  SAGE_ASSIGN_OR_RETURN(std::vector<NamedTensor> kv, AscendKvScales(*source_, shard, description_));
  for (NamedTensor& tensor : kv) tensors.push_back(std::move(tensor));
  for (const NamedTensor& tensor : tensors) types_[tensor.name] = std::string(DTypeName(tensor.view.dtype));
  return WriteShard(staged_, AscendShardName(shard, source_->shard_count()), std::move(tensors));
}

absl::Status Conversion::Write(const CancelToken& cancel, const ProgressFn& progress) {
  plain_strategy_ = target_.format;
  // A plan that cannot be read is one that an engine would refuse too: it is not carried on.
  const absl::StatusOr<Json> plan = StoredKvPlan(source_->checkpoint(), source_->config().L);
  if (plan.ok()) kv_plan_ = *plan;
  if (!plan.ok()) notes_.push_back(absl::StrCat("the KV plan is not kept: ", std::string(plan.status().message())));
  if (target_.packed) SAGE_RETURN_IF_ERROR(PlanLayers());
  SAGE_RETURN_IF_ERROR(NoteLosses());
  Discard();  // left by a conversion that died
  SAGE_RETURN_IF_ERROR(MakeDirectories(staged_));
  return target_.gguf ? WriteOneGguf(cancel, progress) : WriteFolder(cancel, progress);
}

// Folders of quantized layers carry scales under any name; AscendV1 has those of channels (C8) only.
bool Conversion::KeepsKvPlan() const {
  if (kv_plan_.is_null()) return false;
  const bool calibrated = kv_plan_.value("scales", "") == "calibrated";
  return target_.packed || (target_.ascend && (!calibrated || kv_plan_.value("strategy", "") == "int8_per_channel"));
}

// What the target has no place for.
absl::Status Conversion::NoteLosses() {
  bool activations = false;
  for (const LinearSlot& slot : source_->linears()) {
    SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, source_->Stored(slot));
    SAGE_ASSIGN_OR_RETURN(const StoredActivations own, ActivationsOf(stored));
    activations = activations || own.bits == 8;
  }
  if (activations && !target_.packed && !target_.ascend) {
    notes_.push_back(absl::StrCat("8-bit activations are not kept: ", target_.format, " computes in floats"));
  }
  if (kv_plan_.is_null() || KeepsKvPlan()) return absl::OkStatus();
  const std::string strategy = kv_plan_.value("strategy", "");
  if (!IsEightBitKv(strategy)) return absl::OkStatus();
  notes_.push_back(absl::StrCat("scales of the KV cache are not kept: ", target_.format,
                                " has no place for the plan of ", strategy,
                                "; name kv_quantization when an engine starts"));
  return absl::OkStatus();
}

absl::Status Conversion::WriteOneGguf(const CancelToken& cancel, const ProgressFn& progress) {
  const std::string file = fs::path(spec_.output).filename().string() + ".gguf";
  SAGE_ASSIGN_OR_RETURN(GgufExport made, WriteGguf(*source_, *target_.gguf, staged_, file, threads_, cancel, progress));
  files_.push_back(std::move(made.file));
  types_ = std::move(made.types);
  notes_.insert(notes_.end(), made.notes.begin(), made.notes.end());
  return absl::OkStatus();
}

absl::Status Conversion::WriteFolder(const CancelToken& cancel, const ProgressFn& progress) {
  if (source_->is_gguf()) SAGE_RETURN_IF_ERROR(GgufTokenizerFiles(source_->checkpoint().path()).status());
  for (int64_t shard = 0; shard < source_->shard_count(); ++shard) {
    SAGE_RETURN_IF_ERROR(cancel.Check());
    if (progress) progress({"write", shard, 2 * source_->shard_count(), "layers"});
    SAGE_ASSIGN_OR_RETURN(ShardRecord record, target_.ascend ? WriteAscendShard(shard) : WriteShardOf(shard));
    files_.push_back(std::move(record));
  }
  if (quantization_.contains("kv_cache_scheme")) quantization_["kv_cache_scheme"] = KvScheme();
  if (layers_.has_value() && !layers_->format().config_file.empty()) {
    const std::string name(layers_->format().config_file);
    SAGE_RETURN_IF_ERROR(WriteFileAtomic(absl::StrCat(staged_, "/", name), DumpJson(quantization_, 2) + "\n"));
  }
  if (target_.ascend) {
    SAGE_RETURN_IF_ERROR(WriteAscendFiles(staged_, description_, files_));
    const Json config = ArtifactConfig(*source_, nullptr, source_->float_dtype());
    SAGE_RETURN_IF_ERROR(WriteFileAtomic(staged_ + "/config.json", DumpJson(config, 2) + "\n"));
    return WriteTokenizerFiles(*source_, staged_).status();
  }
  const DType dtype = target_.packed ? source_->float_dtype() : target_.dtype;
  SAGE_RETURN_IF_ERROR(WriteModelFiles(staged_, *source_, ArtifactConfig(*source_, quantization_, dtype), files_));
  return WriteTokenizerFiles(*source_, staged_).status();
}

void Conversion::CompareValues(const std::string& name, const float* a, const float* b, int64_t count) {
  Difference difference;
  difference.Compare(a, b, count);
  if (!difference.lossless) changed_[name] = difference.max_abs;
  difference_.Add(difference);
}

// How a layer's input is rounded is as much a part of what it computes as its weights.
absl::Status Conversion::CompareActivations(const ArtifactSource& written, const LinearSlot& slot) {
  SAGE_ASSIGN_OR_RETURN(const StoredLinear before, source_->Stored(slot));
  SAGE_ASSIGN_OR_RETURN(const StoredLinear after, written.Stored(slot));
  SAGE_ASSIGN_OR_RETURN(const StoredActivations a, ActivationsOf(before));
  SAGE_ASSIGN_OR_RETURN(const StoredActivations b, ActivationsOf(after));
  if (a == b) return absl::OkStatus();
  difference_.lossless = false;
  changed_[slot.name + ".input_activations"] = std::abs(static_cast<double>(a.scale) - static_cast<double>(b.scale));
  return absl::OkStatus();
}

absl::Status Conversion::CompareShard(const ArtifactSource& written, int64_t shard) {
  for (const LinearSlot& slot : source_->ShardLinears(shard)) {
    if (target_.packed || target_.ascend) SAGE_RETURN_IF_ERROR(CompareActivations(written, slot));
    SAGE_ASSIGN_OR_RETURN(const Tensor a, source_->Weight(slot, threads_));
    SAGE_ASSIGN_OR_RETURN(const Tensor b, written.Weight(slot, threads_));
    CompareValues(slot.name + ".weight", a.as<float>(), b.as<float>(), slot.N * slot.K);
    SAGE_ASSIGN_OR_RETURN(const NamedTensor x, source_->Bias(slot));
    SAGE_ASSIGN_OR_RETURN(const NamedTensor y, written.Bias(slot));
    if (x.view.empty()) continue;
    std::vector<float> p(static_cast<size_t>(slot.N)), q(static_cast<size_t>(slot.N));
    SAGE_RETURN_IF_ERROR(ToFloat(x.view, p.data()));
    SAGE_RETURN_IF_ERROR(ToFloat(y.view, q.data()));
    CompareValues(slot.name + ".bias", p.data(), q.data(), slot.N);
  }
  SAGE_ASSIGN_OR_RETURN(const std::vector<NamedTensor> before, source_->PlainValues(shard, threads_));
  SAGE_ASSIGN_OR_RETURN(const std::vector<NamedTensor> after, written.PlainValues(shard, threads_));
  for (size_t i = 0; i < before.size(); ++i) {
    CompareValues(before[i].name, before[i].view.as<float>(), after[i].view.as<float>(), before[i].view.elements());
  }
  return absl::OkStatus();
}

absl::Status Conversion::Compare(const CancelToken& cancel, const ProgressFn& progress) {
  absl::StatusOr<std::unique_ptr<ArtifactSource>> written = ArtifactSource::Open(staged_);
  if (!written.ok()) return Annotate(written.status(), "reload of the converted folder");
  const int64_t total = source_->shard_count();
  for (int64_t shard = 0; shard < total; ++shard) {
    SAGE_RETURN_IF_ERROR(cancel.Check());
    if (progress) progress({"compare", total + shard, 2 * total, "layers"});
    SAGE_RETURN_IF_ERROR(CompareShard(**written, shard));
  }
  if (progress) progress({"done", 2 * total, 2 * total, "layers"});
  return absl::OkStatus();
}

// Where the values came from first: the source's own provenance when it is an artifact.
absl::StatusOr<Json> Conversion::Manifest() const {
  const Checkpoint& source = source_->checkpoint();
  SAGE_ASSIGN_OR_RETURN(const std::string sha256, source.Fingerprint());
  Json provenance = {{"path", source.path()},
                     {"format", std::string(source.format())},
                     {"sha256", sha256},
                     {"file_bytes", static_cast<int64_t>(source.file_bytes())},
                     {"notes", source.notes()}};
  const absl::StatusOr<Json> before = ReadManifest(spec_.artifact);
  const Json from = provenance;
  if (before.ok() && before->contains("provenance")) provenance = (*before)["provenance"];
  const auto kept = [&](const char* key) { return before.ok() ? before->value(key, Json()) : Json(); };
  Json files = Json::array();
  int64_t weight_bytes = 0;
  for (const ShardRecord& file : files_) {
    files.push_back(ShardToJson(file));
    for (const TensorRecord& tensor : file.tensors) weight_bytes += tensor.bytes;
  }
  SAGE_ASSIGN_OR_RETURN(const Json side_files, HashSideFiles(staged_, files_));
  Json out = {{"format_version", kArtifactFormatVersion},
              {"producer", absl::StrCat("sagequant ", kEngineVersion)},
              {"quantization", layers_.has_value() ? layers_->most().spec.strategy : plain_strategy_},
              {"checkpoint_format", target_.gguf               ? "gguf"
                                    : layers_                  ? std::string(layers_->format().name)
                                    : !quantization_.is_null() ? "compressed_tensors"
                                                               : "safetensors"},
              {"provenance", std::move(provenance)},
              {"spec_hash", kept("spec_hash")},
              {"calibration_record", kept("calibration_record")},
              {"conversion",
               {{"from", from},
                {"modules", spec_.types},
                {"format", target_.format},
                {"lossless", difference_.lossless},
                {"max_abs_difference", difference_.max_abs},
                {"changed", changed_},
                {"types", types_},
                {"notes", notes_}}},
              {"totals", {{"weight_bytes", weight_bytes}}},
              {"files", std::move(files)},
              {"side_files", side_files}};
  if (KeepsKvPlan()) out["kv_quant_plan"] = kv_plan_;
  return out;
}

absl::StatusOr<ConvertResult> Conversion::Publish() {
  SAGE_ASSIGN_OR_RETURN(const Json manifest, Manifest());
  SAGE_RETURN_IF_ERROR(WriteFileAtomic(staged_ + "/" + kManifestFile, DumpJson(manifest, 2) + "\n"));
  SAGE_RETURN_IF_ERROR(PublishFolder(staged_, spec_.output));
  ConvertResult result;
  result.lossless = difference_.lossless;
  result.max_abs_difference = difference_.max_abs;
  result.path = spec_.output;
  for (const ShardRecord& file : files_) result.tensors += static_cast<int64_t>(file.tensors.size());
  return result;
}

}  // namespace

absl::StatusOr<ConvertResult> ConvertArtifact(const ConvertSpec& spec, ThreadPool& threads, const CancelToken& cancel,
                                              const ProgressFn& progress) {
  SAGE_ASSIGN_OR_RETURN(const Target target, ParseTarget(spec));
  if (spec.output.empty() || spec.output.back() == '/') {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_OUTPUT",
                     "output: must name a folder, without '/' at the end");
  }
  if (FileExists(spec.output) || IsDirectory(spec.output)) {
    return MakeError(absl::StatusCode::kAlreadyExists, "OUTPUT_EXISTS",
                     absl::StrCat("output: ", spec.output, " is there already"));
  }
  const MapWatch files({spec.artifact});
  SAGE_ASSIGN_OR_RETURN(std::unique_ptr<ArtifactSource> source, ArtifactSource::Open(spec.artifact));
  const std::string parent = fs::path(spec.output).parent_path().string();
  if (!parent.empty()) SAGE_RETURN_IF_ERROR(MakeDirectories(parent));
  SAGE_ASSIGN_OR_RETURN(const std::unique_ptr<FolderLock> lock, FolderLock::Take(spec.output + ".lock"));
  Conversion conversion(spec, target, std::move(source), threads);
  absl::Status status = conversion.Write(cancel, progress);
  if (status.ok()) status = conversion.Compare(cancel, progress);
  if (const absl::Status read = files.Check(); !read.ok()) status = read;
  absl::StatusOr<ConvertResult> result = status.ok() ? conversion.Publish() : absl::StatusOr<ConvertResult>(status);
  conversion.Discard();
  std::error_code ignored;
  fs::remove(spec.output + ".lock", ignored);
  return result;
}

}  // namespace sage
