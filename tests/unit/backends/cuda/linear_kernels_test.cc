// The linear kernels of the CUDA backend, run by the host emulator: every strategy's packed weights mean what its
// stored bits mean, products are right, and a row has the same bits in any batch and in either kernel.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "engine/api/linear_strategy.h"
#include "engine/backends/cuda/kernels/linear_expand_kernel.h"
#include "engine/backends/cuda/kernels/linear_finish_kernel.h"
#include "engine/quant/fp8.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"
#include "tests/unit/backends/cuda/linear_on_host.h"
#include "tests/unit/linear_strategies/recording_backend.h"

namespace sage::cuda {
namespace {

struct Case {
  const char* strategy;
  int64_t N, K;
  int group_size = -1;
  bool symmetric = true;
  bool act_order = false;
  DType scale_dtype = DType::kF16;
  int block_rows = 1;
  int activation_group_size = -1;
};

struct Layer {
  StoredLinear stored;
  LinearWeight weight;
  std::vector<float> values;  // [N, K]
};

// Quantizes random weights and takes the canonical form that the strategy hands to a backend.
Layer Make(const Case& c) {
  ThreadPool threads(1);
  const LinearStrategyDef* def = FindLinearStrategy(c.strategy).value();
  const std::vector<float> weights = Normal(c.N * c.K, 17, 0.05f);
  LinearSpec spec;
  spec.strategy = c.strategy;
  spec.group_size = c.group_size;
  spec.symmetric = c.symmetric;
  spec.act_order = c.act_order;
  spec.scale_dtype = c.scale_dtype;
  spec.block_rows = c.block_rows;
  spec.activation_group_size = c.activation_group_size;
  LayerPlan plan;
  if (c.act_order) {
    std::mt19937 random(5);
    for (int64_t k = 0; k < c.K; ++k) plan.g_idx.push_back(static_cast<int32_t>(k / c.group_size));
    std::shuffle(plan.g_idx.begin(), plan.g_idx.end(), random);
  }
  Layer layer;
  auto stored = def->quantize({DType::kF32, {c.N, c.K}, weights.data(), weights.size() * 4}, spec, plan, threads);
  if (!stored.ok()) {
    ADD_FAILURE() << c.strategy << ": " << stored.status();
    return layer;
  }
  layer.stored = *std::move(stored);
  const RecordingBackend backend;
  const auto bound = def->bind(layer.stored, nullptr, backend, Priority::kLatency, threads);
  EXPECT_TRUE(bound.ok()) << bound.status();
  layer.weight = std::move(backend.last_weight);
  layer.values.resize(static_cast<size_t>(c.N * c.K));
  EXPECT_TRUE(def->dequantize_rows(layer.stored, 0, c.N, layer.values.data()).ok());
  return layer;
}

constexpr Case kCases[] = {
    {"int4_w4a16", 70, 192, 64},
    {"int4_w4a16", 70, 192, 64, false},
    {"int4_w4a16", 64, 320, 32, true, false, DType::kBF16},
    {"int4_w4a16", 9, 96, 16, false},
    {"int4_w4a16", 65, 256, 128, true, false, DType::kF32},
    {"int4_w4a16", 65, 256, 128, false, false, DType::kF32},
    {"int4_w4a16", 17, 288, 48},
    {"int4_w4a16", 33, 200},
    {"int4_w4a16", 40, 512, 256, false},
    {"gptq_w4a16", 64, 256, 64, true},
    {"gptq_w4a16", 64, 256, 32, true, true},
    {"gptq_w2a16", 64, 256, 64, true},
    {"gptq_w8a16", 64, 128, 64, true},
    {"awq_w4a16", 72, 256, 128, false},
    {"int8_w8a16", 70, 192, 64},
    {"int8_w8a16", 70, 192, 64, false},
    {"bnb_int8_w8a16", 30, 100, -1, true, false, DType::kF32},
    {"gguf_q4_0", 66, 160, 32},
    {"gguf_q4_1", 66, 160, 32, false},
    {"gguf_q8_0", 66, 160, 32},
    {"nf4_w4a16", 65, 192, 64, true, false, DType::kF32},
    {"nf4_w4a16", 10, 96, 64, true, false, DType::kF32},  // blocks of 64 cross rows: segments of 32
    {"fp4_w4a16", 65, 192, 64, true, false, DType::kF32},
    {"mxfp4_w4a16", 65, 192, 32, true, false, DType::kF32},
    {"nvfp4_w4a16", 65, 192, 16, true, false, DType::kF32},
    {"fp8_w8a16", 65, 192, -1, true, false, DType::kF32},
    {"fp8_w8a16", 65, 192, 64, true, false, DType::kF32, 32},
    {"int8_w8a8", 65, 192},
    {"int4_w4a8", 65, 192, 64},
    {"int4_w4a8", 65, 192, 64, false},
    {"fp8_w8a8", 65, 192, -1, true, false, DType::kF32},
    {"fp8_w8a8", 65, 256, 128, true, false, DType::kF32, 128, 128},
};

std::string NameOf(const Case& c) {
  return std::string(c.strategy) + " N=" + std::to_string(c.N) + " K=" + std::to_string(c.K) +
         " g=" + std::to_string(c.group_size) + (c.symmetric ? "" : " asymmetric") + (c.act_order ? " act-order" : "");
}

// Reads a packed layer back as the kernel does: by lane, through the registers of operand A and the record of the
// chunk.
template <Code kCode>
std::vector<float> Unpack(HostLayer& host) {
  const LinearPlan& plan = host.plan;
  std::vector<float> out(static_cast<size_t>(plan.N * plan.K), std::nanf(""));
  std::vector<uint8_t> table(kPairTableBytes);
  for (int i = 0; kCode == Code::kTable16 && i < 256 * 32; ++i) {
    const int byte = i / 32;
    reinterpret_cast<uint32_t*>(table.data())[i] =
        plan.table[static_cast<size_t>(byte & 15)] | static_cast<uint32_t>(plan.table[static_cast<size_t>(byte >> 4)])
                                                         << 16;
  }
  const bool bytes = HasByteActivations(kCode);
  const bool offset = plan.fold == Fold::kOffset;
  const int record_bytes = RecordBytes(plan.wide, offset);
  for (int64_t tile = 0; tile < int64_t{plan.row_blocks} * plan.k_blocks * kRowTiles; ++tile) {
    const int64_t rb = tile / kRowTiles / plan.k_blocks, kb = tile / kRowTiles % plan.k_blocks, rt = tile % kRowTiles;
    for (int lane = 0; lane < 32; ++lane) {
      uint32_t words[8];
      for (int u = 0; u < WeightUnits(kCode); ++u) {
        std::memcpy(words + u * 4, host.codes.as() + (tile * WeightUnits(kCode) + u) * kUnitBytes + lane * 16, 16);
      }
      for (int step = 0; step < Steps(kCode); ++step) {
        uint32_t a[4];
        DecodeStep<kCode>(words, step, plan.constants, table.data() + lane * 4, a);
        for (int i = 0; i < (bytes ? 16 : 8); ++i) {
          const int each = bytes ? 4 : 2, reg = i / each, e = i % each;
          const int k = bytes ? ActivationElement(kCode, lane, 0, (step * 2 + reg / 2) * 4 + e).k
                              : ActivationElement(kCode, lane, step / 2, (step % 2 * 2 + reg / 2) * 2 + e).k;
          const int64_t row = rt * kRowTile + lane / 4 + reg % 2 * 8, n = rb * kRowBlock + row;
          int64_t place = kb * kBlockInputs + k;
          if (n >= plan.N || place >= plan.source.places) continue;
          const uint32_t raw = bytes ? a[reg] >> (8 * e) & 255u : a[reg] >> (16 * e) & 0xffffu;
          const float code = !bytes                   ? F16ToFloat(static_cast<uint16_t>(raw))
                             : kCode == Code::kE4M3A8 ? DecodeE4M3(static_cast<uint8_t>(raw))
                                                      : static_cast<float>(static_cast<int8_t>(raw));
          const int64_t group =
              plan.blocks_per_group == 1 ? kb * plan.chunks + k / plan.chunk_inputs() : kb / plan.blocks_per_group;
          const float2 record = offset
                                    ? LoadRecord<Fold::kOffset>(
                                          plan.records.data() + (rb * plan.groups + group) * kRowBlock * record_bytes,
                                          static_cast<int>(row), plan.wide, false)
                                    : LoadRecord<Fold::kScale>(
                                          plan.records.data() + (rb * plan.groups + group) * kRowBlock * record_bytes,
                                          static_cast<int>(row), plan.wide, false);
          const float unit = plan.factor / DecodeFactor(kCode), value = code * DecodeFactor(kCode);
          const float second = record.y * DecodeFactor(kCode);
          const float w =
              plan.zero_is_code ? (value - second) * (record.x * unit) : value * (record.x * unit) + second * unit;
          if (!plan.order.empty()) place = plan.order[static_cast<size_t>(place)];
          if (place >= 0) out[static_cast<size_t>(n * plan.K + place)] = w;
        }
      }
    }
  }
  return out;
}

std::vector<float> UnpackAny(HostLayer& host) {
  switch (host.plan.code) {
    case Code::kInt4:
      return Unpack<Code::kInt4>(host);
    case Code::kTable16:
      return Unpack<Code::kTable16>(host);
    case Code::kInt8:
      return Unpack<Code::kInt8>(host);
    case Code::kE4M3:
      return Unpack<Code::kE4M3>(host);
    case Code::kE5M2:
      return Unpack<Code::kE5M2>(host);
    case Code::kInt4A8:
      return Unpack<Code::kInt4A8>(host);
    case Code::kInt8A8:
      return Unpack<Code::kInt8A8>(host);
    case Code::kE4M3A8:
      return Unpack<Code::kE4M3A8>(host);
  }
  return {};
}

TEST(LinearKernelsTest, PackedWeightsMeanWhatTheStoredBitsMean) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(NameOf(c));
    const Layer layer = Make(c);
    auto plan = PlanLinear(layer.weight, "test");
    ASSERT_TRUE(plan.ok()) << plan.status();
    HostLayer host(*std::move(plan), 4);
    const std::vector<float> values = UnpackAny(host);
    // Tables of NF4 and FP4 are rounded to f16, bitsandbytes' quotient by 127 is a factor in the canonical form;
    // everything else keeps every bit.
    const std::string name = c.strategy;
    const bool rounded = name == "nf4_w4a16" || name == "fp4_w4a16" || name == "bnb_int8_w8a16";
    for (size_t i = 0; i < values.size(); ++i) {
      if (rounded) {
        ASSERT_NEAR(values[i], layer.values[i], std::fabs(layer.values[i]) * 0x1p-11f) << i;
      } else {
        ASSERT_EQ(values[i], layer.values[i]) << i;
      }
    }
  }
}

