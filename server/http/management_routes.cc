// /v1/management: what SAGE's gateway expects of an engine host.
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "httplib.h"
#include "sage/quant/v1/engine.pb.h"
#include "server/capabilities.h"
#include "server/convert.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/http/routes.h"
#include "server/services/call.h"
#include "server/start_engine.h"

namespace sage::server {
namespace {

// Fields of StartEngineRequest by their JSON names, and the gateway's names for some of them.
absl::StatusOr<pb::StartEngineRequest> ReadStart(const std::string& body) {
  pb::StartEngineRequest out;
  SAGE_ASSIGN_OR_RETURN(const Json json, ParseJson(body, "body"));
  if (!json.is_object()) return BadField("body", "BAD_JSON", "must be an object");
  const std::pair<const char*, void (pb::StartEngineRequest::*)(std::string &&)> texts[] = {
      {"model_id", &pb::StartEngineRequest::set_model},
      {"model", &pb::StartEngineRequest::set_model},
      {"engine_id", &pb::StartEngineRequest::set_engine_id},
      {"engine_kind", &pb::StartEngineRequest::set_engine_kind},
      {"quantization", &pb::StartEngineRequest::set_quantization},
      {"attn_quantization", &pb::StartEngineRequest::set_attn_quantization},
      {"mlp_quantization", &pb::StartEngineRequest::set_mlp_quantization},
      {"kv_quant", &pb::StartEngineRequest::set_kv_quant},
      {"backend", &pb::StartEngineRequest::set_backend},
      {"request_id", &pb::StartEngineRequest::set_request_id},
  };
  for (const auto& [key, set] : texts) {
    if (!json.contains(key)) continue;
    SAGE_ASSIGN_OR_RETURN(std::string value, JsonString(json, key, ""));
    (out.*set)(std::move(value));
  }
  const std::pair<const char*, void (pb::StartEngineRequest::*)(int64_t)> numbers[] = {
      {"max_seqs", &pb::StartEngineRequest::set_max_seqs},
      {"max_model_len", &pb::StartEngineRequest::set_max_model_len},
      {"kv_memory_bytes", &pb::StartEngineRequest::set_kv_memory_bytes},
      {"kv_sink_tokens", &pb::StartEngineRequest::set_kv_sink_tokens},
      {"max_concurrent_requests", &pb::StartEngineRequest::set_max_queue_requests},
  };
  for (const auto& [key, set] : numbers) {
    if (!json.contains(key)) continue;
    SAGE_ASSIGN_OR_RETURN(const int64_t value, JsonInt(json, key, 0));
    (out.*set)(value);
  }
  for (const char* key : {"tensor_parallel_size", "pipeline_parallel_size"}) {
    SAGE_ASSIGN_OR_RETURN(const int64_t value, JsonInt(json, key, 1));
    if (value != 1) return BadField(key, "UNSUPPORTED", absl::StrCat("must be 1, got ", value));
  }
  return out;
}

void StartEngine(Daemon& daemon, const httplib::Request& request, httplib::Response& response) {
  Call call(daemon, "http", "StartEngine");
  if (!OpenCall(call, request, true, response)) return;
  absl::StatusOr<pb::StartEngineRequest> start = ReadStart(request.body);
  absl::Status status = start.status();
  if (start.ok()) {
    absl::StatusOr<EngineRecord> record = StartEngineWithOperation(daemon, *start, call.cancel, nullptr);
    status = record.status();
    if (record.ok()) return SetJson(EngineJson(*record), response);
  }
  call.SetStatus(status);
  SetError(status, response);
}

void StopEngine(Daemon& daemon, const httplib::Request& request, httplib::Response& response) {
  Call call(daemon, "http", "StopEngine");
  if (!OpenCall(call, request, false, response)) return;
  const std::string id = request.matches[1];
  call.SetEngine(id);
  double seconds = 30;
  absl::Status status;
  const std::string drain = request.get_param_value("drain");
  if (drain == "false") seconds = 0;
  if (request.has_param("drain_timeout") &&
      (!absl::SimpleAtod(request.get_param_value("drain_timeout"), &seconds) || !(seconds >= 0 && seconds <= 3600))) {
    status = BadField("drain_timeout", "OUT_OF_RANGE", "seconds from 0 to 3600");
  }
  if (status.ok()) {
    absl::StatusOr<EngineRecord> record = daemon.engines().Stop(id, absl::Now() + absl::Seconds(seconds));
    status = record.status();
    if (record.ok()) {
      daemon.metrics().RemoveGauges("engine", id);
      return SetJson(EngineJson(*record), response);
    }
  }
  call.SetStatus(status);
  SetError(status, response);
}

Json StatusJson(Daemon& daemon) {
  int64_t running = 0, waiting = 0, generated = 0;
  Json engines = Json::array();
  for (const EngineRecord& record : daemon.engines().List()) {
    running += record.stats.running;
    waiting += record.stats.waiting;
    generated += record.stats.generated_tokens_total;
    engines.push_back(EngineJson(record));
  }
  Json operations = Json::array();
  for (const auto& [key, count] : daemon.operations().Counts()) {
    operations.push_back({{"kind", key.first}, {"state", key.second}, {"count", count}});
  }
  return {{"status", daemon.ready()      ? "ready"
                     : daemon.draining() ? "draining"
                                         : "not_ready"},
          {"version", SAGE_VERSION},
          {"threads", daemon.runtime().threads()},
          {"engines", engines},
          {"operations", operations},
          {"requests_running", running},
          {"requests_waiting", waiting},
          {"generated_tokens_total", generated}};
}

}  // namespace

void AddManagementRoutes(Daemon& daemon, httplib::Server& server) {
  server.Get("/v1/management/engines", [&daemon](const httplib::Request& request, httplib::Response& response) {
    Call call(daemon, "http", "ListEngines");
    if (!OpenCall(call, request, false, response)) return;
    Json engines = Json::array();
    for (const EngineRecord& record : daemon.engines().List()) engines.push_back(EngineJson(record));
    SetJson({{"engines", engines}}, response);
  });
  server.Get(R"(/v1/management/engines/([A-Za-z0-9._-]+))",
             [&daemon](const httplib::Request& request, httplib::Response& response) {
               Call call(daemon, "http", "GetEngine");
               if (!OpenCall(call, request, false, response)) return;
               absl::StatusOr<EngineRecord> record = daemon.engines().Get(request.matches[1]);
               call.SetStatus(record.status());
               record.ok() ? SetJson(EngineJson(*record), response) : SetError(record.status(), response);
             });
  server.Post("/v1/management/engines", [&daemon](const httplib::Request& request, httplib::Response& response) {
    StartEngine(daemon, request, response);
  });
  server.Delete(R"(/v1/management/engines/([A-Za-z0-9._-]+))",
                [&daemon](const httplib::Request& request, httplib::Response& response) {
                  StopEngine(daemon, request, response);
                });
  server.Get("/v1/management/status", [&daemon](const httplib::Request& request, httplib::Response& response) {
    Call call(daemon, "http", "Status");
    if (OpenCall(call, request, false, response)) SetJson(StatusJson(daemon), response);
  });
  server.Get("/v1/management/backends", [&daemon](const httplib::Request& request, httplib::Response& response) {
    Call call(daemon, "http", "Backends");
    if (OpenCall(call, request, false, response)) SetJson(BackendsJson(), response);
  });
}

}  // namespace sage::server
