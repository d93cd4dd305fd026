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
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/file.h"
#include "engine/base/map_guard.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/artifact_tokenizer.h"
#include "engine/runtime/ascend_export.h"
#include "engine/runtime/gguf_export.h"
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

absl::StatusOr<Target> ParseTarget(const std::string& format) {
  if (IsGgufWord(format)) {
    SAGE_ASSIGN_OR_RETURN(GgufScheme scheme, ParseGgufScheme(format));
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
  for (std::string& word : GgufWords()) known.push_back(std::move(word));
  const std::string candidates = absl::StrJoin(known, ", ");
  return MakeError(absl::StatusCode::kUnimplemented, "UNSUPPORTED_OUTPUT_FORMAT",
                   absl::StrCat("format: must be one of [", candidates, "], got '", format, "'"),
                   {{"candidates", candidates}});
}

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
  absl::Status CheckPacked();
  absl::Status ChooseSpec(const LinearStrategyDef& wanted);
  absl::StatusOr<ShardRecord> WriteShardOf(int64_t shard);
  absl::Status AddPacked(const LinearSlot& slot, std::vector<NamedTensor>& tensors) const;
  absl::Status WriteFolder(const CancelToken& cancel, const ProgressFn& progress);
  absl::StatusOr<std::vector<NamedTensor>> KvScales(int64_t layer) const;
  absl::StatusOr<ShardRecord> WriteAscendShard(int64_t shard);
  absl::Status WriteOneGguf(const CancelToken& cancel, const ProgressFn& progress);
  absl::Status CompareShard(const ArtifactSource& written, int64_t shard);
  void CompareValues(const std::string& name, const float* a, const float* b, int64_t count);
  absl::StatusOr<Json> Manifest() const;

  const ConvertSpec& spec_;
  Target target_;
  std::unique_ptr<ArtifactSource> source_;
  ThreadPool& threads_;
  std::string staged_;
  std::optional<LinearSpec> packed_;             // what the quantized linears share
  const CheckpointFormatDef* format_ = nullptr;  // when the target stays quantized
  const LinearStrategyDef* strategy_ = nullptr;  // of the layers that are written
  std::vector<std::string> ignored_;
  std::set<int64_t> whole_rows_;  // inputs of layers with one scale a row
  Difference difference_;
  std::map<std::string, double> changed_;
  std::vector<ShardRecord> files_;
  std::map<std::string, std::string> types_;  // of the stored tensors
  std::vector<std::string> notes_;
  Json description_ = Json::object();  // of an AscendV1 folder
};

// One config group describes all layers, so they must agree; a layer stored as floats goes to the ignore list.
absl::Status Conversion::CheckPacked() {
  for (const LinearSlot& slot : source_->linears()) {
    SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, source_->Stored(slot));
    SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
    if (!def->quantizes) {
      ignored_.push_back(slot.name);
      continue;
    }
    // One scale a row is also one group of all inputs: then the layers with more say what the group is.
    const int group = stored.spec.group_size;
    if (group == -1) whole_rows_.insert(slot.K);
    const bool only_this = whole_rows_.size() == 1 && *whole_rows_.begin() == group;
    if (packed_ && packed_->group_size == -1 && only_this) packed_->group_size = group;
    const bool grouped = packed_ && (packed_->group_size == group || (group == -1 && packed_->group_size == slot.K));
    const bool same =
        !packed_ || (grouped && packed_->strategy == stored.spec.strategy &&
                     packed_->symmetric == stored.spec.symmetric && packed_->act_order == stored.spec.act_order);
    if (!same) {
      return MakeError(absl::StatusCode::kUnimplemented, "MIXED_SCHEMES",
                       absl::StrCat(slot.name, ": all quantized layers must share strategy, group size and symmetry"));
    }
    if (!packed_) packed_ = stored.spec;
    strategy_ = def;
  }
  if (!packed_) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NOTHING_QUANTIZED",
                     absl::StrCat(target_.format, ": the source has no quantized layer; use calibrate"));
  }
  SAGE_ASSIGN_OR_RETURN(format_, FindOutputFormat(target_.format, *strategy_));
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* wanted, StrategyIn(*format_, *strategy_));
  // Another strategy takes the codes only when both are integers of the same grid.
  if (wanted != strategy_ && !(strategy_->integer_grid && wanted->integer_grid)) {
    return CannotStore(format_->name, *strategy_);
  }
  SAGE_RETURN_IF_ERROR(ChooseSpec(*wanted));
  strategy_ = wanted;
  return absl::OkStatus();
}

// The spec of the rewritten layers; scales take the target's dtype where it cannot hold the source's.
absl::Status Conversion::ChooseSpec(const LinearStrategyDef& wanted) {
  if (&wanted == strategy_) return absl::OkStatus();
  packed_->strategy = std::string(wanted.name);
  const LinearSlot slot = source_->linears().front();
  for (const DType dtype : {packed_->scale_dtype, DType::kF16, DType::kF32}) {
    packed_->scale_dtype = dtype;
    if (GetErrorReason(wanted.check(*packed_, slot.N, slot.K)).reason != "BAD_SCALE_DTYPE") break;
  }
  for (const LinearSlot& each : source_->linears()) {
    if (std::find(ignored_.begin(), ignored_.end(), each.name) != ignored_.end()) continue;
    const absl::Status status = wanted.check(*packed_, each.N, each.K);
    if (!status.ok()) return Annotate(status, each.name);
  }
  return absl::OkStatus();
}

