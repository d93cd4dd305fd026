// Page sizes and binding of the KV strategies.
#include "engine/api/kv_strategy.h"
#include "gtest/gtest.h"
#include "tests/unit/linear_strategies/recording_backend.h"

namespace sage {
namespace kv_strategies {
extern const KvStrategyDef kBf16, kF32;
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

}  // namespace
}  // namespace sage
