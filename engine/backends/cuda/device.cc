// Opens a device, gives memory from a pool and takes it back, stages copies through pinned memory.
#include "engine/backends/cuda/device.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage::cuda {
namespace {

constexpr size_t kStagingBytes = size_t{4} << 20;
constexpr int kStagingChunks = 4;
constexpr size_t kWorkspaceBytes = size_t{64} << 20;

absl::Status Missing(const std::string& what) {
  return MakeError(absl::StatusCode::kUnavailable, "CUDA_UNAVAILABLE", absl::StrCat("cuda: ", what));
}

absl::Status Failed(const char* what, cudaError_t error) {
  const bool memory = error == cudaErrorMemoryAllocation;
  return MakeError(memory ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kInternal,
                   memory ? "DEVICE_OUT_OF_MEMORY" : "CUDA_ERROR",
                   absl::StrCat("cuda: ", what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error)));
}

}  // namespace

// cudaMallocAsync memory of its own, so that trimming it gives back exactly what this engine held. Lives until the last
// buffer is gone.
struct CudaDevice::Pool {
  int ordinal = 0;
  cudaMemPool_t pool = nullptr;
  cudaStream_t stream = nullptr;  // of allocations: never recorded into a graph
  cudaStream_t work = nullptr;    // of the engine; null once the device is closed
  cudaEvent_t work_done = nullptr;
  std::mutex mutex;
  size_t held = 0, peak = 0;
  uint64_t generation = 0;

  ~Pool() {
    cudaSetDevice(ordinal);
    if (stream != nullptr) cudaStreamSynchronize(stream);
    if (pool != nullptr) {
      cudaMemPoolTrimTo(pool, 0);
      cudaMemPoolDestroy(pool);
    }
    if (work_done != nullptr) cudaEventDestroy(work_done);
    if (stream != nullptr) cudaStreamDestroy(stream);
  }

  absl::Status Start(int device) {
    ordinal = device;
    cudaMemPoolProps props = {};
    props.allocType = cudaMemAllocationTypePinned;
    props.location.type = cudaMemLocationTypeDevice;
    props.location.id = device;
    cudaError_t error = cudaMemPoolCreate(&pool, &props);
    if (error != cudaSuccess) return Failed("memory pool", error);
    // Memory of a freed buffer stays for the next one; what is left over goes when the pool does, or by Trim.
    uint64_t keep = ~uint64_t{0};
    error = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&work_done, cudaEventDisableTiming);
    return error == cudaSuccess ? absl::OkStatus() : Failed("memory pool", error);
  }

  absl::StatusOr<void*> Take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    void* data = nullptr;
    cudaSetDevice(ordinal);
    cudaError_t error = cudaMallocFromPoolAsync(&data, bytes, pool, stream);
    if (error == cudaSuccess) error = cudaMemsetAsync(data, 0, bytes, stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    if (error != cudaSuccess) {
      cudaGetLastError();
      if (data != nullptr) cudaFreeAsync(data, stream);
      const absl::Status status = Failed("allocation", error);
      return Annotate(status, absl::StrCat("cuda: ", bytes, " bytes beside ", held, " held"));
    }
    held += bytes;
    peak = std::max(peak, held);
    return data;
  }

  void Give(void* data, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    cudaSetDevice(ordinal);
    // Whatever still reads the buffer was enqueued before.
    if (work != nullptr && cudaEventRecord(work_done, work) == cudaSuccess) cudaStreamWaitEvent(stream, work_done, 0);
    cudaFreeAsync(data, stream);
    held -= bytes;
    ++generation;
    // Nothing left: the engine was unloaded.
    if (held == 0) {
      cudaStreamSynchronize(stream);
      cudaMemPoolTrimTo(pool, 0);
    }
  }
};

// A ring of pinned chunks: the copy of one runs while the next is filled.
class CudaDevice::Staging {
 public:
  ~Staging() {
    for (Chunk& chunk : chunks_) {
      if (chunk.free != nullptr) cudaEventDestroy(chunk.free);
      if (chunk.data != nullptr) cudaFreeHost(chunk.data);
    }
  }

