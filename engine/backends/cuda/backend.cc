// The CUDA backend: one device, kernels by compute capability, decode steps recorded as graphs and replayed.
#include "engine/api/backend.h"

#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "engine/backends/cuda/cuda_ops.h"
#include "engine/backends/cuda/device.h"
#include "engine/backends/cuda/kernel_choice.h"
#include "engine/backends/cuda/kernels/rows.h"
#include "engine/backends/cuda/kv_pages.h"
#include "engine/backends/cuda/step_graphs.h"
#include "engine/base/status.h"

namespace sage::backends {
namespace {

using cuda::CudaDevice;

class DeviceRows final : public BoundRows {
 public:
  DeviceRows(DeviceBuffer table, DType dtype, int64_t K, CudaDevice& device)
      : table_(std::move(table)), dtype_(dtype), K_(K), device_(device) {}

  void Gather(StepContext& ctx, const int32_t* ids, int64_t M, float* out) const override {
    cuda::LaunchGather(table_.as<void>(), dtype_ == DType::kF32 ? 32 : 16, dtype_ == DType::kF16, ids, M, K_, out,
                       device_.stream());
    device_.Check("gather");
  }
  size_t table_bytes() const override { return table_.bytes(); }

 private:
  DeviceBuffer table_;
  DType dtype_;
  int64_t K_;
  CudaDevice& device_;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(std::unique_ptr<CudaDevice> device)
      : device_(std::move(device)), records_(cuda::LinearRecords()), graphs_(*device_) {}

  std::string_view name() const override { return "cuda"; }
  std::string capability() const override { return device_->traits().CapabilityName(); }
  const Kernels& kernels() const override { return cuda::CudaKernels(); }
  DeviceMemory& memory() const override { return *device_; }

  KernelChoice SelectLinear(const LinearKernelQuery& query) const override {
    KernelChoice choice;
    const cuda::LinearRecord* record = cuda::ChooseLinear(query, device_->traits(), records_, &choice.refused);
    if (record != nullptr) choice.kernel = std::string(record->name);
    return choice;
  }

  absl::StatusOr<std::unique_ptr<BoundLinear>> BindLinear(const LinearKernelQuery& query, LinearWeight weight,
                                                          ThreadPool& threads) const override {
    std::vector<KernelRefusal> refused;
    const cuda::LinearRecord* record = cuda::ChooseLinear(query, device_->traits(), records_, &refused);
    if (record == nullptr) return cuda::NoLinearKernel(query, device_->traits(), records_, refused);
    return record->bind(query, weight, *device_);
  }

  absl::StatusOr<std::unique_ptr<KvKernel>> BindKv(std::string_view kv_strategy,
                                                   const KvLayout& layout) const override {
    std::vector<KernelRefusal> refused;
    SAGE_ASSIGN_OR_RETURN(std::unique_ptr<KvKernel> kernel, cuda::BindKvPages(kv_strategy, layout, *device_, &refused));
    if (kernel != nullptr) return kernel;
    std::string message = absl::StrCat("cuda: no kernel serves kv strategy ", std::string(kv_strategy));
    for (const KernelRefusal& r : refused) absl::StrAppend(&message, "; ", r.kernel, ": ", r.reason);
    return MakeError(absl::StatusCode::kUnimplemented, "NO_KERNEL", message);
  }

  std::vector<std::string> ListKernels() const override {
    std::vector<std::string> out;
    for (const cuda::LinearRecord* record : records_) out.emplace_back(record->name);
    for (std::string& name : cuda::KvKernelNames()) out.push_back(std::move(name));
    return out;
  }

  absl::StatusOr<std::unique_ptr<BoundRows>> BindRows(const LinearWeight& table) const override {
    const TensorView& values = table.dense.values;
    SAGE_ASSIGN_OR_RETURN(DeviceBuffer placed, device_->PlaceShared(values.data, values.bytes, table.keep_alive));
    return std::make_unique<DeviceRows>(std::move(placed), values.dtype, table.K, *device_);
  }

  absl::StatusOr<StepSequences> Place(int set, absl::Span<const SequenceSlice> sequences,
                                      const KvLayout& layout) const override {
    if (set < 0 || set > 1) return absl::InvalidArgumentError(absl::StrCat("set must be 0 or 1, got ", set));
    cuda::PlacedPlan& plan = placed_[set];
    SAGE_RETURN_IF_ERROR(plan.Place(sequences, layout, *device_));
    StepSequences out(sequences);
    out.placed = &plan;
    return out;
  }

  int64_t StepRows(int64_t M) const override { return cuda::StepGraphs::Rows(M); }

  absl::Status RunStep(const StepKey& key, absl::FunctionRef<void()> enqueue) const override {
    return graphs_.Run(key, placed_[0].plan.splits, enqueue);
  }

 private:
  std::unique_ptr<CudaDevice> device_;
  std::vector<const cuda::LinearRecord*> records_;
  // What a step left behind for the next; one thread steps.
  mutable cuda::PlacedPlan placed_[2];
  mutable cuda::StepGraphs graphs_;
};

absl::StatusOr<std::unique_ptr<Backend>> Open() {
  SAGE_ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device, CudaDevice::Open());
  return std::make_unique<CudaBackend>(std::move(device));
}

}  // namespace

extern const BackendDef kCuda;
const BackendDef kCuda = {.name = "cuda", .summary = "NVIDIA GPUs of compute capability 8.0 and later", .open = Open};

}  // namespace sage::backends
