// Calls and the unary reactor.
#include "server/services/call.h"

#include <atomic>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "grpcpp/security/auth_context.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/telemetry/log.h"

namespace sage::server {
namespace {

std::string Metadata(const grpc::CallbackServerContext& context, const char* key) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find(key);
  return it == metadata.end() ? "" : std::string(it->second.data(), it->second.size());
}

class UnaryReactor final : public grpc::ServerUnaryReactor {
 public:
  UnaryReactor(Daemon& daemon, const char* method, const google::protobuf::Message* request)
      : call_(daemon, "grpc", method) {
    if (request != nullptr) call_.SetTargets(*request);
  }
  void Start(Daemon& daemon, grpc::CallbackServerContext* context, Lane lane, Admission admission,
             std::function<absl::Status(Call&)> work) {
    const absl::Status status = call_.Open(*context, admission == Admission::kNeeded);
    if (!status.ok()) return End(status);
    auto run = [this, work = std::move(work)] {
      if (call_.cancel.cancelled()) return End(absl::CancelledError("cancelled by the client"));
      End(work(call_));
    };
    const bool queued = lane == Lane::kQuick ? daemon.Quick(std::move(run)) : daemon.Slow(std::move(run));
    if (!queued) End(WorkersBusy());
  }
  void OnCancel() override { call_.cancel.Cancel(); }
  void OnDone() override { delete this; }

 private:
  void End(const absl::Status& status) {
    call_.SetStatus(status);
    Finish(ToGrpcStatus(status));
  }
  Call call_;
};

std::atomic<int64_t> in_flight_grpc{0}, in_flight_http{0};

constexpr size_t kMostTold = 256;  // bytes of a name in a log line

// The common name of the client's verified certificate, else its first alternative name.
std::string CertificateName(const grpc::CallbackServerContext& context) {
  const auto auth = context.auth_context();
  if (auth == nullptr || !auth->IsPeerAuthenticated()) return "";
  for (const char* property : {"x509_common_name", "x509_subject_alternative_name"}) {
    const auto values = auth->FindPropertyValues(property);
    if (!values.empty() && !values[0].empty()) return std::string(values[0].data(), values[0].size());
  }
  return "";
}

}  // namespace

Call::Call(Daemon& daemon, std::string interface, std::string method)
    : daemon_(daemon), interface_(std::move(interface)), method_(std::move(method)), began_(absl::Now()) {
  auto& in_flight = interface_ == "grpc" ? in_flight_grpc : in_flight_http;
  daemon_.metrics().SetGauge("sage_rpc_in_flight", {{"interface", interface_}}, static_cast<double>(++in_flight));
}

Call::~Call() {
  auto& in_flight = interface_ == "grpc" ? in_flight_grpc : in_flight_http;
  daemon_.metrics().SetGauge("sage_rpc_in_flight", {{"interface", interface_}}, static_cast<double>(--in_flight));
  const double seconds = absl::ToDoubleSeconds(absl::Now() - began_);
  const std::string code = CodeName(status_.code());
  daemon_.metrics().Increment("sage_rpc_requests_total",
                              {{"interface", interface_}, {"method", method_}, {"code", code}}, 1);
  daemon_.metrics().Observe("sage_rpc_request_seconds", {{"interface", interface_}, {"method", method_}}, seconds);
  daemon_.CountRefusal(status_);
  WriteRecords(seconds);
}

void Call::WriteRecords(double seconds) {
  const std::string code = CodeName(status_.code());
  Json line = {{"interface", interface_}, {"method", method_}, {"code", code}, {"ms", seconds * 1000}};
  const std::pair<const char*, const std::string*> texts[] = {{"request_id", &request_id},
                                                              {"trace_id", &trace_.trace_id},
                                                              {"engine", &engine_},
                                                              {"peer", &peer_},
                                                              {"caller", caller_.empty() ? &certificate_ : &caller_}};
  for (const auto& [key, value] : texts) {
    if (!value->empty()) line[key] = *value;
  }
  if (!caller_.empty() && !certificate_.empty()) line["certificate"] = certificate_;
  for (const auto& [what, value] : targets_) line[what] = value;
  if (!status_.ok()) {
    line["reason"] = ReasonOf(status_);
    line["message"] = std::string(status_.message());
  }
  if (IsMutation(method_)) daemon_.audit().Write(line);
  Log(status_.ok() || HttpCode(status_.code()) < 500 ? LogLevel::kInfo : LogLevel::kWarn, "request", line);
  if (daemon_.spans() == nullptr) return;
  Span span;
  span.context = trace_;
  span.name = interface_ + " " + method_;
  span.begin = began_;
  span.end = absl::Now();
  span.attributes = {{"rpc.system", interface_}, {"rpc.method", method_}, {"sage.code", code}};
  if (!engine_.empty()) span.attributes.emplace_back("sage.engine", engine_);
  if (!request_id.empty()) span.attributes.emplace_back("sage.request_id", request_id);
  span.failed = HttpCode(status_.code()) >= 500;
  if (span.failed) span.status_message = std::string(status_.message());
  daemon_.spans()->Add(std::move(span));
}