  absl::Status Start() {
    for (Chunk& chunk : chunks_) {
      cudaError_t error = cudaHostAlloc(reinterpret_cast<void**>(&chunk.data), kStagingBytes, cudaHostAllocDefault);
      if (error == cudaSuccess) error = cudaEventCreateWithFlags(&chunk.free, cudaEventDisableTiming);
      if (error != cudaSuccess) return Failed("pinned staging", error);
    }
    return absl::OkStatus();
  }

  cudaError_t Upload(uint8_t* to, const uint8_t* from, size_t bytes, cudaStream_t stream) {
    while (bytes > 0) {
      // Small copies share a chunk until it is full: a step uploads several.
      if (used_ == kStagingBytes) {
        cudaEventRecord(chunks_[at_].free, stream);
        at_ = (at_ + 1) % kStagingChunks;
        const cudaError_t waited = cudaEventSynchronize(chunks_[at_].free);
        if (waited != cudaSuccess) return waited;
        used_ = 0;
      }
      const size_t part = std::min(bytes, kStagingBytes - used_);
      std::memcpy(chunks_[at_].data + used_, from, part);
      const cudaError_t error = cudaMemcpyAsync(to, chunks_[at_].data + used_, part, cudaMemcpyHostToDevice, stream);
      if (error != cudaSuccess) return error;
      used_ = std::min(kStagingBytes, (used_ + part + 255) / 256 * 256);
      to += part;
      from += part;
      bytes -= part;
    }
    return cudaSuccess;
  }

  cudaError_t Download(uint8_t* to, const uint8_t* from, size_t bytes, cudaStream_t stream) {
    // Everything before is done when the bytes are here, so every chunk is free.
    const cudaError_t before = cudaStreamSynchronize(stream);
    if (before != cudaSuccess) return before;
    used_ = 0;
    while (bytes > 0) {
      const size_t part = std::min(bytes, kStagingBytes);
      cudaError_t error = cudaMemcpyAsync(chunks_[at_].data, from, part, cudaMemcpyDeviceToHost, stream);
      if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
      if (error != cudaSuccess) return error;
      std::memcpy(to, chunks_[at_].data, part);
      to += part;
      from += part;
      bytes -= part;
    }
    return cudaSuccess;
  }

 private:
  struct Chunk {
    uint8_t* data = nullptr;
    cudaEvent_t free = nullptr;
  };
  Chunk chunks_[kStagingChunks];
  int at_ = 0;
  size_t used_ = 0;
};

std::string DeviceTraits::CapabilityName() const {
  return absl::StrCat("sm_", capability, capability == 90 ? "a" : "");
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open(int ordinal) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return Missing(absl::StrCat("needs an NVIDIA driver and device, got ", cudaGetErrorString(error)));
  }
  if (ordinal < 0 || ordinal >= count) {
    return Missing(absl::StrCat("device must be one of ", count, ", got device ", ordinal));
  }
  std::unique_ptr<CudaDevice> device(new CudaDevice());
  SAGE_RETURN_IF_ERROR(device->Start(ordinal));
  return device;
}

absl::Status CudaDevice::Start(int ordinal) {
  cudaDeviceProp properties;
  cudaError_t error = cudaSetDevice(ordinal);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, ordinal);
  if (error != cudaSuccess) {
    return Missing(absl::StrCat("device ", ordinal, " cannot be used: ", cudaGetErrorString(error)));
  }
  traits_.capability = 10 * properties.major + properties.minor;
  traits_.multiprocessors = properties.multiProcessorCount;
  traits_.shared_bytes = properties.sharedMemPerBlockOptin;
  traits_.l2_bytes = static_cast<size_t>(properties.l2CacheSize);
  traits_.total_bytes = properties.totalGlobalMem;
  traits_.name = properties.name;
  if (traits_.capability < 80) {
    return Missing(absl::StrCat("needs compute capability 8.0 or later, got ", properties.major, ".", properties.minor,
                                " (", properties.name, ")"));
  }
  error = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
  if (error != cudaSuccess) return Failed("stream", error);
  pool_ = std::make_shared<Pool>();
  SAGE_RETURN_IF_ERROR(pool_->Start(ordinal));
  pool_->work = stream_;
  staging_ = std::make_unique<Staging>();
  SAGE_RETURN_IF_ERROR(staging_->Start());
  if (cublasLtCreate(&blas_) != CUBLAS_STATUS_SUCCESS) return Missing("cuBLASLt does not start on this device");
  SAGE_ASSIGN_OR_RETURN(workspace_, Allocate(kWorkspaceBytes));
  return absl::OkStatus();
}

