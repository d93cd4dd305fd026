// The report: quantized and unquantized model on the same tokens in one pass, with memory, speed and the protocol.
#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "engine/base/cpu_features.h"
#include "engine/base/map_guard.h"
#include "engine/base/status.h"
#include "engine/report/divergence.h"
#include "engine/report/language_model.h"
#include "engine/report/task_score.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/dataset.h"
#include "engine/runtime/operations.h"

namespace sage {
namespace {

constexpr int64_t kChunkRows = 128;
constexpr int64_t kLogitRows = 32;
constexpr int kSpeedRounds = 3;
constexpr int64_t kDecodeSteps = 24;
constexpr int64_t kTaskWindow = 2048;

double MillisecondsSince(std::chrono::steady_clock::time_point began) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class ReportRun {
 public:
  ReportRun(const ReportSpec& spec, ThreadPool& threads, const CancelToken& cancel, const ProgressFn& progress)
      : spec_(spec), threads_(threads), cancel_(cancel), progress_(progress) {}

  absl::StatusOr<Json> Run() {
    SAGE_RETURN_IF_ERROR(Prepare());
    SAGE_RETURN_IF_ERROR(Score());
    SAGE_RETURN_IF_ERROR(ScoreTasks());
    Json report = {{"artifact", spec_.artifact},
                   {"reference", reference_path_},
                   {"perplexity", sums_.Perplexity()},
                   {"kl", sums_.Kl()},
                   {"top1_agreement", sums_.Top1Agreement()},
                   {"memory", Memory()}};
    report["speed"] = Json::object();
    if (spec_.measure_speed) {
      SAGE_ASSIGN_OR_RETURN(report["speed"], Speed());
    }
    report["tasks"] = tasks_;
    report["layers"] = layers_;
    report["protocol"] = Protocol();
    return report;
  }
  absl::Status CheckFiles() const { return files_.Check(); }  // that the models' files are what they were

 private:
  absl::Status Prepare();
  absl::Status Score();
  absl::Status ScoreWindow(absl::Span<const int32_t> ids);
  absl::Status ReadTasks();
  absl::Status ScoreTasks();
  Json Memory() const;
  absl::StatusOr<Json> Speed();
  absl::Status TimeModel(ReportModel& model, std::vector<double>* prefill, std::vector<double>* decode);
  Json Protocol() const;

  const ReportSpec& spec_;
  ThreadPool& threads_;
  const CancelToken& cancel_;
  const ProgressFn& progress_;
  std::string reference_path_, tokenizer_sha256_;
  MapWatch files_;
  Json layers_ = Json::array();
  Dataset dataset_;
  std::vector<int32_t> ids_;
  int64_t window_ = 0, windows_ = 0;
  std::unique_ptr<ReportModel> quantized_, reference_;
  std::vector<float> hidden_q_, hidden_r_, logits_q_, logits_r_;
  Divergence sums_;
  std::optional<TokenizerFiles> tokenizer_;
  int64_t capacity_ = 0;  // positions the KV pages hold
  std::vector<std::pair<std::string, std::vector<TaskIds>>> task_items_;
  Json tasks_ = Json::object();
};

// Everything is read and encoded before the first window is scored: a bad line is reported at once.
absl::Status ReportRun::ReadTasks() {
  for (const auto& [name, folder] : spec_.tasks) {
    if (!tokenizer_.has_value()) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "TOKENIZER_NOT_FOUND",
                       "report: tasks are texts, and neither model has tokenizer files");
    }
    SAGE_ASSIGN_OR_RETURN(const std::vector<TaskItem> items, ReadTask(name, folder, spec_.task_items));
    std::vector<TaskIds> encoded;
    for (const TaskItem& item : items) {
      SAGE_ASSIGN_OR_RETURN(TaskIds ids, EncodeItem(item, *tokenizer_->tokenizer, capacity_));
      encoded.push_back(std::move(ids));
    }
    task_items_.emplace_back(name, std::move(encoded));
  }
  return absl::OkStatus();
}

absl::Status ReportRun::ScoreTasks() {
  for (const auto& [name, items] : task_items_) {
    std::vector<ItemScore> quantized, reference;
    for (const TaskIds& item : items) {
      SAGE_RETURN_IF_ERROR(cancel_.Check());
      SAGE_ASSIGN_OR_RETURN(const ItemScore q, ScoreItem(item, *quantized_));
      SAGE_ASSIGN_OR_RETURN(const ItemScore r, ScoreItem(item, *reference_));
      quantized.push_back(q);
      reference.push_back(r);
      if (progress_)
        progress_({name, static_cast<int64_t>(quantized.size()), static_cast<int64_t>(items.size()), "items"});
    }
    tasks_[name] = CompareTask(quantized, reference, items[0].choices.size() == 1);
  }
  return absl::OkStatus();
}

