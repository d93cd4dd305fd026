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
#include "server/start_request.h"

namespace sage::server {
namespace {

// What a body names, for the audit log of refused calls too: the body of a caller not yet known is read only when
// small.
void NameTargets(const std::string& body, Call& call) {
  constexpr size_t kMostRead = 64 << 10;
  if (body.size() > kMostRead) return;
  const absl::StatusOr<Json> json = ParseJson(body, "body");
  if (!json.ok() || !json->is_object()) return;
  static const std::pair<const char*, const char*> kWords[] = {{"engine_label", "engine"},
                                                               {"engine_id", "engine"},
                                                               {"model_id", "model"},
                                                               {"model", "model"},
                                                               {"quantization", "quantization"}};
  for (const auto& [key, what] : kWords) {
    const auto value = json->find(key);
    if (value != json->end() && value->is_string()) call.SetTarget(what, value->get<std::string>());
  }
}

void StartEngine(Daemon& daemon, const httplib::Request& request, httplib::Response& response) {
  Call call(daemon, "http", "StartEngine");
  NameTargets(request.body, call);
  if (!OpenCall(call, request, true, response)) return;
  absl::StatusOr<pb::StartEngineRequest> start = ParseStartRequest(request.body, daemon.config().http_listen);
  absl::Status status = start.status();
  if (start.ok()) {
    absl::StatusOr<EngineRecord> record = StartEngineWithOperation(daemon, *start, call.cancel, nullptr);
    status = record.status();
    if (record.ok()) {
      call.SetEngine(record->info.engine_id);
      call.SetTarget("operation", record->operation);
      return SetJson(EngineJson(*record), response);
    }
  }
  call.SetStatus(status);
  SetError(status, response);
}

void StopEngine(Daemon& daemon, const httplib::Request& request, httplib::Response& response) {
  Call call(daemon, "http", "StopEngine");
  const std::string id = request.matches[1];
  call.SetEngine(id);
  if (!OpenCall(call, request, false, response)) return;
  double seconds = 30;
  absl::Status status;
  const std::string drain = request.get_param_value("drain");
  if (drain == "false" || drain == "0") seconds = 0;
  if (!drain.empty() && drain != "false" && drain != "0" && drain != "true" && drain != "1") {
    status = BadField("drain", "WRONG_TYPE", "must be true or false");
  }
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

// An engine of this daemon is registered by being started; one elsewhere cannot be, since nothing is proxied.
void Register(Daemon& daemon, const httplib::Request& request, httplib::Response& response) {
  Call call(daemon, "http", "RegisterEngine");
  NameTargets(request.body, call);
  if (!OpenCall(call, request, true, response)) return;
  absl::StatusOr<Json> body = ParseJson(request.body, "body");
  absl::Status status =
      body.ok() && body->is_object() ? absl::OkStatus() : BadField("body", "BAD_JSON", "must be an object");
  if (status.ok()) {
    absl::StatusOr<std::string> id = JsonString(*body, "engine_id", "");
    absl::StatusOr<EngineRecord> record = daemon.engines().Get(id.ok() ? *id : "");
    if (record.ok()) return SetJson(EngineJson(*record), response);
    status = MakeError(absl::StatusCode::kUnimplemented, "REGISTER_UNSUPPORTED",
                       "engines/register: only engines of this daemon are served; start one with POST engines");
  }
  call.SetStatus(status);
  SetError(status, response);
}

// Forgets the engines that failed to start.
void Prune(Daemon& daemon, const httplib::Request& request, httplib::Response& response) {
  Call call(daemon, "http", "PruneEngines");
  if (!OpenCall(call, request, false, response)) return;
  Json pruned = Json::array();
  for (const EngineRecord& record : daemon.engines().List()) {
    if (record.info.state != "FAILED") continue;
    if (!daemon.engines().Stop(record.info.engine_id, absl::Now()).ok()) continue;
    daemon.metrics().RemoveGauges("engine", record.info.engine_id);
    pruned.push_back(record.info.engine_id);
  }
  call.SetTarget("engines", pruned.empty() ? "none" : DumpJson(pruned));
  SetJson({{"pruned", pruned.size()}, {"engines", pruned}}, response);
}

// Every accelerator backend, present or not and why.
Json GpuJson() {
  Json gpus = Json::array(), absent = Json::array();
  const Json all = BackendsJson();
  for (const Json& backend : all["backends"]) {
    if (backend["name"] == "cpu") continue;
    (backend.value("available", false) ? gpus : absent).push_back(backend);
  }
  return {{"available", !gpus.empty()}, {"gpus", gpus}, {"absent", absent}};
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
  server.Post(
      "/v1/management/engines/register",
      [&daemon](const httplib::Request& request, httplib::Response& response) { Register(daemon, request, response); });
  server.Post("/v1/management/engines/prune", [&daemon](const httplib::Request& request, httplib::Response& response) {
    Prune(daemon, request, response);
  });
  server.Get("/v1/management/gpu", [&daemon](const httplib::Request& request, httplib::Response& response) {
    Call call(daemon, "http", "Gpu");
    if (OpenCall(call, request, false, response)) SetJson(GpuJson(), response);
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
