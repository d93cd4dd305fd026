// Training of one block: better than its start on held-out texts, never worse, the same for any number of threads, and
// hostile problems refused.
#include "engine/solvers/block_training.h"

#include <cmath>
#include <random>

#include "engine/base/status.h"
#include "engine/solvers/code_training.h"
#include "gtest/gtest.h"

namespace sage::block_training_test {
namespace {

// A random block, its texts and what the unquantized block makes of them.
struct Problem {
  BlockShape shape;
  std::array<std::vector<float>, kBlockLinears> weight;
  std::array<std::vector<float>, kBlockNorms> norm;
  std::vector<int64_t> lengths;
  std::vector<float> x, wanted;
  TrainedBlock block;

  BlockTexts Texts() const { return {lengths, x.data(), wanted.data(), Rope}; }
  static void Rope(int64_t length, float* cos, float* sin) {
    for (int64_t i = 0; i < length * 4; ++i) {
      const float angle = static_cast<float>(i / 4) * std::pow(50.0f, -static_cast<float>(i % 4) / 4.0f);
      cos[i] = std::cos(angle);
      sin[i] = std::sin(angle);
    }
  }
};

std::unique_ptr<Problem> MakeProblem(const GridSpec& grid, int64_t texts, ThreadPool& threads) {
  auto out = std::make_unique<Problem>();
  std::mt19937 generator(4);
  std::normal_distribution<float> normal;
  out->shape = {32, 64, 4, 2, 8, 0, 1e-5f, true, {}};
  TrainedBlock& block = out->block;
  block.shape = out->shape;
  for (int i = 0; i < kBlockLinears; ++i) {
    const size_t at = static_cast<size_t>(i);
    const int64_t N = out->shape.N(i), K = out->shape.K(i);
    out->weight[at].resize(static_cast<size_t>(N * K));
    for (float& w : out->weight[at]) w = normal(generator) / std::sqrt(static_cast<float>(K));
    TrainedLinear& linear = block.linears[at];
    linear.trains = true;
    linear.grid = grid;
    linear.weight = out->weight[at].data();
    linear.codes = *RoundToNearest(out->weight[at], N, K, grid, threads);
    block.weights.weight[at] = linear.weight;
  }
  for (int i = 0; i < kBlockNorms; ++i) {
    std::vector<float>& norm = out->norm[static_cast<size_t>(i)];
    norm.resize(static_cast<size_t>(out->shape.NormWidth(i)));
    for (float& value : norm) value = RoundToDType(1 + 0.2f * normal(generator), DType::kBF16);
    block.weights.norm[static_cast<size_t>(i)] = norm.data();
    block.norm_dtype[static_cast<size_t>(i)] = DType::kBF16;
  }
  int64_t tokens = 0;
  for (int64_t t = 0; t < texts; ++t) {
    out->lengths.push_back(20 + t % 5);
    tokens += out->lengths.back();
  }
  out->x.resize(static_cast<size_t>(tokens * out->shape.hidden));
  for (float& value : out->x) value = normal(generator);
  out->wanted.resize(out->x.size());
  std::vector<float> cos, sin;
  for (const int64_t length : out->lengths) {
    const size_t before = cos.size(), more = static_cast<size_t>(length * out->shape.D / 2);
    cos.resize(before + more);
    sin.resize(before + more);
    Problem::Rope(length, cos.data() + before, sin.data() + before);
  }
  DecoderBlock exact(out->shape, threads);
  exact.Forward(block.weights, {out->lengths, out->x.data(), cos.data(), sin.data()}, out->wanted.data());
  return out;
}

BlockTrainingOptions Quick() {
  BlockTrainingOptions options;
  options.epochs = 12;
  options.batch_tokens = 200;
  options.code_rate = 0.01;
  return options;
}

GridSpec Grid(int bits, int64_t group, bool symmetric) { return {bits, group, symmetric, DType::kBF16}; }

TEST(BlockTraining, IsBetterThanItsStartAndStaysOnTheGrid) {
  ThreadPool threads(2);
  for (const GridSpec& grid : {Grid(4, 16, false), Grid(3, 32, true), Grid(2, -1, false), Grid(2, 16, true)}) {
    const auto problem = MakeProblem(grid, 40, threads);
    const auto result = TrainBlock(problem->Texts(), Quick(), {}, threads, &problem->block);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_GT(result->start_loss, 0);
    EXPECT_LT(result->loss, 0.9 * result->start_loss) << grid.bits;
    EXPECT_GT(result->best_step, 0);
    for (int i = 0; i < kBlockLinears; ++i) {
      const GridWeight& codes = problem->block.linears[static_cast<size_t>(i)].codes;
      EXPECT_TRUE(CheckGridStart("test", codes, problem->shape.N(i), problem->shape.K(i), grid).ok());
      for (const float scale : codes.scale) EXPECT_EQ(scale, RoundToDType(scale, DType::kBF16));
    }
    for (const auto& norm : problem->block.norms) {
      for (const float value : norm) EXPECT_EQ(value, RoundToDType(value, DType::kBF16));
    }
  }
}

// What is returned gives exactly the loss that is told: nothing is lost between training and storing.
TEST(BlockTraining, TheLossToldIsThatOfWhatIsStored) {
  ThreadPool threads(2);
  const auto problem = MakeProblem(Grid(3, 16, false), 40, threads);
  const auto result = TrainBlock(problem->Texts(), Quick(), {}, threads, &problem->block);
  ASSERT_TRUE(result.ok());
  TrainedBlock again = problem->block;
  std::array<std::vector<float>, kBlockLinears> values;
  for (int i = 0; i < kBlockLinears; ++i) {
    TrainedLinear& linear = again.linears[static_cast<size_t>(i)];
    values[static_cast<size_t>(i)] = ValuesOf(linear.codes, problem->shape.N(i), problem->shape.K(i));
    linear.weight = values[static_cast<size_t>(i)].data();
  }
  for (size_t i = 0; i < kBlockNorms; ++i) again.weights.norm[i] = problem->block.norms[i].data();
  BlockTrainingOptions options = Quick();
  options.epochs = options.checks = 1;
  const auto told = TrainBlock(problem->Texts(), options, {}, threads, &again);
  ASSERT_TRUE(told.ok());
  EXPECT_EQ(told->start_loss, result->loss);
}

TEST(BlockTraining, ThreadsChangeNoBit) {
  ThreadPool one(1), three(3);
  const auto a = MakeProblem(Grid(4, 16, false), 10, one), b = MakeProblem(Grid(4, 16, false), 10, one);
  const auto first = TrainBlock(a->Texts(), Quick(), {}, one, &a->block);
  const auto second = TrainBlock(b->Texts(), Quick(), {}, three, &b->block);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->loss, second->loss);
  for (size_t i = 0; i < kBlockLinears; ++i) {
    EXPECT_EQ(a->block.linears[i].codes.codes, b->block.linears[i].codes.codes);
    EXPECT_EQ(a->block.linears[i].codes.scale, b->block.linears[i].codes.scale);
  }
  EXPECT_EQ(a->block.norms, b->block.norms);
}

// Rates that destroy the block: the start is what remains.
TEST(BlockTraining, IsNeverWorseThanItsStart) {
  ThreadPool threads(2);
  const auto problem = MakeProblem(Grid(4, 16, false), 10, threads);
  const GridWeight start = problem->block.linears[kBlockUp].codes;
  BlockTrainingOptions options = Quick();
  options.code_rate = 20;
  options.scale_rate = options.norm_rate = 1;
  options.checks = 1;
  const auto result = TrainBlock(problem->Texts(), options, {}, threads, &problem->block);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->best_step, 0);
  EXPECT_EQ(result->loss, result->start_loss);
  EXPECT_EQ(problem->block.linears[kBlockUp].codes.codes, start.codes);
  EXPECT_EQ(problem->block.linears[kBlockUp].codes.scale, start.scale);
}

