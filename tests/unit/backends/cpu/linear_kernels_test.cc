// Every linear kernel of the machine against f64, and against itself: tiers, batch sizes and thread counts must give
// the same bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "engine/backends/cpu/kernel.h"
#include "engine/tensor/float_convert.h"

namespace sage {
namespace {

constexpr int64_t kRows = 33;

struct Layer {
  LinearWeight weight;
  std::vector<double> values;  // [N, K] what the weights mean
};

struct Shape2 {
  int64_t N, K, group;
  bool offset;
};

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float Uniform(float limit) { return std::uniform_real_distribution<float>(-limit, limit)(engine_); }
  uint32_t Bits() { return engine_(); }

 private:
  std::mt19937 engine_;
};

void FillDense(const std::string& strategy, Random& random, Layer* out) {
  const DType dtype = strategy == "f32" ? DType::kF32 : strategy == "f16" ? DType::kF16 : DType::kBF16;
  auto tensor = std::make_shared<Tensor>(*Tensor::Allocate(dtype, {out->weight.N, out->weight.K}));
  for (size_t i = 0; i < out->values.size(); ++i) {
    float value = random.Uniform(0.1f);
    if (dtype == DType::kF32) {
      tensor->as<float>()[i] = value;
    } else {
      uint16_t& bits = tensor->as<uint16_t>()[i];
      bits = dtype == DType::kF16 ? FloatToF16(value) : FloatToBF16(value);
      value = dtype == DType::kF16 ? F16ToFloat(bits) : BF16ToFloat(bits);
    }
    out->values[i] = value;
  }
  out->weight.dense.values = tensor->view();
  out->weight.keep_alive = tensor;
}

void FillBlocks(const std::string& strategy, Random& random, Layer* out) {
  const bool q8 = strategy == "gguf_q8_0", q41 = strategy == "gguf_q4_1";
  const int64_t block = q8 ? 34 : q41 ? 20 : 18, count = static_cast<int64_t>(out->values.size()) / 32;
  auto tensor = std::make_shared<Tensor>(*Tensor::Allocate(DType::kU8, {count * block}));
  for (int64_t b = 0; b < count; ++b) {
    uint8_t* to = tensor->as<uint8_t>() + b * block;
    const uint16_t d = FloatToF16(random.Uniform(0.01f)), m = FloatToF16(random.Uniform(0.1f));
    std::memcpy(to, &d, 2);
    if (q41) std::memcpy(to + 2, &m, 2);
    uint8_t* q = to + (q41 ? 4 : 2);
    for (int i = 0; i < (q8 ? 32 : 16); ++i) q[i] = static_cast<uint8_t>(random.Bits());
    for (int i = 0; i < 32; ++i) {
      int code = q8 ? static_cast<int8_t>(q[i]) : i < 16 ? q[i] & 15 : q[i - 16] >> 4;
      if (!q8 && !q41) code -= 8;
      out->values[static_cast<size_t>(b * 32 + i)] =
          static_cast<double>(F16ToFloat(d)) * code + (q41 ? F16ToFloat(m) : 0.0f);
    }
  }
  out->weight.blocks = {strategy.substr(5), tensor->as<uint8_t>(), tensor->bytes()};
  out->weight.keep_alive = tensor;
}

bool HasEightBitActivations(const std::string& strategy) { return strategy.substr(strategy.size() - 2) == "a8"; }

void FillInteger(const std::string& strategy, const Shape2& shape, Random& random, Layer* out) {
  IntegerWeight& w = out->weight.integer;
  const bool four = strategy.compare(0, 4, "int4") == 0;
  w.activations.eight_bits = HasEightBitActivations(strategy);
  const int64_t groups = (shape.K + shape.group - 1) / shape.group;
  w.bits = four ? 4 : 8;
  w.group_size = shape.group;
  w.codes.resize(out->values.size());
  w.scale.resize(static_cast<size_t>(shape.N * groups));
  if (shape.offset) w.offset.resize(w.scale.size());
  for (int8_t& code : w.codes) code = static_cast<int8_t>(four ? random.Bits() % 16 - 8 : random.Bits() % 256 - 128);
  for (float& scale : w.scale) scale = std::fabs(random.Uniform(0.01f));
  for (float& offset : w.offset) offset = random.Uniform(0.1f);
  for (int64_t n = 0; n < shape.N; ++n) {
    for (int64_t k = 0; k < shape.K; ++k) {
      const size_t g = static_cast<size_t>(n * groups + k / shape.group), i = static_cast<size_t>(n * shape.K + k);
      out->values[i] = static_cast<double>(w.scale[g]) * w.codes[i] + (shape.offset ? w.offset[g] : 0.0f);
    }
  }
}

Layer MakeLayer(const std::string& strategy, const Shape2& shape) {
  Layer layer;
  layer.weight.N = shape.N;
  layer.weight.K = shape.K;
  layer.values.resize(static_cast<size_t>(shape.N * shape.K));
  Random random(static_cast<uint32_t>(shape.N * 131 + shape.K * 7 + shape.group));
  if (strategy.compare(0, 4, "gguf") == 0) {
    FillBlocks(strategy, random, &layer);
  } else if (strategy.compare(0, 3, "int") == 0) {
    FillInteger(strategy, shape, random, &layer);
  } else {
    FillDense(strategy, random, &layer);
  }
  for (int64_t n = 0; n < shape.N; ++n) layer.weight.bias.push_back(random.Uniform(1));
  return layer;
}

std::vector<float> Inputs(int64_t K, int64_t rows = kRows) {
  Random random(5);
  std::vector<float> x(static_cast<size_t>(rows * K));
  for (float& value : x) value = random.Uniform(1);
  x[3] = 20;  // one row with an outlier
  return x;
}

// Rows [begin, begin + M) of x.
std::vector<float> Forward(const BoundLinear& linear, ThreadPool& threads, const std::vector<float>& x, int64_t begin,
                           int64_t M) {
  ActivationCache cache;
  StepContext ctx;
  ctx.threads = &threads;
  ctx.activations = &cache;
  std::vector<float> out(static_cast<size_t>(M * linear.N()));
  const StepValue value{ctx.NewValue(), x.data() + begin * linear.K(), M, linear.K(), linear.K()};
  linear.Forward(ctx, value, out.data(), linear.N());
  return out;
}

double RelativeError(const Layer& layer, const std::vector<float>& x, const std::vector<float>& out) {
  const int64_t N = layer.weight.N, K = layer.weight.K;
  double error = 0, norm = 0;
  for (int64_t m = 0; m < kRows; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double want = layer.weight.bias[static_cast<size_t>(n)];
      for (int64_t k = 0; k < K; ++k) {
        want += static_cast<double>(x[static_cast<size_t>(m * K + k)]) * layer.values[static_cast<size_t>(n * K + k)];
      }
      const double difference = out[static_cast<size_t>(m * N + n)] - want;
      error += difference * difference;
      norm += want * want;
    }
  }
  return std::sqrt(error / norm);
}

