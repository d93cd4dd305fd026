// Packed weights share chunks of huge pages without touching one another.
#include "engine/backends/cpu/weight_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

namespace sage::cpu {
namespace {

TEST(WeightMemory, RunsAreZeroAlignedAndApart) {
  std::vector<WeightMemory> runs;
  for (size_t i = 0; i < 200; ++i) {
    const size_t bytes = i % 40 == 39 ? (size_t{9} << 20) + i : (i * 7919) % 300000;
    auto run = WeightMemory::Allocate(bytes);
    ASSERT_TRUE(run.ok()) << run.status();
    ASSERT_FALSE(run->empty());
    EXPECT_EQ(run->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(run->as<uint8_t>()) % 64, 0u);
    const uint8_t* begin = run->as<uint8_t>();
    EXPECT_TRUE(std::all_of(begin, begin + bytes + 64, [](uint8_t byte) { return byte == 0; })) << i;
    std::memset(run->as<uint8_t>(), static_cast<int>(i), bytes);
    runs.push_back(*std::move(run));
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    const uint8_t* begin = runs[i].as<uint8_t>();
    const auto own = static_cast<uint8_t>(i);
    EXPECT_TRUE(std::all_of(begin, begin + runs[i].bytes(), [&](uint8_t byte) { return byte == own; })) << i;
  }
}

TEST(WeightMemory, ARunOutlivesTheOthersOfItsChunk) {
  auto first = WeightMemory::Allocate(1000), second = WeightMemory::Allocate(1000);
  ASSERT_TRUE(first.ok() && second.ok());
  std::memset(second->as<uint8_t>(), 7, 1000);
  *first = WeightMemory();
  EXPECT_TRUE(first->empty());
  EXPECT_EQ(second->as<uint8_t>()[999], 7);
}

TEST(WeightMemory, RefusesMoreThanCanBeAddressed) {
  EXPECT_EQ(WeightMemory::Allocate(std::numeric_limits<size_t>::max()).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace sage::cpu
