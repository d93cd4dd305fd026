// Every linear strategy of the generated table on every backend: Forward against the f64 product of what the stored
// bits mean, within the strategy's own bound; rows do not depend on the batch; expected refusals, each with its reason.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <map>
#include <random>
#include <vector>

#include "engine/api/linear_strategy.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"

namespace sage {
namespace {

struct Shape2 {
  int64_t N, K;
  int group_size;  // -1 = per channel
  bool symmetric;
};
// Tails in N, one group, many groups, narrow and wide groups, sizes that are no power of two or that no equal blocks
// fill (514); whole words of outputs for the layouts that pack along them.
constexpr Shape2 kShapes[] = {
    {1, 32, -1, true},     {7, 96, 32, true},      {33, 576, 64, true},    {17, 512, 256, true}, {5, 160, 16, true},
    {64, 256, 128, true},  {19, 288, 48, false},   {35, 256, 32, false},   {9, 1536, -1, false}, {13, 224, -1, true},
    {96, 288, 48, false},  {32, 1536, -1, false},  {32, 576, 8, true},     {33, 576, 12, false}, {64, 576, 24, false},
    {32, 1152, 288, true}, {64, 1152, 576, false}, {16, 1028, 514, false}, {9, 64, 2, true},     {32, 64, 1, false}};

// Strategies that cannot be quantized to, and why.
const std::map<std::string, std::string> kCannotQuantize = {{"int8_affine", "READ_ONLY_STRATEGY"}};

// The stored layer, or the refusal of the strategy.
absl::StatusOr<StoredLinear> Make(const LinearStrategyDef& def, const Shape2& shape, ThreadPool& threads) {
  const std::vector<float> weights = Normal(shape.N * shape.K, 17, 0.05f);
  LinearSpec spec;
  spec.strategy = std::string(def.name);
  spec.group_size = shape.group_size;
  spec.symmetric = shape.symmetric;
  SAGE_RETURN_IF_ERROR(def.check(spec, shape.N, shape.K));
  return def.quantize({DType::kF32, {shape.N, shape.K}, weights.data(), weights.size() * 4}, spec, {}, threads);
}

// A layer of int8_affine, which no quantizer makes.
StoredLinear MakeAffine(int64_t N, int64_t K, int group, bool offset) {
  StoredLinear stored;
  stored.spec.strategy = "int8_affine";
  stored.spec.group_size = group;
  stored.spec.symmetric = !offset;
  stored.N = N;
  stored.K = K;
  const auto add = [&](const std::string& name, DType dtype, Shape shape) {
    stored.owned.push_back(std::make_shared<Tensor>(Tensor::Allocate(dtype, shape).value()));
    stored.tensors[name] = stored.owned.back()->view();
    return stored.owned.back().get();
  };
  std::mt19937 random(4);
  Tensor* codes = add("codes", DType::kI8, {N, K});
  for (int64_t i = 0; i < N * K; ++i) codes->as<int8_t>()[i] = static_cast<int8_t>(random() % 255) - 127;
  const int64_t count = N * K / group;
  const std::vector<float> scale = Normal(count, 5, 0.001f), add_on = Normal(count, 6, 0.01f);
  std::memcpy(add("scale", DType::kF32, {N, K / group})->as<float>(), scale.data(), scale.size() * 4);
  if (offset) std::memcpy(add("offset", DType::kF32, {N, K / group})->as<float>(), add_on.data(), add_on.size() * 4);
  return stored;
}

std::vector<float> RunForward(const BoundLinear& bound, const Backend& backend, const std::vector<float>& x, int64_t M,
                              ThreadPool& threads) {
  DeviceMemory& memory = backend.memory();
  ActivationCache cache;
  cache.UseMemory(memory);
  StepContext ctx;
  ctx.memory = &memory;
  ctx.threads = &threads;
  ctx.activations = &cache;
  std::vector<float> out(static_cast<size_t>(M * bound.N()));
  const size_t bytes = static_cast<size_t>(M * bound.K()) * sizeof(float);
  const DeviceBuffer input = memory.Allocate(bytes).value();
  const DeviceBuffer output = memory.Allocate(out.size() * sizeof(float)).value();
  memory.Upload(input.as<void>(), x.data(), bytes);
  bound.Forward(ctx, {ctx.NewValue(), input.as<float>(), M, bound.K(), bound.K()}, output.as<float>(), bound.N());
  const absl::Status status = memory.Download(out.data(), output.as<float>(), output.bytes());
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

void CheckForward(const LinearStrategyDef& def, const Backend& backend, StoredLinear stored, ThreadPool& threads) {
  const int64_t N = stored.N, K = stored.K;
  const std::vector<float> bias = Normal(N, 8, 0.1f);
  stored.bias = {DType::kF32, {N}, bias.data(), bias.size() * 4};
  const auto keep = std::make_shared<StoredLinear>(stored);
  const auto bound = def.bind(*keep, keep, backend, Priority::kLatency, threads);
  if (!bound.ok() && !backend.memory().is_host()) {
    // A device may lack a kernel; then it says which refused and why.
    EXPECT_EQ(GetErrorReason(bound.status()).reason, "NO_KERNEL") << bound.status();
    return;
  }
  ASSERT_TRUE(bound.ok()) << bound.status();
  ASSERT_EQ((*bound)->N(), N);
  ASSERT_EQ((*bound)->K(), K);
  const auto weight = Dequantize(stored);
  ASSERT_TRUE(weight.ok()) << weight.status();
  const std::vector<float> x = Normal(19 * K, 9, 1.0f);
  const std::vector<float> single = RunForward(**bound, backend, x, 1, threads);
  for (const int64_t M : {1, 2, 3, 4, 5, 8, 19}) {
    const std::vector<float> out = RunForward(**bound, backend, x, M, threads);
    double error = 0, energy = 0;
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < N; ++n) {
        double sum = bias[static_cast<size_t>(n)];
        for (int64_t k = 0; k < K; ++k) {
          sum += static_cast<double>(x[static_cast<size_t>(m * K + k)]) * weight->as<float>()[n * K + k];
        }
        error += std::pow(sum - out[static_cast<size_t>(m * N + n)], 2);
        energy += sum * sum;
      }
    }
    // Tensor cores take 16-bit activations as f16, eleven bits.
    const bool rounds = !backend.memory().is_host() && def.activation_bits == 16;
    // Negated so that a NaN fails.
    EXPECT_FALSE(!(std::sqrt(error / energy) <= (rounds ? std::max(def.tolerance, 1e-3) : def.tolerance)))
        << (*bound)->kernel() << " M=" << M << " relative error " << std::sqrt(error / energy);
    if ((*bound)->kernel().find("cublaslt") != std::string::npos) continue;  // libraries choose by the number of rows
    EXPECT_EQ(std::memcmp(out.data(), single.data(), single.size() * 4), 0)
        << (*bound)->kernel() << ": row 0 depends on the batch, M=" << M;
  }
}

TEST(LinearConformance, ForwardEqualsTheMeaningOfTheBits) {
  ThreadPool threads(3);
  ASSERT_FALSE(LinearStrategies().empty());
  for (const BackendDef* backend_def : Backends()) {
    const auto backend = backend_def->open();
    if (!backend.ok()) {
      EXPECT_EQ(backend.status().code(), absl::StatusCode::kUnavailable) << backend.status();
      std::cout << backend_def->name << ": device unavailable: " << backend.status().message() << "\n";
      continue;
    }
    for (const LinearStrategyDef* def : LinearStrategies()) {
      int ran = 0;
      for (const Shape2& shape : kShapes) {
        SCOPED_TRACE(testing::Message() << def->name << " on " << backend_def->name << " N=" << shape.N
                                        << " K=" << shape.K << " group=" << shape.group_size);
        if (kCannotQuantize.count(std::string(def->name)) != 0) continue;
        const auto stored = Make(*def, shape, threads);
        if (!stored.ok()) {
          EXPECT_FALSE(GetErrorReason(stored.status()).reason.empty()) << stored.status();
          continue;
        }
        ++ran;
        CheckForward(*def, **backend, *stored, threads);
      }
      if (def->name == "int8_affine") {
        for (const int group : {16, 32}) {
          for (const bool offset : {false, true})
            CheckForward(*def, **backend, MakeAffine(21, 256, group, offset), threads);
        }
        ran += 4;
      }
      EXPECT_GE(ran, 2) << def->name << " ran nowhere";
    }
  }
}

TEST(LinearConformance, BitsDoNotDependOnThreads) {
  for (const BackendDef* backend_def : Backends()) {
    const auto backend = backend_def->open();
    if (!backend.ok()) continue;  // the test above checks how it says so
    for (const LinearStrategyDef* def : LinearStrategies()) {
      if (kCannotQuantize.count(std::string(def->name)) != 0) continue;
      const std::vector<float> x = Normal(6 * 256, 2, 1.0f);
      std::vector<std::vector<float>> results;
      for (const int count : {1, 2, 4}) {
        ThreadPool threads(count);
        auto stored = Make(*def, {35, 256, -1, true}, threads);
        if (!stored.ok()) stored = Make(*def, {96, 256, -1, true}, threads);  // outputs in whole words
        ASSERT_TRUE(stored.ok()) << stored.status();
        const auto keep = std::make_shared<StoredLinear>(*stored);
        const auto bound = def->bind(*keep, keep, **backend, Priority::kThroughput, threads);
        if (!bound.ok() && !(*backend)->memory().is_host()) break;  // as above
        ASSERT_TRUE(bound.ok()) << def->name << ": " << bound.status();
        results.push_back(RunForward(**bound, **backend, x, 6, threads));
      }
      if (results.size() < 3) continue;
      EXPECT_EQ(std::memcmp(results[0].data(), results[1].data(), results[0].size() * 4), 0) << def->name;
      EXPECT_EQ(std::memcmp(results[0].data(), results[2].data(), results[0].size() * 4), 0) << def->name;
    }
  }
}

TEST(LinearConformance, RefusalsCarryReasons) {
  ThreadPool threads(1);
  const std::vector<float> weights(64, 1.0f);
  for (const auto& [name, reason] : kCannotQuantize) {
    const auto def = FindLinearStrategy(name);
    ASSERT_TRUE(def.ok());
    LinearSpec spec;
    spec.strategy = name;
    spec.group_size = 32;
    const auto stored = (*def)->quantize({DType::kF32, {1, 64}, weights.data(), 256}, spec, {}, threads);
    EXPECT_EQ(GetErrorReason(stored.status()).reason, reason) << name;
  }
  for (const LinearStrategyDef* def : LinearStrategies()) {
    LinearSpec spec;
    spec.strategy = std::string(def->name);
    spec.group_size = 128;  // does not divide 576, and plain floats have no groups
    const absl::Status status = def->check(spec, 576, 576);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << def->name;
    EXPECT_FALSE(GetErrorReason(status).reason.empty()) << def->name;
    EXPECT_NE(std::string(status.message()).find(std::string(def->name)), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace sage
