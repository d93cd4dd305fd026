// EngineService: models are looked at, engines started, listed and stopped.
#include <fcntl.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "engine/base/file.h"
#include "engine/base/read_roots.h"
#include "engine/base/status.h"
#include "sage/quant/v1/engine.grpc.pb.h"
#include "server/convert.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/services/call.h"
#include "server/services/services.h"
#include "server/start_engine.h"

namespace sage::server {
namespace {

void Prefetch(const std::string& path) {
  std::vector<std::string> files;
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error)) files.push_back(path);
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  }
  for (const std::string& file : files) {
    const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    if (CheckConfined(file, fd).ok()) posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
    close(fd);
  }
}

class EngineService final : public pb::EngineService::CallbackService {
 public:
  explicit EngineService(Daemon& daemon) : daemon_(daemon) {}

  grpc::ServerUnaryReactor* LoadModel(grpc::CallbackServerContext* context, const pb::LoadModelRequest* request,
                                      pb::Model* response) override {
    return RunUnary(daemon_, context, "LoadModel", *request, Lane::kSlow, Admission::kNeeded,
                    [=, this](Call&) { return Load(*request, response); });
  }
  grpc::ServerUnaryReactor* StartEngine(grpc::CallbackServerContext* context, const pb::StartEngineRequest* request,
                                        pb::Engine* response) override {
    return RunUnary(daemon_, context, "StartEngine", *request, Lane::kSlow, Admission::kNeeded,
                    [=, this](Call& call) { return Start(call, *request, response); });
  }
  grpc::ServerUnaryReactor* ListEngines(grpc::CallbackServerContext* context, const pb::ListEnginesRequest* request,
                                        pb::ListEnginesResponse* response) override {
    return RunUnary(daemon_, context, "ListEngines", Lane::kQuick, Admission::kNotNeeded,
                    [=, this](Call&) { return List(*request, response); });
  }
  grpc::ServerUnaryReactor* GetEngine(grpc::CallbackServerContext* context, const pb::GetEngineRequest* request,
                                      pb::Engine* response) override {
    return RunUnary(daemon_, context, "GetEngine", Lane::kQuick, Admission::kNotNeeded, [=, this](Call& call) {
      call.SetEngine(request->engine_id());
      absl::StatusOr<EngineRecord> record = daemon_.engines().Get(request->engine_id());
      if (record.ok()) FillEngine(*record, true, response);
      return record.status();
    });
  }
  grpc::ServerUnaryReactor* StopEngine(grpc::CallbackServerContext* context, const pb::StopEngineRequest* request,
                                       pb::Engine* response) override {
    return RunUnary(daemon_, context, "StopEngine", *request, Lane::kSlow, Admission::kNotNeeded,
                    [=, this](Call&) { return Stop(*request, response); });
  }
  grpc::ServerUnaryReactor* ProfileEngine(grpc::CallbackServerContext* context, const pb::ProfileEngineRequest* request,
                                          pb::EngineProfile* response) override {
    return RunUnary(daemon_, context, "ProfileEngine", *request, Lane::kSlow, Admission::kNeeded,
                    [=, this](Call& call) { return Profile(call, *request, response); });
  }