bool SameBits(const std::vector<float>& a, const float* b) {
  return std::memcmp(a.data(), b, a.size() * sizeof(float)) == 0;
}

std::vector<Shape2> ShapesOf(const std::string& strategy) {
  std::vector<Shape2> out;
  for (const int64_t N : {1, 15, 17, 33, 144}) {
    for (const int64_t K : {32, 48, 64, 576}) {
      if (strategy.compare(0, 3, "int") == 0) {
        for (const int64_t group : {8, 12, 16, 24, 32, 64, 96, 192, 288, 576}) {
          if (K % group == 0) out.push_back({N, K, group, N % 2 == 1});
        }
      } else if (strategy.compare(0, 4, "gguf") != 0 || K % 32 == 0) {
        out.push_back({N, K, K, false});
      }
    }
  }
  if (strategy.compare(0, 3, "int") != 0) return out;
  // Groups of one and two inputs, and those of 2 x 257, 257 and 3 x 257 inputs, which are padded; rows whose last group
  // is short, as files may have them.
  for (const Shape2& shape : {Shape2{17, 48, 1, true},
                              {16, 48, 2, false},
                              {33, 50, 3, true},
                              {17, 1028, 514, true},
                              {34, 600, 257, false},
                              {15, 1542, 771, true},
                              {18, 900, 514, true}}) {
    out.push_back(shape);
  }
  return out;
}

