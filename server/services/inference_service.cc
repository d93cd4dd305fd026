// The Open Inference Protocol v2: what there is, loading and unloading; generating is in inference_stream.cc.
#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "inference/grpc_service.grpc.pb.h"
#include "server/convert.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/services/call.h"
#include "server/services/inference_request.h"
#include "server/services/inference_stream.h"
#include "server/services/services.h"
#include "server/start_engine.h"
#include "server/start_request.h"

namespace sage::server {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxIndexed = 1000;

// A model's own word for the state of an engine.
const char* StateWord(const std::string& state) {
  if (state == "RUNNING") return "READY";
  if (state == "STARTING") return "LOADING";
  if (state == "STOPPING") return "UNLOADING";
  return "UNAVAILABLE";
}

bool IsModel(const fs::directory_entry& entry) {
  std::error_code error;
  if (entry.is_regular_file(error)) return entry.path().extension() == ".gguf";
  if (fs::exists(entry.path() / "config.json", error)) return true;
  for (const fs::directory_entry& file : fs::directory_iterator(entry.path(), error)) {
    if (file.path().extension() == ".gguf") return true;
  }
  return false;
}

// Names below `root` that StartEngine would take: folders with weights and GGUF files, and those one folder deeper.
void ListModels(const std::string& root, std::set<std::string>* out) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(root, error)) {
    if (out->size() >= kMaxIndexed) return;
    const std::string name = entry.path().filename().string();
    if (name.empty() || name[0] == '.') continue;
    if (IsModel(entry)) {
      out->insert(name);
      continue;
    }
    if (!entry.is_directory(error)) continue;
    for (const fs::directory_entry& inner : fs::directory_iterator(entry.path(), error)) {
      if (out->size() < kMaxIndexed && IsModel(inner)) out->insert(name + "/" + inner.path().filename().string());
    }
  }
}

void AddTensor(const char* name, const char* type, int64_t size,
               inference::ModelMetadataResponse::TensorMetadata* out) {
  out->set_name(name);
  out->set_datatype(type);
  out->add_shape(size);
}

void FillConfig(const EngineInfo& info, inference::ModelConfig* out) {
  out->set_name(info.engine_id);
  out->set_platform("sagequant_" + info.backend);
  out->set_backend("sagequant");
  const auto add_input = [&](const char* name, inference::DataType type, int64_t size) {
    auto* row = out->add_input();
    row->set_name(name);
    row->set_data_type(type);
    row->add_dims(size);
    row->set_optional(true);  // one of the first two is needed
  };
  add_input("text_input", inference::TYPE_STRING, 1);
  add_input("input_ids", inference::TYPE_INT32, -1);
  add_input("streaming", inference::TYPE_BOOL, 1);
  const auto add_output = [&](const char* name, inference::DataType type, int64_t size) {
    auto* row = out->add_output();
    row->set_name(name);
    row->set_data_type(type);
    row->add_dims(size);
  };
  add_output("text_output", inference::TYPE_STRING, 1);
  add_output("finish_reason", inference::TYPE_STRING, 1);
  add_output("output_ids", inference::TYPE_INT32, -1);
  const std::pair<const char*, std::string> parameters[] = {{"model", info.model},
                                                            {"quantization", info.quantization},
                                                            {"kv_quant", info.kv_quant},
                                                            {"max_model_len", std::to_string(info.max_model_len)},
                                                            {"max_seqs", std::to_string(info.max_seqs)}};
  for (const auto& [key, value] : parameters) (*out->mutable_parameters())[key].set_string_value(value);
  out->mutable_model_transaction_policy()->set_decoupled(true);
}

// The request that "config" and the model's name make together.
absl::StatusOr<pb::StartEngineRequest> ToStart(const inference::RepositoryModelLoadRequest& request,
                                               const ListenAddress& own) {
  if (!request.repository_name().empty()) {
    return BadField("repository_name", "UNKNOWN_REPOSITORY", "must be empty: there is one repository");
  }
  pb::StartEngineRequest start;
  for (const auto& [name, value] : request.parameters()) {
    if (value.has_bytes_param()) {
      return BadField(name, "FILES_UNSUPPORTED", "models are loaded from the daemon's own folders");
    }
    if (name != "config" || !value.has_string_param()) {
      return BadField(name, "UNKNOWN_PARAMETER", "only \"config\", a JSON text, is known");
    }
    SAGE_ASSIGN_OR_RETURN(start, ParseStartRequest(value.string_param(), own));
  }
  if (start.model().empty()) start.set_model(request.model_name());
  if (!start.engine_id().empty() && start.engine_id() != request.model_name()) {
    return BadField("engine_id", "CONTRADICTION", "must be model_name, or left out");
  }
  start.set_engine_id(request.model_name());
  return start;
}

