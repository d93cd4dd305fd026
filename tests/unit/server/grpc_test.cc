// The gRPC port in process, on a fake runtime: streams, cancel, deadline, drain, idempotency, errors.
#include <filesystem>
#include <fstream>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "in_process_daemon.h"
#include "sage/quant/v1/artifact.grpc.pb.h"
#include "sage/quant/v1/engine.grpc.pb.h"
#include "sage/quant/v1/generation.grpc.pb.h"
#include "sage/quant/v1/operation.grpc.pb.h"
#include "sage/quant/v1/quantization.grpc.pb.h"
#include "server/daemon.h"
#include "server/grpc_server.h"

namespace sage::server {
namespace {

namespace pb = ::sage::quant::v1;

class GrpcTest : public InProcessDaemonTest {
 protected:
  void SetUp() override {
    InProcessDaemonTest::SetUp();
    ASSERT_FALSE(HasFatalFailure());
    engines_ = pb::EngineService::NewStub(channel_);
    generation_ = pb::GenerationService::NewStub(channel_);
    operations_ = pb::OperationService::NewStub(channel_);
    quantization_ = pb::QuantizationService::NewStub(channel_);
  }

  grpc::Status Start(const std::string& id, pb::Engine* engine, const std::string& quantization = "",
                     const std::string& request_id = "") {
    pb::StartEngineRequest request;
    request.set_model("m");
    request.set_engine_id(id);
    request.set_quantization(quantization);
    request.set_request_id(request_id);
    grpc::ClientContext context;
    return engines_->StartEngine(&context, request, engine);
  }
  static pb::GenerateRequest Prompt(int64_t max_tokens) {
    pb::GenerateRequest request;
    request.mutable_token_ids()->add_ids(1);
    request.mutable_options()->set_max_tokens(max_tokens);
    return request;
  }
  static std::string Reason(const grpc::Status& status) {
    google::rpc::Status details;
    details.ParseFromString(status.error_details());
    google::rpc::ErrorInfo info;
    for (const auto& any : details.details()) {
      if (any.UnpackTo(&info)) return info.reason();
    }
    return "";
  }
  void ExpectIdle() {
    auto engine = FakeRuntime::last.lock();
    for (int i = 0; i < 500 && engine->running > 0; ++i) absl::SleepFor(absl::Milliseconds(2));
    EXPECT_EQ(engine->running, 0);
  }

