// What the daemon tells of its calls: every refusal is counted once, every mutation's audit line says what it was
// about.
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "in_process_daemon.h"
#include "inference/grpc_service.grpc.pb.h"
#include "sage/quant/v1/artifact.grpc.pb.h"
#include "sage/quant/v1/engine.grpc.pb.h"
#include "sage/quant/v1/generation.grpc.pb.h"
#include "sage/quant/v1/operation.grpc.pb.h"
#include "sage/quant/v1/quantization.grpc.pb.h"
#include "sage/quant/v1/report.grpc.pb.h"
#include "server/refusals.h"

namespace sage::server {
namespace {

namespace pb = ::sage::quant::v1;

class AccountsTest : public InProcessDaemonTest {
 protected:
  void Configure(DaemonConfig& config) override {
    std::ofstream(top_ + "/tokens") << "tok-admin admin name=ops\ntok-read read name=looker\n";
    config.token_file = top_ + "/tokens";
    config.audit_log = top_ + "/audit.log";
  }
  void SetUp() override {
    InProcessDaemonTest::SetUp();
    ASSERT_FALSE(HasFatalFailure());
    engines_ = pb::EngineService::NewStub(channel_);
  }
  // Calls `method` of `stub` and answers its code.
  template <typename Stub, typename Request, typename Response>
  grpc::StatusCode Call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                        const Request& request, const std::string& token) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token);
    Response response;
    return (stub.*method)(&context, request, &response).error_code();
  }
  grpc::StatusCode StartEngine(const std::string& id, const std::string& quantization, bool no_wait = false,
                               const std::string& token = "tok-admin") {
    pb::StartEngineRequest request;
    request.set_model("m");
    request.set_engine_id(id);
    request.set_quantization(quantization);
    request.set_no_wait(no_wait);
    return Call(*engines_, &pb::EngineService::Stub::StartEngine, request, token);
  }
  // Until the counter says so: a call is counted at its end, which may be after its answer.
  void ExpectRefusals(const std::string& reason, int count) {
    const std::string line = absl::StrCat("sage_rejections_total{reason=\"", reason, "\"} ", count, "\n");
    for (int i = 0; i < 500 && !absl::StrContains(daemon_->metrics().Text(), line); ++i)
      absl::SleepFor(absl::Milliseconds(10));
    EXPECT_TRUE(absl::StrContains(daemon_->metrics().Text(), line)) << line;
  }
  // The newest audit line of the method.
  Json Audited(const std::string& method) {
    Json found;
    for (int i = 0; i < 500 && found.is_null(); ++i) {
      std::ifstream file(top_ + "/audit.log");
      for (std::string line; std::getline(file, line);) {
        Json json = Json::parse(line);
        if (json["method"] == method) found = std::move(json);
      }
      if (found.is_null()) absl::SleepFor(absl::Milliseconds(10));
    }
    std::ofstream(top_ + "/audit.log", std::ios::trunc);
    return found;
  }

  std::unique_ptr<pb::EngineService::Stub> engines_;
};

