// Checkpoints with float-coded weights (bitsandbytes, fp8, mxfp4) that the real tools wrote: every weight bit for bit,
// the tools' logits through the whole decoder, and files that somebody has tampered with.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/match.h"
#include "engine/api/hf_checkpoint.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/decoder/decoder.h"
#include "gtest/gtest.h"
#include "tests/unit/decoder/golden_data.h"
#include "tests/unit/decoder/sequence_logits.h"

namespace sage {
namespace {

namespace fs = std::filesystem;

std::string Folder(const std::string& name) {
  return std::string(SAGE_SOURCE_DIR) + "/../shared/data/checkpoints/" + name;
}

// The same weights with activations left as they are: what the expected logits were computed with.
class WeightOnly final : public Checkpoint {
 public:
  explicit WeightOnly(std::shared_ptr<Checkpoint> from) : from_(std::move(from)) {}
  const Json& config() const override { return from_->config(); }
  const Json& generation_config() const override { return from_->generation_config(); }
  std::string_view format() const override { return from_->format(); }
  std::string path() const override { return from_->path(); }
  std::vector<std::string> linear_names() const override { return from_->linear_names(); }
  std::vector<std::string> tensor_names() const override { return from_->tensor_names(); }
  bool HasTensor(std::string_view name) const override { return from_->HasTensor(name); }
  bool HasLinear(std::string_view module) const override { return from_->HasLinear(module); }
  absl::StatusOr<TensorView> GetTensor(std::string_view name) const override { return from_->GetTensor(name); }
  absl::StatusOr<StoredLinear> GetLinear(std::string_view module) const override {
    auto stored = from_->GetLinear(module);
    if (stored.ok() && stored->spec.strategy == "fp8_w8a8") {
      stored->spec.strategy = "fp8_w8a16";
      stored->spec.activation_group_size = -1;
      stored->tensors.erase("input_scale");
    }
    return stored;
  }
  absl::StatusOr<std::string> Fingerprint() const override { return from_->Fingerprint(); }
  size_t file_bytes() const override { return from_->file_bytes(); }