absl::Status ReportRun::Prepare() {
  reference_path_ = spec_.reference;
  const auto manifest = ReadManifest(spec_.artifact);
  if (manifest.ok()) {
    if (reference_path_.empty()) reference_path_ = manifest->value("/provenance/path"_json_pointer, std::string());
    layers_ = manifest->value("/calibration_record/layers"_json_pointer, Json::array());
  }
  if (reference_path_.empty()) {
    return MakeError(
        absl::StatusCode::kInvalidArgument, "REFERENCE_NEEDED",
        absl::StrCat("report: ", spec_.artifact, " names no source; give the unquantized model as the reference"));
  }
  files_ = MapWatch({spec_.artifact, reference_path_});
  if (spec_.dataset.empty()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "DATASET_NEEDED", "report: a dataset must be given");
  }
  SAGE_ASSIGN_OR_RETURN(dataset_, ReadDataset(spec_.dataset, "", spec_.dataset_name));
  absl::StatusOr<TokenizerFiles> files = LoadTokenizer(spec_.artifact);
  if (!files.ok()) files = LoadTokenizer(reference_path_);
  if (files.ok()) {
    tokenizer_sha256_ = files->fingerprint;
    tokenizer_ = *std::move(files);
  }
  SAGE_ASSIGN_OR_RETURN(ids_, TokenizeStream(dataset_, tokenizer_.has_value() ? &*tokenizer_ : nullptr));

  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<Checkpoint> source, OpenCheckpoint(reference_path_));
  SAGE_ASSIGN_OR_RETURN(const DecoderConfig config, ParseModelConfig(source->config(), source->generation_config()));
  const int64_t asked = spec_.window > 0 ? spec_.window : 2048;
  window_ = std::min({asked, config.max_position, static_cast<int64_t>(ids_.size())});
  if (window_ < 2) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TOO_FEW_IDS",
                     absl::StrCat("report: the dataset must have at least 2 tokens, got ", ids_.size()));
  }
  windows_ = static_cast<int64_t>(ids_.size()) / window_;
  if (spec_.windows > 0) windows_ = std::min(windows_, spec_.windows);
  capacity_ = spec_.tasks.empty() ? window_ : std::max(window_, std::min(kTaskWindow, config.max_position));
  SAGE_RETURN_IF_ERROR(ReadTasks());
  SAGE_RETURN_IF_ERROR(ResolveKvStrategy(spec_.kv_quantization).status());
  const KvAsked kv{spec_.kv_quantization, "bf16", {}, {}, 0};
  if (progress_) progress_({"load", 0, windows_, "windows"});
  SAGE_ASSIGN_OR_RETURN(quantized_, ReportModel::Load(spec_.artifact, kv, capacity_, threads_, cancel_));
  SAGE_ASSIGN_OR_RETURN(reference_,
                        ReportModel::Load(reference_path_, {"f32", "f32", {}, {}, 0}, capacity_, threads_, cancel_));
  if (quantized_->decoder().config().V != reference_->decoder().config().V) {
    return MakeError(absl::StatusCode::kInvalidArgument, "VOCABULARY_MISMATCH",
                     absl::StrCat("report: both models must have one vocabulary, got ",
                                  quantized_->decoder().config().V, " and ", reference_->decoder().config().V));
  }
  return absl::OkStatus();
}

absl::Status ReportRun::Score() {
  const auto& config = reference_->decoder().config();
  hidden_q_.resize(static_cast<size_t>(kChunkRows * quantized_->decoder().config().hidden));
  hidden_r_.resize(static_cast<size_t>(kChunkRows * config.hidden));
  logits_q_.resize(static_cast<size_t>(kLogitRows * config.V));
  logits_r_.resize(logits_q_.size());
  for (int64_t w = 0; w < windows_; ++w) {
    SAGE_RETURN_IF_ERROR(
        ScoreWindow(absl::MakeConstSpan(ids_).subspan(static_cast<size_t>(w * window_), static_cast<size_t>(window_))));
    if (progress_) progress_({"score", w + 1, windows_, "windows"});
  }
  return absl::OkStatus();
}

absl::Status ReportRun::ScoreWindow(absl::Span<const int32_t> ids) {
  const size_t V = static_cast<size_t>(reference_->decoder().config().V);
  const int64_t hq = quantized_->decoder().config().hidden, hr = reference_->decoder().config().hidden;
  for (int64_t begin = 0; begin < window_; begin += kChunkRows) {
    SAGE_RETURN_IF_ERROR(cancel_.Check());
    const int64_t rows = std::min(kChunkRows, window_ - begin);
    const auto chunk = ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(rows));
    SAGE_RETURN_IF_ERROR(quantized_->Forward(chunk, begin, window_, hidden_q_.data()));
    SAGE_RETURN_IF_ERROR(reference_->Forward(chunk, begin, window_, hidden_r_.data()));
    for (int64_t r = 0; r < rows; r += kLogitRows) {
      const int64_t count = std::min(kLogitRows, rows - r);
      SAGE_RETURN_IF_ERROR(quantized_->Logits(hidden_q_.data() + r * hq, count, logits_q_.data()));
      SAGE_RETURN_IF_ERROR(reference_->Logits(hidden_r_.data() + r * hr, count, logits_r_.data()));
      for (int64_t i = 0; i < count && begin + r + i + 1 < window_; ++i) {
        const size_t at = static_cast<size_t>(i) * V;
        SAGE_RETURN_IF_ERROR(sums_.Add({logits_q_.data() + at, V}, {logits_r_.data() + at, V},
                                       ids[static_cast<size_t>(begin + r + i + 1)]));
      }
    }
  }
  sums_.EndWindow();
  return absl::OkStatus();
}