void Call::TraceGeneration(absl::Time began, const GenerationEvent& last) const {
  if (daemon_.spans() == nullptr) return;
  using Attributes = std::vector<std::pair<std::string, std::string>>;
  const auto count = [](int64_t tokens) { return std::to_string(tokens); };
  const std::tuple<const char*, double, Attributes> phases[] = {
      {"queue", last.timings.queue_ms, {}},
      {"prefill",
       last.timings.prefill_ms,
       {{"gen_ai.usage.input_tokens", count(last.usage.prompt_tokens)},
        {"sage.cached_tokens", count(last.usage.cached_tokens)}}},
      {"decode", last.timings.decode_ms, {{"gen_ai.usage.output_tokens", count(last.usage.completion_tokens)}}}};
  for (const auto& [name, milliseconds, attributes] : phases) {
    Span span;
    span.context = ChildOf(trace_);
    span.name = name;
    span.server = false;
    span.begin = began;
    span.end = began + absl::Milliseconds(milliseconds);
    span.attributes = attributes;
    began = span.end;
    daemon_.spans()->Add(std::move(span));
  }
}

absl::Status Call::Open(grpc::CallbackServerContext& context, bool admit) {
  const auto limit = context.deadline();
  if (limit != std::chrono::system_clock::time_point::max()) deadline = absl::FromChrono(limit);
  peer_ = context.peer();
  certificate_ = CertificateName(context);
  const absl::Status status = Open(Metadata(context, "authorization"), Metadata(context, "x-request-id"),
                                   {Metadata(context, "traceparent"), Metadata(context, "tracestate")}, admit);
  context.AddInitialMetadata("traceparent", Traceparent(trace_));
  return status;
}

void Call::SetTarget(const std::string& what, const std::string& value) {
  if (value.empty()) return;
  if (what == "engine") {
    engine_ = value.substr(0, kMostTold);
    return;
  }
  for (auto& [known, told] : targets_) {
    if (known == what) {
      told = value.substr(0, kMostTold);
      return;
    }
  }
  targets_.emplace_back(what, value.substr(0, kMostTold));
}

void Call::SetTargets(const google::protobuf::Message& request) {
  static const std::pair<const char*, const char*> kWords[] = {
      {"engine_id", "engine"},  {"model_name", "engine"}, {"model", "model"},
      {"artifact", "artifact"}, {"name", "artifact"},     {"output", "output"},
      {"id", "operation"},      {"dataset", "dataset"},   {"quantization", "quantization"}};
  for (const auto& [name, what] : kWords) {
    const auto* field = request.GetDescriptor()->FindFieldByName(name);
    if (field == nullptr || field->is_repeated() || field->type() != google::protobuf::FieldDescriptor::TYPE_STRING) {
      continue;
    }
    SetTarget(what, request.GetReflection()->GetString(request, field));
  }
}

absl::Status Call::Open(const std::string& authorization, const std::string& id, const TraceHeaders& trace,
                        bool admit) {
  request_id = id.substr(0, 128);
  trace_ = ContinueTrace(trace);
  absl::StatusOr<std::string> caller = daemon_.door().Check(authorization, method_);
  absl::Status status = caller.status();
  caller_ = caller.ok() ? *std::move(caller) : daemon_.door().NameOf(authorization);
  if (status.ok() && admit) status = daemon_.Admit();
  if (!status.ok()) status_ = status;
  return status;
}

absl::Status WorkersBusy() {
  return MakeError(absl::StatusCode::kResourceExhausted, "WORKERS_BUSY",
                   "the daemon's request workers are all busy and their queue is full");
}

grpc::ServerUnaryReactor* RunUnary(Daemon& daemon, grpc::CallbackServerContext* context, const char* method, Lane lane,
                                   Admission admission, std::function<absl::Status(Call&)> work) {
  auto* reactor = new UnaryReactor(daemon, method, nullptr);
  reactor->Start(daemon, context, lane, admission, std::move(work));
  return reactor;
}

grpc::ServerUnaryReactor* RunUnary(Daemon& daemon, grpc::CallbackServerContext* context, const char* method,
                                   const google::protobuf::Message& request, Lane lane, Admission admission,
                                   std::function<absl::Status(Call&)> work) {
  auto* reactor = new UnaryReactor(daemon, method, &request);
  reactor->Start(daemon, context, lane, admission, std::move(work));
  return reactor;
}

}  // namespace sage::server
