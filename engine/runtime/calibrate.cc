// The calibration loop: one shard a layer, each finished before the next begins, the manifest last.
//
// The unfinished artifact lives in work_dir/calibrate-<spec hash>; the file of that name with ".progress.json" lists
// the finished shards and names the output. A rerun of the same spec keeps every shard whose bytes still have the
// recorded sha256 and continues at the first missing one.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/map_guard.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/artifact_tokenizer.h"
#include "engine/runtime/calibrate_estimate.h"
#include "engine/runtime/calibrate_gguf.h"
#include "engine/runtime/calibrate_plan.h"
#include "engine/runtime/calibration_samples.h"
#include "engine/runtime/gguf_scheme.h"
#include "engine/runtime/layer_calibration.h"
#include "engine/runtime/memory_limit.h"
#include "engine/runtime/operations.h"

namespace sage {
namespace {

namespace fs = std::filesystem;

struct LinearRecord {
  LayerResult result;
  int64_t parameters = 0;
  bool quantized = false;
  double output_error = 0;  // ||x dW|| / ||x W|| over the calibration tokens; 0 without activations or after training
  double compensation = 0;  // share taken of the correction for the layers before it; 0 without
  std::string folded_into;  // where its input's scales went; empty without
  std::string folded_by;    // how those were chosen
  // Training of its block: mean squared error relative to the unquantized output on held-out texts; 0 without.
  double block_error_before = 0, block_error = 0;
};

struct ShardProgress {
  ShardRecord shard;
  std::vector<LinearRecord> linears;
  int64_t source_bytes = 0;
  Json kv;  // static scales of the layer's KV cache, null without
};

std::string StoredSha256(const StoredLinear& stored) {
  Sha256 hash;
  for (const auto& [name, view] : stored.tensors) hash.Update(view.data, view.bytes);
  return hash.HexDigest();
}

Json ToJson(const LinearRecord& record) {
  return {{"name", record.result.name},          {"scheme", record.result.scheme},
          {"error", record.result.error},        {"sha256", record.result.sha256},
          {"bytes", record.result.bytes},        {"parameters", record.parameters},
          {"quantized", record.quantized},       {"output_error", record.output_error},
          {"compensation", record.compensation}, {"folded_into", record.folded_into},
          {"block_error", record.block_error},   {"block_error_before", record.block_error_before},
          {"folded_by", record.folded_by}};
}

absl::StatusOr<LinearRecord> LinearFromJson(const Json& json) {
  LinearRecord record;
  SAGE_ASSIGN_OR_RETURN(record.result.name, JsonString(json, "name", ""));
  SAGE_ASSIGN_OR_RETURN(record.result.scheme, JsonString(json, "scheme", ""));
  SAGE_ASSIGN_OR_RETURN(record.result.error, JsonDouble(json, "error", 0));
  SAGE_ASSIGN_OR_RETURN(record.result.sha256, JsonString(json, "sha256", ""));
  SAGE_ASSIGN_OR_RETURN(record.result.bytes, JsonInt(json, "bytes", 0));
  SAGE_ASSIGN_OR_RETURN(record.parameters, JsonInt(json, "parameters", 0));
  SAGE_ASSIGN_OR_RETURN(record.quantized, JsonBool(json, "quantized", false));
  SAGE_ASSIGN_OR_RETURN(record.output_error, JsonDouble(json, "output_error", 0));
  SAGE_ASSIGN_OR_RETURN(record.compensation, JsonDouble(json, "compensation", 0));
  SAGE_ASSIGN_OR_RETURN(record.folded_into, JsonString(json, "folded_into", ""));
  SAGE_ASSIGN_OR_RETURN(record.folded_by, JsonString(json, "folded_by", ""));
  SAGE_ASSIGN_OR_RETURN(record.block_error, JsonDouble(json, "block_error", 0));
  SAGE_ASSIGN_OR_RETURN(record.block_error_before, JsonDouble(json, "block_error_before", 0));
  return record;
}

absl::StatusOr<ShardProgress> ProgressFromJson(const Json& json) {
  ShardProgress out;
  if (!json.is_object() || !json.contains("shard") || !json.contains("linears") || !json["linears"].is_array()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_PROGRESS", "progress: needs 'shard' and 'linears'");
  }
  SAGE_ASSIGN_OR_RETURN(out.shard, ShardFromJson(json["shard"]));
  SAGE_ASSIGN_OR_RETURN(out.source_bytes, JsonInt(json, "source_bytes", 0));
  out.kv = json.value("kv", Json());
  for (const Json& entry : json["linears"]) {
    SAGE_ASSIGN_OR_RETURN(LinearRecord record, LinearFromJson(entry));
    out.linears.push_back(std::move(record));
  }
  return out;
}

class Calibration {
 public:
  Calibration(const CalibrationSpec& spec, CalibrationPlan plan, ThreadPool& threads, MapWatch files)
      : spec_(spec), plan_(std::move(plan)), threads_(threads), files_(std::move(files)) {}