// Checks every kernel of one strategy on one shape.
void CheckShape(const std::string& strategy, const Shape2& shape, ThreadPool& one, ThreadPool& three) {
  const Layer layer = MakeLayer(strategy, shape);
  const std::vector<float> x = Inputs(shape.K);
  LinearKernelQuery query;
  query.strategy = strategy;
  query.N = shape.N;
  query.K = shape.K;
  query.group_size = shape.group;
  std::vector<float> first;
  for (const LinearKernelDef* def : CpuLinearKernels()) {
    if (def->strategy != strategy || !def->refuse(query, HostCpu()).empty()) continue;
    SCOPED_TRACE(testing::Message() << def->name << " N=" << shape.N << " K=" << shape.K << " group=" << shape.group);
    auto bound = def->bind(layer.weight, three);
    ASSERT_TRUE(bound.ok()) << bound.status();
    const std::vector<float> whole = Forward(**bound, three, x, 0, kRows);
    const double tolerance = HasEightBitActivations(strategy)           ? 3e-2
                             : strategy[0] == 'i' || strategy[0] == 'g' ? 1e-4
                                                                        : 1e-6;
    EXPECT_LE(RelativeError(layer, x, whole), tolerance);
    if (first.empty()) first = whole;
    EXPECT_TRUE(SameBits(first, whole.data())) << "differs from another tier";
    for (const int64_t M : {1, 2, 3, 7, 8, 21}) {
      for (ThreadPool* threads : {&one, &three}) {
        const std::vector<float> part = Forward(**bound, *threads, x, kRows - M, M);
        EXPECT_TRUE(SameBits(part, whole.data() + (kRows - M) * shape.N))
            << "M=" << M << " threads " << threads->size();
      }
    }
  }
  EXPECT_FALSE(first.empty()) << "no kernel ran";
}

class LinearKernels : public testing::TestWithParam<const char*> {};

TEST_P(LinearKernels, SameBitsInEveryTierBatchAndThreadCount) {
  ThreadPool one(1), three(3);
  for (const Shape2& shape : ShapesOf(GetParam())) CheckShape(GetParam(), shape, one, three);
}

