// Choosing a CUDA kernel for devices that need not be there: capability, size, name and priority, and what a refusal
// says.
#include "engine/backends/cuda/kernel_choice.h"

#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sage::cuda {
namespace {

using testing::HasSubstr;

std::string Accept(const LinearKernelQuery&, const DeviceTraits&) { return ""; }
std::string RefuseOdd(const LinearKernelQuery& query, const DeviceTraits&) {
  return query.K % 2 == 0 ? "" : "needs an even K";
}
constexpr LinearRecord kQuick = {
    .name = "linear_a_quick", .strategy = "a", .latency_rank = 5, .throughput_rank = 1, .refuse = Accept};
constexpr LinearRecord kWide = {
    .name = "linear_a_wide", .strategy = "a", .latency_rank = 1, .throughput_rank = 5, .refuse = RefuseOdd};
constexpr LinearRecord kNew = {
    .name = "linear_a_new", .strategy = "a", .min_capability = 89, .latency_rank = 9, .refuse = Accept};
constexpr LinearRecord kOther = {.name = "linear_b", .strategy = "b", .refuse = Accept};

TEST(CudaKernelChoice, ByCapabilityAndPriority) {
  const std::vector<const LinearRecord*> records = {&kQuick, &kWide, &kNew, &kOther};
  DeviceTraits device;
  device.capability = 80;
  LinearKernelQuery query;
  query.strategy = "a";
  query.K = 128;
  std::vector<KernelRefusal> refused;
  EXPECT_EQ(ChooseLinear(query, device, records, &refused), &kQuick);
  ASSERT_EQ(refused.size(), 3u);
  query.priority = Priority::kThroughput;
  EXPECT_EQ(ChooseLinear(query, device, records, &refused), &kWide);
  query.K = 127;
  EXPECT_EQ(ChooseLinear(query, device, records, &refused), &kQuick);
  query.priority = Priority::kLatency;
  device.capability = 90;
  EXPECT_EQ(ChooseLinear(query, device, records, &refused), &kNew);
  query.kernel = "linear_a_quick";
  EXPECT_EQ(ChooseLinear(query, device, records, &refused), &kQuick);
}

TEST(CudaKernelChoice, ARefusalNamesReasonsAndWhatWouldWork) {
  const std::vector<const LinearRecord*> records = {&kNew, &kOther};
  DeviceTraits device;
  device.capability = 86;
  LinearKernelQuery query;
  query.strategy = "a";
  std::vector<KernelRefusal> refused;
  EXPECT_EQ(ChooseLinear(query, device, records, &refused), nullptr);
  const absl::Status status = NoLinearKernel(query, device, records, refused);
  EXPECT_EQ(GetErrorReason(status).reason, "NO_KERNEL");
  EXPECT_THAT(std::string(status.message()), HasSubstr("linear_a_new: needs compute capability 8.9 or later, got 8.6"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("this device serves b"));
}

TEST(CudaKernelChoice, EveryRecordIsWhole) {
  ASSERT_FALSE(LinearRecords().empty());
  for (const LinearRecord* record : LinearRecords()) {
    EXPECT_THAT(std::string(record->name), testing::StartsWith("linear_"));
    EXPECT_FALSE(record->strategy.empty()) << record->name;
    EXPECT_NE(record->refuse, nullptr) << record->name;
    EXPECT_NE(record->bind, nullptr) << record->name;
  }
}

TEST(CudaDevice, OpensOrSaysWhatIsMissing) {
  const auto device = CudaDevice::Open();
  if (device.ok()) {
    EXPECT_GE((*device)->traits().capability, 80);
    const size_t before = (*device)->allocated_bytes();
    {
      const auto buffer = (*device)->Allocate(1 << 20);
      ASSERT_TRUE(buffer.ok()) << buffer.status();
      EXPECT_EQ((*device)->allocated_bytes(), before + (1 << 20));
    }
    EXPECT_EQ((*device)->allocated_bytes(), before);
    EXPECT_TRUE((*device)->Synchronize().ok());
    return;
  }
  EXPECT_TRUE(absl::IsUnavailable(device.status())) << device.status();
  EXPECT_EQ(GetErrorReason(device.status()).reason, "CUDA_UNAVAILABLE");
  std::cout << "device unavailable: " << device.status().message() << "\n";
}

}  // namespace
}  // namespace sage::cuda
