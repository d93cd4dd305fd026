// The Open Inference Protocol in process, on a fake runtime: streams side by side, errors, cancel, slow readers; and
// the JSON that starts an engine.
#include <filesystem>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "in_process_daemon.h"
#include "inference/grpc_service.grpc.pb.h"
#include "server/daemon.h"
#include "server/grpc_server.h"
#include "server/start_request.h"

namespace sage::server {
namespace {

using inference::ModelInferRequest;
using inference::ModelStreamInferResponse;

class InferenceTest : public InProcessDaemonTest {
 protected:
  void SetUp() override {
    InProcessDaemonTest::SetUp();
    ASSERT_FALSE(HasFatalFailure());
    EngineSpec spec;
    spec.engine_id = "e";
    spec.model = top_ + "/root/m";
    const auto begun = [](const std::string&) { return std::string(); };
    ASSERT_TRUE(daemon_->engines().Start(spec, begun, CancelToken(), [](const Progress&) {}).ok());
    stub_ = inference::GRPCInferenceService::NewStub(channel_);
  }
  static ModelInferRequest Ids(const std::string& id, int64_t max_tokens, const std::string& model = "e") {
    ModelInferRequest request;
    request.set_model_name(model);
    request.set_id(id);
    auto* input = request.add_inputs();
    input->set_name("input_ids");
    input->set_datatype("INT32");
    input->add_shape(1);
    input->mutable_contents()->add_int_contents(1);
    (*request.mutable_parameters())["max_tokens"].set_int64_param(max_tokens);
    return request;
  }
  void ExpectIdle() {
    auto engine = FakeRuntime::last.lock();
    for (int i = 0; i < 1000 && engine->running > 0; ++i) absl::SleepFor(absl::Milliseconds(2));
    EXPECT_EQ(engine->running, 0);
  }

  std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
};

TEST_F(InferenceTest, InferAnswersOnce) {
  grpc::ClientContext context;
  inference::ModelInferResponse response;
  ModelInferRequest request = Ids("a", 5);
  request.add_outputs()->set_name("output_ids");
  request.add_outputs()->set_name("text_output");
  const grpc::Status status = stub_->ModelInfer(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.id(), "a");
  ASSERT_EQ(response.outputs_size(), 2);
  EXPECT_EQ(response.outputs(0).contents().bytes_contents(0), "ttttt");
  EXPECT_EQ(response.outputs(1).contents().int_contents_size(), 5);
  EXPECT_EQ(response.parameters().at("finish_reason").string_param(), "length");
}

TEST_F(InferenceTest, HundredRequestsOfOneStreamRunSideBySide) {
  grpc::ClientContext context;
  auto stream = stub_->ModelStreamInfer(&context);
  std::thread writer([&] {
    for (int i = 0; i < 100; ++i) stream->Write(Ids(std::to_string(i), 20, i % 10 == 9 ? "nobody" : "e"));
    stream->WritesDone();
  });
  std::map<std::string, int> tokens;
  std::set<std::string> failed, finished;
  ModelStreamInferResponse response;
  while (stream->Read(&response)) {
    const auto& infer = response.infer_response();
    if (!response.error_message().empty()) {
      EXPECT_NE(response.error_message().find("ENGINE_NOT_FOUND"), std::string::npos);
      failed.insert(infer.id());
      continue;
    }
    EXPECT_EQ(finished.count(infer.id()), 0u);
    tokens[infer.id()] += static_cast<int>(infer.outputs(0).contents().bytes_contents(0).size());
    if (infer.parameters().at("triton_final_response").bool_param()) finished.insert(infer.id());
  }
  writer.join();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(failed.size(), 10u);
  EXPECT_EQ(finished.size(), 90u);
  for (const auto& [id, count] : tokens) EXPECT_EQ(count, 20) << id;
}

TEST_F(InferenceTest, ErrorsEndTheStreamWhenAskedTo) {
  grpc::ClientContext context;
  context.AddMetadata("triton_grpc_error", "true");
  auto stream = stub_->ModelStreamInfer(&context);
  stream->Write(Ids("long", 100000));
  stream->Write(Ids("bad", 1, "nobody"));
  ModelStreamInferResponse response;
  while (stream->Read(&response)) EXPECT_TRUE(response.error_message().empty());
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
  ExpectIdle();
}

TEST_F(InferenceTest, CancelAtAnyTimeFreesEverything) {
  for (int delay_us : {0, 100, 500, 1000, 3000, 10000, 30000}) {
    grpc::ClientContext context;
    auto stream = stub_->ModelStreamInfer(&context);
    for (int i = 0; i < 8; ++i) stream->Write(Ids(std::to_string(i), 100000));
    absl::SleepFor(absl::Microseconds(delay_us));
    context.TryCancel();
    ModelStreamInferResponse response;
    while (stream->Read(&response)) {
    }
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
    grpc::ClientContext unary;
    unary.set_deadline(std::chrono::system_clock::now() + std::chrono::microseconds(delay_us + 500));
    inference::ModelInferResponse answer;
    EXPECT_EQ(stub_->ModelInfer(&unary, Ids("u", 100000), &answer).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  ExpectIdle();
}

TEST_F(InferenceTest, SlowReaderIsEnded) {
  FakeEngine::step_us = 0;
  FakeEngine::text_bytes = 256 << 10;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));  // a failure, not a hang
  auto stream = stub_->ModelStreamInfer(&context);
  ModelInferRequest request = Ids("a", 100000);
  request.add_outputs()->set_name("text_output");
  stream->Write(request);
  ExpectIdle();  // the buffer filled and the generation was cancelled, although nobody read
  ModelStreamInferResponse response;
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(InferenceTest, DrainEndsStreams) {
  grpc::ClientContext context;
  auto stream = stub_->ModelStreamInfer(&context);
  stream->Write(Ids("a", 100000));
  ModelStreamInferResponse response;
  ASSERT_TRUE(stream->Read(&response));
  daemon_->BeginDrain();
  daemon_->StopWork(absl::Now());
  bool error = false;
  stream->WritesDone();
  while (stream->Read(&response)) error = error || !response.error_message().empty();
  EXPECT_TRUE(error);
  EXPECT_TRUE(stream->Finish().ok());
}

std::string Reason(const std::string& body) {
  return GetErrorReason(ParseStartRequest(body, ListenAddress()).status()).reason;
}

TEST(StartRequest, ReadsTheGatewaysWords) {
  const auto request = ParseStartRequest(R"({"model_id": "m", "engine_label": "l", "use_gpu": false, "port": null,
      "tensor_parallel_size": 1, "max_concurrent_requests": 7, "instance_type": "general", "finetune_output_dir": null,
      "extra_args": [], "metadata": {"a": 1}})",
                                         ListenAddress());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->model(), "m");
  EXPECT_EQ(request->engine_id(), "l");
  EXPECT_EQ(request->backend(), "cpu");
  EXPECT_EQ(request->max_queue_requests(), 7);
}

