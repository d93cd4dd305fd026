// Strategies of float-coded weights: stored bytes, what they mean, refusals, thread independence and hostile tensors.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/api/linear_strategy.h"
#include "engine/base/status.h"
#include "engine/quant/fp8.h"
#include "engine/quant/integer_grid.h"
#include "engine/quant/nf4.h"
#include "engine/tensor/float_convert.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"
#include "tests/unit/linear_strategies/recording_backend.h"

namespace sage {
namespace {

const LinearStrategyDef& Def(const std::string& name) { return **FindLinearStrategy(name); }

TensorView ViewOf(const std::vector<float>& values, int64_t N, int64_t K) {
  return {DType::kF32, {N, K}, values.data(), values.size() * 4};
}

std::vector<float> RandomWeights(int64_t count, uint32_t seed) { return Normal(count, seed, 0.05f); }

StoredLinear Quantized(const std::string& name, const std::vector<float>& weights, int64_t N, int64_t K,
                       LinearSpec spec = {}) {
  ThreadPool threads(2);
  spec.strategy = name;
  auto stored = Def(name).quantize(ViewOf(weights, N, K), spec, {}, threads);
  EXPECT_TRUE(stored.ok()) << stored.status();
  return *std::move(stored);
}

std::vector<float> Values(const StoredLinear& stored) {
  std::vector<float> out(static_cast<size_t>(stored.N * stored.K));
  const absl::Status status = Def(stored.spec.strategy).dequantize_rows(stored, 0, stored.N, out.data());
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

LinearWeight Bound(const StoredLinear& stored) {
  ThreadPool threads(2);
  RecordingBackend backend;
  const auto bound = Def(stored.spec.strategy).bind(stored, nullptr, backend, Priority::kLatency, threads);
  EXPECT_TRUE(bound.ok()) << bound.status();
  return backend.last_weight;
}

// What the canonical form says, weight by weight.
std::vector<float> Meaning(const LinearWeight& weight) {
  const FloatCodeWeight& w = weight.floats;
  std::vector<float> out;
  for (int64_t i = 0; i < weight.N * weight.K; ++i) {
    const int64_t n = i / weight.K, k = i % weight.K;
    float value = 0;
    if (w.kind == FloatCodeWeight::Kind::kTable16) {
      const bool high = (i % 2 == 0) == w.high_nibble_first;
      value = w.table[high ? w.codes[i / 2] >> 4 : w.codes[i / 2] & 15];
    } else {
      value = w.kind == FloatCodeWeight::Kind::kE4M3 ? DecodeE4M3(w.codes[i]) : DecodeE5M2(w.codes[i]);
    }
    const int64_t columns = w.flat_block > 0 ? 0 : (weight.K + w.block_columns - 1) / w.block_columns;
    const int64_t at = w.flat_block > 0 ? i / w.flat_block : n / w.block_rows * columns + k / w.block_columns;
    out.push_back(value * w.scale[static_cast<size_t>(at)]);
  }
  return out;
}

TEST(FloatLinear, Nf4WorkedVector) {
  std::vector<float> weights;
  for (int i = 0; i < 64; ++i) weights.push_back(static_cast<float>(0.5 * (-1.0 + 2.0 * i / 63.0)));
  const StoredLinear stored = Quantized("nf4_w4a16", weights, 1, 64);
  std::string hex;
  for (int i = 0; i < 32; ++i) {
    const uint8_t byte = stored.tensors.at("weight").as<uint8_t>()[i];
    hex += {"0123456789abcdef"[byte >> 4], "0123456789abcdef"[byte & 15]};
  }
  EXPECT_EQ(hex, "00000111111112222233344445556667788899aaabbbccccddddeeeeeeefffff");
  EXPECT_EQ(stored.tensors.at("weight").shape, (Shape{32, 1}));
  EXPECT_EQ(stored.tensors.at("weight.absmax").as<float>()[0], 0.5f);
  const TensorView& state = stored.tensors.at("weight.quant_state.bitsandbytes__nf4");
  EXPECT_EQ(std::string(state.as<char>(), state.bytes),
            R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [1, 64]})");
}

TEST(FloatLinear, TablesMeanTheirCodes) {
  for (const std::string name : {"nf4_w4a16", "fp4_w4a16"}) {
    for (const auto& [N, K] : {std::pair<int64_t, int64_t>{7, 96}, {3, 101}, {1, 1}, {40, 64}}) {
      for (const bool nested : {false, true}) {
        LinearSpec spec;
        spec.double_quant = nested;
        const std::vector<float> weights = RandomWeights(N * K, 4);
        const StoredLinear stored = Quantized(name, weights, N, K, spec);
        const std::vector<float> values = Values(stored);
        EXPECT_EQ(values, Meaning(Bound(stored)));
        for (size_t i = 0; i < values.size(); ++i) {
          const size_t block = i / 64 * 64, end = std::min(block + 64, values.size());
          float absmax = 0;
          for (size_t j = block; j < end; ++j) absmax = std::max(absmax, std::fabs(weights[j]));
          // Half of the widest gap of the table (nf4 0.152, fp4 1/6), and the nested rounding of the maximum.
          ASSERT_LE(std::fabs(values[i] - weights[i]), absmax * (nested ? 0.20f : 0.168f)) << name << " " << i;
          if (!nested && std::fabs(weights[i]) == absmax) {
            ASSERT_EQ(values[i], weights[i]);
          }
        }
        if (nested) {
          EXPECT_EQ(stored.tensors.at("weight.absmax").dtype, DType::kU8);
          EXPECT_EQ(stored.tensors.at("weight.nested_quant_map").bytes, 1024u);
        }
      }
    }
  }
  // A block of zeros stays zeros.
  for (const float v : Values(Quantized("nf4_w4a16", std::vector<float>(64, 0.0f), 1, 64))) EXPECT_EQ(v, 0.0f);
}

TEST(FloatLinear, Fp8ScalesOfEveryShape) {
  const int64_t N = 37, K = 80;
  const std::vector<float> weights = RandomWeights(N * K, 6);
  struct Form {
    int group, rows;
    Shape scales;
  };
  for (const Form& form : {Form{-1, 1, {N, 1}}, Form{-1, -1, {1}}, Form{32, 16, {3, 3}}, Form{128, 128, {1, 1}}}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const std::string name : {"fp8_w8a16", "fp8_w8a8"}) {
        LinearSpec spec;
        spec.group_size = form.group;
        spec.block_rows = form.rows;
        spec.scale_dtype = dtype;
        const StoredLinear stored = Quantized(name, weights, N, K, spec);
        EXPECT_EQ(stored.tensors.at("weight_scale").shape, form.scales);
        const int64_t rows = form.rows == -1 ? N : form.rows, columns = form.group == -1 ? K : form.group;
        const std::vector<float> values = Values(stored);
        const LinearWeight bound = Bound(stored);
        EXPECT_EQ(values, Meaning(bound));
        EXPECT_EQ(bound.floats.activations.kind,
                  name == "fp8_w8a8" ? FloatActivations::Kind::kDynamic : FloatActivations::Kind::kNone);
        for (int64_t i = 0; i < N * K; ++i) {
          const int64_t n0 = i / K / rows * rows, k0 = i % K / columns * columns;
          float amax = 0;
          for (int64_t n = n0; n < std::min(N, n0 + rows); ++n) {
            for (int64_t k = k0; k < std::min(K, k0 + columns); ++k) {
              amax = std::max(amax, std::fabs(weights[static_cast<size_t>(n * K + k)]));
            }
          }
          const float scale = RoundToDType(amax / 448.0f, dtype);
          const float w = weights[static_cast<size_t>(i)];
          ASSERT_EQ(values[static_cast<size_t>(i)], DecodeE4M3(EncodeE4M3(w / scale)) * scale);
          ASSERT_LE(std::fabs(values[static_cast<size_t>(i)] - w), std::max(std::fabs(w) * 0.0665f, scale * 0x1p-9f));
        }
      }
    }
  }
}

