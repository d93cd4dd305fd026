// The sampler against transformers' filtered distributions, its greedy and penalty rules, and its random stream.
#include "engine/runtime/sampler.h"

#include <cmath>
#include <limits>
#include <set>

#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/runtime/logprobs.h"
#include "gtest/gtest.h"

namespace sage::sampler_test {
namespace {

TEST(SamplerGolden, EveryCaseMatchesTransformers) {
  const std::string path = std::string(SAGE_SOURCE_DIR) + "/../shared/data/golden/sampling.json";
  if (!FileExists(path)) GTEST_SKIP() << "no golden data beside this checkout";
  const auto text = ReadFile(path);
  ASSERT_TRUE(text.ok());
  const auto cases = ParseJson(*text, "sampling.json");
  ASSERT_TRUE(cases.ok()) << cases.status();
  ASSERT_GE(cases->size(), 100u);
  for (const Json& c : *cases) {
    const std::string name = c["name"];
    std::vector<float> logits;
    for (const Json& x : c["logits"]) {
      logits.push_back(x.is_string() ? -std::numeric_limits<float>::infinity() : x.get<float>());
    }
    const std::vector<int32_t> previous = c["previous_ids"].get<std::vector<int32_t>>();
    SamplingSpec spec;
    const Json& p = c["parameters"];
    spec.temperature = p["temperature"];
    spec.top_k = p["top_k"];
    spec.top_p = p["top_p"];
    if (!p["min_p"].is_null()) spec.min_p = p["min_p"];
    spec.repetition_penalty = p["repetition_penalty"];
    const auto got = FilteredDistribution(logits, {previous, {}}, spec);
    ASSERT_TRUE(got.ok()) << name << ": " << got.status();
    EXPECT_EQ(got->ids, c["kept"].get<std::vector<int32_t>>()) << name;
    std::vector<double> dense(logits.size(), 0.0);
    for (size_t i = 0; i < got->ids.size(); ++i) dense[static_cast<size_t>(got->ids[i])] = got->probabilities[i];
    const double tolerance = name.rfind("shifted", 0) == 0 ? 1e-5 : 1e-6;
    for (size_t i = 0; i < dense.size(); ++i) {
      ASSERT_NEAR(dense[i], c["probabilities"][i].get<double>(), tolerance) << name << " id " << i;
    }
  }
}

int32_t Greedy(const std::vector<float>& logits, SamplingSpec spec, const std::vector<int32_t>& prompt,
               const std::vector<int32_t>& output) {
  spec.temperature = 0;
  Sampler sampler;
  const auto id = sampler.Sample(logits, {prompt, output}, spec, 1, 0, 0);
  EXPECT_TRUE(id.ok()) << id.status();
  return id.ok() ? *id : -1;
}

TEST(Sampler, GreedyTakesTheSmallestOfEqualIds) {
  EXPECT_EQ(Greedy({1, 3, 3, 2}, {}, {0}, {}), 1);
  SamplingSpec spec;
  spec.top_p = 0;
  Sampler sampler;
  EXPECT_EQ(*sampler.Sample(std::vector<float>{1, 3, 3, 2}, {}, spec, 9, 0, 0), 1);
}

TEST(Sampler, PresenceAndFrequencyCountOutputIdsOnly) {
  SamplingSpec spec;
  spec.presence_penalty = 1.5;
  EXPECT_EQ(Greedy({2, 1, 0}, spec, {0, 0, 0}, {}), 0);
  EXPECT_EQ(Greedy({2, 1, 0}, spec, {}, {0}), 1);
  spec.presence_penalty = 0;
  spec.frequency_penalty = 0.6;
  EXPECT_EQ(Greedy({2, 1, 0}, spec, {}, {0}), 0);
  EXPECT_EQ(Greedy({2, 1, 0}, spec, {}, {0, 0}), 1);
  const auto d = FilteredDistribution(std::vector<float>{2, 1, 0}, {{}, std::vector<int32_t>{0, 0}}, spec);
  ASSERT_TRUE(d.ok());
  EXPECT_NEAR(d->probabilities[1] / d->probabilities[0], std::exp(1 - 0.8), 1e-6);
}

TEST(Sampler, ScratchIsCleanBetweenCalls) {
  SamplingSpec spec;
  spec.repetition_penalty = 2;
  spec.frequency_penalty = 1;
  Sampler sampler;
  Distribution first, second;
  const std::vector<float> logits{2, 1, 0.5f, -1};
  const std::vector<int32_t> prompt{0, 0, 3}, output{1, 1, 2};
  ASSERT_TRUE(sampler.Filter(logits, {prompt, output}, spec, &first).ok());
  ASSERT_TRUE(sampler.Filter(logits, {prompt, output}, spec, &second).ok());
  EXPECT_EQ(first.probabilities, second.probabilities);
}

TEST(Sampler, LogitBiasBansAndForces) {
  SamplingSpec spec;
  spec.logit_bias = {{0, -100}};
  EXPECT_EQ(Greedy({5, 1, 0}, spec, {}, {}), 1);
  spec.logit_bias = {{2, 100}};
  EXPECT_EQ(Greedy({5, 1, 0}, spec, {}, {}), 2);
}

TEST(Sampler, NonFiniteLogitsAreAnError) {
  const float inf = std::numeric_limits<float>::infinity();
  Sampler sampler;
  for (const std::vector<float>& bad :
       {std::vector<float>{1, NAN}, std::vector<float>{1, inf}, std::vector<float>{-inf, -inf}}) {
    for (const double temperature : {0.0, 1.0}) {
      SamplingSpec spec;
      spec.temperature = temperature;
      const auto id = sampler.Sample(bad, {}, spec, 1, 0, 0);
      ASSERT_FALSE(id.ok());
      EXPECT_EQ(GetErrorReason(id.status()).reason, "NON_FINITE_LOGITS");
    }
  }
}

TEST(Sampler, DrawsFollowTheDistributionAndTheSeed) {
  Sampler sampler;
  SamplingSpec spec;
  const std::vector<float> logits{0, 1, 2, -std::numeric_limits<float>::infinity()};
  std::vector<int> counts(4);
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(*sampler.Sample(logits, {}, spec, 7, 0, i))];
  const auto d = FilteredDistribution(logits, {}, spec);
  EXPECT_EQ(counts[3], 0);
  for (size_t i = 0; i < 3; ++i) {
    const double p = d->probabilities[i];
    EXPECT_NEAR(counts[i] / static_cast<double>(kDraws), p, 4 * std::sqrt(p * (1 - p) / kDraws));
  }
  std::set<double> seen;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (int choice = 0; choice < 4; ++choice) {
      for (int position = 0; position < 64; ++position) seen.insert(UniformDraw(seed, choice, position));
    }
  }
  EXPECT_EQ(seen.size(), 1024u);
}