TEST(BlockTraining, LeavesOtherLinearsAlone) {
  ThreadPool threads(2);
  const auto problem = MakeProblem(Grid(3, 16, false), 20, threads);
  problem->block.linears[kBlockDown].trains = false;
  const std::vector<int8_t> before = problem->block.linears[kBlockDown].codes.codes;
  const auto result = TrainBlock(problem->Texts(), Quick(), {}, threads, &problem->block);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_LT(result->loss, result->start_loss);
  EXPECT_EQ(problem->block.linears[kBlockDown].codes.codes, before);
}

TEST(BlockTraining, RefusesWhatDoesNotFit) {
  ThreadPool threads(1);
  const auto fresh = [&] { return MakeProblem(Grid(4, 16, false), 3, threads); };
  const auto reason = [&](Problem& problem, const BlockTrainingOptions& options) {
    const auto result = TrainBlock(problem.Texts(), options, {}, threads, &problem.block);
    return result.ok() ? std::string() : GetErrorReason(result.status()).reason;
  };
  auto problem = fresh();
  problem->lengths.resize(1);
  EXPECT_EQ(reason(*problem, Quick()), "TOO_FEW_TEXTS");
  problem = fresh();
  problem->lengths[1] = 0;
  EXPECT_EQ(reason(*problem, Quick()), "EMPTY_TEXT");
  problem = fresh();
  problem->block.linears[0].codes.scale[3] = 0;
  EXPECT_EQ(reason(*problem, Quick()), "BAD_START");
  problem = fresh();
  problem->block.linears[0].codes.codes.pop_back();
  EXPECT_EQ(reason(*problem, Quick()), "BAD_START");
  problem = fresh();
  problem->block.shape.KH = 3;
  EXPECT_EQ(reason(*problem, Quick()), "BAD_SHAPE");
  problem = fresh();
  problem->x[5] = std::nanf("");
  problem->wanted[5] = problem->x[5];
  for (float& value : problem->x) value = std::nanf("");
  EXPECT_EQ(reason(*problem, Quick()), "NON_FINITE_LOSS");
  problem = fresh();
  BlockTrainingOptions options = Quick();
  options.epochs = 0;
  EXPECT_EQ(reason(*problem, options), "BAD_SEARCH");
  CancelToken cancel;
  cancel.Cancel();
  EXPECT_EQ(TrainBlock(problem->Texts(), Quick(), cancel, threads, &problem->block).status().code(),
            absl::StatusCode::kCancelled);
}

// act-order: inputs of a group lie anywhere.
TEST(CodeTraining, HonoursGroupIndices) {
  ThreadPool threads(1);
  const std::vector<float> weight = {0.1f, 4.0f, -0.2f, 3.0f};
  GridWeight start;
  start.codes = {1, 4, -2, 3};
  start.scale = {0.1f, 1.0f};
  start.zero = {0, 0};
  start.g_idx = {0, 1, 0, 1};
  CodeTraining training({4, 2, true, DType::kF32}, 1, 4, weight.data(), start);
  std::vector<float> values(4);
  training.Values(values.data(), threads);
  EXPECT_EQ(values, ValuesOf(start, 1, 4));
  GridWeight read;
  training.Read(&read, threads);
  EXPECT_EQ(read.codes, start.codes);
  EXPECT_EQ(read.g_idx, start.g_idx);
}

}  // namespace
}  // namespace sage::block_training_test