 private:
  std::shared_ptr<Checkpoint> from_;
};

// Logits [S, V] of the ids, or why the model does not load.
absl::StatusOr<std::vector<float>> Logits(std::shared_ptr<Checkpoint> checkpoint, const std::vector<int32_t>& ids,
                                          const std::string& strategy = "") {
  DecoderLoadSpec spec;
  spec.strategy = strategy;
  return SequenceLogits(std::move(checkpoint), {ids}, spec);
}

struct LogitError {
  double most = 0;      // largest absolute difference
  double relative = 0;  // ||got - want|| / ||want||
};
LogitError Compare(const std::vector<float>& got, const std::vector<float>& want) {
  LogitError out;
  double error = 0, energy = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double d = static_cast<double>(got[i]) - want[i];
    out.most = std::max(out.most, std::fabs(d));
    error += d * d;
    energy += static_cast<double>(want[i]) * want[i];
  }
  out.relative = std::sqrt(error / energy);
  return out;
}

struct ToolCase {
  std::string folder, format, strategy;
  double logits;  // largest difference to the tool's logits of these weights
};

class FloatCheckpointTest : public ::testing::TestWithParam<ToolCase> {};

TEST_P(FloatCheckpointTest, WeightsAndLogits) {
  const ToolCase& tool = GetParam();
  const std::string folder = Folder(tool.folder);
  if (!fs::exists(folder)) GTEST_SKIP() << "shared checkpoints are absent";
  const auto checkpoint = OpenCheckpoint(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->format(), tool.format);
  std::ifstream in(folder + "/expected.json");
  const auto expected = nlohmann::json::parse(in);
  int compared = 0;
  for (const auto& [name, record] : expected["weights"].items()) {
    const auto stored = (*checkpoint)->GetLinear(name.substr(0, name.size() - 7));
    ASSERT_TRUE(stored.ok()) << stored.status();
    EXPECT_EQ(stored->spec.strategy, tool.strategy);
    auto full = Dequantize(*stored);
    ASSERT_TRUE(full.ok()) << full.status();
    for (int64_t i = 0; i < stored->N * stored->K; ++i) full->as<float>()[i] += 0.0f;  // the hashes know no -0
    EXPECT_EQ(Sha256Hex({full->as<char>(), full->bytes()}), record["sha256_f32_le"].get<std::string>()) << name;
    // Any row alone is the same row.
    std::vector<float> row(static_cast<size_t>(stored->K));
    const auto def = FindLinearStrategy(stored->spec.strategy);
    ASSERT_TRUE((*def)->dequantize_rows(*stored, stored->N - 1, stored->N, row.data()).ok());
    for (float& v : row) v += 0.0f;
    EXPECT_EQ(std::memcmp(row.data(), full->as<float>() + (stored->N - 1) * stored->K, row.size() * 4), 0);
    ++compared;
  }
  EXPECT_GT(compared, 5);

  const GoldenTensors want(folder + "/expected.safetensors");
  const auto wide = want.Get<int64_t>("input_ids");
  const std::vector<int32_t> ids(wide.begin(), wide.end());
  const auto logits = Logits(std::make_shared<WeightOnly>(*checkpoint), ids);
  ASSERT_TRUE(logits.ok()) << logits.status();
  const LogitError error = Compare(*logits, want.Get<float>("logits"));
  RecordProperty("most", absl::StrCat(error.most));
  EXPECT_LE(error.most, tool.logits);
  if (!want.Has("logits_tool") || tool.strategy != "fp8_w8a8") return;
  // As stored, with activations rounded: the tool's own forward.
  const auto rounded = Logits(*checkpoint, ids);
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  const LogitError tool_error = Compare(*rounded, want.Get<float>("logits_tool"));
  const LogitError apart = Compare(*rounded, want.Get<float>("logits"));
  RecordProperty("tool_relative", absl::StrCat(tool_error.relative));
  EXPECT_LE(tool_error.relative, 1e-5) << "largest " << tool_error.most;
  EXPECT_GT(apart.relative, tool_error.relative);
}

INSTANTIATE_TEST_SUITE_P(Tools, FloatCheckpointTest,
                         ::testing::Values(ToolCase{"bnb-nf4", "bitsandbytes", "nf4_w4a16", 1e-4},
                                           ToolCase{"bnb-nf4-double", "bitsandbytes", "nf4_w4a16", 1e-4},
                                           ToolCase{"bnb-fp4", "bitsandbytes", "fp4_w4a16", 1e-4},
                                           ToolCase{"bnb-int8", "bitsandbytes", "bnb_int8_w8a16", 1e-3},
                                           ToolCase{"ct-fp8-dynamic", "compressed_tensors", "fp8_w8a8", 1e-4},
                                           ToolCase{"ct-fp8-static", "compressed_tensors", "fp8_w8a8", 1e-4},
                                           ToolCase{"ct-fp8-block-128", "compressed_tensors", "fp8_w8a8", 1e-4},
                                           ToolCase{"ct-mxfp4", "compressed_tensors", "mxfp4_w4a16", 1e-4},
                                           ToolCase{"ct-kv-fp8-w4", "compressed_tensors", "int4_w4a16", 1e-3}),
                         [](const auto& info) {
                           std::string name = info.param.folder;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// A float model quantized while it loads; its widths of 64 and 172 make flat blocks cross rows.
TEST(FloatStrategies, QuantizeOnLoad) {
  const auto checkpoint =
      OpenCheckpoint(std::string(SAGE_SOURCE_DIR) + "/tests/data/stories260K/tinyllamas-stories-260k-f32.gguf");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const std::vector<int32_t> ids = {1, 403, 407, 261, 378, 31, 76, 300};
  const auto reference = Logits(*checkpoint, ids);
  ASSERT_TRUE(reference.ok()) << reference.status();
  for (const auto& [strategy, bound] : {std::pair{"fp8_w8a16", 0.05},
                                        {"fp8_w8a8", 0.08},
                                        {"nf4_w4a16", 0.2},
                                        {"fp4_w4a16", 0.25},
                                        {"bnb_int8_w8a16", 0.02}}) {
    const auto logits = Logits(*checkpoint, ids, strategy);
    ASSERT_TRUE(logits.ok()) << strategy << logits.status();
    const double error = Compare(*logits, *reference).relative;
    RecordProperty(strategy, absl::StrCat(error));
    EXPECT_LE(error, bound) << strategy;
    EXPECT_GT(error, 1e-4) << strategy;
  }
  const auto refused = Logits(*checkpoint, ids, "mxfp4_w4a16");
  EXPECT_EQ(GetErrorReason(refused.status()).reason, "GROUP_SIZE_MUST_DIVIDE_K") << refused.status();
}

// A folder made for a test, removed with it.
class Scratch {
 public:
  Scratch() {
    std::string pattern = (fs::temp_directory_path() / "float_formats_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~Scratch() { fs::remove_all(path_); }
  const std::string& path() const { return path_; }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << text;
  }

 private:
  std::string path_;
};

struct FileTensor {
  std::string name, dtype;
  Shape shape;
  std::string bytes;
};
std::string Safetensors(const std::vector<FileTensor>& tensors) {
  nlohmann::json header;
  std::string body;
  for (const FileTensor& t : tensors) {
    header[t.name] = {
        {"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {body.size(), body.size() + t.bytes.size()}}};
    body += t.bytes;
  }
  std::string text = header.dump();
  while (text.size() % 8 != 0) text += ' ';
  const uint64_t size = text.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + text + body;
}

std::string Floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * 4};
}

// Two projections [32, 48] of e4m3 ones, q with the given scales and input_scale.
absl::StatusOr<StoredLinear> OpenFp8(const Json& quantization, const std::string& scale_name, const Shape& shape,
                                     const std::vector<float>& scale, bool input_scale,
                                     const std::string& modelopt = "") {
  const Scratch scratch;
  Json config = {{"model_type", "llama"}};
  if (!quantization.is_null()) config["quantization_config"] = quantization;
  scratch.Write("config.json", DumpJson(config));
  if (!modelopt.empty()) scratch.Write("hf_quant_config.json", modelopt);
  const std::string module = "model.layers.0.self_attn.q_proj";
  std::vector<FileTensor> tensors = {{module + ".weight", "F8_E4M3", {32, 48}, std::string(32 * 48, '\x38')},
                                     {module + "." + scale_name, "F32", shape, Floats(scale)}};
  if (input_scale) tensors.push_back({module + ".input_scale", "F32", {}, Floats({0.5f})});
  scratch.Write("model.safetensors", Safetensors(tensors));
  SAGE_ASSIGN_OR_RETURN(const auto checkpoint, OpenCheckpoint(scratch.path()));
  EXPECT_EQ(checkpoint->format(), "fp8");
  EXPECT_TRUE(checkpoint->HasLinear(module));
  SAGE_ASSIGN_OR_RETURN(StoredLinear stored, checkpoint->GetLinear(module));
  SAGE_ASSIGN_OR_RETURN(const Tensor full, Dequantize(stored));
  for (int64_t i = 0; i < 32 * 48; ++i) EXPECT_GT(full.as<float>()[i], 0.0f);
  return stored;
}

TEST(Fp8Folder, EveryProducer) {
  const auto tensor =
      OpenFp8({{"quant_method", "fp8"}, {"activation_scheme", "static"}}, "weight_scale", {}, {2}, true);
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_EQ(tensor->spec.strategy, "fp8_w8a8");
  EXPECT_EQ(tensor->spec.block_rows, -1);
  EXPECT_EQ(tensor->tensors.count("input_scale"), 1u);
  const auto channel = OpenFp8({{"quant_method", "fp8"}, {"activation_scheme", "dynamic"}}, "weight_scale", {32, 1},
                               std::vector<float>(32, 3), false);
  ASSERT_TRUE(channel.ok()) << channel.status();
  EXPECT_EQ(channel->spec.block_rows, 1);
  const auto block = OpenFp8({{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {16, 32}}},
                             "weight_scale_inv", {2, 2}, {1, 2, 3, 4}, false);
  ASSERT_TRUE(block.ok()) << block.status();
  EXPECT_EQ(block->spec.group_size, 32);
  EXPECT_EQ(block->spec.block_rows, 16);
  EXPECT_EQ(block->spec.activation_group_size, 32);
  const std::string modelopt = R"({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}})";
  const auto older = OpenFp8(nullptr, "weight_scale", {}, {2}, true, modelopt);
  ASSERT_TRUE(older.ok()) << older.status();
  EXPECT_EQ(older->tensors.count("input_scale"), 1u);
  const auto newer = OpenFp8({{"quant_method", "modelopt"}, {"quant_algo", "FP8_PER_CHANNEL_PER_TOKEN"}},
                             "weight_scale", {32}, std::vector<float>(32, 3), false);
  ASSERT_TRUE(newer.ok()) << newer.status();
  EXPECT_EQ(newer->spec.block_rows, 1);
}

TEST(Fp8Folder, RefusesWhatDoesNotFit) {
  const Json dynamic = {{"quant_method", "fp8"}, {"activation_scheme", "dynamic"}};
  const auto invalid = [](const absl::StatusOr<StoredLinear>& got) {
    EXPECT_FALSE(got.ok());
    EXPECT_FALSE(GetErrorReason(got.status()).reason.empty()) << got.status();
    return got.status().code();
  };
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto kUnimplemented = absl::StatusCode::kUnimplemented;
  EXPECT_EQ(invalid(OpenFp8(dynamic, "weight_scale", {31, 1}, std::vector<float>(31, 1), false)), kInvalid);
  EXPECT_EQ(invalid(OpenFp8(dynamic, "other_scale", {1}, {1}, false)), absl::StatusCode::kNotFound);
  EXPECT_EQ(
      invalid(OpenFp8({{"quant_method", "fp8"}, {"activation_scheme", "static"}}, "weight_scale", {}, {2}, false)),
      kInvalid);
  EXPECT_EQ(invalid(OpenFp8({{"quant_method", "fp8"}, {"activation_scheme", "x"}}, "weight_scale", {}, {2}, false)),
            kUnimplemented);
  EXPECT_EQ(invalid(OpenFp8({{"quant_method", "fp8"}, {"activation_scheme", 3}}, "weight_scale", {}, {2}, false)),
            kInvalid);
  EXPECT_EQ(invalid(OpenFp8({{"quant_method", "fp8"}, {"fmt", "e3m4"}}, "weight_scale", {}, {2}, false)),
            kUnimplemented);
  for (const Json& size : {Json{0, 0}, Json{128}, Json{-128, 128}, Json{"a", "b"}, Json("128x128"),
                           Json{std::numeric_limits<uint64_t>::max(), 128}, Json{1e300, 1e300}}) {
    EXPECT_EQ(invalid(OpenFp8({{"quant_method", "fp8"}, {"weight_block_size", size}}, "weight_scale_inv", {1, 1}, {1},
                              false)),
              kUnimplemented);
  }
  EXPECT_EQ(invalid(OpenFp8(nullptr, "weight_scale", {}, {2}, true, R"({"quantization": {"quant_algo": "NVFP4"}})")),
            kUnimplemented);
  for (const std::string text :
       {"[]", "{}", R"({"quantization": 3})", "{", R"({"quantization": {"quant_algo": {}}})"}) {
    EXPECT_FALSE(OpenFp8(nullptr, "weight_scale", {}, {2}, true, text).ok()) << text;
  }
}

// A bitsandbytes folder of one NF4 module [2, 48] with the given state.
absl::Status OpenBnb(const std::string& state, const std::vector<FileTensor>& changed = {},
                     const std::string& says = R"("load_in_4bit": true)") {
  const std::string weight = "model.layers.0.mlp.up_proj.weight";
  const Scratch scratch;
  scratch.Write("config.json", R"({"quantization_config": {"quant_method": "bitsandbytes", )" + says + "}}");
  std::map<std::string, FileTensor> tensors;
  const auto add = [&](FileTensor tensor) { tensors[tensor.name] = std::move(tensor); };
  add({weight, "U8", {48, 1}, std::string(48, '\x1f')});
  add({weight + ".absmax", "F32", {2}, Floats({1, 2})});
  add({weight + ".quant_map", "F32", {16}, Floats(std::vector<float>(16, 0.5f))});
  add({weight + ".quant_state.bitsandbytes__nf4", "U8", {static_cast<int64_t>(state.size())}, state});
  for (FileTensor tensor : changed) {
    tensor.name = weight + tensor.name;
    add(tensor);
  }
  std::vector<FileTensor> list;
  for (const auto& [name, tensor] : tensors) list.push_back(tensor);
  scratch.Write("model.safetensors", Safetensors(list));
  SAGE_ASSIGN_OR_RETURN(const auto checkpoint, OpenCheckpoint(scratch.path()));
  SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, checkpoint->GetLinear("model.layers.0.mlp.up_proj"));
  SAGE_ASSIGN_OR_RETURN(const Tensor full, Dequantize(stored));
  for (int64_t i = 0; i < 96; ++i) EXPECT_EQ(full.as<float>()[i], i < 64 ? 0.5f : 1.0f);
  return absl::OkStatus();
}

TEST(BitsandbytesFolder, ReadsOrRefusesByName) {
  const std::string good = R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [2, 48]})";
  EXPECT_TRUE(OpenBnb(good).ok()) << OpenBnb(good);
  const absl::Status eight = OpenBnb(good, {}, R"("load_in_4bit": false, "load_in_8bit": true)");
  EXPECT_EQ(GetErrorReason(eight).reason, "CHECKPOINT_INVALID");
  EXPECT_NE(eight.message().find("quantization_config says load_in_8bit true"), absl::string_view::npos) << eight;
  // The same bytes under another storage type.
  EXPECT_TRUE(OpenBnb(good, {{"", "BF16", {24, 1}, std::string(48, '\x1f')}}).ok());
  const std::string bad_states[] = {
      "",
      "{",
      "[]",
      "null",
      "\xff\xfe",
      R"({"quant_type": "nf4", "blocksize": 64, "shape": [2]})",
      R"({"quant_type": "nf4", "blocksize": 64, "shape": [2, 49]})",
      R"({"quant_type": "nf4", "blocksize": 64, "shape": [-2, -48]})",
      R"({"quant_type": "nf4", "blocksize": 64, "shape": [9223372036854775807, 9223372036854775807]})",
      R"({"quant_type": "nf4", "blocksize": 64, "shape": [18446744073709551615, 2]})",
      R"({"quant_type": "nf4", "blocksize": 0, "shape": [2, 48]})",
      R"({"quant_type": "nf4", "blocksize": 63, "shape": [2, 48]})",
      R"({"quant_type": "nf4", "blocksize": 128, "shape": [2, 48]})",
      R"({"quant_type": "fp4", "blocksize": 64, "shape": [2, 48]})",
      R"({"quant_type": 4, "blocksize": 64, "shape": [2, 48]})",
      R"({"quant_type": "nf4", "blocksize": 64, "shape": [2, 48], "nested_blocksize": 256})",
      R"({"quant_type": "nf4", "blocksize": 64, "shape": [2, 48], "nested_blocksize": -1})",
      R"({"quant_type": "nf4", "blocksize": 64, "shape": [2, 48], "nested_blocksize": 256, "nested_offset": 1e99})",
      R"({"quant_type": "nf4", "blocksize": 64, "shape": [2, 48], "nested_blocksize": 256, "nested_dtype": "int8"})",
  };
  for (const std::string& state : bad_states) {
    const absl::Status status = OpenBnb(state);
    EXPECT_FALSE(status.ok()) << state;
    EXPECT_TRUE(status.code() == absl::StatusCode::kInvalidArgument || status.code() == absl::StatusCode::kNotFound)
        << status;
  }
  EXPECT_FALSE(OpenBnb(good, {{"", "U8", {47, 1}, std::string(47, 'a')}}).ok());
  EXPECT_FALSE(OpenBnb(good, {{".absmax", "F32", {1}, Floats({1})}}).ok());
  EXPECT_FALSE(OpenBnb(good, {{".absmax", "U8", {2}, "ab"}}).ok());
  EXPECT_FALSE(OpenBnb(good, {{".quant_map", "F32", {15}, Floats(std::vector<float>(15))}}).ok());
  EXPECT_FALSE(OpenBnb(good, {{".quant_map", "F32", {16}, Floats(std::vector<float>(16, INFINITY))}}).ok());
}

// Scales of a quantized KV cache beside plain weights: the folder is read as what its weights are.
TEST(CompressedTensorsFolder, OnlyTheKvCacheIsQuantized) {
  const Scratch scratch;
  scratch.Write("config.json", R"({"quantization_config": {"quant_method": "compressed-tensors", "format": "dense",
    "config_groups": {}, "ignore": [], "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor",
    "dynamic": false, "symmetric": true}}})");
  const std::string attention = "model.layers.0.self_attn.";
  scratch.Write("model.safetensors", Safetensors({{attention + "q_proj.weight", "F32", {1, 2}, Floats({1, 2})},
                                                  {attention + "k_scale", "BF16", {1}, std::string("\x80\x3f", 2)}}));
  const auto checkpoint = OpenCheckpoint(scratch.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->GetLinear(attention + "q_proj")->spec.strategy, "f32");
  EXPECT_TRUE((*checkpoint)->HasTensor(attention + "k_scale"));
}