absl::Status Conversion::AddPacked(const LinearSlot& slot, std::vector<NamedTensor>& tensors) const {
  SAGE_ASSIGN_OR_RETURN(StoredLinear taken, source_->Stored(slot));
  if (taken.spec.strategy != packed_->strategy) {
    SAGE_ASSIGN_OR_RETURN(const LayerPlan plan, PlanOfStored(taken, threads_));
    SAGE_ASSIGN_OR_RETURN(const Tensor values, Dequantize(taken));
    SAGE_ASSIGN_OR_RETURN(taken, strategy_->quantize(values.view(), *packed_, plan, threads_));
  }
  const auto stored = std::make_shared<StoredLinear>(std::move(taken));
  for (const auto& [name, view] : stored->tensors) tensors.push_back({slot.name + "." + name, view, stored});
  return absl::OkStatus();
}

// Scales and zeros of a layer's KV cache under any producer's name, as they are.
absl::StatusOr<std::vector<NamedTensor>> Conversion::KvScales(int64_t layer) const {
  std::vector<NamedTensor> out;
  for (const char* name : {"k_scale", "v_scale", "k_zero_point", "v_zero_point", "kv_scale", "k_proj.k_scale",
                           "v_proj.v_scale", "k_proj.output_scale", "v_proj.output_scale", "k_proj.kv_cache_scale",
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
    const bool ignored = std::find(ignored_.begin(), ignored_.end(), slot.name) != ignored_.end();
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
  if (target_.packed) SAGE_RETURN_IF_ERROR(CheckPacked());
  SAGE_ASSIGN_OR_RETURN(const std::vector<NamedTensor> scales, KvScales(0));
  if (!scales.empty() && !target_.packed && !target_.ascend) {
    notes_.push_back(absl::StrCat("scales of the KV cache are not kept: ", target_.format, " has no place for them"));
  }
  Discard();  // left by a conversion that died
  SAGE_RETURN_IF_ERROR(MakeDirectories(staged_));
  return target_.gguf ? WriteOneGguf(cancel, progress) : WriteFolder(cancel, progress);
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
  Json quantization;
  if (target_.packed) {
    SAGE_ASSIGN_OR_RETURN(quantization, format_->write_config(*packed_, *strategy_, ignored_));
    const Json before = source_->checkpoint().config().value("quantization_config", Json());
    if (quantization.contains("kv_cache_scheme") && before.is_object() && before.contains("kv_cache_scheme")) {
      quantization["kv_cache_scheme"] = before["kv_cache_scheme"];
    }
    if (!format_->config_file.empty()) {
      SAGE_RETURN_IF_ERROR(WriteFileAtomic(absl::StrCat(staged_, "/", std::string(format_->config_file)),
                                           DumpJson(quantization, 2) + "\n"));
    }
  }
  if (target_.ascend) {
    SAGE_RETURN_IF_ERROR(WriteAscendFiles(staged_, description_, files_));
    const Json config = ArtifactConfig(*source_, nullptr, source_->float_dtype());
    SAGE_RETURN_IF_ERROR(WriteFileAtomic(staged_ + "/config.json", DumpJson(config, 2) + "\n"));
    return WriteTokenizerFiles(*source_, staged_).status();
  }
  const DType dtype = target_.packed ? source_->float_dtype() : target_.dtype;
  SAGE_RETURN_IF_ERROR(WriteModelFiles(staged_, *source_, ArtifactConfig(*source_, quantization, dtype), files_));
  return WriteTokenizerFiles(*source_, staged_).status();
}

void Conversion::CompareValues(const std::string& name, const float* a, const float* b, int64_t count) {
  Difference difference;
  difference.Compare(a, b, count);
  if (!difference.lossless) changed_[name] = difference.max_abs;
  difference_.Add(difference);
}

absl::Status Conversion::CompareShard(const ArtifactSource& written, int64_t shard) {
  for (const LinearSlot& slot : source_->ShardLinears(shard)) {
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
  return Json{{"format_version", kArtifactFormatVersion},
              {"producer", absl::StrCat("sagequant ", kEngineVersion)},
              {"quantization", strategy_ == nullptr ? target_.format : packed_->strategy},
              {"checkpoint_format", target_.gguf     ? "gguf"
                                    : target_.packed ? target_.format
                                                     : "safetensors"},
              {"provenance", std::move(provenance)},
              {"spec_hash", kept("spec_hash")},
              {"calibration_record", kept("calibration_record")},
              {"conversion",
               {{"from", from},
                {"format", target_.format},
                {"lossless", difference_.lossless},
                {"max_abs_difference", difference_.max_abs},
                {"changed", changed_},
                {"types", types_},
                {"notes", notes_}}},
              {"totals", {{"weight_bytes", weight_bytes}}},
              {"files", std::move(files)},
              {"side_files", side_files}};
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
  SAGE_ASSIGN_OR_RETURN(const Target target, ParseTarget(spec.format));
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