  absl::Status Prepare();
  absl::Status RunShards(const CancelToken& cancel, const ProgressFn& progress);
  absl::StatusOr<Json> Finish();
  bool resumed() const { return resumed_; }
  // What the run will take; decides where activations lie. RESOURCE_EXHAUSTED when it passes spec.max_memory.
  absl::Status Estimate();
  void AddEstimate(CalibrationResult* result) const {
    result->estimated_bytes = estimate_.peak_bytes();
    result->estimated_seconds = estimated_seconds_;
    result->spilled_bytes = estimate_.spill ? estimate_.activation_bytes : 0;
  }

 private:
  std::string SpillFolder() const { return estimate_.spill ? folder_ : ""; }
  std::string progress_path() const { return folder_ + ".progress.json"; }
  int64_t shard_count() const { return plan_.source->shard_count(); }
  void LoadProgress();
  absl::Status SaveProgress() const;
  absl::StatusOr<ShardProgress> MakeShard(int64_t shard);
  absl::Status AddQuantized(const LinearSlot& slot, ShardProgress& out, std::vector<NamedTensor>& tensors);
  absl::Status AddDense(const LinearSlot& slot, ShardProgress& out, std::vector<NamedTensor>& tensors);
  void AddStored(const LinearSlot& slot, const std::shared_ptr<StoredLinear>& stored, double error, ShardProgress& out,
                 std::vector<NamedTensor>& tensors);
  absl::Status AddCalibrated(int64_t shard, ShardProgress& out, std::vector<NamedTensor>& tensors);
  void Note(std::string text);
  void NoteFewTokens(const std::vector<std::vector<int32_t>>& samples);
  absl::Status OpenStream(const CancelToken& cancel, const ProgressFn& progress);
  Json Manifest(const Json& side_files) const;