// Real files with bytes changed at random in header and config: an answer or an error, never a crash.
TEST(FloatFolders, SurviveRandomDamage) {
  std::mt19937 random(7);
  for (const std::string name : {"bnb-nf4-double", "bnb-int8", "ct-fp8-static", "ct-fp8-block-128", "ct-mxfp4"}) {
    if (!fs::exists(Folder(name))) GTEST_SKIP() << "shared checkpoints are absent";
    const auto read = [&](const std::string& file) {
      std::ifstream in(Folder(name) + "/" + file, std::ios::binary);
      return std::string(std::istreambuf_iterator<char>(in), {});
    };
    const std::string config = read("config.json"), model = read("model.safetensors");
    uint64_t header = 0;
    std::memcpy(&header, model.data(), 8);
    for (int round = 0; round < 40; ++round) {
      std::string new_config = config, new_model = model;
      for (int i = 0; i < 3; ++i) {
        if (round % 2 == 0) {
          new_config[random() % config.size()] = "0123456789\",:[]{}n"[random() % 18];
        } else {
          new_model[8 + random() % header] = "0123456789\",:[]{}UF"[random() % 19];
        }
      }
      const Scratch scratch;
      scratch.Write("config.json", new_config);
      scratch.Write("model.safetensors", new_model);
      const auto checkpoint = OpenCheckpoint(scratch.path());
      if (!checkpoint.ok()) continue;
      for (const std::string& module : (*checkpoint)->linear_names()) {
        const auto stored = (*checkpoint)->GetLinear(module);
        if (stored.ok() && stored->N * stored->K < (1 << 22)) (void)Dequantize(*stored).status();
      }
    }
  }
}

}  // namespace
}  // namespace sage
