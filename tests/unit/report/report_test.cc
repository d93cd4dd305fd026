// The report: figures against ones computed by hand, a model against itself, and the refusals.
#include <cmath>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/report/divergence.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"

namespace sage {
namespace {

TEST(Divergence, MatchesSumsByHand) {
  // p = softmax(0, ln 3) = (1/4, 3/4); q = softmax(0, 0) = (1/2, 1/2).
  const float reference[] = {0.0f, std::log(3.0f)}, quantized[] = {0.0f, 0.0f};
  Divergence sums;
  ASSERT_TRUE(sums.Add(quantized, reference, 1).ok());
  sums.EndWindow();
  ASSERT_TRUE(sums.Add(quantized, reference, 0).ok());
  sums.EndWindow();
  EXPECT_EQ(sums.scored(), 2);
  const double kl = 0.25 * std::log(0.5) + 0.75 * std::log(1.5);
  EXPECT_NEAR(sums.Kl()["mean"].get<double>(), kl, 1e-6);
  EXPECT_NEAR(sums.Kl()["max"].get<double>(), kl, 1e-6);
  EXPECT_NEAR(sums.Perplexity()["quantized"].get<double>(), 2.0, 1e-6);
  EXPECT_NEAR(sums.Perplexity()["reference"].get<double>(), std::sqrt(16.0 / 3.0), 1e-6);
  EXPECT_NEAR(sums.Perplexity()["ratio"].get<double>(), 2.0 / std::sqrt(16.0 / 3.0), 1e-6);
  EXPECT_EQ(sums.Top1Agreement(), 0);
}

TEST(Divergence, RefusesLogitsThatAreNoNumbers) {
  const float good[] = {0.0f, 1.0f}, bad[] = {0.0f, NAN};
  Divergence sums;
  EXPECT_FALSE(sums.Add(bad, good, 0).ok());
  EXPECT_FALSE(sums.Add(good, bad, 0).ok());
}

class Report : public testing::Test {
 protected:
  Report() {
    spec_.dataset = std::string(SAGE_SOURCE_DIR) + "/tests/data/quickstart.txt";
    spec_.window = 64;
    spec_.windows = 3;
    spec_.measure_speed = false;
  }
  absl::StatusOr<Json> Build() {
    ThreadPool threads(2);
    return BuildReport(spec_, threads, {}, nullptr);
  }
  ScratchFolder scratch_;
  ReportSpec spec_;
};

TEST_F(Report, AModelAgreesWithItself) {
  spec_.artifact = StoriesGguf();
  spec_.reference = StoriesGguf();
  spec_.kv_quantization = "f32";
  const auto report = Build();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ((*report)["perplexity"]["ratio"].get<double>(), 1.0);
  EXPECT_EQ((*report)["kl"]["max"].get<double>(), 0.0);
  EXPECT_EQ((*report)["top1_agreement"].get<double>(), 1.0);
  EXPECT_EQ((*report)["protocol"]["scored_positions"].get<int64_t>(), 3 * 63);
}

TEST_F(Report, AnArtifactFindsItsSourceAndStaysClose) {
  const CalibrationSpec calibration = StoriesSpec(scratch_);
  ThreadPool threads(2);
  ASSERT_TRUE(CalibrateModel(calibration, threads, {}, nullptr).ok());
  spec_.artifact = calibration.output;
  spec_.measure_speed = true;
  const auto report = Build();
  ASSERT_TRUE(report.ok()) << report.status();
  const Json& perplexity = (*report)["perplexity"];
  EXPECT_NEAR(perplexity["ratio"].get<double>(), 1.0, 0.02);
  ASSERT_EQ(perplexity["interval"].size(), 2u);
  EXPECT_LE(perplexity["interval"][0].get<double>(), perplexity["ratio"].get<double>());
  EXPECT_GE(perplexity["interval"][1].get<double>(), perplexity["ratio"].get<double>());
  EXPECT_GT((*report)["kl"]["mean"].get<double>(), 0);
  EXPECT_LT((*report)["kl"]["mean"].get<double>(), 0.02);
  EXPECT_GT((*report)["top1_agreement"].get<double>(), 0.9);
  EXPECT_GT((*report)["speed"]["decode_tokens_per_second"]["quantized"].get<double>(), 0);
  EXPECT_EQ((*report)["layers"].size(), 5u * 7u + 1);  // lm_head is listed, unquantized
}

TEST_F(Report, RefusalsNameTheRule) {
  spec_.artifact = StoriesGguf();
  EXPECT_EQ(GetErrorReason(Build().status()).reason, "REFERENCE_NEEDED");
  spec_.reference = StoriesGguf();
  spec_.dataset.clear();
  EXPECT_EQ(GetErrorReason(Build().status()).reason, "DATASET_NEEDED");
  spec_.dataset = scratch_ / "short.jsonl";
  ASSERT_TRUE(WriteFileAtomic(spec_.dataset, "[1]\n").ok());
  EXPECT_EQ(GetErrorReason(Build().status()).reason, "TOO_FEW_IDS");
}

}  // namespace
}  // namespace sage
