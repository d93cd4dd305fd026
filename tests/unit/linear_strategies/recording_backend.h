// A backend for tests of strategies: keeps the canonical weight it is handed and runs nothing.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/api/backend.h"

namespace sage {

class RecordingBackend : public Backend {
 public:
  std::string_view name() const override { return "recording"; }
  std::string capability() const override { return ""; }
  const Kernels& kernels() const override { return kernels_; }
  KernelChoice SelectLinear(const LinearKernelQuery&) const override { return {}; }
  absl::StatusOr<std::unique_ptr<BoundLinear>> BindLinear(const LinearKernelQuery& query, LinearWeight weight,
                                                          ThreadPool&) const override {
    last_query = query;
    last_weight = std::move(weight);
    return std::unique_ptr<BoundLinear>(nullptr);
  }
  absl::StatusOr<std::unique_ptr<KvKernel>> BindKv(std::string_view kv_strategy, const KvLayout&) const override {
    last_kv = std::string(kv_strategy);
    return std::unique_ptr<KvKernel>(nullptr);
  }
  std::vector<std::string> ListKernels() const override { return {}; }

  mutable LinearKernelQuery last_query;
  mutable LinearWeight last_weight;
  mutable std::string last_kv;

 private:
  Kernels kernels_{};
};

}  // namespace sage
