// Page sizes and binding of the KV strategies.
#include "engine/api/kv_strategy.h"
#include "gtest/gtest.h"
#include "tests/unit/linear_strategies/recording_backend.h"

namespace sage {
namespace kv_strategies {
extern const KvStrategyDef kBf16, kF32, kFp8E4m3, kFp8E5m2, kInt8PerChannel, kInt8PerToken;
}  // namespace kv_strategies
namespace {

TEST(KvStrategies, PageBytesAndBinding) {
  const KvLayout layout{3, 64, 16};
  EXPECT_EQ(kv_strategies::kF32.page_bytes(layout), 2u * 3 * 64 * 16 * 4);
  EXPECT_EQ(kv_strategies::kBf16.page_bytes(layout), 2u * 3 * 64 * 16 * 2);
  RecordingBackend backend;
  for (const KvStrategyDef* def : {&kv_strategies::kF32, &kv_strategies::kBf16}) {
    ASSERT_TRUE(def->bind(layout, backend).ok());
    EXPECT_EQ(backend.last_kv, def->name);
    EXPECT_EQ(static_cast<double>(def->page_bytes(layout)), 2 * 3 * 64 * 16 * def->bits / 8);
  }
}

TEST(KvStrategies, EightBitPagesCarryTheirScales) {
  const KvLayout layout{3, 64, 16};
  RecordingBackend backend;
  for (const KvStrategyDef* def : {&kv_strategies::kFp8E4m3, &kv_strategies::kFp8E5m2, &kv_strategies::kInt8PerToken,
                                   &kv_strategies::kInt8PerChannel}) {
    // Shifts of the channels of K and V, or the page's first key in f16.
    const size_t channels = def == &kv_strategies::kInt8PerToken ? 0 : 64;
    EXPECT_EQ(def->page_bytes(layout), 2u * 3 * (64 * 16 + 16 * 4 + channels)) << def->name;
    EXPECT_EQ(def->bits, 8);
    EXPECT_LT(def->page_bytes({3, 64, 16}), kv_strategies::kBf16.page_bytes({3, 64, 16}) * 0.6);
    ASSERT_TRUE(def->bind(layout, backend).ok());
    EXPECT_EQ(backend.last_kv, def->name);
  }
  // Heads are padded to whole vectors.
  EXPECT_EQ(kv_strategies::kFp8E4m3.page_bytes({4, 8, 16}), kv_strategies::kFp8E4m3.page_bytes({4, 16, 16}));
}

TEST(KvStrategies, WordsResolveToOneStrategy) {
  for (const char* word : {"", "none", "auto"}) EXPECT_EQ(ResolveKvStrategy(word).value(), "bf16") << word;
  EXPECT_EQ(ResolveKvStrategy("fp8").value(), "fp8_e4m3");
  EXPECT_EQ(ResolveKvStrategy("int8").value(), "int8_per_token");
  for (const KvStrategyDef* def : KvStrategies()) {
    EXPECT_EQ(ResolveKvStrategy(def->name).value(), def->name);
  }
  EXPECT_FALSE(ResolveKvStrategy("fp4").ok());
}

}  // namespace
}  // namespace sage
