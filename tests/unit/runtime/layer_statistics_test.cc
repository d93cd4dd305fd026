// What calibration keeps of a layer's input: tokens count by what the next norm makes of them, the targets of added
// outputs are what the unquantized states have more, and sums do not depend on the pass that made them.
#include "engine/runtime/layer_statistics.h"

#include <cmath>

#include "engine/base/file.h"
#include "engine/runtime/layer_calibration.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage::layer_statistics_test {
namespace {

constexpr int64_t kTokens = 96;

class LayerStatistics : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(MakeDirectories(scratch_ / "model").ok());
    ASSERT_TRUE(WriteTinyModel(scratch_ / "model", {}));
    auto source = ArtifactSource::Open(scratch_ / "model");
    ASSERT_TRUE(source.ok()) << source.status();
    source_ = *std::move(source);
    auto weights = LoadLayerWeights(*source_, 0, threads_);
    ASSERT_TRUE(weights.ok()) << weights.status();
    weights_ = *std::move(weights);
  }

  std::unique_ptr<LayerStream> Stream() {
    std::vector<std::vector<int32_t>> samples(2);
    for (int64_t i = 0; i < kTokens; ++i) samples[i % 2].push_back(static_cast<int32_t>(i * i * 5 % 40));
    return *LayerStream::Create(*source_, samples, threads_, cancel_);
  }
  InputStatistics Collect(LayerStream& stream, LayerInput input, const FullStream& full, bool halves, bool adds) {
    StatisticsRequest request;
    request.input = input;
    request.halves = halves;
    request.adds = adds;
    auto out = CollectStatistics(stream, weights_, full, request, threads_);
    EXPECT_TRUE(out.ok()) << out.status();
    return *std::move(out);
  }
  // Rows of an input, and their Gram matrix with each divided by the size of its hidden states.
  std::vector<float> RowsOf(LayerStream& stream, LayerInput input) {
    std::vector<float> rows(static_cast<size_t>(kTokens * stream.Width(input)));
    stream.Rows(input, weights_, 0, kTokens, rows.data());
    return rows;
  }
  static double Size(const LayerStream& stream, int64_t token) {
    double sum = 0;
    for (int64_t k = 0; k < 32; ++k) sum += std::pow(static_cast<double>(stream.Hidden(token)[k]), 2);
    return std::sqrt(sum / 32);
  }
  void ExpectGram(const std::vector<float>& rows, const std::vector<double>& sizes, const std::vector<float>& gram) {
    const int64_t K = static_cast<int64_t>(rows.size()) / kTokens;
    double scale = 0;
    for (int64_t k = 0; k < K; ++k) scale = std::max(scale, static_cast<double>(gram[k * (K + 1)]));
    for (int64_t i = 0; i < K * K; ++i) {
      double sum = 0;
      for (int64_t t = 0; t < kTokens; ++t) {
        sum +=
            static_cast<double>(rows[t * K + i / K]) * static_cast<double>(rows[t * K + i % K]) / sizes[t] / sizes[t];
      }
      ASSERT_NEAR(gram[i], sum, 1e-4 * scale) << i;
    }
  }

  const ScratchFolder scratch_;
  ThreadPool threads_{2};
  CancelToken cancel_;
  std::unique_ptr<ArtifactSource> source_;
  LayerWeights weights_;
};

TEST_F(LayerStatistics, WhatIsAddedCountsRelativeToTheStatesBehindIt) {
  const auto a = Stream(), b = Stream();
  ASSERT_TRUE(a->RunAttention(weights_, 0).ok() && b->RunAttention(weights_, 0).ok());
  const std::vector<float> rows = RowsOf(*a, LayerInput::kAttended);
  const InputStatistics looked = Collect(*a, LayerInput::kAttended, {}, false, false);
  const InputStatistics added = Collect(*b, LayerInput::kAttended, {}, false, true);
  std::vector<double> sizes;
  for (int64_t t = 0; t < kTokens; ++t) sizes.push_back(Size(*b, t));  // behind the addition
  ExpectGram(rows, sizes, looked.gram);
  ExpectGram(rows, sizes, added.gram);
  EXPECT_EQ(looked.tokens, kTokens);
  ASSERT_TRUE(a->AddAttention(weights_).ok());
  for (int64_t i = 0; i < kTokens * 32; ++i) ASSERT_EQ(a->Hidden(0)[i], b->Hidden(0)[i]);
}

TEST_F(LayerStatistics, InputsOfTheAttentionCountAlike) {
  const auto stream = Stream();
  const InputStatistics found = Collect(*stream, LayerInput::kAttention, {}, false, false);
  ExpectGram(RowsOf(*stream, LayerInput::kAttention), std::vector<double>(kTokens, 1.0), found.gram);
  EXPECT_EQ(static_cast<int64_t>(found.sample.size()), kTokens * 32);
}

TEST_F(LayerStatistics, WantedIsWhatTheUnquantizedStatesHaveMore) {
  const auto full = Stream(), stream = Stream();
  ASSERT_TRUE(full->RunAttention(weights_, 0).ok() && stream->RunAttention(weights_, 0).ok());
  ASSERT_TRUE(full->AddAttention(weights_).ok());
  const InputStatistics found = Collect(*stream, LayerInput::kAttended, {full.get(), &weights_}, true, false);
  const std::vector<float> rows = RowsOf(*stream, LayerInput::kAttended);
  EXPECT_TRUE(found.halves[0].shift.empty());
  std::vector<double> wanted(32 * 32);
  double most = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t n = 0; n < 32; ++n) {
      const double more = static_cast<double>(full->Hidden(t)[n]) - static_cast<double>(stream->Hidden(t)[n]);
      for (int64_t k = 0; k < 32; ++k) {
        wanted[n * 32 + k] += more * static_cast<double>(rows[t * 32 + k]) / std::pow(Size(*full, t), 2);
        most = std::max(most, std::fabs(wanted[n * 32 + k]));
      }
    }
  }
  for (int64_t i = 0; i < 32 * 32; ++i) {  // 96 tokens are less than a chunk: the first half holds them all
    ASSERT_NEAR(found.halves[0].wanted[i], wanted[i], 1e-4 * most);
    ASSERT_EQ(found.halves[1].wanted[i], 0.0f);
  }
}

TEST_F(LayerStatistics, EqualStreamsShiftNothing) {
  const auto full = Stream(), stream = Stream();
  const InputStatistics found = Collect(*stream, LayerInput::kAttention, {full.get(), &weights_}, true, false);
  EXPECT_TRUE(found.halves[0].wanted.empty());
  for (const float value : found.halves[0].shift) ASSERT_EQ(value, 0.0f);
}

}  // namespace
}  // namespace sage::layer_statistics_test
