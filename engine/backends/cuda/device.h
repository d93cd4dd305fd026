// One CUDA device as an engine uses it: a stream, memory from a pool that is given back, staged copies, errors as
// status.
//
// Everything an engine does runs on one stream, in the order of the calls. Nothing waits but Download and Synchronize.
// Launchers do not return errors: they call Check (or Note) and the next Download or Synchronize returns the first one.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/api/device_memory.h"

namespace sage::cuda {

// What kernels are chosen by.
struct DeviceTraits {
  int capability = 0;  // 10 * major + minor: 80, 86, 89, 90
  int multiprocessors = 0;
  size_t shared_bytes = 0;  // of a block, opted in
  size_t l2_bytes = 0;
  size_t total_bytes = 0;
  std::string name;

  // "sm_90a": with the suffix where kernels use what only that architecture has.
  std::string CapabilityName() const;
};

class CudaDevice final : public DeviceMemory {
 public:
  // UNAVAILABLE (reason CUDA_UNAVAILABLE) names what is missing: a driver, a device, a capability of 8.0, cuBLASLt.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Open(int ordinal = 0);
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  const DeviceTraits& traits() const { return traits_; }
  cudaStream_t stream() const { return stream_; }
  cublasLtHandle_t blas() const { return blas_; }
  // Scratch for cuBLASLt and split sums, one for the stream: what a kernel leaves there the next may overwrite.
  const DeviceBuffer& workspace() const { return workspace_; }

  // Buffers may outlive nothing but the process: they keep what frees them alive.
  bool is_host() const override { return false; }
  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) override;
  void Upload(void* to, const void* from, size_t bytes) override;
  void Copy(void* to, const void* from, size_t bytes) override;
  absl::Status Download(void* to, const void* from, size_t bytes) override;
  int64_t AvailableBytes() const override;
  void Wait() override { Note(cudaStreamSynchronize(stream_), "wait"); }

  // A new buffer with these bytes.
  absl::StatusOr<DeviceBuffer> Place(const void* from, size_t bytes);
  // The same for bytes that never change and that a later layer may ask for again by where they lie (a tied embedding).
  // `keep_alive` holds them there as long as the buffer lives.
  absl::StatusOr<DeviceBuffer> PlaceShared(const void* from, size_t bytes, std::shared_ptr<const void> keep_alive);
  // What PlaceShared placed, or empty.
  DeviceBuffer FindShared(const void* from, size_t bytes);

  // Keeps the first error; `what` names the operation ("linear_int4_w4a16 launch").
  void Note(cudaError_t error, const char* what);
  void Note(cublasStatus_t error, const char* what);
  // After a launch.
  void Check(const char* what) { Note(cudaPeekAtLastError(), what); }
  // The first error since the last call, without waiting.
  absl::Status TakeStatus();
  // Waits for everything enqueued.
  absl::Status Synchronize();

  size_t allocated_bytes() const;
  size_t peak_bytes() const;
  // Grows whenever a buffer is freed; recordings made before may point at memory that is gone.
  uint64_t generation() const;

 private:
  struct Pool;
  class Staging;
  CudaDevice() = default;
  absl::Status Start(int ordinal);

  DeviceTraits traits_;
  cudaStream_t stream_ = nullptr;
  cublasLtHandle_t blas_ = nullptr;
  std::shared_ptr<Pool> pool_;
  std::unique_ptr<Staging> staging_;
  DeviceBuffer workspace_;
  std::mutex mutex_;
  absl::Status status_;
  struct Shared {
    std::weak_ptr<void> data;
    size_t bytes = 0;
  };
  std::map<const void*, Shared> shared_;
};

}  // namespace sage::cuda