double RelativeError(const std::vector<float>& out, const std::vector<float>& x, const Layer& layer, int M) {
  const int64_t N = layer.weight.N, K = layer.weight.K;
  double error = 0, norm = 0;
  for (int m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = layer.weight.bias.empty() ? 0 : layer.weight.bias[static_cast<size_t>(n)];
      for (int64_t k = 0; k < K; ++k) {
        sum += static_cast<double>(x[static_cast<size_t>(m * K + k)]) * layer.values[static_cast<size_t>(n * K + k)];
      }
      const double difference = out[static_cast<size_t>(m * N + n)] - sum;
      error += difference * difference;
      norm += sum * sum;
    }
  }
  return std::sqrt(error / norm);
}

double BoundOf(const Case& c) {
  const std::string name = c.strategy;
  if (name == "fp8_w8a8") return 4e-2;
  if (name == "int8_w8a8" || name == "int4_w4a8") return 1.5e-2;
  return name == "nf4_w4a16" || name == "fp4_w4a16" ? 5e-4 : 4e-4;
}

TEST(LinearKernelsTest, ProductsAreRightAndRowsDoNotDependOnTheBatch) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(NameOf(c));
    Layer layer = Make(c);
    layer.weight.bias = Normal(c.N, 3, 0.1f);
    auto plan = PlanLinear(layer.weight, "test");
    ASSERT_TRUE(plan.ok()) << plan.status();
    HostLayer host(*std::move(plan), 4);
    const int M = 18;
    const std::vector<float> x = Normal(M * c.K, 9, 2.0f);
    PrepareArgs args;
    args.x_stride = c.K;
    args.scale_group = host.plan.fold == Fold::kTokenScale ? c.activation_group_size : 0;
    const auto run = [&](const float* rows, int count) {
      args.x = rows;
      return RunLinear(host, rows, count, HostKernel::kByTokens, size_t{64} << 20, args);
    };
    const std::vector<float> tiled = run(x.data(), M);
    ASSERT_EQ(tiled.size(), static_cast<size_t>(M * c.N));
    EXPECT_LT(RelativeError(tiled, x, layer, M), BoundOf(c));
    for (const int few : {1, 11}) {
      const std::vector<float> streamed = run(x.data() + (M - few) * c.K, few);
      ASSERT_EQ(streamed.size(), static_cast<size_t>(few * c.N));
      for (size_t i = 0; i < streamed.size(); ++i) {
        ASSERT_EQ(streamed[i], tiled[tiled.size() - streamed.size() + i]) << "M=" << few << " at " << i;
      }
    }
  }
}