class InferenceService final : public inference::GRPCInferenceService::CallbackService {
 public:
  explicit InferenceService(Daemon& daemon) : daemon_(daemon) {}

  grpc::ServerUnaryReactor* ServerLive(grpc::CallbackServerContext* context, const inference::ServerLiveRequest*,
                                       inference::ServerLiveResponse* response) override {
    return RunUnary(daemon_, context, "ServerLive", Lane::kQuick, Admission::kNotNeeded, [=, this](Call&) {
      response->set_live(true);
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* ServerReady(grpc::CallbackServerContext* context, const inference::ServerReadyRequest*,
                                        inference::ServerReadyResponse* response) override {
    return RunUnary(daemon_, context, "ServerReady", Lane::kQuick, Admission::kNotNeeded, [=, this](Call&) {
      response->set_ready(daemon_.ready());
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* ModelReady(grpc::CallbackServerContext* context,
                                       const inference::ModelReadyRequest* request,
                                       inference::ModelReadyResponse* response) override {
    return RunUnary(daemon_, context, "ModelReady", Lane::kQuick, Admission::kNotNeeded,
                    [=, this](Call&) -> absl::Status {
                      SAGE_ASSIGN_OR_RETURN(EngineRecord record, Find(*request));
                      response->set_ready(record.info.state == "RUNNING");
                      return absl::OkStatus();
                    });
  }
  grpc::ServerUnaryReactor* ServerMetadata(grpc::CallbackServerContext* context,
                                           const inference::ServerMetadataRequest*,
                                           inference::ServerMetadataResponse* response) override {
    return RunUnary(daemon_, context, "ServerMetadata", Lane::kQuick, Admission::kNotNeeded, [=, this](Call&) {
      response->set_name("sagequant");
      response->set_version(SAGE_VERSION);
      for (const char* name : {"model_repository", "model_configuration", "statistics"}) response->add_extensions(name);
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* ModelMetadata(grpc::CallbackServerContext* context,
                                          const inference::ModelMetadataRequest* request,
                                          inference::ModelMetadataResponse* response) override {
    return RunUnary(daemon_, context, "ModelMetadata", Lane::kQuick, Admission::kNotNeeded,
                    [=, this](Call&) -> absl::Status {
                      SAGE_ASSIGN_OR_RETURN(EngineRecord record, Find(*request));
                      response->set_name(record.info.engine_id);
                      response->add_versions("1");
                      response->set_platform("sagequant_" + record.info.backend);
                      AddTensor("text_input", "BYTES", 1, response->add_inputs());
                      AddTensor("input_ids", "INT32", -1, response->add_inputs());
                      AddTensor("streaming", "BOOL", 1, response->add_inputs());
                      AddTensor("text_output", "BYTES", 1, response->add_outputs());
                      AddTensor("finish_reason", "BYTES", 1, response->add_outputs());
                      AddTensor("output_ids", "INT32", -1, response->add_outputs());
                      return absl::OkStatus();
                    });
  }
  grpc::ServerUnaryReactor* ModelConfig(grpc::CallbackServerContext* context,
                                        const inference::ModelConfigRequest* request,
                                        inference::ModelConfigResponse* response) override {
    return RunUnary(daemon_, context, "ModelConfig", Lane::kQuick, Admission::kNotNeeded,
                    [=, this](Call&) -> absl::Status {
                      SAGE_ASSIGN_OR_RETURN(EngineRecord record, Find(*request));
                      FillConfig(record.info, response->mutable_config());
                      return absl::OkStatus();
                    });
  }
  grpc::ServerUnaryReactor* ModelStatistics(grpc::CallbackServerContext* context,
                                            const inference::ModelStatisticsRequest* request,
                                            inference::ModelStatisticsResponse* response) override {
    return RunUnary(daemon_, context, "ModelStatistics", Lane::kQuick, Admission::kNotNeeded,
                    [=, this](Call&) { return Statistics(*request, response); });
  }
  grpc::ServerUnaryReactor* ModelInfer(grpc::CallbackServerContext* context,
                                       const inference::ModelInferRequest* request,
                                       inference::ModelInferResponse* response) override {
    auto* call = new InferenceCall(daemon_, statistics_);
    call->Start(context, request, response);
    return call;
  }
  grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>* ModelStreamInfer(
      grpc::CallbackServerContext* context) override {
    auto* stream = new InferenceStream(daemon_, statistics_);
    stream->Start(context);
    return stream;
  }
  grpc::ServerUnaryReactor* RepositoryIndex(grpc::CallbackServerContext* context,
                                            const inference::RepositoryIndexRequest* request,
                                            inference::RepositoryIndexResponse* response) override {
    return RunUnary(daemon_, context, "RepositoryIndex", Lane::kSlow, Admission::kNotNeeded,
                    [=, this](Call&) { return Index(*request, response); });
  }
  grpc::ServerUnaryReactor* RepositoryModelLoad(grpc::CallbackServerContext* context,
                                                const inference::RepositoryModelLoadRequest* request,
                                                inference::RepositoryModelLoadResponse*) override {
    return RunUnary(daemon_, context, "RepositoryModelLoad", *request, Lane::kSlow, Admission::kNeeded,
                    [=, this](Call& call) -> absl::Status {
                      SAGE_ASSIGN_OR_RETURN(const pb::StartEngineRequest start,
                                            ToStart(*request, daemon_.config().http_listen));
                      call.SetTargets(start);
                      return StartEngineWithOperation(daemon_, start, call.cancel, nullptr).status();
                    });
  }
  grpc::ServerUnaryReactor* RepositoryModelUnload(grpc::CallbackServerContext* context,
                                                  const inference::RepositoryModelUnloadRequest* request,
                                                  inference::RepositoryModelUnloadResponse*) override {
    return RunUnary(
        daemon_, context, "RepositoryModelUnload", *request, Lane::kSlow, Admission::kNotNeeded,
        [=, this](Call&) -> absl::Status {
          SAGE_RETURN_IF_ERROR(daemon_.engines().Stop(request->model_name(), absl::Now() + absl::Seconds(30)).status());
          daemon_.metrics().RemoveGauges("engine", request->model_name());
          return absl::OkStatus();
        });
  }

 private:
  template <typename Request>
  absl::StatusOr<EngineRecord> Find(const Request& request) {
    SAGE_RETURN_IF_ERROR(CheckModelVersion("version", request.version()));
    return daemon_.engines().Get(request.name());
  }

  absl::Status Statistics(const inference::ModelStatisticsRequest& request,
                          inference::ModelStatisticsResponse* response) {
    std::vector<EngineRecord> records;
    if (request.name().empty()) {
      records = daemon_.engines().List();
    } else {
      SAGE_ASSIGN_OR_RETURN(EngineRecord record, Find(request));
      records.push_back(std::move(record));
    }
    for (const EngineRecord& record : records) {
      auto* row = response->add_model_stats();
      row->set_name(record.info.engine_id);
      row->set_version("1");
      row->set_execution_count(static_cast<uint64_t>(record.stats.steps_total));
      statistics_.Fill(record.info.engine_id, row);
      auto* memory = row->add_memory_usage();
      memory->set_type(record.info.backend == "cpu" ? "CPU" : "GPU");
      memory->set_byte_size(static_cast<uint64_t>(record.info.weight_bytes + record.info.kv_bytes));
    }
    return absl::OkStatus();
  }

  absl::Status Index(const inference::RepositoryIndexRequest& request, inference::RepositoryIndexResponse* response) {
    if (!request.repository_name().empty()) {
      return BadField("repository_name", "UNKNOWN_REPOSITORY", "must be empty: there is one repository");
    }
    std::set<std::string> engines;
    for (const EngineRecord& record : daemon_.engines().List()) {
      const std::string state = StateWord(record.info.state);
      engines.insert(record.info.engine_id);
      if (request.ready() && state != "READY") continue;
      auto* row = response->add_models();
      row->set_name(record.info.engine_id);
      row->set_version("1");
      row->set_state(state);
      if (!record.info.error.ok()) row->set_reason(std::string(record.info.error.message()));
    }
    if (request.ready()) return absl::OkStatus();
    std::set<std::string> models;
    ListModels(daemon_.paths().artifacts_dir(), &models);
    for (const std::string& root : daemon_.paths().roots()) ListModels(root, &models);
    for (const std::string& name : models) {
      if (engines.count(name) > 0) continue;
      auto* row = response->add_models();
      row->set_name(name);
      row->set_state("UNAVAILABLE");
      row->set_reason("not loaded");
    }
    return absl::OkStatus();
  }

  Daemon& daemon_;
  InferenceStatistics statistics_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeInferenceService(Daemon& daemon) {
  return std::make_unique<InferenceService>(daemon);
}

}  // namespace sage::server
