// Prompts in, tensors out.
#include "server/services/inference_request.h"

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

absl::StatusOr<InferenceJob> ToInferenceJob(Daemon& daemon, Call& call, const inference::ModelInferRequest& request,
                                            bool may_stream) {
  SAGE_RETURN_IF_ERROR(CheckInferenceModel(request));
  InferenceJob job;
  SAGE_ASSIGN_OR_RETURN(job.engine, daemon.engines().Find(request.model_name()));
  call.SetEngine(request.model_name());
  SAGE_ASSIGN_OR_RETURN(static_cast<InferenceInput&>(job), ToInferenceInput(request, may_stream));
  if (job.text) {
    SAGE_ASSIGN_OR_RETURN(job.spec.prompt_ids, EncodePrompt(*job.engine, *job.text, true));
    if (job.spec.prompt_ids.empty()) return BadField("inputs", "BAD_INPUT", "text_input: its text has no tokens");
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