// Many slices: split over blocks, one after the other, streamed: the same bits.
TEST(LinearKernelsTest, SlicesGiveTheSameBitsHoweverTheyRun) {
  const Case c{"int4_w4a16", 130, 1536, 128, false};
  const Layer layer = Make(c);
  for (const int multiprocessors : {1, 16, 132}) {
    HostLayer host(PlanLinear(layer.weight, "test").value(), multiprocessors);
    SCOPED_TRACE(host.layer.slices);
    const std::vector<float> x = Normal(3 * c.K, 9, 2.0f);
    const std::vector<float> streamed = RunLinear(host, x.data(), 3);
    const std::vector<float> split = RunLinear(host, x.data(), 3, HostKernel::kTile);
    const std::vector<float> in_turn = RunLinear(host, x.data(), 3, HostKernel::kTile, 0);
    ASSERT_FALSE(streamed.empty());
    EXPECT_EQ(streamed, split);
    EXPECT_EQ(streamed, in_turn);
    EXPECT_LT(RelativeError(streamed, x, layer, 3), 4e-4);
  }
}

TEST(LinearKernelsTest, TilesOfManyTokensAndOutputs) {
  const Case c{"int8_w8a16", 300, 128, 64};
  const Layer layer = Make(c);
  HostLayer host(PlanLinear(layer.weight, "test").value(), 1);
  const std::vector<float> x = Normal(70 * c.K, 9, 2.0f);
  const std::vector<float> out = RunLinear(host, x.data(), 70);
  EXPECT_LT(RelativeError(out, x, layer, 70), 4e-4);
}