Json ReportRun::Memory() const {
  const auto side = [](const ReportModel& m) {
    return Json{{"weight_bytes", m.decoder().weight_bytes()},
                {"file_bytes", m.checkpoint().file_bytes()},
                {"kv_bytes_per_token", m.kv_bytes_per_token()},
                {"quantization", m.decoder().quantization()},
                {"kv_quant", m.kv_strategy()},
                {"kv_scales", m.kv().calibrated ? "calibrated" : "dynamic"}};
  };
  const double ratio = static_cast<double>(quantized_->decoder().weight_bytes()) /
                       static_cast<double>(std::max<size_t>(1, reference_->decoder().weight_bytes()));
  return {{"quantized", side(*quantized_)}, {"reference", side(*reference_)}, {"weight_ratio", ratio}};
}

absl::Status ReportRun::TimeModel(ReportModel& model, std::vector<double>* prefill, std::vector<double>* decode) {
  SAGE_RETURN_IF_ERROR(cancel_.Check());
  const int64_t rows = std::min(kChunkRows, window_);
  std::vector<float> hidden(static_cast<size_t>(rows * model.decoder().config().hidden));
  std::vector<float> logits(static_cast<size_t>(model.decoder().config().V));
  auto began = std::chrono::steady_clock::now();
  SAGE_RETURN_IF_ERROR(
      model.Forward(absl::MakeConstSpan(ids_).first(static_cast<size_t>(rows)), 0, rows, hidden.data()));
  prefill->push_back(static_cast<double>(rows) * 1000.0 / MillisecondsSince(began));
  const int64_t steps = std::min(kDecodeSteps, window_);
  began = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < steps; ++i) {
    SAGE_RETURN_IF_ERROR(
        model.Forward(absl::MakeConstSpan(ids_).subspan(static_cast<size_t>(i), 1), i, i + 1, hidden.data()));
    SAGE_RETURN_IF_ERROR(model.Logits(hidden.data(), 1, logits.data()));
  }
  decode->push_back(static_cast<double>(steps) * 1000.0 / MillisecondsSince(began));
  return absl::OkStatus();
}

absl::StatusOr<Json> ReportRun::Speed() {
  std::vector<double> prefill[2], decode[2];
  for (int round = 0; round < kSpeedRounds; ++round) {
    SAGE_RETURN_IF_ERROR(TimeModel(*quantized_, &prefill[0], &decode[0]));
    SAGE_RETURN_IF_ERROR(TimeModel(*reference_, &prefill[1], &decode[1]));
  }
  const auto pair = [](const std::vector<double>* rates) {
    const double q = Median(rates[0]), r = Median(rates[1]);
    return Json{{"quantized", q}, {"reference", r}, {"ratio", q / r}};
  };
  return Json{{"decode_tokens_per_second", pair(decode)},
              {"prefill_tokens_per_second", pair(prefill)},
              {"prefill_rows", std::min(kChunkRows, window_)},
              {"rounds", kSpeedRounds},
              {"threads", threads_.size()},
              {"cpu", HostCpu().name}};
}

Json ReportRun::Protocol() const {
  return {{"dataset", spec_.dataset_name.empty() ? dataset_.name : spec_.dataset_name},
          {"dataset_sha256", dataset_.sha256},
          {"tokenizer_sha256", tokenizer_sha256_},
          {"bos", "at most one, at the very start, where the tokenizer adds it"},
          {"window", window_},
          {"windows", windows_},
          {"overlap", 0},
          {"scored_positions", sums_.scored()},
          {"logits", "f32; log-softmax in f64"},
          {"kl", "KL(reference || quantized), nats"},
          {"interval", "paired 95 % over windows, Student's t"},
          {"tasks",
           "log-probability of each choice after the context, prompts of LM Evaluation Harness 0.4; items evenly "
           "spread over the files; accuracy interval: paired 95 % of the delta"}};
}

}  // namespace

absl::StatusOr<Json> BuildReport(const ReportSpec& spec, ThreadPool& threads, const CancelToken& cancel,
                                 const ProgressFn& progress) {
  ReportRun run(spec, threads, cancel, progress);
  absl::StatusOr<Json> report = run.Run();
  SAGE_RETURN_IF_ERROR(run.CheckFiles());
  return report;
}

}  // namespace sage
