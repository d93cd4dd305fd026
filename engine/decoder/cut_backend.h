// A backend that binds a rank's part of each layer it is given: strategies need not know of ranks.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/api/backend.h"
#include "engine/api/linear_shard.h"
#include "engine/base/status.h"

namespace sage {

class CutBackend final : public Backend {
 public:
  explicit CutBackend(const Backend& whole) : whole_(whole) {}
  // What the layers bound from now on keep; an empty cut is the whole layer.
  void set_cut(const LinearCut& cut) { cut_ = cut; }

  std::string_view name() const override { return whole_.name(); }
  std::string capability() const override { return whole_.capability(); }
  const Kernels& kernels() const override { return whole_.kernels(); }
  KernelChoice SelectLinear(const LinearKernelQuery& query) const override { return whole_.SelectLinear(query); }
  absl::StatusOr<std::unique_ptr<BoundLinear>> BindLinear(const LinearKernelQuery& query, LinearWeight weight,
                                                          ThreadPool& threads) const override {
    if (cut_.end == 0) return whole_.BindLinear(query, std::move(weight), threads);
    SAGE_ASSIGN_OR_RETURN(LinearWeight part, CutLinear(weight, cut_));
    LinearKernelQuery own = query;
    own.N = part.N;
    own.K = part.K;
    if (own.group_size > part.K) own.group_size = -1;
    return whole_.BindLinear(own, std::move(part), threads);
  }
  absl::StatusOr<std::unique_ptr<KvKernel>> BindKv(std::string_view kv_strategy,
                                                   const KvLayout& layout) const override {
    return whole_.BindKv(kv_strategy, layout);
  }
  std::vector<std::string> ListKernels() const override { return whole_.ListKernels(); }
  DeviceMemory& memory() const override { return whole_.memory(); }

 private:
  const Backend& whole_;
  LinearCut cut_;
};

}  // namespace sage