// Integer activations: the product is exact, so it equals the double sum of the rounded values.
TEST(LinearKernelsTest, ByteActivationsFollowTheFormatsGrid) {
  Layer layer = Make({"int8_w8a8", 20, 128});
  for (const int zero : {0, -17}) {
    layer.weight.integer.activations.scale = zero == 0 ? 0.0f : 0.05f;
    layer.weight.integer.activations.zero = zero;
    HostLayer host(PlanLinear(layer.weight, "test").value(), 4);
    const std::vector<float> x = Normal(2 * 128, 4, 1.0f);
    PrepareArgs args;
    args.x = x.data();
    args.x_stride = 128;
    args.static_scale = layer.weight.integer.activations.scale;
    args.zero = zero;
    const std::vector<float> out = RunLinear(host, x.data(), 2, HostKernel::kByTokens, size_t{1} << 20, args);
    for (int m = 0; m < 2; ++m) {
      float amax = 0;
      for (int k = 0; k < 128; ++k) amax = std::max(amax, std::fabs(x[static_cast<size_t>(m * 128 + k)]));
      const float scale = zero == 0 ? amax / 127.5f : 0.05f;
      for (int64_t n = 0; n < 20; ++n) {
        double sum = 0;
        for (int k = 0; k < 128; ++k) {
          const float code =
              std::min(127.0f, std::max(-128.0f, std::nearbyint(x[static_cast<size_t>(m * 128 + k)] / scale) +
                                                     static_cast<float>(zero)));
          sum += static_cast<double>(layer.values[static_cast<size_t>(n * 128 + k)]) * (code - zero) * scale;
        }
        EXPECT_NEAR(out[static_cast<size_t>(m * 20 + n)], sum, 2e-5 * (1 + std::fabs(sum)));
      }
    }
  }
}

TEST(LinearKernelsTest, NormAndGatedProductAreFused) {
  const Case c{"int4_w4a16", 20, 192, 64};
  const Layer layer = Make(c);
  HostLayer host(PlanLinear(layer.weight, "test").value(), 4);
  const std::vector<float> x = Normal(3 * c.K, 4, 1.0f), other = Normal(3 * c.K, 5, 1.0f);
  std::vector<float> normed(x.size()), gated(x.size());
  for (size_t m = 0; m < 3; ++m) {
    double squares = 0;
    for (size_t k = 0; k < 192; ++k) squares += double{x[m * 192 + k]} * x[m * 192 + k];
    for (size_t k = 0; k < 192; ++k) {
      const size_t i = m * 192 + k;
      normed[i] = static_cast<float>(x[i] / std::sqrt(squares / 192 + 1e-5) * other[k]);
      gated[i] = static_cast<float>(x[i] / (1 + std::exp(-double{x[i]})) * other[i]);
    }
  }
  PrepareArgs args;
  args.x = x.data();
  args.x_stride = c.K;
  args.other = other.data();
  args.other_stride = c.K;
  args.eps = 1e-5f;
  const auto run = [&](RowSource source) {
    return RunLinear(host, x.data(), 3, HostKernel::kByTokens, size_t{1} << 20, args, source);
  };
  EXPECT_LT(RelativeError(run(RowSource::kRmsNorm), normed, layer, 3), 4e-4);
  EXPECT_LT(RelativeError(run(RowSource::kSiluMul), gated, layer, 3), 4e-4);
}

