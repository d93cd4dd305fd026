// Checkpoints that the real tools wrote, through the whole decoder: their own logits, within the format's rounding.
#include <cmath>
#include <filesystem>
#include <fstream>

#include "engine/base/file.h"
#include "engine/decoder/decoder.h"
#include "gtest/gtest.h"
#include "tests/unit/decoder/golden_data.h"
#include "tests/unit/decoder/sequence_logits.h"

namespace sage {
namespace {

std::string CheckpointFolder() { return std::string(SAGE_SOURCE_DIR) + "/../shared/data/checkpoints"; }

std::string FormatOf(const std::string& folder) {
  if (folder.starts_with("ct")) return "compressed_tensors";
  return folder.starts_with("gptq") ? "gptq" : "awq";
}

class ToolCheckpointTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ToolCheckpointTest, WeightsAndLogits) {
  const std::string folder = CheckpointFolder() + "/" + GetParam();
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "shared checkpoints are absent";
  const auto checkpoint = OpenCheckpoint(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->format(), FormatOf(GetParam()));
  std::ifstream in(folder + "/expected.json");
  const auto expected = nlohmann::json::parse(in);
  const auto& hashes = expected.contains("weights") ? expected["weights"] : expected;
  int compared = 0;
  for (const auto& [name, record] : hashes.items()) {
    const std::string hash = record["sha256_f32_le"];
    const std::string module = name.size() > 7 && name.ends_with(".weight") ? name.substr(0, name.size() - 7) : name;
    if (!(*checkpoint)->HasLinear(module)) continue;
    const auto stored = (*checkpoint)->GetLinear(module);
    ASSERT_TRUE(stored.ok()) << stored.status();
    auto full = Dequantize(*stored);
    ASSERT_TRUE(full.ok()) << full.status();
    // The recorded hashes are of positive zeros.
    for (int64_t i = 0; i < stored->N * stored->K; ++i) full->as<float>()[i] += 0.0f;
    EXPECT_EQ(Sha256Hex({full->as<char>(), full->bytes()}), hash) << module;
    ++compared;
  }
  EXPECT_GT(compared, 5);

  const GoldenTensors want(folder + "/expected.safetensors");
  const auto wide = want.Get<int64_t>("input_ids");
  const std::vector<int32_t> ids(wide.begin(), wide.end());
  // With 8-bit activations the tool's own forward is the reference.
  const bool eight = GetParam().find("a8") != std::string::npos;
  const auto logits = want.Get<float>(eight ? "logits_tool" : "logits");
  const auto got = SequenceLogits(*checkpoint, {ids});
  ASSERT_TRUE(got.ok()) << got.status();
  ASSERT_EQ(got->size(), logits.size());
  const size_t width = logits.size() / ids.size();
  std::vector<double> worst(ids.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    double& of_row = worst[i / width];
    of_row = std::max(of_row, std::abs(static_cast<double>((*got)[i]) - logits[i]));
  }
  std::sort(worst.begin(), worst.end());
  RecordProperty("max_logit_difference", std::to_string(worst.back()));
  // 16-bit activations are fixed point here, which is what the bound of most is for. The tool's 8-bit activations
  // agree, but where one lies on the boundary between two codes the last bit of a sum decides: in the dynamic W8A8
  // folder that moves a few positions by what a code does.
  const bool tied = GetParam() == "ct-int8-w8a8-dynamic";
  EXPECT_LE(worst[worst.size() - (tied ? 9 : 1)], eight ? 1e-4 : 2e-3) << ::testing::PrintToString(worst);
  EXPECT_LE(worst.back(), tied ? 5e-2 : 2e-3) << ::testing::PrintToString(worst);
}

INSTANTIATE_TEST_SUITE_P(Tools, ToolCheckpointTest,
                         ::testing::Values("ct-pack-w4-g64-sym", "ct-pack-w8-channel", "ct-pack-w4-g64-asym-gptq",
                                           "ct012-pack-w4-g64-actorder_group", "gptq-w2-g64-sym", "gptq-w3-g64-sym",
                                           "gptq-w4-g128-sym-medium", "gptq-w4-g64-desc_act", "gptq-w4-g64-sym",
                                           "gptq-w8-g64-sym", "gptq_v2-w4-g64-asym", "awq-gemm-w4-g64",
                                           "autoawq-gemm-w4-g64", "autoawq-gemv-w4-g64", "autoawq-gemv_fast-w4-g64",
                                           "ct-awq-w4-asym", "ct-kv-fp8-w4", "ct-pack-w4-g64-sym-actorder_weight",
                                           "ct-int8-w8a8-dynamic", "ct-int8-w8a8-static-asym", "ct-w4a8-int",
                                           "ct012-naive-w3-g64"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) {
                             if (c == '-') c = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace sage
