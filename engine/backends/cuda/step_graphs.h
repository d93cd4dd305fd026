// Decode steps as CUDA graphs: a step runs plainly the first time, is recorded the second and replayed from then on.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/api/backend.h"
#include "engine/backends/cuda/device.h"

namespace sage::cuda {

class StepGraphs {
 public:
  explicit StepGraphs(CudaDevice& device) : device_(device) {}
  ~StepGraphs() { Clear(); }
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  // Rows that a step of M decoding sequences runs with: few sizes, none much larger than asked.
  static constexpr int64_t Rows(int64_t M) {
    if (M > 256) return M;  // as it comes: such a step takes long enough to be launched
    if (M > 64) return (M + 31) / 32 * 32;
    if (M > 8) return (M + 7) / 8 * 8;
    int64_t rows = 1;
    while (rows < M) rows *= 2;
    return rows;
  }

  // `splits`: the grid of attention, which a recording fixes.
  absl::Status Run(const StepKey& key, int32_t splits, absl::FunctionRef<void()> enqueue);

 private:
  struct Recording {
    cudaGraphExec_t graph = nullptr;
    // Of the device's memory when it ran plainly, and when it was recorded.
    uint64_t ran = ~uint64_t{0}, recorded = 0;
    bool refused = false;  // it cannot be recorded
  };
  void Drop(Recording& recording);
  void Clear();
  absl::Status Record(Recording& recording, absl::FunctionRef<void()> enqueue);

  CudaDevice& device_;
  std::map<std::pair<StepKey, int32_t>, Recording> recordings_;
};

}  // namespace sage::cuda
