// The gRPC services, made without exposing their classes: each file of this folder holds one.
#pragma once

#include <memory>
#include <vector>

namespace grpc {
class Service;
}

namespace sage::server {

class Daemon;

std::unique_ptr<grpc::Service> MakeQuantizationService(Daemon& daemon);
std::unique_ptr<grpc::Service> MakeArtifactService(Daemon& daemon);
std::unique_ptr<grpc::Service> MakeEngineService(Daemon& daemon);
std::unique_ptr<grpc::Service> MakeGenerationService(Daemon& daemon);
std::unique_ptr<grpc::Service> MakeReportService(Daemon& daemon);
std::unique_ptr<grpc::Service> MakeOperationService(Daemon& daemon);
std::unique_ptr<grpc::Service> MakeInferenceService(Daemon& daemon);

}  // namespace sage::server
