// A layer of packed codes on a CUDA device: activations are converted once a value and shared by the layers that read
// it, then one kernel runs. Everything is enqueued on the device's stream; a recording of Forward may be replayed.
#pragma once

#include <memory>
#include <string>

#include "engine/backends/cuda/host/linear_plan.h"
#include "engine/backends/cuda/kernels/linear_launch.h"
#include "engine/backends/cuda/kernels/linear_rows.h"
#include "engine/backends/cuda/linear_record.h"
#include "engine/base/status.h"

namespace sage::cuda {

class PackedLinear : public BoundLinear {
 public:
  PackedLinear(std::string kernel, CudaDevice& device) : kernel_(std::move(kernel)), device_(device) {}

  // Uploads the codes as they come, packs them on the device and frees what was uploaded.
  absl::Status Place(const LinearWeight& weight);

  void Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const override;
  int64_t N() const override { return plan_.N; }
  int64_t K() const override { return plan_.K; }
  size_t weight_bytes() const override { return codes_.bytes() + records_.bytes() + table_.bytes(); }
  std::string kernel() const override { return kernel_; }

 protected:
  // The value in the form that this layer multiplies with; `rows.codes` is null when memory ran out.
  PreparedRows Prepare(StepContext& ctx, const StepValue& x) const;

  const std::string kernel_;
  CudaDevice& device_;
  LinearPlan plan_;  // without what was uploaded
  PackedLayer layer_;
  DeviceBuffer bias_;
  bool ordered_ = false;  // by act-order

 private:
  LinearLauncher launch_ = nullptr;
  RowForm form_ = RowForm::kF16;
  PrepareArgs prepare_;    // what does not depend on the value
  std::string form_name_;  // equal for equal forms
  DeviceBuffer codes_, records_, table_, order_, counters_;
};

// LinearRecord::refuse and ::bind of every kernel whose layer is a PackedLinear.
inline std::string RefusePacked(const LinearKernelQuery& query, bool byte_activations) {
  const std::string size = RefuseSize(query.N, query.K);
  return size.empty() ? RefuseGroups(query.K, query.group_size, byte_activations) : size;
}

template <typename Layer, const char* kName>
absl::StatusOr<std::unique_ptr<BoundLinear>> BindPlaced(const LinearKernelQuery&, const LinearWeight& weight,
                                                        CudaDevice& device) {
  auto layer = std::make_unique<Layer>(kName, device);
  SAGE_RETURN_IF_ERROR(layer->Place(weight));
  return std::unique_ptr<BoundLinear>(std::move(layer));
}

}  // namespace sage::cuda