  std::unique_ptr<pb::EngineService::Stub> engines_;
  std::unique_ptr<pb::GenerationService::Stub> generation_;
  std::unique_ptr<pb::OperationService::Stub> operations_;
  std::unique_ptr<pb::QuantizationService::Stub> quantization_;
};

TEST_F(GrpcTest, StreamsEveryTokenInOrder) {
  pb::Engine engine;
  ASSERT_TRUE(Start("e", &engine).ok());
  EXPECT_EQ(engine.state(), pb::ENGINE_STATE_RUNNING);
  EXPECT_EQ(engine.bindings_size(), 1);
  std::vector<std::thread> clients;
  for (int c = 0; c < 8; ++c) {
    clients.emplace_back([&] {
      grpc::ClientContext context;
      auto reader = generation_->Generate(&context, Prompt(200));
      pb::GenerationUpdate update;
      int next = 100;
      bool last = false;
      while (reader->Read(&update)) {
        for (const auto& token : update.tokens()) EXPECT_EQ(token.id(), next++);
        last = update.last();
      }
      EXPECT_TRUE(reader->Finish().ok());
      EXPECT_EQ(next, 300);
      EXPECT_TRUE(last);
      EXPECT_EQ(update.usage().completion_tokens(), 200);
      EXPECT_EQ(update.finish_reason(), "length");
    });
  }
  for (auto& client : clients) client.join();
}

TEST_F(GrpcTest, TokensComeInTheIntervalsThatWereAskedFor) {
  pb::Engine engine;
  ASSERT_TRUE(Start("e", &engine).ok());
  for (const auto& [interval, sizes] : std::vector<std::pair<int64_t, std::vector<int>>>{
           {3, {3, 3, 1}}, {7, {7}}, {1 << 24, {7}}, {1, {1, 1, 1, 1, 1, 1, 1}}}) {
    pb::GenerateRequest request = Prompt(7);
    request.mutable_options()->set_stream_interval(interval);
    grpc::ClientContext context;
    auto reader = generation_->Generate(&context, request);
    pb::GenerationUpdate update;
    std::vector<int> got;
    std::string text;
    int next = 100;
    while (reader->Read(&update)) {
      got.push_back(update.tokens_size());
      text += update.text();
      for (const auto& token : update.tokens()) EXPECT_EQ(token.id(), next++);
    }
    EXPECT_TRUE(reader->Finish().ok());
    EXPECT_EQ(got, sizes) << interval;
    EXPECT_EQ(text, "ttttttt");
    EXPECT_TRUE(update.last());
    EXPECT_EQ(update.usage().completion_tokens(), 7);
  }
  pb::GenerateRequest request = Prompt(7);
  for (const int64_t wrong : {int64_t{0}, int64_t{-1}, int64_t{1} << 40}) {
    request.mutable_options()->set_stream_interval(wrong);
    grpc::ClientContext context;
    auto reader = generation_->Generate(&context, request);
    const grpc::Status status = reader->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(Reason(status), "OUT_OF_RANGE");
  }
}

// What was gathered is told before the error, and no message is too large for a client's default limit.
TEST_F(GrpcTest, GatheredTokensAreNotLost) {
  pb::Engine engine;
  ASSERT_TRUE(Start("e", &engine).ok());
  FakeEngine::text_bytes = 50 << 10;
  pb::GenerateRequest request = Prompt(200);
  request.mutable_options()->set_stream_interval(1 << 24);
  grpc::ClientContext context;
  auto reader = generation_->Generate(&context, request);
  pb::GenerationUpdate update;
  size_t bytes = 0, updates = 0;
  while (reader->Read(&update)) {
    bytes += update.text().size();
    ++updates;
    EXPECT_LT(update.ByteSizeLong(), size_t{400} << 10);
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(bytes, size_t{200} * (50 << 10));
  EXPECT_GT(updates, 20u);
  EXPECT_LT(updates, 100u);
}

TEST_F(GrpcTest, ClientCancelStopsTheEngineAtAnyMoment) {
  pb::Engine engine;
  ASSERT_TRUE(Start("e", &engine).ok());
  for (int after = 0; after < 12; ++after) {
    grpc::ClientContext context;
    auto reader = generation_->Generate(&context, Prompt(100000));
    pb::GenerationUpdate update;
    for (int i = 0; i < after; ++i) ASSERT_TRUE(reader->Read(&update));
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  ExpectIdle();
}

TEST_F(GrpcTest, DeadlineEndsTheStream) {
  pb::Engine engine;
  ASSERT_TRUE(Start("e", &engine).ok());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(60));
  auto reader = generation_->Generate(&context, Prompt(100000));
  pb::GenerationUpdate update;
  while (reader->Read(&update)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectIdle();
}

TEST_F(GrpcTest, SlowReaderIsCutAndTheEngineIsFreed) {
  pb::Engine engine;
  ASSERT_TRUE(Start("e", &engine).ok());
  FakeEngine::step_us = 0;
  FakeEngine::text_bytes = 64 << 10;
  grpc::ClientContext context;
  auto reader = generation_->Generate(&context, Prompt(100000));
  // Nothing is read, so the buffer fills.
  auto fake = FakeRuntime::last.lock();
  for (int i = 0; i < 5000 && fake->cancelled == 0; ++i) absl::SleepFor(absl::Milliseconds(2));
  EXPECT_EQ(fake->cancelled, 1);
  ExpectIdle();
  pb::GenerationUpdate update;
  while (reader->Read(&update)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Reason(status), "SLOW_READER");
}

TEST_F(GrpcTest, ErrorsCarryReasons) {
  grpc::ClientContext c1, c2, c3, c4, c5;
  pb::GenerationUpdate update;
  auto none = generation_->Generate(&c1, Prompt(1));
  EXPECT_FALSE(none->Read(&update));
  grpc::Status status = none->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Reason(status), "ENGINE_NOT_FOUND");
  pb::Engine engine;
  ASSERT_TRUE(Start("e", &engine).ok());
  pb::GenerateRequest hot = Prompt(1);
  hot.mutable_options()->mutable_sampling()->set_temperature(-1);
  status = generation_->Generate(&c2, hot)->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  pb::GenerateRequest text;
  text.set_text("x");
  status = generation_->Generate(&c3, text)->Finish();
  EXPECT_EQ(Reason(status), "NO_TOKENIZER");
  pb::GenerateRequest full;
  full.mutable_token_ids()->add_ids(999);
  status = generation_->Generate(&c4, full)->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Reason(status), "QUEUE_FULL");
  pb::GetOperationRequest get;
  pb::Operation operation;
  status = operations_->GetOperation(&c5, get, &operation);
  EXPECT_EQ(Reason(status), "OPERATION_NOT_FOUND");
}

TEST_F(GrpcTest, EnginesAreStartedOnce) {
  const int before = FakeRuntime::starts;
  pb::Engine first, second, third;
  ASSERT_TRUE(Start("e", &first, "", "r").ok());
  ASSERT_TRUE(Start("e", &second, "", "r").ok());
  EXPECT_EQ(FakeRuntime::starts - before, 1);
  EXPECT_EQ(first.operation(), second.operation());
  EXPECT_FALSE(first.operation().empty());
  grpc::Status status = Start("e", &third, "int8");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(Reason(status), "ENGINE_EXISTS");
  EXPECT_EQ(Reason(Start("other", &third, "int8", "r")), "REQUEST_ID_REUSED");
  EXPECT_EQ(Start("x", &third, "bad").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(Start("", &third).ok());
  EXPECT_EQ(third.engine_id(), "m");
}

TEST_F(GrpcTest, CancelledStartLeavesNothing) {
  pb::StartEngineRequest request;
  request.set_model("m");
  request.set_engine_id("slow");
  request.set_quantization("slow");
  pb::Engine engine;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  EXPECT_EQ(engines_->StartEngine(&context, request, &engine).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  for (int i = 0; i < 500 && !daemon_->engines().List().empty(); ++i) absl::SleepFor(absl::Milliseconds(2));
  EXPECT_TRUE(daemon_->engines().List().empty());
}

TEST_F(GrpcTest, StopEngineDrains) {
  pb::Engine engine;
  ASSERT_TRUE(Start("e", &engine).ok());
  grpc::ClientContext context;
  auto reader = generation_->Generate(&context, Prompt(300));
  pb::GenerationUpdate update;
  ASSERT_TRUE(reader->Read(&update));
  pb::StopEngineRequest stop;
  stop.set_engine_id("e");
  stop.mutable_drain_timeout()->set_seconds(10);
  grpc::ClientContext stop_context;
  ASSERT_TRUE(engines_->StopEngine(&stop_context, stop, &engine).ok());
  EXPECT_EQ(engine.state(), pb::ENGINE_STATE_STOPPED);
  while (reader->Read(&update)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(update.usage().completion_tokens(), 300);
}

TEST_F(GrpcTest, DrainFinishesStreamsAndRefusesNewCalls) {
  pb::Engine engine;
  ASSERT_TRUE(Start("e", &engine).ok());
  grpc::ClientContext context, late;
  auto reader = generation_->Generate(&context, Prompt(500));
  pb::GenerationUpdate update;
  ASSERT_TRUE(reader->Read(&update));
  daemon_->BeginDrain();
  const grpc::Status refused = generation_->Generate(&late, Prompt(1))->Finish();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Reason(refused), "DRAINING");
  std::thread stop([&] { daemon_->StopWork(absl::Now() + absl::Seconds(10)); });
  while (reader->Read(&update)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(update.usage().completion_tokens(), 500);
  stop.join();
}

TEST_F(GrpcTest, CalibrationIsWatchedWaitedForAndIdempotent) {
  pb::CalibrateRequest request;
  request.set_model("m");
  request.mutable_config()->set_weight_dtype("int4");
  request.set_output("art");
  request.set_request_id("cal");
  pb::Operation first, again, waited;
  grpc::ClientContext c1, c2, c3, c4, c5;
  grpc::Status status = quantization_->Calibrate(&c1, request, &first);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_TRUE(quantization_->Calibrate(&c2, request, &again).ok());
  EXPECT_EQ(first.id(), again.id());
  pb::WatchOperationRequest watch;
  watch.set_id(first.id());
  auto reader = operations_->WatchOperation(&c3, watch);
  pb::Operation update;
  int updates = 0;
  while (reader->Read(&update)) ++updates;
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_GE(updates, 1);
  EXPECT_EQ(update.state(), pb::OPERATION_STATE_SUCCEEDED);
  pb::WaitOperationRequest wait;
  wait.set_id(first.id());
  ASSERT_TRUE(operations_->WaitOperation(&c4, wait, &waited).ok());
  pb::CalibrateResult result;
  ASSERT_TRUE(waited.result().UnpackTo(&result));
  EXPECT_EQ(result.layers_size(), 1);
  request.set_output("other");
  EXPECT_EQ(quantization_->Calibrate(&c5, request, &again).error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(GrpcTest, AnArtifactWithTextsThatAreNotUtf8CanBeRead) {
  const std::string folder = top_ + "/data/artifacts/odd";
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/sage_quant.json") << "{\"a\": \"\xff\"}";
  std::ofstream(folder + "/name\xfe.txt") << "x";
  pb::GetArtifactRequest request;
  request.set_name("odd");
  pb::Artifact artifact;
  grpc::ClientContext context;
  const grpc::Status status = pb::ArtifactService::NewStub(channel_)->GetArtifact(&context, request, &artifact);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(artifact.manifest_json(), "{\"a\": \"\xEF\xBF\xBD\"}");
  EXPECT_EQ(artifact.files_size(), 2);
}

// The engine answers with an artifact that the same specification made: the service must let it.
TEST_F(GrpcTest, CalibrateReachesTheEngineWhenTheArtifactIsThere) {
  const auto calibrate = [&](const std::string& output, pb::Operation* operation) {
    pb::CalibrateRequest request;
    request.set_model("m");
    request.mutable_config()->set_weight_dtype("int4");
    request.set_output(output);
    grpc::ClientContext context;
    return quantization_->Calibrate(&context, request, operation);
  };
  const std::string artifacts = top_ + "/data/artifacts/";
  std::filesystem::create_directories(artifacts + "made");
  std::ofstream(artifacts + "made/sage_quant.json") << "{}";
  std::filesystem::create_directories(artifacts + "foreign");
  pb::Operation first, second;
  ASSERT_TRUE(calibrate("made", &first).ok());
  pb::WaitOperationRequest wait;
  wait.set_id(first.id());
  grpc::ClientContext context;
  ASSERT_TRUE(operations_->WaitOperation(&context, wait, &first).ok());
  EXPECT_EQ(first.state(), pb::OPERATION_STATE_SUCCEEDED);
  ASSERT_TRUE(calibrate("made/", &second).ok());
  EXPECT_EQ(second.target(), first.target());
  pb::Operation none;
  EXPECT_EQ(Reason(calibrate("foreign", &none)), "ARTIFACT_EXISTS");  // no artifact: nothing to answer with
  EXPECT_EQ(Reason(calibrate("../made", &none)), "PATH_OUTSIDE_ROOTS");
}

TEST_F(GrpcTest, ListRefusesAKindThatIsNone) {
  pb::ListOperationsRequest request;
  pb::ListOperationsResponse response;
  for (const char* kind : {"", "calibrate", "convert", "evaluate", "start_engine"}) {
    request.set_kind(kind);
    grpc::ClientContext context;
    EXPECT_TRUE(operations_->ListOperations(&context, request, &response).ok()) << kind;
  }
  request.set_kind("bogus");
  grpc::ClientContext context;
  EXPECT_EQ(Reason(operations_->ListOperations(&context, request, &response)), "UNKNOWN_KIND");
}

// SelectKernel names no kernel for groups that calibrate refuses.
TEST_F(GrpcTest, KernelsAreNamedForGroupsThatCalibrateTakes) {
  const auto select = [&](const char* weights, int64_t inputs, int group) {
    pb::SelectKernelRequest request;
    request.set_weight_dtype(weights);
    request.set_inputs(inputs);
    request.set_group_size(group);
    pb::SelectKernelResponse response;
    grpc::ClientContext context;
    return Reason(quantization_->SelectKernel(&context, request, &response));
  };
  for (const char* weights : {"int4", "int8"}) {
    EXPECT_EQ(select(weights, 4096, 128), "") << weights;
    EXPECT_EQ(select(weights, 4096, 0), "") << weights;
    EXPECT_EQ(select(weights, 4096, -1), "") << weights;
    EXPECT_EQ(select(weights, 0, 64), "") << weights;
    EXPECT_EQ(select(weights, 96, 0), "") << weights;  // 32 divides
    for (const auto& [inputs, group] : {std::pair(4096, 8), {4096, 512}, {576, 12}, {0, 8}, {0, 514}}) {
      EXPECT_EQ(select(weights, inputs, group), "") << weights << inputs << " " << group;
    }
    for (const auto& [inputs, group] : {std::pair(4097, 128), {4097, 0}, {4096, 7}, {4096, 8192}}) {
      EXPECT_NE(select(weights, inputs, group).find("GROUP"), std::string::npos) << weights << inputs << " " << group;
    }
  }
  for (const char* weights : {"fp8", "nf4", "bf16", "none"}) {
    const std::string reason = select(weights, 4096, 0);
    EXPECT_EQ(reason.find("GROUP"), std::string::npos) << weights << " " << reason;
  }
}

TEST_F(GrpcTest, WaitTimesOutAndCancelEndsTheOperation) {
  pb::CalibrateRequest request;
  request.set_model("m");
  request.set_output("slow");
  request.set_samples(7);
  pb::Operation operation;
  grpc::ClientContext c1, c2, c3, c4;
  ASSERT_TRUE(quantization_->Calibrate(&c1, request, &operation).ok());
  pb::WaitOperationRequest wait;
  wait.set_id(operation.id());
  wait.mutable_timeout()->set_nanos(30000000);
  ASSERT_TRUE(operations_->WaitOperation(&c2, wait, &operation).ok());
  EXPECT_LT(operation.state(), pb::OPERATION_STATE_SUCCEEDED);
  pb::CancelOperationRequest cancel;
  cancel.set_id(operation.id());
  ASSERT_TRUE(operations_->CancelOperation(&c3, cancel, &operation).ok());
  wait.clear_timeout();
  ASSERT_TRUE(operations_->WaitOperation(&c4, wait, &operation).ok());
  EXPECT_EQ(operation.state(), pb::OPERATION_STATE_CANCELLED);
  EXPECT_EQ(operation.error().code(), 1);
}

TEST_F(GrpcTest, ScoreIsCancelledByTheClient) {
  pb::Engine engine;
  ASSERT_TRUE(Start("e", &engine).ok());
  pb::ScoreRequest request;
  for (int i = 0; i < 3; ++i) request.mutable_token_ids()->add_ids(i);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  pb::ScoreResponse response;
  EXPECT_EQ(generation_->Score(&context, request, &response).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

}  // namespace
}  // namespace sage::server
