// A model small enough to be written by a test, tensor by tensor.
#pragma once

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/file.h"
#include "engine/runtime/artifact_shard.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"

namespace sage {

struct TinySizes {
  int64_t V = 40, hidden = 32, ffn = 64;
  int H = 2, KH = 1, D = 16;
};

// A llama of one layer with tied embeddings; all weights are small multiples of 1/64. `more` is stored beside them.
inline bool WriteTinyModel(const std::string& folder, const TinySizes& sizes, std::vector<NamedTensor> more = {}) {
  DecoderConfig config;
  config.L = 1;
  config.hidden = sizes.hidden;
  config.ffn = sizes.ffn;
  config.V = sizes.V;
  config.H = sizes.H;
  config.KH = sizes.KH;
  config.D = sizes.D;
  config.tied_embeddings = true;
  std::vector<NamedTensor> tensors = std::move(more);
  uint32_t seed = 1;
  const auto add = [&](const std::string& name, const Shape& shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) {
      seed = seed * 1664525u + 1013904223u;
      value = static_cast<float>(static_cast<int>(seed >> 26) - 32) / 64;
    }
    tensors.push_back(*ConvertFloats(name, values.data(), shape, DType::kBF16));
  };
  for (const TensorSlot& slot : ListTensors(config)) add(slot.name, slot.shape);
  for (const LinearSlot& slot : ListLinears(config)) add(slot.name + ".weight", {slot.N, slot.K});
  const Json json = {
      {"model_type", "llama"},           {"num_hidden_layers", 1},        {"hidden_size", sizes.hidden},
      {"intermediate_size", sizes.ffn},  {"vocab_size", sizes.V},         {"num_attention_heads", sizes.H},
      {"num_key_value_heads", sizes.KH}, {"head_dim", sizes.D},           {"tie_word_embeddings", true},
      {"torch_dtype", "bfloat16"},       {"max_position_embeddings", 128}};
  std::ofstream(folder + "/config.json") << json.dump();
  return WriteShard(folder, "model.safetensors", std::move(tensors)).ok();
}

// For tests of calibrations: such a model in a folder of its own, its inputs in heads of `D`, and ids to look at.
class TinyModelTest : public ::testing::Test {
 protected:
  TinyModelTest(int64_t hidden, int64_t ffn, int D) {
    TinySizes sizes;
    sizes.hidden = hidden;
    sizes.ffn = ffn;
    sizes.H = 4;
    sizes.KH = 2;
    sizes.D = D;
    EXPECT_TRUE(MakeDirectories(scratch_ / "model").ok());
    EXPECT_TRUE(WriteTinyModel(scratch_ / "model", sizes));
    std::string lines;
    for (int i = 0; i < 6; ++i) {
      lines += "[";
      for (int k = 0; k < 48; ++k) lines += (k == 0 ? "" : ",") + std::to_string((7 * i + k * k + 3 * k) % 40);
      lines += "]\n";
    }
    EXPECT_TRUE(WriteFileAtomic(scratch_ / "ids.jsonl", lines).ok());
  }
  static absl::StatusOr<CalibrationResult> Run(const CalibrationSpec& spec) {
    ThreadPool threads(2);
    return CalibrateModel(spec, threads, {}, nullptr);
  }

  ScratchFolder scratch_;
};

}  // namespace sage