// A value that is not finite must show in its row, and only there.
TEST_P(LinearKernels, NonFiniteInputsShow) {
  ThreadPool one(1);
  const std::string strategy = GetParam();
  const Layer layer = MakeLayer(strategy, {16, 64, 64, true});
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> x = Inputs(64);
    x[64 + 5] = poison;
    for (const LinearKernelDef* def : CpuLinearKernels()) {
      if (def->strategy != strategy || !def->refuse({}, HostCpu()).empty()) continue;
      auto bound = def->bind(layer.weight, one);
      ASSERT_TRUE(bound.ok()) << bound.status();
      const std::vector<float> out = Forward(**bound, one, x, 0, 3);
      for (int64_t n = 0; n < 16; ++n) {
        EXPECT_TRUE(std::isfinite(out[static_cast<size_t>(n)])) << def->name;
        EXPECT_FALSE(std::isfinite(out[static_cast<size_t>(16 + n)])) << def->name << " hides " << poison;
        EXPECT_TRUE(std::isfinite(out[static_cast<size_t>(32 + n)])) << def->name;
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, LinearKernels,
                         testing::Values("f32", "f16", "bf16", "int8_w8a16", "int4_w4a16", "int8_w8a8", "int4_w4a8",
                                         "gguf_q4_0", "gguf_q4_1", "gguf_q8_0"));

// Many rows take other paths (shared wide weights, several chunks of rows); each row keeps the bits it has alone.
TEST_P(LinearKernels, ManyRowsHaveTheBitsOfOne) {
  ThreadPool one(1), three(3);
  const std::string strategy = GetParam();
  for (const Shape2& shape : {Shape2{50, 192, 64, true}, {70, 96, 96, false}, {16, 320, 160, false}}) {
    const Layer layer = MakeLayer(strategy, shape);
    constexpr int64_t kMany = 261;
    const std::vector<float> x = Inputs(shape.K, kMany);
    for (const LinearKernelDef* def : CpuLinearKernels()) {
      if (def->strategy != strategy || !def->refuse({}, HostCpu()).empty()) continue;
      auto bound = def->bind(layer.weight, one);
      ASSERT_TRUE(bound.ok()) << bound.status();
      for (ThreadPool* threads : {&one, &three}) {
        const std::vector<float> whole = Forward(**bound, *threads, x, 0, kMany);
        for (const int64_t m : {int64_t{0}, int64_t{7}, int64_t{127}, int64_t{128}, int64_t{255}, kMany - 1}) {
          const std::vector<float> row = Forward(**bound, one, x, m, 1);
          EXPECT_TRUE(SameBits(row, whole.data() + m * shape.N)) << def->name << " row " << m << " K=" << shape.K;
        }
      }
    }
  }
}

// 8-bit activations as the definition says: exact integer sums of each block, then one f32 expression. Written out
// here without vectors; extreme codes on both sides would show any saturation.
std::vector<float> EightBitReference(const LinearWeight& weight, const std::vector<float>& x, int64_t M,
                                     int64_t block) {
  const IntegerWeight& w = weight.integer;
  const int64_t K = weight.K, groups = (K + w.group_size - 1) / w.group_size;
  std::vector<float> out;
  for (int64_t m = 0; m < M; ++m) {
    const float* row = x.data() + m * K;
    float amax = 0;
    for (int64_t k = 0; k < K; ++k) amax = std::max(amax, std::fabs(row[k]));
    const float scale = w.activations.scale > 0 ? w.activations.scale : amax / 127.5f;
    for (int64_t n = 0; n < weight.N; ++n) {
      float acc = 0;
      for (int64_t begin = 0; begin < K;) {
        const int64_t end = std::min({K, begin + block, (begin / w.group_size + 1) * w.group_size});
        int32_t dot = 0, sum = 0;
        for (int64_t k = begin; k < end; ++k) {
          const float shifted = std::nearbyintf(row[k] / scale) + static_cast<float>(w.activations.zero);
          const int code = static_cast<int>(std::max(-128.0f, std::min(127.0f, shifted))) - w.activations.zero;
          dot += code * w.codes[static_cast<size_t>(n * K + k)];
          sum += code;
        }
        const auto g = static_cast<size_t>(n * groups + begin / w.group_size);
        begin = end;
        acc = std::fma(static_cast<float>(dot), w.scale[g] * scale, acc);
        if (!w.offset.empty()) acc = std::fma(w.offset[g], scale * static_cast<float>(sum), acc);
      }
      out.push_back(acc + weight.bias[static_cast<size_t>(n)]);
    }
  }
  return out;
}

TEST(LinearKernels, EightBitActivationsAreExact) {
  ThreadPool one(1);
  for (const std::string strategy : {"int8_w8a8", "int4_w4a8"}) {
    for (const Shape2& shape : {Shape2{33, 192, 64, true},
                                {20, 100, 100, false},
                                {18, 512, 512, true},
                                {17, 96, 8, true},
                                {19, 72, 12, false},
                                {18, 36, 2, true},
                                {21, 1028, 514, true},
                                {18, 900, 514, false}}) {
      for (const auto& [scale, zero] : {std::pair{0.0f, 0}, {0.01f, 0}, {0.02f, -37}, {0.01f, 127}, {0.01f, -128}}) {
        Layer layer = MakeLayer(strategy, shape);
        IntegerWeight& w = layer.weight.integer;
        w.activations.scale = scale;
        w.activations.zero = zero;
        const int low = w.bits == 4 ? -8 : -128;
        for (size_t i = 0; i < w.codes.size() / 2; ++i) w.codes[i] = static_cast<int8_t>(i % 7 == 3 ? -low - 1 : low);
        std::vector<float> x = Inputs(shape.K, 19);
        for (int64_t k = 0; k < 2 * shape.K; ++k) x[static_cast<size_t>(k)] = k < shape.K ? -30.0f : 30.0f;
        const int64_t block = shape.group <= 256 ? shape.group : shape.group == 514 ? 172 : 256;
        const std::vector<float> want = EightBitReference(layer.weight, x, 19, block);
        for (const LinearKernelDef* def : CpuLinearKernels()) {
          if (def->strategy != strategy || !def->refuse({}, HostCpu()).empty()) continue;
          auto bound = def->bind(layer.weight, one);
          ASSERT_TRUE(bound.ok()) << bound.status();
          for (const int64_t M : {1, 5, 19}) {
            const std::vector<float> out = Forward(**bound, one, x, 0, M);
            EXPECT_TRUE(SameBits(out, want.data())) << def->name << " K=" << shape.K << " zero " << zero << " M=" << M;
          }
        }
      }
    }
  }
}

// Sizes that no layer has are refused by every kernel of every strategy, and a query that names none is not.
TEST(LinearKernels, EveryKernelRefusesImpossibleSizes) {
  for (const LinearKernelDef* def : CpuLinearKernels()) {
    if (!def->refuse({}, HostCpu()).empty()) continue;  // another tier
    LinearKernelQuery query;
    query.N = -1;
    EXPECT_NE(def->refuse(query, HostCpu()), "") << def->name;
    query.N = int64_t{1} << 31;
    EXPECT_NE(def->refuse(query, HostCpu()), "") << def->name;
    query.N = 16;
    query.K = -32;
    EXPECT_NE(def->refuse(query, HostCpu()), "") << def->name;
    query.K = int64_t{1} << 40;
    EXPECT_NE(def->refuse(query, HostCpu()), "") << def->name;
    query.K = 64;
    EXPECT_EQ(def->refuse(query, HostCpu()), "") << def->name;
    for (const int64_t group : {int64_t{0}, int64_t{-2}, int64_t{-128}}) {
      query.group_size = group;
      EXPECT_NE(def->refuse(query, HostCpu()), "") << def->name << " group " << group;
    }
  }
}

// Runs a layer on every kernel of a strategy and compares it with what its values mean; returns the bytes it takes.
size_t CheckMeaning(const std::string& strategy, const Layer& layer) {
  ThreadPool one(1);
  const std::vector<float> x = Inputs(layer.weight.K);
  size_t bytes = 0;
  std::vector<float> first;
  for (const LinearKernelDef* def : CpuLinearKernels()) {
    if (def->strategy != strategy || !def->refuse({}, HostCpu()).empty()) continue;
    auto bound = def->bind(layer.weight, one);
    EXPECT_TRUE(bound.ok()) << bound.status();
    if (!bound.ok()) return 0;
    bytes = (*bound)->weight_bytes();
    const std::vector<float> whole = Forward(**bound, one, x, 0, kRows);
    EXPECT_LE(RelativeError(layer, x, whole), 1e-4) << def->name;
    if (first.empty()) first = whole;
    EXPECT_TRUE(SameBits(first, whole.data())) << def->name << " differs from another tier";
    for (const int64_t M : {1, 5, 11}) {
      EXPECT_TRUE(SameBits(Forward(**bound, one, x, 0, M), whole.data())) << def->name << " M=" << M;
    }
  }
  return bytes;
}

// Codes of 4 bits in bytes take half the memory, and scales that f16 holds exactly half of theirs.
TEST(LinearKernels, NarrowCodesAndScalesAreStoredNarrow) {
  for (const auto& [low, high] : {std::pair{0, 15}, {-8, 7}, {-4, 3}, {-9, 7}, {0, 16}}) {
    Layer layer = MakeLayer("int8_w8a16", {33, 192, 32, true});
    IntegerWeight& w = layer.weight.integer;
    Random random(3);
    for (int8_t& code : w.codes) {
      code = static_cast<int8_t>(low + static_cast<int>(random.Bits() % static_cast<uint32_t>(high - low + 1)));
    }
    w.codes[5] = static_cast<int8_t>(low);
    w.codes[6] = static_cast<int8_t>(high);
    for (const bool half : {false, true}) {
      for (std::vector<float>* values : {&w.scale, &w.offset}) {
        for (float& v : *values) v = half ? F16ToFloat(FloatToF16(v)) : v;
      }
      for (size_t i = 0; i < layer.values.size(); ++i) {
        const size_t g = i / 32;
        layer.values[i] = static_cast<double>(w.scale[g]) * w.codes[i] + w.offset[g];
      }
      const size_t padded = 48 * 192, narrow = high - low > 15 || (low < -8) ? padded : padded / 2;
      EXPECT_EQ(CheckMeaning("int8_w8a16", layer), narrow + 48 * 6 * (half ? 4 : 8)) << low << " half " << half;
    }
  }
}

TEST(LinearKernels, UnsignedNibblesAreServed) {
  Layer layer = MakeLayer("int4_w4a16", {20, 96, 32, true});
  IntegerWeight& w = layer.weight.integer;
  w.codes_signed = false;
  for (size_t i = 0; i < w.codes.size(); ++i) {
    w.codes[i] = static_cast<int8_t>(w.codes[i] + 8);
    layer.values[i] += 8 * static_cast<double>(w.scale[i / 32]);
  }
  EXPECT_GT(CheckMeaning("int4_w4a16", layer), 0u);
}

// A packed layer of blocks keeps the bits a weight of the file has: rows padded to whole panels, nothing else.
TEST(LinearKernels, BlocksKeepTheirSize) {
  for (const auto& [strategy, bytes] :
       {std::pair<std::string, size_t>{"gguf_q4_0", 18}, {"gguf_q4_1", 20}, {"gguf_q8_0", 34}}) {
    EXPECT_EQ(CheckMeaning(strategy, MakeLayer(strategy, {32, 320, 320, false})), 32 * 10 * bytes) << strategy;
  }
}

// What a kernel accepts it can bind.
TEST(LinearKernels, RefusalsAgreeWithBinding) {
  ThreadPool one(1);
  LinearKernelQuery query;
  query.strategy = "int4_w4a16";
  query.N = 16;
  query.K = 1028;
  query.group_size = 514;  // 2 x 257: no block of 64..256 divides it
  auto backend = OpenBackend("cpu");
  ASSERT_TRUE(backend.ok());
  for (const int64_t K : {1028, 514}) {
    query.K = K;
    EXPECT_NE((*backend)->SelectLinear(query).kernel, "");
    EXPECT_TRUE((*backend)->BindLinear(query, MakeLayer("int4_w4a16", {16, K, 514, false}).weight, one).ok());
  }
  query.strategy = "gguf_q8_0";
  query.K = 48;
  EXPECT_EQ((*backend)->SelectLinear(query).kernel, "");
}

}  // namespace
}  // namespace sage
