// Ranks in threads, each with its part of the model, give the logits of the whole.
#include <cmath>
#include <filesystem>
#include <thread>

#include "engine/api/communicator.h"
#include "engine/base/status.h"
#include "engine/decoder/decoder.h"
#include "gtest/gtest.h"
#include "tests/unit/decoder/golden_data.h"
#include "tests/unit/decoder/sequence_logits.h"

namespace sage {
namespace {

// A prompt and two decode steps; the logits of all of them.
absl::StatusOr<std::vector<float>> RunModel(const std::string& path, const std::string& strategy,
                                            Communicator* communicator) {
  SAGE_ASSIGN_OR_RETURN(const auto checkpoint, OpenCheckpoint(path));
  DecoderLoadSpec spec;
  spec.strategy = strategy;
  spec.communicator = communicator;
  return SequenceLogits(checkpoint, {{1, 5, 9, 30, 12, 44, 7, 3, 21}, {17}, {18}}, spec, 1);
}

void CheckRanks(const std::string& path, const std::string& strategy, int size) {
  SCOPED_TRACE(testing::Message() << path << " '" << strategy << "' on " << size);
  const auto whole = RunModel(path, strategy, nullptr);
  ASSERT_TRUE(whole.ok()) << whole.status();
  const auto ranks = SharedMemoryCommunicators(size);
  std::vector<absl::StatusOr<std::vector<float>>> parts(static_cast<size_t>(size), absl::InternalError("did not run"));
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back(
        [&, r] { parts[static_cast<size_t>(r)] = RunModel(path, strategy, ranks[static_cast<size_t>(r)].get()); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& part : parts) {
    ASSERT_TRUE(part.ok()) << part.status();
    EXPECT_EQ(*part, *parts[0]);  // every rank has the same logits
    double most = 0, largest = 0;
    for (size_t i = 0; i < whole->size(); ++i) {
      most = std::max(most, std::abs(static_cast<double>((*part)[i]) - (*whole)[i]));
      largest = std::max(largest, std::abs(static_cast<double>((*whole)[i])));
    }
    EXPECT_FALSE(!(most <= 2e-4 * largest)) << most << " of " << largest;
  }
}

TEST(TensorParallel, RanksGiveTheLogitsOfTheWhole) {
  const std::string path = std::string(SAGE_SOURCE_DIR) + "/tests/data/stories260K/tinyllamas-stories-260k-f32.gguf";
  for (const char* strategy : {"", "int8_w8a16", "int4_w4a16", "fp8_w8a16"}) {
    CheckRanks(path, strategy, 2);
    CheckRanks(path, strategy, 4);
  }
}

// Stored formats, kv heads held twice where there are fewer than ranks.
TEST(TensorParallel, GoldenModels) {
  const std::string folder = GoldenFolder() + "/models";
  if (!std::filesystem::is_directory(folder)) GTEST_SKIP() << folder << " is not there";
  int ran = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const auto checkpoint = OpenCheckpoint(entry.path().string());
    if (!checkpoint.ok()) continue;
    const auto config = ParseModelConfig((*checkpoint)->config(), (*checkpoint)->generation_config());
    if (!config.ok()) continue;
    for (const int size : {2, 4}) {
      if (config->H % size != 0 || config->ffn % size != 0 || (config->KH % size != 0 && size % config->KH != 0))
        continue;
      CheckRanks(entry.path().string(), "", size);
      ++ran;
    }
    if (ran >= 8) break;
  }
  EXPECT_GT(ran, 0);
}

TEST(TensorParallel, SizesThatDoNotDivideAreRefused) {
  const std::string path = std::string(SAGE_SOURCE_DIR) + "/tests/data/stories260K/tinyllamas-stories-260k-f32.gguf";
  const auto ranks = SharedMemoryCommunicators(3);
  EXPECT_EQ(GetErrorReason(RunModel(path, "", ranks[0].get()).status()).reason, "TENSOR_PARALLEL_SIZE");
}

}  // namespace
}  // namespace sage
