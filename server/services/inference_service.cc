// The Open Inference Protocol v2: text_input to text_output on an engine.
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "inference/grpc_service.grpc.pb.h"
#include "server/collect.h"
#include "server/convert.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/prompt.h"
#include "server/services/call.h"
#include "server/services/services.h"

namespace sage::server {
namespace {

absl::StatusOr<std::string> TextInput(const inference::ModelInferRequest& request) {
  if (request.inputs_size() != 1 || request.inputs(0).name() != "text_input" ||
      request.inputs(0).datatype() != "BYTES") {
    return BadField("inputs", "BAD_INPUT", "one BYTES tensor \"text_input\" of shape [1] is needed");
  }
  const auto& input = request.inputs(0);
  if (input.contents().bytes_contents_size() == 1) return input.contents().bytes_contents(0);
  if (request.raw_input_contents_size() == 1) {
    const std::string& raw = request.raw_input_contents(0);
    uint32_t size = 0;
    if (raw.size() >= 4) std::memcpy(&size, raw.data(), 4);
    if (raw.size() >= 4 && size == raw.size() - 4) return raw.substr(4);
  }
  return BadField("inputs", "BAD_INPUT", "text_input: one element is needed, in contents or raw_input_contents");
}

absl::StatusOr<double> Number(const std::string& name, const inference::InferParameter& value) {
  using P = inference::InferParameter;
  switch (value.parameter_choice_case()) {
    case P::kInt64Param:
      return static_cast<double>(value.int64_param());
    case P::kUint64Param:
      return static_cast<double>(value.uint64_param());
    case P::kDoubleParam:
      return value.double_param();
    case P::kBoolParam:
      return value.bool_param() ? 1.0 : 0.0;
    default:
      return BadField(name, "BAD_PARAMETER", "must be a number");
  }
}

absl::StatusOr<GenerateSpec> ReadParameters(const inference::ModelInferRequest& request) {
  GenerateSpec spec;
  for (const auto& [name, value] : request.parameters()) {
    SAGE_ASSIGN_OR_RETURN(const double number, Number(name, value));
    if (!(number >= -1e15 && number <= 1e15)) return BadField(name, "OUT_OF_RANGE", "out of range");
    if (name == "max_tokens") {
      spec.max_tokens = static_cast<int64_t>(number);
    } else if (name == "temperature") {
      spec.sampling.temperature = number;
    } else if (name == "top_p") {
      spec.sampling.top_p = number;
    } else if (name == "min_p") {
      spec.sampling.min_p = number;
    } else if (name == "top_k") {
      if (!(number >= 0 && number <= (1 << 30))) return BadField(name, "OUT_OF_RANGE", "must be from 0 to 2^30");
      spec.sampling.top_k = static_cast<int32_t>(number);
    } else if (name == "repetition_penalty") {
      spec.sampling.repetition_penalty = number;
    } else if (name == "seed") {
      spec.sampling.seed = static_cast<uint64_t>(number < 0 ? 0 : number);
    } else if (name == "ignore_eos") {
      spec.ignore_eos = number != 0;
    } else {
      return BadField(name, "UNKNOWN_PARAMETER",
                      "known: max_tokens, temperature, top_k, top_p, min_p, seed, "
                      "repetition_penalty, ignore_eos");
    }
  }
  SAGE_RETURN_IF_ERROR(CheckGenerateSpec(spec));
  return spec;
}

class Service final : public inference::GRPCInferenceService::CallbackService {
 public:
  explicit Service(Daemon& daemon) : daemon_(daemon) {}

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
                      SAGE_ASSIGN_OR_RETURN(EngineRecord record, daemon_.engines().Get(request->name()));
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
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* ModelMetadata(grpc::CallbackServerContext* context,
                                          const inference::ModelMetadataRequest* request,
                                          inference::ModelMetadataResponse* response) override {
    return RunUnary(daemon_, context, "ModelMetadata", Lane::kQuick, Admission::kNotNeeded,
                    [=, this](Call&) -> absl::Status {
                      SAGE_ASSIGN_OR_RETURN(EngineRecord record, daemon_.engines().Get(request->name()));
                      response->set_name(record.info.engine_id);
                      response->add_versions("1");
                      response->set_platform("sagequant_" + record.info.backend);
                      for (auto* row : {response->add_inputs(), response->add_outputs()}) {
                        row->set_datatype("BYTES");
                        row->add_shape(1);
                      }
                      response->mutable_inputs(0)->set_name("text_input");
                      response->mutable_outputs(0)->set_name("text_output");
                      return absl::OkStatus();
                    });
  }
  grpc::ServerUnaryReactor* ModelInfer(grpc::CallbackServerContext* context,
                                       const inference::ModelInferRequest* request,
                                       inference::ModelInferResponse* response) override {
    return RunUnary(daemon_, context, "ModelInfer", Lane::kSlow, Admission::kNeeded,
                    [=, this](Call& call) { return Infer(call, *request, response); });
  }

 private:
  absl::Status Infer(Call& call, const inference::ModelInferRequest& request, inference::ModelInferResponse* response) {
    SAGE_ASSIGN_OR_RETURN(std::shared_ptr<InferenceEngine> engine, daemon_.engines().Find(request.model_name()));
    call.SetEngine(request.model_name());
    SAGE_ASSIGN_OR_RETURN(const std::string text, TextInput(request));
    SAGE_ASSIGN_OR_RETURN(GenerateSpec spec, ReadParameters(request));
    SAGE_ASSIGN_OR_RETURN(spec.prompt_ids, EncodePrompt(*engine, text, true));
    spec.deadline = call.deadline;
    auto queue = std::make_shared<EventQueue>();
    SAGE_ASSIGN_OR_RETURN(auto handle, engine->Submit(std::move(spec), queue->Sink(queue)));
    std::string output, finish_reason;
    bool cancelled = false;
    while (true) {
      std::optional<GenerationEvent> event = queue->Next(absl::Now() + absl::Milliseconds(100));
      if (call.cancel.cancelled() && !cancelled) {
        cancelled = true;
        handle->Cancel();
      }
      if (!event) continue;
      output += event->text;
      if (!event->finish_reason.empty()) finish_reason = event->finish_reason;
      if (!event->last) continue;
      SAGE_RETURN_IF_ERROR(event->status);
      break;
    }
    response->set_model_name(request.model_name());
    response->set_model_version("1");
    response->set_id(request.id());
    (*response->mutable_parameters())["finish_reason"].set_string_param(finish_reason);
    auto* row = response->add_outputs();
    row->set_name("text_output");
    row->set_datatype("BYTES");
    row->add_shape(1);
    row->mutable_contents()->add_bytes_contents(output);
    return absl::OkStatus();
  }

  Daemon& daemon_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeInferenceService(Daemon& daemon) { return std::make_unique<Service>(daemon); }

}  // namespace sage::server
