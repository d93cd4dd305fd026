// Every calibration method of the table on one layer: plans that its strategy takes, and less error than plain
// rounding where the method promises it.
#include <cmath>
#include <random>

#include "engine/api/calibrator.h"
#include "engine/api/grid_plan.h"
#include "engine/base/status.h"
#include "engine/solvers/scale_search.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

constexpr int64_t kN = 48, kK = 128, kTokens = 600;

struct Problem {
  std::vector<float> weight;  // [N, K]
  InputStatistics input;
};

// Inputs with a few loud channels and correlation between neighbours, as in language models.
Problem MakeProblem(ThreadPool& threads) {
  std::mt19937 engine(11);
  std::normal_distribution<float> normal;
  Problem out;
  out.weight.resize(kN * kK);
  for (float& w : out.weight) w = 0.05f * normal(engine);
  std::vector<float> x(kTokens * kK);
  for (int64_t m = 0; m < kTokens; ++m) {
    float before = 0;
    for (int64_t k = 0; k < kK; ++k) {
      before = 0.7f * before + normal(engine);
      x[static_cast<size_t>(m * kK + k)] = before * (k % 31 == 5 ? 12.0f : 1.0f);
    }
  }
  InputStatistics& input = out.input;
  input.K = kK;
  input.tokens = kTokens;
  input.gram.assign(kK * kK, 0);
  for (int64_t i = 0; i < kK; ++i) {
    for (int64_t j = 0; j < kK; ++j) {
      double sum = 0;
      for (int64_t m = 0; m < kTokens; ++m)
        sum += static_cast<double>(x[static_cast<size_t>(m * kK + i)]) * x[static_cast<size_t>(m * kK + j)];
      input.gram[static_cast<size_t>(i * kK + j)] = static_cast<float>(sum);
    }
  }
  InputMagnitude magnitude(kK);
  EXPECT_TRUE(magnitude.Add(x.data(), kTokens, kK, threads).ok());
  input.mean_abs = magnitude.Mean();
  input.max_abs = magnitude.Max();
  input.sample.assign(x.begin(), x.begin() + 256 * kK);
  return out;
}

LinearSpec Spec(bool symmetric) {
  LinearSpec spec;
  spec.strategy = "int4_w4a16";
  spec.group_size = 32;
  spec.symmetric = symmetric;
  return spec;
}

double OutputErrorOf(const CalibratorDef& def, const Problem& problem, const LinearSpec& spec, ThreadPool& threads) {
  const LinearStrategyDef& strategy = **FindLinearStrategy(spec.strategy);
  std::vector<float> scaled = problem.weight, scales(kK, 1.0f);
  InputStatistics input = problem.input;
  const TensorView view{DType::kF32, {kN, kK}, scaled.data(), scaled.size() * sizeof(float)};
  if (def.choose_scales != nullptr) {
    const TensorView weights[] = {view};
    auto chosen = def.choose_scales({input, weights, spec, strategy}, threads);
    EXPECT_TRUE(chosen.ok()) << chosen.status();
    scales = chosen->values;
    EXPECT_EQ(scales.size(), static_cast<size_t>(kK));
    for (int64_t i = 0; i < kK; ++i) {
      EXPECT_GT(scales[static_cast<size_t>(i)], 0);
      for (int64_t j = 0; j < kK; ++j)
        input.gram[static_cast<size_t>(i * kK + j)] /= scales[static_cast<size_t>(i)] * scales[static_cast<size_t>(j)];
    }
    for (size_t i = 0; i < scaled.size(); ++i) scaled[i] *= scales[i % kK];
  }
  auto plan = def.solve(input, view, spec, strategy, threads);
  EXPECT_TRUE(plan.ok()) << def.name << plan.status();
  auto stored = strategy.quantize(view, spec, *plan, threads);
  EXPECT_TRUE(stored.ok()) << def.name << stored.status();
  std::vector<float> back(scaled.size());
  EXPECT_TRUE(strategy.dequantize_rows(*stored, 0, kN, back.data()).ok());
  for (size_t i = 0; i < back.size(); ++i) back[i] /= scales[i % kK];
  return GramError(back, problem.weight, problem.input.gram, kN, kK, threads);
}

TEST(Calibrators, BeatPlainRoundingOnCorrelatedInputs) {
  ThreadPool threads(2);
  const Problem problem = MakeProblem(threads);
  for (const bool symmetric : {true, false}) {
    const double plain = OutputErrorOf(**FindCalibrator("minmax"), problem, Spec(symmetric), threads);
    for (const CalibratorDef* def : Calibrators()) {
      const double error = OutputErrorOf(*def, problem, Spec(symmetric), threads);
      if (def->needs_activations) {
        EXPECT_LE(error, plain * 1.0001) << def->name;
      }
      if (def->name == "gptq") {
        EXPECT_LT(error, 0.7 * plain);
      }
      if (def->name == "awq+gptq") {
        EXPECT_LT(error, 0.6 * plain);
      }
    }
  }
}

TEST(Calibrators, EveryMethodIsThere) {
  for (const char* name : {"minmax", "rtn", "percentile", "mse", "smoothquant", "awq", "gptq", "awq+smoothquant",
                           "awq+gptq", "autoround", "qat"}) {
    EXPECT_TRUE(FindCalibrator(name).ok()) << name;
  }
  EXPECT_EQ(GetErrorReason(FindCalibrator("awq_smoothquant").status()).reason, "UNKNOWN_CALIBRATION_METHOD");
  EXPECT_EQ(GetErrorReason(FindCalibrator("awq_gptq").status()).reason, "UNKNOWN_CALIBRATION_METHOD");
}

TEST(Calibrators, ResultsDoNotDependOnThreads) {
  ThreadPool one(1), three(3);
  const Problem problem = MakeProblem(one);
  for (const CalibratorDef* def : Calibrators()) {
    EXPECT_EQ(OutputErrorOf(*def, problem, Spec(true), one), OutputErrorOf(*def, problem, Spec(true), three))
        << def->name;
  }
}

TEST(Calibrators, ActOrderKeepsTheGroups) {
  ThreadPool threads(1);
  const Problem problem = MakeProblem(threads);
  LinearSpec spec = Spec(true);
  const LinearStrategyDef& strategy = **FindLinearStrategy("int4_w4a16");
  spec.act_order = true;
  const TensorView view{DType::kF32, {kN, kK}, problem.weight.data(), problem.weight.size() * sizeof(float)};
  const auto plan = (*FindCalibrator("gptq"))->solve(problem.input, view, spec, strategy, threads);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->g_idx.empty());
  EXPECT_EQ((*FindCalibrator("rtn"))->name, "minmax");
}

}  // namespace
}  // namespace sage
