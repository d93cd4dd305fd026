// A daemon with its gRPC port in this process, on a fake runtime, in a folder that is gone afterwards.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "fake_runtime.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "server/daemon.h"
#include "server/grpc_server.h"

namespace sage::server {

class InProcessDaemonTest : public testing::Test {
 protected:
  void SetUp() override {
    const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
    top_ = testing::TempDir() + "/" + test.test_suite_name() + "_" + test.name();
    std::filesystem::remove_all(top_);
    std::filesystem::create_directories(top_ + "/root/m");
    FakeEngine::step_us = 200;
    FakeEngine::text_bytes = 0;
    DaemonConfig config;
    config.data_dir = top_ + "/data";
    config.model_roots = {top_ + "/root"};
    config.grpc_listen = *ParseListenAddress("127.0.0.1:0");
    config.http_listen = *ParseListenAddress("127.0.0.1:0");
    Configure(config);
    auto daemon = Daemon::Create(config, [](const RuntimeOptions&) { return std::make_unique<FakeRuntime>(); });
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    auto server = GrpcServer::Start(*daemon_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    daemon_->SetReady();
    channel_ = grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
  }
  virtual void Configure(DaemonConfig&) {}
  void TearDown() override {
    if (daemon_) daemon_->StopWork(absl::Now());
    if (server_) server_->Shutdown(absl::Now() + absl::Seconds(2));
    server_ = nullptr;
    daemon_ = nullptr;
    std::filesystem::remove_all(top_);
  }

  std::string top_;
  std::unique_ptr<Daemon> daemon_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace sage::server