TEST(FloatLinear, StaticActivationsComeFromTheFile) {
  StoredLinear stored = Quantized("fp8_w8a8", RandomWeights(4 * 32, 1), 4, 32);
  const uint16_t scale = FloatToBF16(0.25f);
  for (const Shape& shape : {Shape{}, Shape{1}}) {
    stored.tensors["input_scale"] = {DType::kBF16, shape, &scale, 2};
    const FloatActivations got = Bound(stored).floats.activations;
    EXPECT_EQ(got.kind, FloatActivations::Kind::kStatic);
    EXPECT_EQ(got.scale, 0.25f);
  }
  ThreadPool threads(1);
  RecordingBackend backend;
  for (const float bad : {0.0f, -1.0f, INFINITY}) {
    const uint16_t bits = FloatToBF16(bad);
    stored.tensors["input_scale"] = {DType::kBF16, {1}, &bits, 2};
    EXPECT_FALSE(Def("fp8_w8a8").bind(stored, nullptr, backend, Priority::kLatency, threads).ok()) << bad;
  }
}

TEST(FloatLinear, BitsandbytesInt8) {
  const std::vector<float> weights = RandomWeights(5 * 33, 8);
  const StoredLinear stored = Quantized("bnb_int8_w8a16", weights, 5, 33);
  const std::vector<float> values = Values(stored);
  const IntegerWeight bound = Bound(stored).integer;
  for (size_t i = 0; i < values.size(); ++i) {
    const float absmax = stored.tensors.at("SCB").as<float>()[i / 33];
    const int8_t code = stored.tensors.at("weight").as<int8_t>()[i];
    EXPECT_EQ(values[i], static_cast<float>(code) * absmax / 127.0f);
    EXPECT_LE(std::fabs(values[i] - weights[i]), absmax / 127.0f * 0.5001f);
    EXPECT_EQ(bound.codes[i], code);
    EXPECT_EQ(bound.scale[i / 33], absmax / 127.0f);
  }
  EXPECT_EQ(bound.group_size, 33);
}

