// Conversion of engine records and start requests, and of operation records.
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/status.h"
#include "google/rpc/status.pb.h"
#include "sage/quant/v1/engine.pb.h"
#include "sage/quant/v1/operation.pb.h"
#include "server/convert.h"
#include "server/convert_status.h"

namespace sage::server {
namespace {

void SetTime(int64_t unix_ms, google::protobuf::Timestamp* out) {
  out->set_seconds(unix_ms / 1000);
  out->set_nanos(static_cast<int32_t>(unix_ms % 1000) * 1000000);
}

pb::EngineState ToState(const std::string& state) {
  pb::EngineState out = pb::ENGINE_STATE_UNSPECIFIED;
  pb::EngineState_Parse("ENGINE_STATE_" + state, &out);
  return out;
}

absl::StatusOr<int64_t> Bounded(const char* field, int64_t value, int64_t fallback, int64_t high) {
  if (value == 0) return fallback;
  if (value < 0 || value > high) {
    return BadField(field, "OUT_OF_RANGE", absl::StrCat("must be from 1 to ", high, " (0 = default), got ", value));
  }
  return value;
}

// A strategy's word, or an artifact's path when the name resolves to one.
absl::StatusOr<std::string> ResolveQuantization(const std::string& word, const ModelPaths& paths) {
  if (word.empty() || word == "none") return word;
  if (IsPlainName(word)) {
    absl::StatusOr<std::string> artifact = paths.ResolveArtifact(word);
    return artifact.ok() ? *artifact : word;
  }
  return paths.ResolveModel(word);
}

}  // namespace

void FillOperation(const OperationRecord& record, pb::Operation* out) {
  out->set_id(record.id);
  out->set_kind(record.kind);
  out->set_state(static_cast<pb::OperationState>(record.state));
  auto* progress = out->mutable_progress();
  progress->set_done(record.done);
  progress->set_total(record.total);
  progress->set_unit(record.unit);
  progress->set_stage(record.stage);
  double eta = -1;
  if (IsEnded(record.state)) {
    eta = 0;
  } else if (record.done > record.phase_start_done && record.phase_start_ms > 0) {
    const double elapsed = static_cast<double>(record.update_ms - record.phase_start_ms) * 0.001;
    eta = elapsed * static_cast<double>(record.total - record.done) /
          static_cast<double>(record.done - record.phase_start_done);
  }
  progress->set_eta_seconds(eta);
  if (!record.error.empty()) out->mutable_error()->ParseFromString(record.error);
  if (!record.result.empty()) out->mutable_result()->ParseFromString(record.result);
  out->set_result_json(record.result_json);
  SetTime(record.create_ms, out->mutable_create_time());
  SetTime(record.update_ms, out->mutable_update_time());
  if (record.start_ms > 0) SetTime(record.start_ms, out->mutable_start_time());
  if (record.end_ms > 0) SetTime(record.end_ms, out->mutable_end_time());
  out->set_request_id(record.request_id);
  out->set_target(record.target);
  out->set_cancel_requested(record.cancel_requested);
  out->set_attempts(record.attempts);
}

void FillEngine(const EngineRecord& record, bool full, pb::Engine* out) {
  const EngineInfo& info = record.info;
  out->set_engine_id(info.engine_id);
  out->set_state(ToState(info.state));
  out->set_model(info.model);
  out->set_model_path(info.model_path);
  out->set_quantization(info.quantization);
  out->set_kv_quant(info.kv_quant);
  out->set_backend(info.backend);
  out->set_capability(info.capability);
  out->set_architecture(info.architecture);
  out->set_weight_bytes(info.weight_bytes);
  out->set_kv_bytes(info.kv_bytes);
  out->set_max_model_len(info.max_model_len);
  out->set_max_seqs(info.max_seqs);
  out->set_vocab_size(info.vocab_size);
  out->set_load_ms(info.load_ms);
  SetTime(absl::ToUnixMillis(info.started_at), out->mutable_start_time());
  for (const LinearBinding& binding : info.bindings) {
    if (!full) break;
    auto* row = out->add_bindings();
    row->set_layer(binding.layer);
    row->set_strategy(binding.strategy);
    row->set_kernel(binding.kernel);
    row->set_weight_bytes(static_cast<int64_t>(binding.weight_bytes));
  }
  for (const std::string& note : info.notes) out->add_notes(note);
  if (!info.error.ok()) *out->mutable_error() = ToRpcStatus(info.error);
  auto* load = out->mutable_load();
  const EngineStats& stats = record.stats;
  load->set_running(stats.running);
  load->set_waiting(stats.waiting);
  load->set_waiting_tokens(stats.waiting_tokens);
  load->set_kv_pages_used(stats.kv_pages_used);
  load->set_kv_pages_total(stats.kv_pages_total);
  load->set_kv_page_tokens(stats.kv_page_tokens);
  load->set_prompt_tokens_total(stats.prompt_tokens_total);
  load->set_generated_tokens_total(stats.generated_tokens_total);
  load->set_steps_total(stats.steps_total);
  load->set_activation_hits_total(stats.activation_hits_total);
  load->set_activation_misses_total(stats.activation_misses_total);
  load->set_last_step_age_seconds(stats.last_step_age_seconds);
  out->set_operation(record.operation);
  out->set_engine_kind("llm");
  out->mutable_kv_plan()->set_dtype(info.kv_quant);
  out->mutable_kv_plan()->set_block_size(static_cast<int32_t>(stats.kv_page_tokens));
  out->mutable_kv_plan()->set_scales(info.kv_calibrated ? "calibrated" : "dynamic");
  for (const int64_t layer : info.kv_layers_16bit) out->mutable_kv_plan()->add_layers_16bit(layer);
  out->mutable_kv_plan()->set_sink_tokens(info.kv_sink_tokens);
  out->set_has_tokenizer(record.has_tokenizer);
  out->set_has_chat_template(record.has_chat_template);
}

Json EngineJson(const EngineRecord& record) {
  const EngineInfo& info = record.info;
  Json out = {{"engine_id", info.engine_id},
              {"state", info.state},
              {"model", info.model},
              {"model_id", info.model},
              {"quantization", info.quantization},
              {"kv_quant", info.kv_quant},
              {"backend", info.backend},
              {"capability", info.capability},
              {"architecture", info.architecture},
              {"weight_bytes", info.weight_bytes},
              {"kv_bytes", info.kv_bytes},
              {"load_ms", info.load_ms},
              {"max_model_len", info.max_model_len},
              {"max_seqs", info.max_seqs},
              {"engine_kind", "llm"},
              {"running", record.stats.running},
              {"waiting", record.stats.waiting},
              {"started_at", absl::ToUnixSeconds(info.started_at)},
              {"notes", info.notes}};
  if (!info.error.ok()) out["error"] = OpenAiError(info.error)["error"];
  return out;
}

absl::StatusOr<EngineSpec> ToEngineSpec(const pb::StartEngineRequest& request, const ModelPaths& paths) {
  EngineSpec spec;
  if (!request.engine_kind().empty() && request.engine_kind() != "llm") {
    return BadField("engine_kind", "UNSUPPORTED", absl::StrCat("must be llm, got \"", request.engine_kind(), "\""));
  }
  if (!request.engine_id().empty() && !IsPlainName(request.engine_id())) {
    return BadField("engine_id", "BAD_NAME", "1 to 128 of [A-Za-z0-9._-], not beginning with '.'");
  }
  if (!request.draft_mode().empty() && request.draft_mode() != "none" && request.draft_mode() != "ngram") {
    return BadField("draft_mode", "UNSUPPORTED",
                    absl::StrCat("must be none or ngram, got \"", request.draft_mode(), "\""));
  }
  spec.engine_id = request.engine_id();
  spec.model_name = request.model();
  SAGE_ASSIGN_OR_RETURN(spec.model, paths.ResolveModel(request.model()));
  SAGE_ASSIGN_OR_RETURN(spec.quantization, ResolveQuantization(request.quantization(), paths));
  SAGE_ASSIGN_OR_RETURN(spec.attn_quantization, ResolveQuantization(request.attn_quantization(), paths));
  SAGE_ASSIGN_OR_RETURN(spec.mlp_quantization, ResolveQuantization(request.mlp_quantization(), paths));
  if (request.layer_quantization_size() > 1000) {
    return BadField("layer_quantization", "TOO_MANY", "at most 1000 patterns");
  }
  for (const pb::LayerQuantization& layer : request.layer_quantization()) {
    if (layer.pattern().empty() || layer.quantization().empty()) {
      return BadField("layer_quantization", "EMPTY", "each has a pattern and a quantization (none = as stored)");
    }
    spec.layer_quantization.emplace_back(layer.pattern(), layer.quantization());
  }
  spec.head_quantization = request.head_quantization();
  spec.kv_quantization = request.kv_quant();
  if (request.kv_include_size() > 4096) return BadField("kv_include", "TOO_MANY", "at most 4096 patterns");
  if (request.kv_exclude_size() > 4096) return BadField("kv_exclude", "TOO_MANY", "at most 4096 patterns");
  spec.kv_include.assign(request.kv_include().begin(), request.kv_include().end());
  spec.kv_exclude.assign(request.kv_exclude().begin(), request.kv_exclude().end());
  SAGE_ASSIGN_OR_RETURN(spec.kv_sink_tokens, Bounded("kv_sink_tokens", request.kv_sink_tokens(), 0, 1024));
  if (!request.backend().empty()) spec.backend = request.backend();
  spec.draft_mode = request.draft_mode();
  spec.prefix_cache = !request.no_prefix_cache();
  SAGE_ASSIGN_OR_RETURN(spec.max_seqs, Bounded("max_seqs", request.max_seqs(), spec.max_seqs, 4096));
  SAGE_ASSIGN_OR_RETURN(spec.max_model_len, Bounded("max_model_len", request.max_model_len(), 0, 1 << 24));
  SAGE_ASSIGN_OR_RETURN(spec.kv_bytes, Bounded("kv_memory_bytes", request.kv_memory_bytes(), 0, int64_t{1} << 50));
  SAGE_ASSIGN_OR_RETURN(spec.max_queue_requests,
                        Bounded("max_queue_requests", request.max_queue_requests(), spec.max_queue_requests, 1 << 20));
  SAGE_ASSIGN_OR_RETURN(spec.max_queue_tokens, Bounded("max_queue_tokens", request.max_queue_tokens(),
                                                       spec.max_queue_tokens, int64_t{1} << 40));
  SAGE_ASSIGN_OR_RETURN(spec.max_step_tokens,
                        Bounded("max_step_tokens", request.max_step_tokens(), spec.max_step_tokens, 1 << 20));
  return spec;
}

void FillProfile(const EngineProfile& profile, pb::EngineProfile* out) {
  const auto fill = [](const ProfiledPhase& phase, pb::ProfiledPhase* to) {
    to->set_steps(phase.steps);
    to->set_tokens(phase.tokens);
    to->set_seconds(phase.seconds);
    for (const ProfiledOperator& op : phase.operators) {
      pb::ProfiledOperator* entry = to->add_operators();
      entry->set_name(op.name);
      entry->set_calls(op.calls);
      entry->set_seconds(op.seconds);
      entry->set_bytes(op.bytes);
    }
  };
  fill(profile.prefill, out->mutable_prefill());
  fill(profile.decode, out->mutable_decode());
  out->set_read_bytes_per_second(profile.read_bytes_per_second);
  out->set_threads(profile.threads);
}

}  // namespace sage::server