CudaDevice::~CudaDevice() {
  if (pool_ != nullptr) {
    cudaSetDevice(pool_->ordinal);
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    workspace_ = DeviceBuffer();
    const std::lock_guard<std::mutex> lock(pool_->mutex);
    pool_->work = nullptr;
  }
  if (blas_ != nullptr) cublasLtDestroy(blas_);
  staging_.reset();
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::StatusOr<DeviceBuffer> CudaDevice::Allocate(size_t bytes) {
  if (bytes == 0) return DeviceBuffer();
  SAGE_ASSIGN_OR_RETURN(void* const data, pool_->Take(bytes));
  return DeviceBuffer(std::shared_ptr<void>(data, [pool = pool_, bytes](void* p) { pool->Give(p, bytes); }), bytes);
}

void CudaDevice::Upload(void* to, const void* from, size_t bytes) {
  Note(staging_->Upload(static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), bytes, stream_), "upload");
}

void CudaDevice::Copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) Note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy");
}

absl::Status CudaDevice::Download(void* to, const void* from, size_t bytes) {
  Note(staging_->Download(static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), bytes, stream_), "download");
  return TakeStatus();
}

absl::StatusOr<DeviceBuffer> CudaDevice::Place(const void* from, size_t bytes) {
  SAGE_ASSIGN_OR_RETURN(DeviceBuffer buffer, Allocate(bytes));
  Upload(buffer.as<void>(), from, bytes);
  return buffer;
}

absl::StatusOr<DeviceBuffer> CudaDevice::PlaceShared(const void* from, size_t bytes,
                                                     std::shared_ptr<const void> keep_alive) {
  DeviceBuffer found = FindShared(from, bytes);
  if (!found.empty()) return found;
  SAGE_ASSIGN_OR_RETURN(DeviceBuffer buffer, Place(from, bytes));
  struct Holder {
    DeviceBuffer buffer;
    std::shared_ptr<const void> keep_alive;
  };
  const auto holder = std::make_shared<Holder>(Holder{buffer, std::move(keep_alive)});
  std::shared_ptr<void> data(holder, buffer.as<void>());
  shared_[from] = {data, bytes};
  return DeviceBuffer(std::move(data), bytes);
}

DeviceBuffer CudaDevice::FindShared(const void* from, size_t bytes) {
  const auto found = shared_.find(from);
  if (found == shared_.end() || found->second.bytes != bytes) return DeviceBuffer();
  std::shared_ptr<void> data = found->second.data.lock();
  return data == nullptr ? DeviceBuffer() : DeviceBuffer(std::move(data), bytes);
}

void CudaDevice::Note(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (status_.ok()) status_ = Failed(what, error);
}

void CudaDevice::Note(cublasStatus_t error, const char* what) {
  if (error == CUBLAS_STATUS_SUCCESS) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!status_.ok()) return;
  status_ = MakeError(absl::StatusCode::kInternal, "CUBLAS_ERROR",
                      absl::StrCat("cuda: ", what, ": ", cublasLtGetStatusString(error)));
}

absl::Status CudaDevice::TakeStatus() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(status_, absl::OkStatus());
}

absl::Status CudaDevice::Synchronize() {
  Note(cudaStreamSynchronize(stream_), "synchronize");
  return TakeStatus();
}

int64_t CudaDevice::AvailableBytes() const {
  size_t free = 0, total = 0;
  const std::lock_guard<std::mutex> lock(pool_->mutex);
  cudaSetDevice(pool_->ordinal);
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? static_cast<int64_t>(free) : -1;
}

size_t CudaDevice::allocated_bytes() const {
  const std::lock_guard<std::mutex> lock(pool_->mutex);
  return pool_->held;
}

size_t CudaDevice::peak_bytes() const {
  const std::lock_guard<std::mutex> lock(pool_->mutex);
  return pool_->peak;
}

uint64_t CudaDevice::generation() const {
  const std::lock_guard<std::mutex> lock(pool_->mutex);
  return pool_->generation;
}

}  // namespace sage::cuda