TEST(FloatLinear, MicroscalingBlocks) {
  const std::vector<float> weights = RandomWeights(6 * 96, 2);
  for (const auto& [name, group] : {std::pair<std::string, size_t>{"mxfp4_w4a16", 32}, {"nvfp4_w4a16", 16}}) {
    const StoredLinear stored = Quantized(name, weights, 6, 96);
    const std::vector<float> values = Values(stored);
    EXPECT_EQ(values, Meaning(Bound(stored)));
    for (size_t i = 0; i < values.size(); ++i) {
      float amax = 0;
      for (size_t j = i / group * group; j < (i / group + 1) * group; ++j) amax = std::max(amax, std::fabs(weights[j]));
      // Half of the widest step of 4 .. 6, or the cut of what lies between 6 and 8 (mxfp4).
      ASSERT_LE(std::fabs(values[i] - weights[i]), amax * 0.26f) << name << " " << i;
    }
  }
  for (const float v : Values(Quantized("nvfp4_w4a16", std::vector<float>(32, 0.0f), 1, 32))) EXPECT_EQ(v, 0.0f);
  for (const float v : Values(Quantized("mxfp4_w4a16", std::vector<float>(32, 0.0f), 1, 32))) EXPECT_EQ(v, 0.0f);
}

const char* const kNames[] = {"nf4_w4a16",   "fp4_w4a16",   "fp8_w8a16",     "fp8_w8a8",
                              "mxfp4_w4a16", "nvfp4_w4a16", "bnb_int8_w8a16"};

TEST(FloatLinear, ThreadCountDoesNotChangeBytes) {
  const std::vector<float> weights = RandomWeights(77 * 96, 5);
  for (const char* name : kNames) {
    std::vector<std::string> images;
    for (const int count : {1, 2, 5}) {
      ThreadPool threads(count);
      LinearSpec spec;
      spec.strategy = name;
      const auto stored = Def(name).quantize(ViewOf(weights, 77, 96), spec, {}, threads);
      ASSERT_TRUE(stored.ok()) << stored.status();
      std::string image;
      for (const auto& [tensor, view] : stored->tensors) image.append(view.as<char>(), view.bytes);
      images.push_back(image);
    }
    EXPECT_EQ(images[0], images[1]) << name;
    EXPECT_EQ(images[0], images[2]) << name;
  }
}