 private:
  absl::Status Profile(Call& call, const pb::ProfileEngineRequest& request, pb::EngineProfile* response) {
    SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<InferenceEngine> engine, daemon_.engines().Find(request.engine_id()));
    ProfileSpec spec;
    if (request.prompt() != 0) spec.prompt = request.prompt();
    if (request.batch() != 0) spec.batch = request.batch();
    if (request.steps() != 0) spec.steps = request.steps();
    SAGE_ASSIGN_OR_RETURN(const EngineProfile profile, engine->Profile(spec, call.cancel));
    response->set_engine_id(request.engine_id());
    FillProfile(profile, response);
    return absl::OkStatus();
  }

  absl::Status Load(const pb::LoadModelRequest& request, pb::Model* response) {
    SAGE_ASSIGN_OR_RETURN(std::string path, daemon_.paths().ResolveModel(request.model()));
    SAGE_ASSIGN_OR_RETURN(ModelSummary summary, InspectModel(path));
    response->set_name(request.model());
    response->set_path(path);
    response->set_format(summary.format);
    response->set_architecture(summary.architecture);
    response->set_quantization(summary.quantization);
    response->set_file_bytes(summary.file_bytes);
    response->set_parameters(summary.parameters);
    response->set_max_position(summary.max_position);
    response->set_has_tokenizer(summary.has_tokenizer);
    if (summary.has_tokenizer) {
      auto files = daemon_.tokenizers().Load(path);
      response->set_has_chat_template(files.ok() && !(*files)->chat_template.empty());
    }
    if (request.prefetch()) Prefetch(path);
    return absl::OkStatus();
  }

  absl::Status Start(Call& call, const pb::StartEngineRequest& request, pb::Engine* response) {
    SAGE_ASSIGN_OR_RETURN(EngineSpec spec, ToEngineSpec(request, daemon_.paths()));
    if (request.request_id().size() > 128) return BadField("request_id", "TOO_LONG", "at most 128 bytes");
    if (request.validate_only()) {
      SAGE_ASSIGN_OR_RETURN(const std::string id, daemon_.engines().Check(spec));
      SAGE_RETURN_IF_ERROR(InspectModel(spec.model).status());
      response->set_engine_id(id);
      response->set_model(spec.model_name);
      response->set_model_path(spec.model);
      return absl::OkStatus();
    }
    const std::string hash = Sha256Hex(request.SerializeAsString());
    if (!request.request_id().empty()) {
      SAGE_ASSIGN_OR_RETURN(auto answer, daemon_.store().FindRequest(request.request_id(), "start_engine", hash));
      if (answer) {  // the engine of the first call, as long as it lives
        absl::StatusOr<EngineRecord> record = daemon_.engines().Get(*answer);
        if (record.ok() && record->info.state == "RUNNING") {
          FillEngine(*record, true, response);
          return absl::OkStatus();
        }
      }
    }
    if (request.no_wait()) return StartWithoutWaiting(call, request, hash, response);
    SAGE_ASSIGN_OR_RETURN(EngineRecord record, StartEngineWithOperation(daemon_, request, call.cancel, nullptr));
    call.SetEngine(record.info.engine_id);
    call.SetTarget("operation", record.operation);
    if (!request.request_id().empty()) {
      SAGE_RETURN_IF_ERROR(
          daemon_.store().RecordRequest(request.request_id(), "start_engine", hash, record.info.engine_id));
    }
    FillEngine(record, true, response);
    return absl::OkStatus();
  }

  // Answers with the operation once it exists, so that a client can watch it.
  absl::Status StartWithoutWaiting(Call& call, const pb::StartEngineRequest& request, const std::string& hash,
                                   pb::Engine* response) {
    SAGE_ASSIGN_OR_RETURN(EngineSpec spec, ToEngineSpec(request, daemon_.paths()));
    SAGE_ASSIGN_OR_RETURN(const std::string id, daemon_.engines().Check(spec));
    auto copy = std::make_shared<pb::StartEngineRequest>(request);
    copy->set_engine_id(id);
    call.SetEngine(id);
    auto known = std::make_shared<absl::Notification>();
    const bool queued = daemon_.Slow([this, copy, known] {
      const auto record = StartEngineWithOperation(
          daemon_, *copy, CancelToken(), [known](const std::string&, const std::string&) { known->Notify(); });
      daemon_.CountRefusal(record.status());           // the call that asked has ended
      if (!known->HasBeenNotified()) known->Notify();  // it was there already, or cannot be
    });
    if (!queued) return WorkersBusy();
    known->WaitForNotificationWithTimeout(absl::Seconds(2));  // the other slow workers may all be busy
    if (!request.request_id().empty()) {
      SAGE_RETURN_IF_ERROR(daemon_.store().RecordRequest(request.request_id(), "start_engine", hash, id));
    }
    for (int i = 0; i < 100; ++i) {  // the operation's id reaches the table just after it is made
      absl::StatusOr<EngineRecord> record = daemon_.engines().Get(id);
      if (!record.ok() || !record->operation.empty() || record->info.state != "STARTING") break;
      absl::SleepFor(absl::Milliseconds(1));
    }
    response->set_engine_id(id);
    response->set_state(pb::ENGINE_STATE_STARTING);
    response->set_model(spec.model_name);
    response->set_model_path(spec.model);
    absl::StatusOr<EngineRecord> record = daemon_.engines().Get(id);
    if (record.ok()) FillEngine(*record, true, response);
    return absl::OkStatus();
  }

  absl::Status List(const pb::ListEnginesRequest& request, pb::ListEnginesResponse* response) {
    if (request.page_size() < 0) return BadField("page_size", "OUT_OF_RANGE", "must not be negative");
    const int size = request.page_size() == 0 ? 100 : std::min(request.page_size(), 1000);
    for (const EngineRecord& record : daemon_.engines().List()) {
      if (record.info.engine_id <= request.page_token()) continue;
      if (response->engines_size() == size) {
        response->set_next_page_token(response->engines(size - 1).engine_id());
        break;
      }
      FillEngine(record, false, response->add_engines());
    }
    return absl::OkStatus();
  }

  absl::Status Stop(const pb::StopEngineRequest& request, pb::Engine* response) {
    double seconds = 30;
    if (request.has_drain_timeout()) {
      seconds = static_cast<double>(request.drain_timeout().seconds()) + request.drain_timeout().nanos() * 1e-9;
    }
    if (!(seconds >= 0 && seconds <= 3600)) return BadField("drain_timeout", "OUT_OF_RANGE", "must be from 0 to 1 h");
    SAGE_ASSIGN_OR_RETURN(EngineRecord record,
                          daemon_.engines().Stop(request.engine_id(), absl::Now() + absl::Seconds(seconds)));
    daemon_.metrics().RemoveGauges("engine", request.engine_id());
    FillEngine(record, false, response);
    return absl::OkStatus();
  }

  Daemon& daemon_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeEngineService(Daemon& daemon) { return std::make_unique<EngineService>(daemon); }

}  // namespace sage::server