TEST(LinearKernelsTest, RowsThatAreNotFiniteBecomeNaNAndOnlyThey) {
  const Case c{"int4_w4a16", 20, 128, 64};
  const Layer layer = Make(c);
  HostLayer host(PlanLinear(layer.weight, "test").value(), 4);
  std::vector<float> x = Normal(4 * c.K, 4, 1.0f);
  x[130] = INFINITY;
  x[2 * 128 + 5] = NAN;
  std::fill(x.begin() + 3 * 128, x.end(), 0.0f);
  const std::vector<float> out = RunLinear(host, x.data(), 4);
  for (size_t n = 0; n < 20; ++n) {
    EXPECT_TRUE(std::isfinite(out[n]));
    EXPECT_TRUE(std::isnan(out[20 + n]));
    EXPECT_TRUE(std::isnan(out[40 + n]));
    EXPECT_EQ(out[60 + n], 0.0f);
  }
}

// From the smallest to the largest magnitudes a token keeps eleven bits.
TEST(LinearKernelsTest, TokensOfAnyMagnitudeKeepTheirBits) {
  const Case c{"int8_w8a16", 20, 128, 64};
  const Layer layer = Make(c);
  HostLayer host(PlanLinear(layer.weight, "test").value(), 4);
  for (const float spread : {1e-25f, 1e-6f, 1e5f, 1e20f}) {
    const std::vector<float> x = Normal(2 * c.K, 4, spread);
    EXPECT_LT(RelativeError(RunLinear(host, x.data(), 2), x, layer, 2), 4e-4) << spread;
  }
}

template <Code kCode, Fold kFold>
std::vector<uint16_t> Expanded(const HostLayer& host, int first_block, int row_blocks) {
  const auto K = static_cast<int>(host.plan.K);
  AlignedBytes to(static_cast<size_t>(row_blocks) * kRowBlock * static_cast<size_t>(K) * 2);
  const ExpandArgs args{host.layer, first_block, K, to.as<uint16_t>()};
  const auto blocks = static_cast<unsigned>((host.layer.k_blocks + kExpandBlocks - 1) / kExpandBlocks);
  simt::Launch({blocks, static_cast<unsigned>(row_blocks), 1}, {kExpandThreads, 1, 1}, kPairTableBytes,
               [&] { ExpandRows<kCode, kFold>(args); });
  return {to.as<uint16_t>(), to.as<uint16_t>() + static_cast<int64_t>(row_blocks) * kRowBlock * K};
}

TEST(LinearKernelsTest, ExpandedRowsAreTheWeightsInBf16) {
  for (const Case& c :
       {Case{"int4_w4a16", 130, 640, 128, false}, Case{"int8_w8a16", 130, 192, 32},
        Case{"nf4_w4a16", 130, 192, 64, true, false, DType::kF32},
        Case{"fp8_w8a16", 130, 200, -1, true, false, DType::kF32}, Case{"gguf_q4_1", 130, 160, 32, false}}) {
    SCOPED_TRACE(NameOf(c));
    const Layer layer = Make(c);
    const HostLayer host(PlanLinear(layer.weight, "test").value(), 4);
    const bool offset = host.plan.fold == Fold::kOffset;
    const std::vector<uint16_t> rows = host.plan.code == Code::kInt8 ? Expanded<Code::kInt8, Fold::kScale>(host, 1, 2)
                                       : host.plan.code == Code::kTable16
                                           ? Expanded<Code::kTable16, Fold::kScale>(host, 1, 2)
                                       : host.plan.code == Code::kE4M3 ? Expanded<Code::kE4M3, Fold::kScale>(host, 1, 2)
                                       : offset ? Expanded<Code::kInt4, Fold::kOffset>(host, 1, 2)
                                                : Expanded<Code::kInt4, Fold::kScale>(host, 1, 2);
    for (int64_t n = kRowBlock; n < c.N; ++n) {
      for (int64_t k = 0; k < c.K; ++k) {
        const float w = layer.values[static_cast<size_t>(n * c.K + k)];
        ASSERT_NEAR(BF16ToFloat(rows[static_cast<size_t>((n - kRowBlock) * c.K + k)]), w,
                    std::fabs(w) * 0x1.2p-8f + 1e-7f)
            << n << " " << k;
      }
    }
  }
}

