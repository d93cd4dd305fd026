// What this daemon can do, from the generated plug-in tables: lists, and the choice of one kernel.
#pragma once

#include "absl/status/status.h"
#include "engine/base/json.h"

namespace sage::quant::v1 {
class ListCapabilitiesResponse;
class SelectKernelRequest;
class SelectKernelResponse;
}  // namespace sage::quant::v1

namespace sage::server {

void FillCapabilities(int threads, quant::v1::ListCapabilitiesResponse* out);
absl::Status SelectKernel(const quant::v1::SelectKernelRequest& request, quant::v1::SelectKernelResponse* out);
Json BackendsJson();  // for /v1/management/backends

}  // namespace sage::server
