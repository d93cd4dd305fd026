// Tensors and parameters in, tensors out. Raw BYTES elements are a 4-byte little-endian length and the bytes.
#include "server/services/inference_request.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "server/convert.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/prompt.h"
#include "server/services/call.h"

namespace sage::server {
namespace {

using inference::ModelInferRequest;
constexpr int64_t kMaxIds = 1 << 24;

// The bytes of input `index` when they are in raw_input_contents, else null.
absl::StatusOr<const std::string*> RawOf(const ModelInferRequest& request, int index) {
  if (request.raw_input_contents_size() == 0) return nullptr;
  if (request.raw_input_contents_size() != request.inputs_size()) {
    return BadField("raw_input_contents", "BAD_INPUT",
                    absl::StrCat("one entry an input is needed, got ", request.raw_input_contents_size(), " for ",
                                 request.inputs_size()));
  }
  return &request.raw_input_contents(index);
}

absl::Status CheckType(const ModelInferRequest::InferInputTensor& input, const char* type) {
  if (input.datatype() == type) return absl::OkStatus();
  return BadField(input.name(), "BAD_INPUT",
                  absl::StrCat("datatype must be ", type, ", got \"", input.datatype(), "\""));
}

absl::StatusOr<std::string> ReadText(const ModelInferRequest& request, int index) {
  const auto& input = request.inputs(index);
  SAGE_RETURN_IF_ERROR(CheckType(input, "BYTES"));
  SAGE_ASSIGN_OR_RETURN(const std::string* raw, RawOf(request, index));
  if (raw == nullptr && input.contents().bytes_contents_size() == 1) return input.contents().bytes_contents(0);
  uint32_t size = 0;
  if (raw != nullptr && raw->size() >= 4) {
    std::memcpy(&size, raw->data(), 4);
    if (size == raw->size() - 4) return raw->substr(4);
  }
  return BadField(input.name(), "BAD_INPUT", "must hold one element");
}

absl::StatusOr<std::vector<int32_t>> ReadIds(const ModelInferRequest& request, int index) {
  const auto& input = request.inputs(index);
  SAGE_RETURN_IF_ERROR(CheckType(input, "INT32"));
  SAGE_ASSIGN_OR_RETURN(const std::string* raw, RawOf(request, index));
  std::vector<int32_t> ids(input.contents().int_contents().begin(), input.contents().int_contents().end());
  if (raw != nullptr) {
    if (raw->size() % 4 != 0) return BadField(input.name(), "BAD_INPUT", "raw bytes must be a multiple of 4");
    ids.resize(raw->size() / 4);
    if (!ids.empty()) std::memcpy(ids.data(), raw->data(), raw->size());
  }
  if (ids.empty() || static_cast<int64_t>(ids.size()) > kMaxIds) {
    return BadField(input.name(), "BAD_INPUT", absl::StrCat("1 to ", kMaxIds, " ids are needed, got ", ids.size()));
  }
  return ids;
}

absl::StatusOr<bool> ReadFlag(const ModelInferRequest& request, int index) {
  const auto& input = request.inputs(index);
  SAGE_RETURN_IF_ERROR(CheckType(input, "BOOL"));
  SAGE_ASSIGN_OR_RETURN(const std::string* raw, RawOf(request, index));
  if (raw == nullptr && input.contents().bool_contents_size() == 1) return input.contents().bool_contents(0);
  if (raw != nullptr && raw->size() == 1) return (*raw)[0] != 0;
  return BadField(input.name(), "BAD_INPUT", "must hold one element");
}

absl::StatusOr<double> Number(const std::string& name, const inference::InferParameter& value) {
  using P = inference::InferParameter;
  double out = 0;
  switch (value.parameter_choice_case()) {
    case P::kInt64Param:
      out = static_cast<double>(value.int64_param());
      break;
    case P::kUint64Param:
      out = static_cast<double>(value.uint64_param());
      break;
    case P::kDoubleParam:
      out = value.double_param();
      break;
    case P::kBoolParam:
      out = value.bool_param() ? 1.0 : 0.0;
      break;
    default:
      return BadField(name, "BAD_PARAMETER", "must be a number");
  }
  if (!(out >= -1e15 && out <= 1e15)) return BadField(name, "OUT_OF_RANGE", "out of range");
  return out;
}

// 2^30 and more would not fit; CheckGenerateSpec says the ranges.
int32_t ToInt(double number) { return static_cast<int32_t>(std::min(std::max(number, -1.0), 2e9)); }

absl::Status ReadParameters(const ModelInferRequest& request, GenerateSpec* spec) {
  const std::map<std::string, double*> reals = {{"temperature", &spec->sampling.temperature},
                                                {"top_p", &spec->sampling.top_p},
                                                {"min_p", &spec->sampling.min_p},
                                                {"repetition_penalty", &spec->sampling.repetition_penalty},
                                                {"presence_penalty", &spec->sampling.presence_penalty},
                                                {"frequency_penalty", &spec->sampling.frequency_penalty}};
  for (const auto& [name, value] : request.parameters()) {
    if (name == "stop") {
      if (!value.has_string_param()) return BadField(name, "BAD_PARAMETER", "must be a text");
      spec->stop.push_back(value.string_param());
      continue;
    }
    if (name == "triton_enable_empty_final_response") continue;  // the last answer is never empty of meaning here
    SAGE_ASSIGN_OR_RETURN(const double number, Number(name, value));
    if (const auto it = reals.find(name); it != reals.end()) {
      *it->second = number;
    } else if (name == "max_tokens") {
      spec->max_tokens = static_cast<int64_t>(number);
    } else if (name == "top_k") {
      spec->sampling.top_k = ToInt(number);
    } else if (name == "seed") {
      spec->sampling.seed = static_cast<uint64_t>(number < 0 ? 0 : number);
    } else if (name == "ignore_eos") {
      spec->ignore_eos = number != 0;
    } else if (name == "timeout") {
      if (number > 0) spec->deadline = absl::Now() + absl::Microseconds(number);
    } else {
      return BadField(name, "UNKNOWN_PARAMETER",
                      "known: max_tokens, temperature, top_k, top_p, min_p, seed, repetition_penalty, "
                      "presence_penalty, frequency_penalty, ignore_eos, stop, timeout");
    }
  }
  return CheckGenerateSpec(*spec);
}

absl::Status ReadOutputs(const ModelInferRequest& request, InferenceJob* job) {
  if (request.outputs_size() == 0) return absl::OkStatus();
  job->wants_text = job->wants_ids = job->wants_reason = false;
  for (const auto& output : request.outputs()) {
    if (output.name() == "text_output") {
      job->wants_text = true;
    } else if (output.name() == "output_ids") {
      job->wants_ids = true;
    } else if (output.name() == "finish_reason") {
      job->wants_reason = true;
    } else {
      return BadField("outputs", "UNKNOWN_OUTPUT",
                      absl::StrCat("known: text_output, output_ids, finish_reason; got \"", output.name(), "\""));
    }
  }
  return absl::OkStatus();
}

void AddOutput(const char* name, const char* type, int64_t size, std::string raw_bytes, bool raw,
               inference::ModelInferResponse* out, const std::function<void(inference::InferTensorContents*)>& fill) {
  auto* row = out->add_outputs();
  row->set_name(name);
  row->set_datatype(type);
  row->add_shape(size);
  if (raw) {
    out->add_raw_output_contents(std::move(raw_bytes));
  } else {
    fill(row->mutable_contents());
  }
}

std::string WithLength(const std::string& text) {
  const auto size = static_cast<uint32_t>(text.size());
  std::string out(4, '\0');
  std::memcpy(out.data(), &size, 4);
  return out + text;
}

}  // namespace

absl::StatusOr<InferenceJob> ToInferenceJob(Daemon& daemon, Call& call, const ModelInferRequest& request,
                                            bool may_stream) {
  InferenceJob job;
  job.model = request.model_name();
  job.id = request.id();
  job.raw = request.raw_input_contents_size() > 0;
  job.streaming = may_stream;
  if (!request.model_version().empty() && request.model_version() != "1") {
    return BadField("model_version", "UNKNOWN_VERSION", absl::StrCat("must be 1, got ", request.model_version()));
  }
  if (job.id.size() > 256) return BadField("id", "TOO_LONG", "at most 256 bytes");
  if (job.model.empty()) return BadField("model_name", "EMPTY", "must be named");
  SAGE_ASSIGN_OR_RETURN(job.engine, daemon.engines().Find(job.model));
  call.SetEngine(job.model);
  SAGE_RETURN_IF_ERROR(ReadParameters(request, &job.spec));
  SAGE_RETURN_IF_ERROR(ReadOutputs(request, &job));
  for (int i = 0; i < request.inputs_size(); ++i) {
    const std::string& name = request.inputs(i).name();
    const bool prompt = name == "text_input" || name == "input_ids";
    if (prompt && !job.spec.prompt_ids.empty()) {
      return BadField("inputs", "BAD_INPUT", "text_input or input_ids, once");
    }
    if (name == "text_input") {
      SAGE_ASSIGN_OR_RETURN(const std::string text, ReadText(request, i));
      SAGE_ASSIGN_OR_RETURN(job.spec.prompt_ids, EncodePrompt(*job.engine, text, true));
    } else if (name == "input_ids") {
      SAGE_ASSIGN_OR_RETURN(job.spec.prompt_ids, ReadIds(request, i));
    } else if (name == "streaming" || name == "stream") {
      SAGE_ASSIGN_OR_RETURN(job.streaming, ReadFlag(request, i));
    } else {
      return BadField("inputs", "BAD_INPUT",
                      absl::StrCat("known: text_input, input_ids, streaming; got \"", name, "\""));
    }
  }
  if (job.spec.prompt_ids.empty()) {
    return BadField("inputs", "BAD_INPUT", "a BYTES tensor text_input of one element, or INT32 input_ids, is needed");
  }
  if (job.streaming && !may_stream) {
    return BadField("streaming", "STREAM_NEEDED", "ModelInfer answers once; use ModelStreamInfer");
  }
  job.spec.request_id = job.id.empty() ? call.request_id : job.id;
  job.spec.deadline = std::min(job.spec.deadline, call.deadline);
  return job;
}

void InferenceOutput::Add(const GenerationEvent& event) {
  text += event.text;
  for (const TokenRecord& token : event.tokens) ids.push_back(token.id);
  if (!event.finish_reason.empty()) finish_reason = event.finish_reason;
  last = last || event.last;
}

void FillInferenceResponse(const InferenceJob& job, const InferenceOutput& output, inference::ModelInferResponse* out) {
  out->set_model_name(job.model);
  out->set_model_version("1");
  out->set_id(job.id);
  if (!output.finish_reason.empty()) {
    (*out->mutable_parameters())["finish_reason"].set_string_param(output.finish_reason);
  }
  (*out->mutable_parameters())["triton_final_response"].set_bool_param(output.last);
  if (job.wants_text) {
    AddOutput("text_output", "BYTES", 1, WithLength(output.text), job.raw, out,
              [&](auto* contents) { contents->add_bytes_contents(output.text); });
  }
  if (job.wants_reason) {
    AddOutput("finish_reason", "BYTES", 1, WithLength(output.finish_reason), job.raw, out,
              [&](auto* contents) { contents->add_bytes_contents(output.finish_reason); });
  }
  if (job.wants_ids) {
    std::string bytes(output.ids.size() * 4, '\0');
    if (!bytes.empty()) std::memcpy(bytes.data(), output.ids.data(), bytes.size());
    AddOutput("output_ids", "INT32", static_cast<int64_t>(output.ids.size()), std::move(bytes), job.raw, out,
              [&](auto* contents) { contents->mutable_int_contents()->Add(output.ids.begin(), output.ids.end()); });
  }
}

void InferenceStatistics::Record(const std::string& model, bool ok, double seconds, const GenerationTimings& timings) {
  std::lock_guard lock(mutex_);
  if (rows_.size() >= kMaxModels && rows_.count(model) == 0) rows_.erase(rows_.begin());
  Row& row = rows_[model];
  row.last_ms = static_cast<uint64_t>(absl::ToUnixMillis(absl::Now()));
  if (!ok) {
    ++row.fail;
    row.fail_seconds += seconds;
    return;
  }
  ++row.success;
  row.success_seconds += seconds;
  row.queue_ms += timings.queue_ms;
  row.prefill_ms += timings.prefill_ms;
  row.decode_ms += timings.decode_ms;
}

void InferenceStatistics::Fill(const std::string& model, inference::ModelStatistics* out) const {
  std::lock_guard lock(mutex_);
  const auto it = rows_.find(model);
  const Row row = it == rows_.end() ? Row() : it->second;
  out->set_last_inference(row.last_ms);
  out->set_inference_count(row.success);
  auto* stats = out->mutable_inference_stats();
  const auto set = [](inference::StatisticDuration* duration, uint64_t count, double seconds) {
    duration->set_count(count);
    duration->set_ns(static_cast<uint64_t>(std::max(seconds, 0.0) * 1e9));
  };
  set(stats->mutable_success(), row.success, row.success_seconds);
  set(stats->mutable_fail(), row.fail, row.fail_seconds);
  set(stats->mutable_queue(), row.success, row.queue_ms * 1e-3);
  set(stats->mutable_compute_input(), row.success, row.prefill_ms * 1e-3);
  set(stats->mutable_compute_infer(), row.success, row.decode_ms * 1e-3);
  set(stats->mutable_compute_output(), 0, 0);
}

}  // namespace sage::server