// Rows for a library, and what is left to do after it.
TEST(LinearKernelsTest, PlainRowsAndTheirLastPass) {
  const int K = 80, M = 3;
  const std::vector<float> x = Normal(M * K, 4, 1.0f);
  for (const bool integers : {true, false}) {
    AlignedBytes codes(M * K);
    std::vector<float> scale(M);
    PrepareArgs args;
    args.x = x.data();
    args.x_stride = args.row_bytes = args.K = args.places = K;
    args.k_blocks = 2;
    args.codes = codes.as();
    args.token_scale = scale.data();
    simt::Launch({M, 1, 1}, {kPrepareThreads, 1, 1}, PrepareShared(2), [&] {
      integers ? PrepareRows<RowForm::kInt8, RowSource::kPlain>(args)
               : PrepareRows<RowForm::kE4M3, RowSource::kPlain>(args);
    });
    for (size_t i = 0; i < x.size(); ++i) {
      const float own = scale[i / K];
      const float value = integers ? static_cast<int8_t>(codes.as()[i]) * own : DecodeE4M3(codes.as()[i]) * own;
      ASSERT_NEAR(value, x[i], integers ? own * 0.51f : std::fabs(x[i]) / 16 + own * 0x1p-9f) << i;
    }
  }
  const std::vector<int32_t> sums = {3, -5, 7, 100, 200, -300};
  std::vector<float> out(6);
  std::memcpy(out.data(), sums.data(), 24);
  const float token[] = {0.5f, 2.0f}, channel[] = {1.0f, 0.25f, 3.0f}, bias[] = {1.0f, 2.0f, 3.0f};
  const FinishArgs finish{out.data(), 3, token, channel, bias, out.data(), 3, 3, true};
  simt::Launch({1, 2, 1}, {256, 1, 1}, 128, [&] { FinishProduct(finish); });
  EXPECT_EQ(out, (std::vector<float>{2.5f, 1.375f, 13.5f, 201.0f, 102.0f, -1797.0f}));
}

TEST(LinearPlanTest, RefusesWhatItCannotHold) {
  Layer layer = Make({"int4_w4a16", 16, 128, 64});
  const auto reason = [&](const LinearWeight& w) { return std::string(PlanLinear(w, "test").status().message()); };
  LinearWeight bad = layer.weight;
  bad.integer.codes.pop_back();
  EXPECT_NE(reason(bad).find("codes must be [N, K]"), std::string::npos);
  bad = layer.weight;
  bad.integer.group_size = 8;
  bad.integer.scale.resize(16 * 16);
  EXPECT_NE(reason(bad).find("multiple of 16"), std::string::npos) << reason(bad);
  bad = layer.weight;
  bad.integer.scale[3] = INFINITY;
  EXPECT_NE(reason(bad).find("finite"), std::string::npos);
  bad = layer.weight;
  bad.integer.g_idx.assign(128, 7);
  EXPECT_NE(reason(bad).find("g_idx"), std::string::npos);
  bad = layer.weight;
  bad.K = int64_t{1} << 40;
  EXPECT_NE(reason(bad).find("K at most"), std::string::npos);
  bad = layer.weight;
  bad.bias.resize(3);
  EXPECT_NE(reason(bad).find("bias"), std::string::npos);
  LinearWeight blocks;
  blocks.N = 4;
  blocks.K = 64;
  blocks.blocks = {"q4_0", reinterpret_cast<const uint8_t*>(""), 1};
  EXPECT_NE(reason(blocks).find("must fill"), std::string::npos);
  LinearWeight floats;
  floats.N = 1;
  floats.K = 16;
  const std::vector<uint8_t> nan(16, 0x7f);
  floats.floats.codes = nan.data();
  floats.floats.bytes = 16;
  floats.floats.block_columns = 16;
  floats.floats.scale = {1.0f};
  EXPECT_NE(reason(floats).find("must be finite"), std::string::npos);
}

}  // namespace
}  // namespace sage::cuda
