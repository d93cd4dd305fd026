// f32, f16, bf16, the ggml block strategies and int8_affine: conversion, exact meaning, binding, refusals.
#include <cmath>
#include <cstring>
#include <random>

#include "engine/api/linear_strategy.h"
#include "engine/base/status.h"
#include "engine/quant/ggml_blocks.h"
#include "engine/tensor/float_convert.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"
#include "tests/unit/linear_strategies/recording_backend.h"

namespace sage {
namespace linear_strategies {
extern const LinearStrategyDef kBf16, kF16, kF32, kGgufQ40, kGgufQ41, kGgufQ80, kInt8Affine;
}  // namespace linear_strategies
namespace {

using namespace linear_strategies;

std::vector<float> RandomWeights(int64_t count, uint32_t seed) { return Normal(count, seed, 0.1f); }

TensorView ViewOf(const std::vector<float>& values, int64_t N, int64_t K) {
  return {DType::kF32, {N, K}, values.data(), values.size() * 4};
}

LinearSpec SpecOf(const LinearStrategyDef& def) {
  LinearSpec spec;
  spec.strategy = std::string(def.name);
  return spec;
}

TEST(DenseLinear, ConvertsHalfToEvenAndBindsWithoutCopy) {
  ThreadPool threads(2);
  const std::vector<float> weights = RandomWeights(5 * 7, 1);
  for (const LinearStrategyDef* def : {&kF32, &kF16, &kBf16}) {
    const auto stored = def->quantize(ViewOf(weights, 5, 7), SpecOf(*def), {}, threads);
    ASSERT_TRUE(stored.ok()) << stored.status();
    std::vector<float> out(14);
    ASSERT_TRUE(def->dequantize_rows(*stored, 2, 4, out.data()).ok());
    for (size_t i = 0; i < 14; ++i) {
      const float x = weights[14 + i];
      const float expected = def == &kF32 ? x : def == &kF16 ? F16ToFloat(FloatToF16(x)) : BF16ToFloat(FloatToBF16(x));
      EXPECT_EQ(out[i], expected);
    }
    RecordingBackend backend;
    ASSERT_TRUE(def->bind(*stored, stored->owned[0], backend, Priority::kLatency, threads).ok());
    EXPECT_EQ(backend.last_query.strategy, def->name);
    EXPECT_EQ(backend.last_weight.dense.values.data, stored->tensors.at("weight").data);
    EXPECT_EQ(backend.last_weight.keep_alive.get(), stored->owned[0].get());
  }
}

TEST(DenseLinear, MisalignedFileDataIsCopiedAndBiasConverted) {
  ThreadPool threads(1);
  std::vector<uint8_t> bytes(2 * 4 * 4 + 1, 0);
  const float values[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  std::memcpy(bytes.data() + 1, values, 32);
  const uint16_t bias[2] = {FloatToBF16(0.5f), FloatToBF16(-2.0f)};
  StoredLinear stored;
  stored.spec = SpecOf(kF32);
  stored.N = 2;
  stored.K = 4;
  stored.tensors["weight"] = {DType::kF32, {2, 4}, bytes.data() + 1, 32};
  stored.bias = {DType::kBF16, {2}, bias, 4};
  RecordingBackend backend;
  ASSERT_TRUE(kF32.bind(stored, nullptr, backend, Priority::kLatency, threads).ok());
  EXPECT_EQ(std::memcmp(backend.last_weight.dense.values.data, values, 32), 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(backend.last_weight.dense.values.data) % 4, 0u);
  EXPECT_EQ(backend.last_weight.bias, (std::vector<float>{0.5f, -2.0f}));
  stored.bias.shape = {3};
  EXPECT_EQ(GetErrorReason(kF32.bind(stored, nullptr, backend, Priority::kLatency, threads).status()).reason,
            "BAD_BIAS");
}

TEST(DenseLinear, Refusals) {
  ThreadPool threads(1);
  LinearSpec spec = SpecOf(kF16);
  spec.group_size = 64;
  EXPECT_EQ(GetErrorReason(kF16.check(spec, 4, 64)).reason, "FIELD_NOT_SUPPORTED");
  spec = SpecOf(kF16);
  spec.act_order = true;
  EXPECT_EQ(GetErrorReason(kF16.check(spec, 4, 64)).reason, "FIELD_NOT_SUPPORTED");
  EXPECT_FALSE(kF16.check(SpecOf(kF16), 0, 64).ok());
  std::vector<float> weights(8, 1.0f);
  weights[5] = 70000.0f;
  EXPECT_EQ(std::string(kF16.quantize(ViewOf(weights, 2, 4), SpecOf(kF16), {}, threads).status().message()),
            "f16: weights must fit F16, got 70000 at row 1, column 1");
  weights[5] = std::nanf("");
  EXPECT_EQ(GetErrorReason(kBf16.quantize(ViewOf(weights, 2, 4), SpecOf(kBf16), {}, threads).status()).reason,
            "NON_FINITE_WEIGHT");
}

TEST(BlockLinear, StoresGgmlBytes) {
  ThreadPool threads(2);
  std::vector<float> x(64);
  for (int j = 0; j < 64; ++j) x[static_cast<size_t>(j)] = static_cast<float>(j % 32 - 16);
  const auto stored = kGgufQ40.quantize(ViewOf(x, 2, 32), SpecOf(kGgufQ40), {}, threads);
  ASSERT_TRUE(stored.ok()) << stored.status();
  const uint8_t expected[18] = {0x00, 0x40, 0x80, 0x91, 0x91, 0xa2, 0xa2, 0xb3, 0xb3,
                                0xc4, 0xc4, 0xd5, 0xd5, 0xe6, 0xe6, 0xf7, 0xf7, 0xf8};
  EXPECT_EQ(std::memcmp(stored->tensors.at("blocks").as<uint8_t>(), expected, 18), 0);
  EXPECT_EQ(
      std::memcmp(stored->tensors.at("blocks").as<uint8_t>(), stored->tensors.at("blocks").as<uint8_t>() + 18, 18), 0);
}

TEST(BlockLinear, RoundTripBindAndRefusals) {
  ThreadPool threads(2);
  const std::vector<float> weights = RandomWeights(6 * 96, 4);
  for (const LinearStrategyDef* def : {&kGgufQ40, &kGgufQ41, &kGgufQ80}) {
    const auto stored = def->quantize(ViewOf(weights, 6, 96), SpecOf(*def), {}, threads);
    ASSERT_TRUE(stored.ok()) << stored.status();
    std::vector<float> all(6 * 96), part(2 * 96);
    ASSERT_TRUE(def->dequantize_rows(*stored, 0, 6, all.data()).ok());
    ASSERT_TRUE(def->dequantize_rows(*stored, 3, 5, part.data()).ok());
    EXPECT_EQ(std::memcmp(part.data(), all.data() + 3 * 96, part.size() * 4), 0);
    double error = 0, energy = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      error += std::pow(all[i] - weights[i], 2);
      energy += std::pow(weights[i], 2);
    }
    EXPECT_LT(std::sqrt(error / energy), def == &kGgufQ80 ? 0.01 : 0.12) << def->name;
    EXPECT_GT(error, 0);
    RecordingBackend backend;
    ASSERT_TRUE(def->bind(*stored, stored->owned[0], backend, Priority::kLatency, threads).ok());
    EXPECT_EQ("gguf_" + backend.last_weight.blocks.type, def->name);
    EXPECT_EQ(backend.last_weight.blocks.data, stored->tensors.at("blocks").data);
    LinearSpec spec = SpecOf(*def);
    spec.group_size = 64;
    EXPECT_EQ(GetErrorReason(def->check(spec, 6, 96)).reason, "GROUP_SIZE_MUST_DIVIDE_K");
    spec.group_size = 32;
    EXPECT_TRUE(def->check(spec, 6, 96).ok());
    EXPECT_EQ(GetErrorReason(def->check(spec, 6, 80)).reason, "GROUP_SIZE_MUST_DIVIDE_K");
    StoredLinear bad = *stored;
    bad.tensors["blocks"].bytes -= 1;
    EXPECT_EQ(GetErrorReason(def->dequantize_rows(bad, 0, 1, all.data())).reason, "BAD_TENSOR");
    bad.K = 90;
    EXPECT_EQ(GetErrorReason(def->dequantize_rows(bad, 0, 1, all.data())).reason, "ROW_NOT_WHOLE_BLOCKS");
  }
}

TEST(Int8Affine, HoldsARepackedKQuant) {
  ThreadPool threads(1);
  std::vector<uint8_t> block(2 * 144);
  std::mt19937 random(2);
  for (uint8_t& byte : block) byte = static_cast<uint8_t>(random());
  for (const size_t at : {1, 3, 145, 147}) block[at] = 0x28;
  std::vector<float> expected(512), out(512), scale(16), offset(16);
  std::vector<int8_t> codes(512);
  ASSERT_TRUE(DequantizeBlocks(GgmlType::kQ4_K, block.data(), 512, expected.data()).ok());
  ASSERT_TRUE(RepackToAffine8(GgmlType::kQ4_K, block.data(), 512, codes.data(), scale.data(), offset.data()).ok());
  StoredLinear stored;
  stored.spec = SpecOf(kInt8Affine);
  stored.spec.group_size = 32;
  stored.N = 2;
  stored.K = 256;
  stored.tensors["codes"] = {DType::kI8, {2, 256}, codes.data(), 512};
  stored.tensors["scale"] = {DType::kF32, {2, 8}, scale.data(), 64};
  stored.tensors["offset"] = {DType::kF32, {2, 8}, offset.data(), 64};
  ASSERT_TRUE(kInt8Affine.dequantize_rows(stored, 0, 2, out.data()).ok());
  EXPECT_EQ(std::memcmp(out.data(), expected.data(), 2048), 0);
  RecordingBackend backend;
  ASSERT_TRUE(kInt8Affine.bind(stored, nullptr, backend, Priority::kLatency, threads).ok());
  EXPECT_EQ(backend.last_query.strategy, "int8_w8a16");
  EXPECT_EQ(backend.last_weight.integer.offset, offset);
  stored.spec.symmetric = false;
  stored.tensors = {{"blocks.q4_k", {DType::kU8, {2, 144}, block.data(), 288}}};  // the same as the file has it
  std::fill(out.begin(), out.end(), 0.0f);
  ASSERT_TRUE(kInt8Affine.dequantize_rows(stored, 1, 2, out.data()).ok());
  EXPECT_EQ(std::memcmp(out.data(), expected.data() + 256, 1024), 0);
  ASSERT_TRUE(kInt8Affine.bind(stored, nullptr, backend, Priority::kLatency, threads).ok());
  EXPECT_EQ(backend.last_weight.integer.codes, codes);
  EXPECT_EQ(backend.last_weight.integer.scale, scale);
  EXPECT_EQ(backend.last_weight.integer.offset, offset);
  for (const char* wrong : {"blocks.q6_k", "blocks.q4_0", "blocks.", "blocks.f32"}) {
    stored.tensors = {{wrong, {DType::kU8, {2, 144}, block.data(), 288}}};
    EXPECT_EQ(GetErrorReason(kInt8Affine.dequantize_rows(stored, 0, 2, out.data())).reason, "BAD_BLOCKS") << wrong;
  }
  stored.tensors = {{"blocks.q4_k", {DType::kU8, {2, 143}, block.data(), 286}}};
  EXPECT_FALSE(kInt8Affine.dequantize_rows(stored, 0, 2, out.data()).ok());
  EXPECT_EQ(GetErrorReason(kInt8Affine.quantize(ViewOf(expected, 2, 256), stored.spec, {}, threads).status()).reason,
            "READ_ONLY_STRATEGY");
  stored.spec.group_size = 64;
  EXPECT_FALSE(kInt8Affine.dequantize_rows(stored, 0, 2, out.data()).ok());
}

}  // namespace
}  // namespace sage