TEST_F(AccountsTest, RefusalsBeginAtZeroAndAreCountedOnce) {
  for (const char* reason : kLoadRefusals) ExpectRefusals(reason, 0);
  for (const char* reason : kOtherRefusals) ExpectRefusals(reason, 0);
  EXPECT_EQ(StartEngine("big", "huge"), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ExpectRefusals("INSUFFICIENT_MEMORY", 1);
  EXPECT_EQ(StartEngine("big", "huge", /*no_wait=*/true), grpc::StatusCode::OK);
  ExpectRefusals("INSUFFICIENT_MEMORY", 2);  // after its answer, and all the same
  EXPECT_EQ(StartEngine("big", "huge", false, "tok-read"), grpc::StatusCode::PERMISSION_DENIED);
  ExpectRefusals("ROLE_INSUFFICIENT", 1);
  EXPECT_EQ(StartEngine("big", "huge", false, "tok-guess"), grpc::StatusCode::UNAUTHENTICATED);
  ExpectRefusals("TOKEN_INVALID", 1);
  ASSERT_EQ(StartEngine("e", ""), grpc::StatusCode::OK);
  pb::GenerateRequest generate;
  generate.set_engine_id("e");
  generate.mutable_token_ids()->add_ids(999);  // for which the fake engine's queue is full
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer tok-admin");
  auto stream = pb::GenerationService::NewStub(channel_)->Generate(&context, generate);
  pb::GenerationUpdate update;
  while (stream->Read(&update)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ExpectRefusals("QUEUE_FULL", 1);
}

TEST_F(AccountsTest, RequestsRefusedWithinAStreamAreCounted) {
  ASSERT_EQ(StartEngine("e", ""), grpc::StatusCode::OK);
  inference::ModelInferRequest request;
  request.set_model_name("e");
  auto* input = request.add_inputs();
  input->set_name("input_ids");
  input->set_datatype("INT32");
  input->add_shape(1);
  input->mutable_contents()->add_int_contents(999);
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer tok-admin");
  auto stream = inference::GRPCInferenceService::NewStub(channel_)->ModelStreamInfer(&context);
  for (int i = 0; i < 3; ++i) stream->Write(request);
  stream->WritesDone();
  inference::ModelStreamInferResponse response;
  while (stream->Read(&response)) EXPECT_NE(response.error_message(), "");
  EXPECT_TRUE(stream->Finish().ok());
  ExpectRefusals("QUEUE_FULL", 3);
}

// A client's mistake is the client's to read; what alarms people is what broke here.
TEST_F(AccountsTest, AStartRefusedForWhatItAsksIsNoFailedEngine) {
  EXPECT_EQ(StartEngine("typo", "bad"), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(StartEngine("big", "huge"), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const std::string text = daemon_->metrics().Text();
  EXPECT_FALSE(absl::StrContains(text, "engine=\"typo\""));
  EXPECT_TRUE(absl::StrContains(text, "sage_engine_state{engine=\"big\",state=\"FAILED\"} 1"));
  EXPECT_EQ(daemon_->engines().Get("typo")->info.state, "FAILED") << "and tells why when asked";
  ASSERT_EQ(StartEngine("typo", ""), grpc::StatusCode::OK);
  EXPECT_TRUE(absl::StrContains(daemon_->metrics().Text(), "sage_engine_state{engine=\"typo\",state=\"RUNNING\"} 1"));
  ASSERT_TRUE(daemon_->engines().Stop("typo", absl::Now()).ok());
  EXPECT_FALSE(absl::StrContains(daemon_->metrics().Text(), "engine=\"typo\",state")) << "gone with its engine";
}

TEST_F(AccountsTest, EveryMutationSaysWhatItWasAbout) {
  using Engines = pb::EngineService::Stub;
  using Quant = pb::QuantizationService::Stub;
  using Triton = inference::GRPCInferenceService::Stub;
  const auto quant = pb::QuantizationService::NewStub(channel_);
  const auto artifacts = pb::ArtifactService::NewStub(channel_);
  const auto reports = pb::ReportService::NewStub(channel_);
  const auto operations = pb::OperationService::NewStub(channel_);
  const auto triton = inference::GRPCInferenceService::NewStub(channel_);
  for (const std::string token : {"tok-admin", "tok-read"}) {
    const auto expect = [&](const char* method, const std::map<std::string, std::string>& fields) {
      const Json line = Audited(method);
      ASSERT_FALSE(line.is_null()) << method;
      EXPECT_EQ(line.value("caller", ""), token == "tok-admin" ? "ops" : "looker") << line;
      EXPECT_EQ(line["code"] == "PERMISSION_DENIED", token == "tok-read") << line;
      for (const auto& [key, value] : fields) EXPECT_EQ(line.value(key, ""), value) << line;
    };
    StartEngine("e1", "bad", false, token);
    expect("StartEngine", {{"engine", "e1"}, {"model", "m"}, {"quantization", "bad"}});
    pb::StopEngineRequest stop;
    stop.set_engine_id("e2");
    Call(*engines_, &Engines::StopEngine, stop, token);
    expect("StopEngine", {{"engine", "e2"}});
    pb::ProfileEngineRequest profile;
    profile.set_engine_id("e3");
    Call(*engines_, &Engines::ProfileEngine, profile, token);
    expect("ProfileEngine", {{"engine", "e3"}});
    pb::LoadModelRequest load;
    load.set_model("m4");
    Call(*engines_, &Engines::LoadModel, load, token);
    expect("LoadModel", {{"model", "m4"}});
    pb::CalibrateRequest calibrate;
    calibrate.set_model("m5");
    calibrate.set_output("o5");
    Call(*quant, &Quant::Calibrate, calibrate, token);
    expect("Calibrate", {{"model", "m5"}, {"output", "o5"}});
    pb::ConvertRequest convert;
    convert.set_artifact("a6");
    convert.set_output("o6");
    Call(*quant, &Quant::Convert, convert, token);
    expect("Convert", {{"artifact", "a6"}, {"output", "o6"}});
    pb::DeleteArtifactRequest remove;
    remove.set_name("a7");
    Call(*artifacts, &pb::ArtifactService::Stub::DeleteArtifact, remove, token);
    expect("DeleteArtifact", {{"artifact", "a7"}});
    pb::EvaluateRequest evaluate;
    evaluate.set_artifact("a8");
    evaluate.set_dataset("d8");
    Call(*reports, &pb::ReportService::Stub::Evaluate, evaluate, token);
    expect("Evaluate", {{"artifact", "a8"}, {"dataset", "d8"}});
    pb::CancelOperationRequest cancel;
    cancel.set_id("op9");
    Call(*operations, &pb::OperationService::Stub::CancelOperation, cancel, token);
    expect("CancelOperation", {{"operation", "op9"}});
    inference::RepositoryModelLoadRequest model_load;
    model_load.set_model_name("t10");
    Call(*triton, &Triton::RepositoryModelLoad, model_load, token);
    expect("RepositoryModelLoad", {{"engine", "t10"}});
    inference::RepositoryModelUnloadRequest unload;
    unload.set_model_name("t11");
    Call(*triton, &Triton::RepositoryModelUnload, unload, token);
    expect("RepositoryModelUnload", {{"engine", "t11"}});
    pb::ExportArtifactRequest send;
    send.set_name("a12");
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token);
    pb::ExportArtifactResponse chunk;
    EXPECT_FALSE(artifacts->ExportArtifact(&context, send)->Read(&chunk));
    expect("ExportArtifact", {{"artifact", "a12"}});
  }
}

// Names that the daemon chose are told too, and the operation that does the work.
TEST_F(AccountsTest, ChosenNamesAreTold) {
  ASSERT_EQ(StartEngine("", ""), grpc::StatusCode::OK);
  Json line = Audited("StartEngine");
  EXPECT_EQ(line["engine"], "m") << line;
  EXPECT_TRUE(line.contains("operation")) << line;
  pb::CalibrateRequest calibrate;
  calibrate.set_model("m");
  const auto quant = pb::QuantizationService::NewStub(channel_);
  EXPECT_EQ(Call(*quant, &pb::QuantizationService::Stub::Calibrate, calibrate, "tok-admin"), grpc::StatusCode::OK);
  line = Audited("Calibrate");
  EXPECT_EQ(line["output"], "m-int4_w4a16") << line;
  EXPECT_TRUE(line.contains("operation")) << line;
}

}  // namespace
}  // namespace sage::server