  const CalibrationSpec& spec_;
  CalibrationPlan plan_;
  ThreadPool& threads_;
  MapWatch files_;
  std::string folder_;
  std::unique_ptr<FolderLock> lock_;
  CalibrationStreams streams_;  // only for methods that need activations
  std::vector<ShardProgress> done_;
  CalibrationEstimate estimate_;
  double estimated_seconds_ = 0;
  bool resumed_ = false;
  std::vector<std::string> notes_;
};

absl::Status Calibration::Estimate() {
  estimate_ = EstimateCalibration(plan_, spec_.samples, spec_.sequence_length);
  SAGE_RETURN_IF_ERROR(FitIntoMemory(spec_.max_memory, AvailableMemory(), &estimate_));
  estimated_seconds_ = estimate_.operations / std::max(1.0, MeasureOperationsRate(threads_));
  return absl::OkStatus();
}

absl::Status Calibration::Prepare() {
  const std::string parent = fs::path(spec_.output).parent_path().string();
  const std::string work = !spec_.work_dir.empty() ? spec_.work_dir : (parent.empty() ? "." : parent) + "/.sage-work";
  SAGE_RETURN_IF_ERROR(MakeDirectories(work));
  folder_ = absl::StrCat(work, "/calibrate-", plan_.spec_hash.substr(0, 16));
  SAGE_ASSIGN_OR_RETURN(lock_, FolderLock::Take(folder_ + ".lock"));
  SAGE_RETURN_IF_ERROR(MakeDirectories(folder_));
  // A tokenizer that cannot be written is refused now, not after the last layer.
  if (plan_.source->is_gguf()) SAGE_RETURN_IF_ERROR(GgufTokenizerFiles(plan_.source->checkpoint().path()).status());
  LoadProgress();
  return SaveProgress();  // says whose work this is before any is done
}

// Anything unreadable or damaged only shortens what is kept: the work is done again.
void Calibration::LoadProgress() {
  const absl::StatusOr<std::string> text = ReadFile(progress_path());
  if (!text.ok()) return;
  const absl::StatusOr<Json> json = ParseJson(*text, "progress");
  if (!json.ok() || !json->is_object() || json->value("spec_hash", Json()) != Json(plan_.spec_hash)) return;
  if (!json->contains("shards") || !(*json)["shards"].is_array()) return;
  for (const Json& entry : (*json)["shards"]) {
    absl::StatusOr<ShardProgress> shard = ProgressFromJson(entry);
    const std::string want = ShardFileName(static_cast<int64_t>(done_.size()), shard_count());
    if (!shard.ok() || shard->shard.file != want || !ShardIsIntact(folder_, shard->shard)) break;
    done_.push_back(*std::move(shard));
  }
  resumed_ = !done_.empty();
  if (!resumed_) return;
  for (const Json& note : json->value("notes", Json::array())) {
    if (note.is_string()) notes_.push_back(note.get<std::string>());
  }
}

absl::Status Calibration::SaveProgress() const {
  Json shards = Json::array();
  for (const ShardProgress& shard : done_) {
    Json linears = Json::array();
    for (const LinearRecord& record : shard.linears) linears.push_back(ToJson(record));
    shards.push_back({{"shard", ShardToJson(shard.shard)},
                      {"linears", linears},
                      {"source_bytes", shard.source_bytes},
                      {"kv", shard.kv}});
  }
  const Json out = {
      {"spec_hash", plan_.spec_hash}, {"output", spec_.output}, {"notes", notes_}, {"shards", std::move(shards)}};
  return WriteFileAtomic(progress_path(), DumpJson(out));
}

absl::Status Calibration::AddQuantized(const LinearSlot& slot, ShardProgress& out, std::vector<NamedTensor>& tensors) {
  const LinearChoice choice = plan_.ChoiceOf(slot.name);
  SAGE_ASSIGN_OR_RETURN(const Tensor weight, plan_.source->Weight(slot, threads_));
  SAGE_ASSIGN_OR_RETURN(const LayerPlan layer,
                        plan_.calibrator->solve({}, weight.view(), choice.linear, *choice.strategy, threads_));
  SAGE_ASSIGN_OR_RETURN(StoredLinear quantized,
                        choice.strategy->quantize(weight.view(), choice.linear, layer, threads_));
  const auto stored = std::make_shared<StoredLinear>(std::move(quantized));
  SAGE_ASSIGN_OR_RETURN(const Tensor back, Dequantize(*stored));
  AddStored(slot, stored, RelativeError(weight, back, threads_), out, tensors);
  return absl::OkStatus();
}

void Calibration::AddStored(const LinearSlot& slot, const std::shared_ptr<StoredLinear>& stored, double error,
                            ShardProgress& out, std::vector<NamedTensor>& tensors) {
  LinearRecord record;
  record.result = {slot.name, stored->spec.strategy, error, StoredSha256(*stored),
                   static_cast<int64_t>(stored->weight_bytes())};
  record.parameters = slot.N * slot.K;
  record.quantized = true;
  out.linears.push_back(std::move(record));
  for (const auto& [name, view] : stored->tensors) tensors.push_back({slot.name + "." + name, view, stored});
  if (plan_.ChoiceOf(slot.name).linear.symmetric && !stored->spec.symmetric) {
    Note(absl::StrCat(
        "asymmetric: ", stored->spec.strategy, " always stores zero points; without --asymmetric, methods ",
        "that round by range alone (minmax, smoothquant) choose them all the same, the others keep every ",
        "zero at the middle code"));
  }
}

// Once, also where a run goes on that had said it before its stop.
void Calibration::Note(std::string text) {
  if (std::find(notes_.begin(), notes_.end(), text) == notes_.end()) notes_.push_back(std::move(text));
}

// A layer solved behind its quantized predecessors; norms and biases that folding changed replace the source's.
absl::Status Calibration::AddCalibrated(int64_t shard, ShardProgress& out, std::vector<NamedTensor>& tensors) {
  SAGE_ASSIGN_OR_RETURN(CalibratedLayer layer, CalibrateLayer(plan_, streams_, shard, threads_));
  const auto replace = [&](NamedTensor& tensor) -> absl::Status {
    const auto it = layer.plain.find(tensor.name);
    if (it == layer.plain.end()) return absl::OkStatus();
    SAGE_ASSIGN_OR_RETURN(tensor, ConvertFloats(tensor.name, it->second.data(), tensor.view.shape, tensor.view.dtype));
    return absl::OkStatus();
  };
  for (NamedTensor& tensor : tensors) SAGE_RETURN_IF_ERROR(replace(tensor));
  for (NamedTensor& tensor : layer.kv_scales) tensors.push_back(std::move(tensor));
  out.kv = std::move(layer.kv);
  for (const LinearSlot& slot : plan_.source->ShardLinears(shard)) {
    SAGE_ASSIGN_OR_RETURN(const StoredLinear source, plan_.source->Stored(slot));
    out.source_bytes += static_cast<int64_t>(source.weight_bytes());
    const auto stored = layer.stored.find(slot.name);
    if (stored == layer.stored.end()) {
      SAGE_RETURN_IF_ERROR(AddDense(slot, out, tensors));
    } else {
      AddStored(slot, stored->second, layer.error[slot.name], out, tensors);
      out.linears.back().output_error = layer.output_error[slot.name];
      out.linears.back().compensation = layer.strength[slot.name];
      out.linears.back().folded_into = layer.notes[slot.name];
      out.linears.back().folded_by = layer.folded_by[slot.name];
      if (layer.training.has_value()) {
        out.linears.back().block_error = layer.training->loss;
        out.linears.back().block_error_before = layer.training->start_loss;
      }
    }
    SAGE_ASSIGN_OR_RETURN(NamedTensor bias, plan_.source->Bias(slot));
    if (bias.view.empty()) continue;
    SAGE_RETURN_IF_ERROR(replace(bias));
    tensors.push_back(std::move(bias));
  }
  return absl::OkStatus();
}

// Reads and cuts the dataset, and brings its states behind the layers that are finished.
absl::Status Calibration::OpenStream(const CancelToken& cancel, const ProgressFn& progress) {
  SAGE_ASSIGN_OR_RETURN(const Dataset dataset, ReadDataset(spec_.dataset, spec_.dataset_field, spec_.dataset_name));
  const absl::StatusOr<TokenizerFiles> files = LoadTokenizer(plan_.source->checkpoint().path());
  SAGE_ASSIGN_OR_RETURN(auto samples, ChooseSamples(dataset, files.ok() ? &*files : nullptr, spec_.samples,
                                                    spec_.sequence_length, spec_.seed));
  NoteFewTokens(samples);
  if (plan_.calibrator->compensates) {
    SAGE_ASSIGN_OR_RETURN(streams_.full, LayerStream::Create(*plan_.source, samples, threads_, cancel, SpillFolder()));
  }
  SAGE_ASSIGN_OR_RETURN(streams_.quantized,
                        LayerStream::Create(*plan_.source, std::move(samples), threads_, cancel, SpillFolder()));
  const int64_t finished = std::min(static_cast<int64_t>(done_.size()), shard_count() - 1);
  for (int64_t layer = 0; layer < finished; ++layer) {
    if (progress) progress({absl::StrCat("resuming: layer ", layer), layer, shard_count(), "layers"});
    const std::string file = folder_ + "/" + done_[static_cast<size_t>(layer)].shard.file;
    SAGE_ASSIGN_OR_RETURN(const LayerWeights weights, ReadCalibratedLayer(plan_, file, layer, threads_));
    SAGE_RETURN_IF_ERROR(streams_.quantized->Run(weights, layer));
    if (streams_.full == nullptr) continue;
    SAGE_ASSIGN_OR_RETURN(const LayerWeights source, LoadLayerWeights(*plan_.source, layer, threads_));
    SAGE_RETURN_IF_ERROR(streams_.full->Run(source, layer));
  }
  return absl::OkStatus();
}

// Fewer tokens than a layer has inputs leave directions that only the damping decides.
void Calibration::NoteFewTokens(const std::vector<std::vector<int32_t>>& samples) {
  int64_t tokens = 0, widest = 0;
  for (const std::vector<int32_t>& sample : samples) tokens += static_cast<int64_t>(sample.size());
  for (const LinearSlot& slot : plan_.source->linears()) {
    if (plan_.Quantizes(slot)) widest = std::max(widest, slot.K);
  }
  if (!plan_.calibrator->solves_by_gptq || tokens >= widest) return;
  Note(absl::StrCat("dataset: ", tokens, " tokens for layers of up to ", widest,
                    " inputs are few: ", std::string(plan_.calibrator->name),
                    " knows some directions by its damping alone; give more or longer samples"));
}

absl::Status Calibration::AddDense(const LinearSlot& slot, ShardProgress& out, std::vector<NamedTensor>& tensors) {
  SAGE_ASSIGN_OR_RETURN(NamedTensor tensor, plan_.source->FloatWeight(slot, threads_));
  LinearRecord record;
  record.result = {slot.name, std::string(DTypeName(tensor.view.dtype)), 0,
                   Sha256Hex({static_cast<const char*>(tensor.view.data), tensor.view.bytes}),
                   static_cast<int64_t>(tensor.view.bytes)};
  record.parameters = slot.N * slot.K;
  out.linears.push_back(std::move(record));
  tensors.push_back(std::move(tensor));
  return absl::OkStatus();
}

absl::StatusOr<ShardProgress> Calibration::MakeShard(int64_t shard) {
  ShardProgress out;
  SAGE_ASSIGN_OR_RETURN(std::vector<NamedTensor> tensors, plan_.source->PlainTensors(shard, threads_));
  for (const NamedTensor& tensor : tensors) out.source_bytes += static_cast<int64_t>(tensor.view.bytes);
  if (streams_.quantized != nullptr && shard + 1 < shard_count()) {
    SAGE_RETURN_IF_ERROR(AddCalibrated(shard, out, tensors));
    SAGE_ASSIGN_OR_RETURN(out.shard, WriteShard(folder_, ShardFileName(shard, shard_count()), std::move(tensors)));
    return out;
  }
  for (const LinearSlot& slot : plan_.source->ShardLinears(shard)) {
    SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, plan_.source->Stored(slot));
    if (!plan_.source->SharesEmbeddings(slot)) out.source_bytes += static_cast<int64_t>(stored.weight_bytes());
    const absl::Status status = plan_.Quantizes(slot) ? AddQuantized(slot, out, tensors) : AddDense(slot, out, tensors);
    if (!status.ok()) return Annotate(status, slot.name);
    SAGE_ASSIGN_OR_RETURN(NamedTensor bias, plan_.source->Bias(slot));
    if (!bias.view.empty()) tensors.push_back(std::move(bias));
  }
  SAGE_ASSIGN_OR_RETURN(out.shard, WriteShard(folder_, ShardFileName(shard, shard_count()), std::move(tensors)));
  return out;
}

absl::Status Calibration::RunShards(const CancelToken& cancel, const ProgressFn& progress) {
  const int64_t total = shard_count();
  if (progress) {
    progress({absl::StrCat("estimate: ", EstimateText(estimate_, estimated_seconds_)),
              static_cast<int64_t>(done_.size()), total, "layers"});
  }
  if (plan_.needs_stream() && static_cast<int64_t>(done_.size()) + 1 < total) {
    SAGE_RETURN_IF_ERROR(OpenStream(cancel, progress));
  }
  for (int64_t shard = static_cast<int64_t>(done_.size()); shard < total; ++shard) {
    SAGE_RETURN_IF_ERROR(cancel.Check());
    if (progress)
      progress({shard + 1 < total ? absl::StrCat("layer ", shard) : "embeddings and head", shard, total, "layers"});
    absl::StatusOr<ShardProgress> made = MakeShard(shard);
    SAGE_RETURN_IF_ERROR(files_.Check());  // a shard made from zeros must not be found by the next run
    SAGE_RETURN_IF_ERROR(made.status());
    done_.push_back(*std::move(made));
    SAGE_RETURN_IF_ERROR(SaveProgress());
  }
  if (progress) progress({"manifest", total, total, "layers"});
  return cancel.Check();
}

Json Calibration::Manifest(const Json& side_files) const {
  Json layers = Json::array(), bindings = Json::array(), files = Json::array(), kv = Json::array();
  int64_t weight_bytes = 0, source_bytes = 0, quantized_bytes = 0, quantized_parameters = 0;
  for (const ShardProgress& shard : done_) {
    files.push_back(ShardToJson(shard.shard));
    source_bytes += shard.source_bytes;
    if (!shard.kv.is_null()) kv.push_back(shard.kv);
    for (const TensorRecord& tensor : shard.shard.tensors) weight_bytes += tensor.bytes;
    for (const LinearRecord& record : shard.linears) {
      layers.push_back(ToJson(record));
      if (!record.quantized) continue;
      quantized_bytes += record.result.bytes;
      quantized_parameters += record.parameters;
      const LinearChoice choice = plan_.ChoiceOf(record.result.name);
      bindings.push_back({{"operator", record.result.name},
                          {"strategy", record.result.scheme},
                          {"weight_bits", choice.strategy->weight_bits},
                          {"activation_bits", choice.strategy->activation_bits},
                          {"group_size", choice.linear.group_size},
                          {"symmetric", choice.linear.symmetric}});
    }
  }
  const Checkpoint& source = plan_.source->checkpoint();
  return {{"format_version", kArtifactFormatVersion},
          {"producer", absl::StrCat("sagequant ", kEngineVersion)},
          {"spec_hash", plan_.spec_hash},
          {"quantization", plan_.linear.strategy},
          {"checkpoint_format", std::string(plan_.format->name)},
          {"calibration_record",
           {{"method", std::string(plan_.calibrator->name)},
            {"spec", plan_.spec},
            {"dataset", plan_.dataset},
            {"samples", spec_.samples},
            {"sequence_length", spec_.sequence_length},
            {"seed", spec_.seed},
            {"notes", notes_},
            {"layers", std::move(layers)}}},
          {"kernel_bindings", std::move(bindings)},
          {"kv_quant_plan", plan_.kv.Manifest(kv)},
          {"provenance",
           {{"model", spec_.model_name},
            {"path", source.path()},
            {"format", std::string(source.format())},
            {"sha256", plan_.source_sha256},
            {"file_bytes", static_cast<int64_t>(source.file_bytes())},
            {"notes", source.notes()}}},
          {"totals",
           {{"weight_bytes", weight_bytes},
            {"source_bytes", source_bytes},
            {"quantized_bytes", quantized_bytes},
            {"quantized_parameters", quantized_parameters},
            {"bits_per_weight",
             quantized_parameters == 0
                 ? 8.0 * static_cast<double>(DTypeSize(plan_.source->float_dtype()))
                 : 8.0 * static_cast<double>(quantized_bytes) / static_cast<double>(quantized_parameters)}}},
          {"files", std::move(files)},
          {"side_files", side_files}};
}

absl::StatusOr<Json> Calibration::Finish() {
  std::vector<ShardRecord> shards;
  for (const ShardProgress& shard : done_) shards.push_back(shard.shard);
  // A stopped run may have left files behind: only shards go on, the rest is made anew.
  SAGE_RETURN_IF_ERROR(RemoveAllBut(folder_, shards));
  const Json config = ArtifactConfig(*plan_.source, plan_.quantization_config, plan_.source->float_dtype());
  SAGE_RETURN_IF_ERROR(WriteModelFiles(folder_, *plan_.source, config, shards));
  if (!plan_.format->config_file.empty()) {
    SAGE_RETURN_IF_ERROR(WriteFileAtomic(absl::StrCat(folder_, "/", std::string(plan_.format->config_file)),
                                         DumpJson(plan_.quantization_config, 2) + "\n"));
  }
  SAGE_RETURN_IF_ERROR(WriteTokenizerFiles(*plan_.source, folder_).status());
  SAGE_ASSIGN_OR_RETURN(const Json side_files, HashSideFiles(folder_, shards));
  const Json manifest = Manifest(side_files);
  SAGE_RETURN_IF_ERROR(WriteFileAtomic(folder_ + "/" + kManifestFile, DumpJson(manifest, 2) + "\n"));
  SAGE_RETURN_IF_ERROR(PublishFolder(folder_, spec_.output));
  std::error_code ignored;
  fs::remove(progress_path(), ignored);
  fs::remove(folder_ + ".lock", ignored);
  return manifest;
}

absl::StatusOr<CalibrationResult> ResultOf(const CalibrationSpec& spec, const Json& manifest) {
  CalibrationResult result;
  result.path = spec.output;
  result.artifact = fs::path(spec.output).filename().string();
  SAGE_ASSIGN_OR_RETURN(result.quantization, JsonString(manifest, "quantization", ""));
  SAGE_ASSIGN_OR_RETURN(result.format, JsonString(manifest, "checkpoint_format", ""));
  const Json totals = manifest.value("totals", Json::object());
  SAGE_ASSIGN_OR_RETURN(result.weight_bytes, JsonInt(totals, "weight_bytes", 0));
  SAGE_ASSIGN_OR_RETURN(result.source_bytes, JsonInt(totals, "source_bytes", 0));
  SAGE_ASSIGN_OR_RETURN(result.bits_per_weight, JsonDouble(totals, "bits_per_weight", 0));
  const Json record = manifest.value("calibration_record", Json::object());
  for (const Json& note : record.value("notes", Json::array())) {
    if (note.is_string()) result.notes.push_back(note.get<std::string>());
  }
  for (const Json& entry : record.value("layers", Json::array())) {
    SAGE_ASSIGN_OR_RETURN(LinearRecord linear, LinearFromJson(entry));
    result.layers.push_back(std::move(linear.result));
  }
  return result;
}

absl::Status CheckOutput(const CalibrationSpec& spec) {
  if (spec.output.empty()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "OUTPUT_MISSING", "output: must name the artifact folder");
  }
  if (spec.output.back() == '/') {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_OUTPUT", "output: must not end in '/'");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CalibrationResult> CalibrateModel(const CalibrationSpec& spec, ThreadPool& threads,
                                                 const CancelToken& cancel, const ProgressFn& progress) {
  const auto begin = std::chrono::steady_clock::now();
  SAGE_RETURN_IF_ERROR(CheckOutput(spec));
  SAGE_RETURN_IF_ERROR(cancel.Check());
  if (IsGgufWord(spec.format)) return CalibrateGguf(spec, threads, cancel, progress);
  MapWatch files({spec.model});
  SAGE_ASSIGN_OR_RETURN(CalibrationPlan plan, PlanCalibration(spec));
  SAGE_RETURN_IF_ERROR(files.Check());
  if (FileExists(spec.output) || IsDirectory(spec.output)) {
    const absl::StatusOr<Json> manifest = ReadManifest(spec.output);
    if (manifest.ok() && manifest->value("spec_hash", Json()) == Json(plan.spec_hash)) {
      SAGE_ASSIGN_OR_RETURN(CalibrationResult result, ResultOf(spec, *manifest));
      result.resumed = true;
      return result;
    }
    return MakeError(absl::StatusCode::kAlreadyExists, "ARTIFACT_EXISTS",
                     absl::StrCat("output: ", spec.output,
                                  " exists and was not made by this specification; delete it or choose another name"));
  }
  Calibration calibration(spec, std::move(plan), threads, std::move(files));
  SAGE_RETURN_IF_ERROR(calibration.Estimate());
  SAGE_RETURN_IF_ERROR(calibration.Prepare());
  SAGE_RETURN_IF_ERROR(calibration.RunShards(cancel, progress));
  SAGE_ASSIGN_OR_RETURN(const Json manifest, calibration.Finish());
  SAGE_ASSIGN_OR_RETURN(CalibrationResult result, ResultOf(spec, manifest));
  result.resumed = calibration.resumed();
  calibration.AddEstimate(&result);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace sage
