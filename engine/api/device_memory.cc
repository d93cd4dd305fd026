// Host memory behind the interface of a device.
#include "engine/api/device_memory.h"

#include <cstring>

#include "engine/base/status.h"
#include "engine/tensor/tensor.h"

namespace sage {
namespace {

class Host final : public DeviceMemory {
 public:
  bool is_host() const override { return true; }

  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) override {
    SAGE_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(DType::kU8, {static_cast<int64_t>(bytes)}));
    const auto owner = std::make_shared<Tensor>(std::move(tensor));
    return DeviceBuffer(std::shared_ptr<void>(owner, owner->as<uint8_t>()), bytes);
  }

  void Upload(void* to, const void* from, size_t bytes) override { Copy(to, from, bytes); }
  void Copy(void* to, const void* from, size_t bytes) override {
    if (bytes > 0 && to != from) std::memmove(to, from, bytes);
  }
  absl::Status Download(void* to, const void* from, size_t bytes) override {
    Copy(to, from, bytes);
    return absl::OkStatus();
  }
  void Wait() override {}
};

}  // namespace

DeviceMemory& HostMemory() {
  static Host* const host = new Host();
  return *host;
}

}  // namespace sage