TEST(FloatLinear, RefusalsAreNamed) {
  ThreadPool threads(1);
  for (const std::string name : kNames) {
    const auto reason = [&](const LinearSpec& spec) {
      const absl::Status status = Def(name).check(spec, 64, 96);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
      EXPECT_TRUE(std::string(status.message()).starts_with(name + ": ")) << status;
      return GetErrorReason(status).reason;
    };
    LinearSpec spec;
    EXPECT_TRUE(Def(name).check(spec, 64, 96).ok()) << name;
    spec.group_size = 48;
    EXPECT_TRUE(reason(spec).starts_with("GROUP_SIZE_")) << name;
    spec = {};
    spec.symmetric = false;
    EXPECT_EQ(reason(spec), "FIELD_NOT_SUPPORTED");
    spec = {};
    spec.clip_ratio = 0.1;
    EXPECT_EQ(reason(spec), "FIELD_NOT_SUPPORTED");
    spec = {};
    spec.act_order = true;
    EXPECT_EQ(reason(spec), "FIELD_NOT_SUPPORTED");
    if (name != "fp8_w8a8") {
      spec = {};
      spec.activation_group_size = 64;
      EXPECT_EQ(reason(spec), "FIELD_NOT_SUPPORTED");
    }
    std::vector<float> weights = RandomWeights(64 * 96, 1);
    weights[5] = std::numeric_limits<float>::infinity();
    spec = {};
    EXPECT_EQ(GetErrorReason(Def(name).quantize(ViewOf(weights, 64, 96), spec, {}, threads).status()).reason,
              "NON_FINITE_WEIGHT");
    LayerPlan plan;
    plan.scale = {1};
    weights[5] = 0;
    EXPECT_EQ(GetErrorReason(Def(name).quantize(ViewOf(weights, 64, 96), spec, plan, threads).status()).reason,
              "PLAN_NOT_SUPPORTED");
  }
  for (const std::string name : {"int4_w4a16", "int8_w8a16", "bf16", "gguf_q8_0", "bnb_int8_w8a16", "mxfp4_w4a16"}) {
    LinearSpec spec;
    spec.double_quant = true;
    EXPECT_EQ(GetErrorReason(Def(name).check(spec, 64, 96)).reason, "FIELD_NOT_SUPPORTED") << name;
    spec = {};
    spec.block_rows = 128;
    EXPECT_EQ(GetErrorReason(Def(name).check(spec, 64, 96)).reason, "FIELD_NOT_SUPPORTED") << name;
  }
}

TEST(FloatLinear, HostileStoredTensorsAreRefused) {
  ThreadPool threads(1);
  const std::vector<float> weights = RandomWeights(8 * 64, 9);
  std::vector<float> out(8 * 64);
  RecordingBackend backend;
  for (const std::string name : kNames) {
    for (const bool nested : {false, true}) {
      LinearSpec spec;
      spec.double_quant = nested && (name == "nf4_w4a16" || name == "fp4_w4a16");
      const StoredLinear good = Quantized(name, weights, 8, 64, spec);
      const auto refused = [&](const StoredLinear& bad) {
        return !Def(name).dequantize_rows(bad, 0, 1, out.data()).ok() &&
               !Def(name).bind(bad, nullptr, backend, Priority::kLatency, threads).ok();
      };
      for (const auto& [tensor, view] : good.tensors) {
        StoredLinear bad = good;
        bad.tensors.erase(tensor);
        if (tensor != "weight_format") {
          EXPECT_TRUE(refused(bad)) << name << " " << tensor;
        }
        bad = good;
        bad.tensors[tensor].bytes -= 1;
        EXPECT_TRUE(refused(bad)) << name << " " << tensor;
        bad = good;
        bad.tensors[tensor].dtype = DType::kI64;
        EXPECT_TRUE(refused(bad)) << name << " " << tensor;
        bad = good;
        bad.tensors[tensor].shape.push_back(1);
        if (!tensor.starts_with("weight.quant_state") && tensor != "weight_format") {
          EXPECT_TRUE(refused(bad)) << name << " " << tensor;
        }
      }
      StoredLinear bad = good;
      bad.N = int64_t{1} << 40;
      EXPECT_TRUE(refused(bad)) << name;
      bad = good;
      bad.N = bad.K = std::numeric_limits<int32_t>::max();
      EXPECT_TRUE(refused(bad)) << name;
      bad = good;
      bad.K = 0;
      EXPECT_TRUE(refused(bad)) << name;
      EXPECT_FALSE(Def(name).dequantize_rows(good, 7, 9, out.data()).ok());
    }
  }
  StoredLinear bad = Quantized("fp8_w8a16", weights, 8, 64);
  for (const int size : {0, -5}) {
    bad.spec.group_size = size;
    EXPECT_FALSE(Def("fp8_w8a16").dequantize_rows(bad, 0, 1, out.data()).ok());
    bad.spec.group_size = -1;
    bad.spec.block_rows = size;
    EXPECT_FALSE(Def("fp8_w8a16").dequantize_rows(bad, 0, 1, out.data()).ok());
    bad.spec.block_rows = 1;
  }
  bad = Quantized("bnb_int8_w8a16", weights, 8, 64);
  const uint8_t order = 1;
  bad.tensors["weight_format"] = {DType::kU8, {}, &order, 1};
  EXPECT_FALSE(Def("bnb_int8_w8a16").dequantize_rows(bad, 0, 1, out.data()).ok());
}

}  // namespace
}  // namespace sage