TEST(StartRequest, LayersKeepTheirOrder) {
  const auto request = ParseStartRequest(R"({"model": "m", "layer_quantization": [
      {"pattern": "*.self_attn.*", "quantization": "int8"}, {"pattern": "*.k_proj", "quantization": "none"}]})",
                                         ListenAddress());
  ASSERT_TRUE(request.ok()) << request.status();
  ASSERT_EQ(request->layer_quantization_size(), 2);
  EXPECT_EQ(request->layer_quantization(0).pattern(), "*.self_attn.*");
  EXPECT_EQ(request->layer_quantization(1).quantization(), "none");
  for (const char* wrong : {R"({"*": "int8"})", R"(["*=int8"])", R"([{"pattern": "*"}])", R"("int8")",
                            R"([{"pattern": 1, "quantization": "int8"}])"}) {
    EXPECT_EQ(Reason(absl::StrCat("{\"layer_quantization\": ", wrong, "}")), "WRONG_TYPE") << wrong;
  }
}

TEST(StartRequest, TheDaemonsOwnAddressAsksForNothing) {
  ListenAddress own;
  own.host = "10.0.0.7";
  own.port = 8000;
  const auto reason = [&](const std::string& body) {
    return GetErrorReason(ParseStartRequest(body, own).status()).reason;
  };
  for (const char* host : {"localhost", "127.0.0.1", "::1", "10.0.0.7"}) {
    EXPECT_EQ(reason(absl::StrCat("{\"model\": \"m\", \"host\": \"", host, "\"}")), "") << host;
  }
  EXPECT_EQ(reason(R"({"host": null, "port": 8000})"), "");
  for (const char* body : {R"({"host": "10.0.0.8"})", R"({"host": ""})", R"({"host": 1})", R"({"port": 8001})",
                           R"({"port": 0})", R"({"port": "8000"})"}) {
    EXPECT_EQ(reason(body), "UNSUPPORTED") << body;
  }
}

TEST(StartRequest, RefusesWhatItCannotDo) {
  EXPECT_EQ(Reason("["), "BAD_JSON");
  EXPECT_EQ(Reason("[]"), "BAD_JSON");
  EXPECT_EQ(Reason(R"({"model": 1})"), "WRONG_TYPE");
  EXPECT_EQ(Reason(R"({"max_seqs": 1.5})"), "WRONG_TYPE");
  EXPECT_EQ(Reason(R"({"port": 1})"), "UNSUPPORTED");
  EXPECT_EQ(Reason(R"({"finetune_epochs": 2})"), "UNSUPPORTED");
  EXPECT_EQ(Reason(R"({"tensor_parallel_size": "two"})"), "UNSUPPORTED");
  EXPECT_EQ(Reason(R"({"no_such": 2})"), "UNKNOWN_FIELD");
}

}  // namespace
}  // namespace sage::server