TEST(Sampler, ExtremeTemperaturesStayFinite) {
  for (const double temperature : {1e-300, 1e-8, 100.0}) {
    SamplingSpec spec;
    spec.temperature = temperature;
    spec.top_p = 0.9;
    const auto d = FilteredDistribution(std::vector<float>{1, 2, 500, -500}, {}, spec);
    ASSERT_TRUE(d.ok());
    double total = 0;
    for (const double p : d->probabilities) total += p;
    EXPECT_NEAR(total, 1, 1e-12);
  }
}

// The bucketed nucleus against a plain sort, with many ties and a large vocabulary.
TEST(Sampler, NucleusEqualsAFullSort) {
  for (const double top_p : {0.1, 0.5, 0.9, 0.999}) {
    std::vector<float> logits;
    for (int i = 0; i < 5000; ++i) logits.push_back(static_cast<float>((i * 7919) % 257) / 32.0f);
    SamplingSpec spec;
    spec.top_p = top_p;
    const auto got = FilteredDistribution(logits, {}, spec);
    ASSERT_TRUE(got.ok());
    std::vector<std::pair<double, int32_t>> sorted;
    double total = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      sorted.emplace_back(-std::exp(logits[i] - 8.0), static_cast<int32_t>(i));
      total -= sorted.back().first;
    }
    std::sort(sorted.begin(), sorted.end());
    size_t wanted = 0;
    for (double before = 0; before < top_p * total; ++wanted) before -= sorted[wanted].first;
    EXPECT_NEAR(static_cast<double>(got->ids.size()), static_cast<double>(wanted), 1.0) << top_p;
  }
}

TEST(Sampler, CheckNamesTheField) {
  const auto reason = [](auto&& change) {
    SamplingSpec spec;
    change(spec);
    return GetErrorReason(CheckSampling(spec, 10)).metadata["field"];
  };
  EXPECT_EQ(reason([](SamplingSpec& s) { s.temperature = -1; }), "temperature");
  EXPECT_EQ(reason([](SamplingSpec& s) { s.temperature = NAN; }), "temperature");
  EXPECT_EQ(reason([](SamplingSpec& s) { s.top_p = 1.1; }), "top_p");
  EXPECT_EQ(reason([](SamplingSpec& s) { s.min_p = -0.1; }), "min_p");
  EXPECT_EQ(reason([](SamplingSpec& s) { s.top_k = -2; }), "top_k");
  EXPECT_EQ(reason([](SamplingSpec& s) { s.repetition_penalty = 0; }), "repetition_penalty");
  EXPECT_EQ(reason([](SamplingSpec& s) { s.presence_penalty = 3; }), "presence_penalty");
  EXPECT_EQ(reason([](SamplingSpec& s) { s.frequency_penalty = -3; }), "frequency_penalty");
  EXPECT_EQ(reason([](SamplingSpec& s) { s.logit_bias[10] = 1; }), "logit_bias");
  EXPECT_TRUE(CheckSampling(SamplingSpec(), 10).ok());
}

TEST(Logprobs, NormaliserRankAndTop) {
  const std::vector<float> logits{1, 3, 3, 2, -std::numeric_limits<float>::infinity()};
  const auto z = LogNormalizer(logits);
  ASSERT_TRUE(z.ok());
  EXPECT_NEAR(*z, std::log(std::exp(1.0) + 2 * std::exp(3.0) + std::exp(2.0)), 1e-7);
  EXPECT_EQ(RankOf(logits, 1), 0);
  EXPECT_EQ(RankOf(logits, 2), 0);
  EXPECT_EQ(RankOf(logits, 3), 2);
  const auto top = TopLogits(logits, 3);
  ASSERT_EQ(top.size(), 3u);
  EXPECT_EQ(top[0].first, 1);
  EXPECT_EQ(top[1].first, 2);
  EXPECT_EQ(top[2].first, 3);
  EXPECT_TRUE(TopLogits(logits, 0).empty());
  EXPECT_EQ(TopLogits(logits, 99).size(), 5u);
}

}  // namespace
}  // namespace sage::sampler_test
