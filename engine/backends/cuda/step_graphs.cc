// Records, replays and drops graphs. A recording holds addresses, so it is good as long as no buffer was freed since.
#include "engine/backends/cuda/step_graphs.h"

#include <spdlog/spdlog.h>

#include "engine/base/status.h"

namespace sage::cuda {

void StepGraphs::Drop(Recording& recording) {
  if (recording.graph != nullptr) cudaGraphExecDestroy(recording.graph);
  recording.graph = nullptr;
}

void StepGraphs::Clear() {
  for (auto& [key, recording] : recordings_) Drop(recording);
  recordings_.clear();
}

absl::Status StepGraphs::Record(Recording& recording, absl::FunctionRef<void()> enqueue) {
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaStreamBeginCapture(device_.stream(), cudaStreamCaptureModeRelaxed);
  if (error == cudaSuccess) {
    enqueue();
    error = cudaStreamEndCapture(device_.stream(), &graph);
  }
  absl::Status status = device_.TakeStatus();
  if (error == cudaSuccess && status.ok()) error = cudaGraphInstantiate(&recording.graph, graph, 0);
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (error != cudaSuccess || !status.ok()) {
    cudaGetLastError();
    recording.refused = true;
    spdlog::warn("cuda: a decode step cannot be recorded and is launched kernel by kernel: {}",
                 status.ok() ? cudaGetErrorString(error) : std::string(status.message()));
    enqueue();
    return device_.TakeStatus();
  }
  recording.recorded = device_.generation();
  device_.Note(cudaGraphLaunch(recording.graph, device_.stream()), "graph launch");
  return device_.TakeStatus();
}

absl::Status StepGraphs::Run(const StepKey& key, int32_t splits, absl::FunctionRef<void()> enqueue) {
  if (!key.repeats || key.M > 256) {
    enqueue();
    return device_.TakeStatus();
  }
  Recording& recording = recordings_[{key, splits}];
  if (recording.graph != nullptr && recording.recorded != device_.generation()) Drop(recording);
  if (recording.graph != nullptr) {
    device_.Note(cudaGraphLaunch(recording.graph, device_.stream()), "graph launch");
    return device_.TakeStatus();
  }
  // Only after it ran plainly with the memory as it is: what is allocated on the way is then there.
  if (recording.ran == device_.generation() && !recording.refused) return Record(recording, enqueue);
  enqueue();
  recording.ran = device_.generation();
  return device_.TakeStatus();
}

}  // namespace sage::cuda
