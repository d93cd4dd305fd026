// Writing GGUF: what is called lossless is, types follow the rules, the vocabulary gives the same ids, and what a GGUF
// cannot say is refused.
#include "engine/runtime/gguf_export.h"

#include <algorithm>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/gguf_keys.h"
#include "engine/tokenizer/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage::gguf_export_test {
namespace {

absl::StatusOr<ConvertResult> Convert(const std::string& from, const std::string& format, const std::string& to) {
  ThreadPool threads(2);
  return ConvertArtifact({from, format, to}, threads, {}, nullptr);
}

std::string Checkpoint(const std::string& name) {
  return std::string(SAGE_SOURCE_DIR) + "/../shared/data/checkpoints/" + name;
}
std::string Tokenizers() { return std::string(SAGE_SOURCE_DIR) + "/../shared/data/tokenizers/"; }

Json Told(const ConvertResult& result, const char* key) {
  const auto manifest = ReadManifest(result.path);
  EXPECT_TRUE(manifest.ok()) << manifest.status();
  return manifest.ok() ? manifest->value("conversion", Json::object()).value(key, Json()) : Json();
}
std::map<std::string, std::string> Types(const ConvertResult& result) {
  return Told(result, "types").get<std::map<std::string, std::string>>();
}

TEST(GgufExport, SchemesAndRows) {
  EXPECT_EQ(GgufTypeForRows(GgmlType::kQ4_K, 512), GgmlType::kQ4_K);
  EXPECT_EQ(GgufTypeForRows(GgmlType::kQ4_K, 576), GgmlType::kQ5_0);
  EXPECT_EQ(GgufTypeForRows(GgmlType::kQ6_K, 576), GgmlType::kQ8_0);
  EXPECT_EQ(GgufTypeForRows(GgmlType::kQ4_0, 172), GgmlType::kF32);
  EXPECT_EQ(GgufTypeForRows(GgmlType::kQ4_K, 172), GgmlType::kF32);
  const GgufScheme mix = *ParseGgufScheme("gguf_q4_k_m");
  std::string six;
  for (int64_t layer = 0; layer < 32; ++layer) {
    if (WantedGgufType(mix, "down_proj", layer, 32) == GgmlType::kQ6_K) six += std::to_string(layer) + " ";
    EXPECT_EQ(WantedGgufType(mix, "up_proj", layer, 32), GgmlType::kQ4_K);
  }
  EXPECT_EQ(six, "0 1 2 3 6 9 12 15 18 21 24 27 28 29 30 31 ");  // llama.cpp's for 32 layers
  EXPECT_EQ(WantedGgufType(mix, "lm_head", -1, 32), GgmlType::kQ6_K);
  EXPECT_EQ(GetErrorReason(ParseGgufScheme("gguf_q9").status()).reason, "UNSUPPORTED_OUTPUT_FORMAT");
}

TEST(GgufExport, RowsMoveToInterleavedPairsAndBack) {
  std::vector<uint8_t> rows(16);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint8_t>(i);
  const std::vector<uint8_t> moved = PermuteRows(rows, 16, 8);
  EXPECT_EQ(moved, (std::vector<uint8_t>{0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15}));
}

TEST(GgufExport, AGgufIsCopiedBlockByBlock) {
  const ScratchFolder scratch;
  const auto result = Convert(StoriesGguf(), "gguf", scratch / "again");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->lossless);
  EXPECT_TRUE(Told(*result, "changed").empty());
  const auto before = HashTensors(StoriesGguf(), {}), after = HashTensors(scratch / "again/again.gguf", {});
  ASSERT_TRUE(before.ok() && after.ok());
  for (const auto& [name, sha256] : *after) EXPECT_EQ(before->at(name), sha256) << name;
  const auto a = LoadTokenizer(StoriesGguf()), b = LoadTokenizer(scratch / "again");
  ASSERT_TRUE(a.ok() && b.ok()) << b.status();
  const std::string text = "Once upon a time, there was a little dog.";
  EXPECT_EQ(*a->tokenizer->Encode(text, true), *b->tokenizer->Encode(text, true));
  const auto verified = VerifyArtifactFolder(scratch / "again", {});
  ASSERT_TRUE(verified.ok()) << verified.status();
  EXPECT_EQ(*verified, result->tensors);
}

TEST(GgufExport, LossIsToldWithItsSizeAndForcedTypesAreNamed) {
  const ScratchFolder scratch;
  const auto result = Convert(StoriesGguf(), "gguf_q8_0", scratch / "q8");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->lossless);
  EXPECT_GT(result->max_abs_difference, 0);
  EXPECT_LT(result->max_abs_difference, 0.02);
  const auto types = Types(*result);
  EXPECT_EQ(types.at("blk.0.attn_q.weight"), "q8_0");
  EXPECT_EQ(types.at("blk.0.attn_norm.weight"), "f32");
  EXPECT_EQ(types.at("token_embd.weight"), "f32");
  // Rows of 172 are no whole blocks: kept, and said.
  EXPECT_EQ(types.at("blk.0.ffn_down.weight"), "f32");
  EXPECT_FALSE(Told(*result, "changed").contains("model.layers.0.mlp.down_proj.weight"));
  const Json notes = Told(*result, "notes");
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].get<std::string>().find("blk.4.ffn_down.weight"), std::string::npos) << notes;
  // The manifest says the same and survives verification; a changed byte does not.
  const auto manifest = ReadManifest(scratch / "q8");
  ASSERT_TRUE(manifest.ok());
  EXPECT_EQ((*manifest)["conversion"]["lossless"], false);
  EXPECT_EQ((*manifest)["conversion"]["types"]["blk.0.attn_q.weight"], "q8_0");
  EXPECT_TRUE(VerifyArtifactFolder(scratch / "q8", {}).ok());
  std::string bytes = Slurp(scratch / "q8/q8.gguf");
  bytes[bytes.size() - 100] ^= 1;
  ASSERT_TRUE(WriteFileAtomic(scratch / "q8/q8.gguf", bytes).ok());
  EXPECT_EQ(GetErrorReason(VerifyArtifactFolder(scratch / "q8", {}).status()).reason, "ARTIFACT_CORRUPT");
}

TEST(GgufExport, BytesDependOnNoThreads) {
  const ScratchFolder scratch;
  std::string first;
  for (const int count : {1, 3}) {
    ThreadPool threads(count);
    const std::string folder = scratch / std::to_string(count) + "/m";
    ASSERT_TRUE(ConvertArtifact({StoriesGguf(), "gguf_q4_k", folder}, threads, {}, nullptr).ok());
    const std::string bytes = Slurp(folder + "/m.gguf");
    if (first.empty()) first = bytes;
    EXPECT_TRUE(bytes == first);
  }
}

// Codes of integer checkpoints go into blocks as they are.
TEST(GgufExport, IntegerCheckpointsKeepTheirCodes) {
  if (!IsDirectory(Checkpoint(""))) GTEST_SKIP() << "no shared checkpoints";
  struct Case {
    const char* name;
    const char* type;
  };
  for (const Case& c :
       {Case{"gptq-w4-g64-sym", "q4_0"}, Case{"gptq-w8-g64-sym", "q8_0"}, Case{"gptq-w2-g64-sym", "q4_0"},
        Case{"gptq-w3-g64-sym", "q4_0"}, Case{"ct-pack-w4-g64-sym", "q4_0"}, Case{"ct-pack-w8-channel", "q8_0"},
        Case{"ct-int8-w8a8-dynamic", "q8_0"}, Case{"ct-w4a8-int", "q4_0"}, Case{"gptq_v2-w4-g64-asym", nullptr},
        Case{"awq-gemm-w4-g64", nullptr}, Case{"ct-awq-w4-asym", nullptr}}) {
    const ScratchFolder scratch;
    const auto result = Convert(Checkpoint(c.name), "gguf", scratch / "out");
    ASSERT_TRUE(result.ok()) << c.name << ": " << result.status();
    EXPECT_TRUE(result->lossless) << c.name << " " << result->max_abs_difference;
    const auto types = Types(*result);
    for (const auto& [name, type] : types) {
      if (name.find("blk.") != 0 || name.find("norm") != name.npos) continue;
      if (c.type != nullptr) {
        EXPECT_EQ(type, c.type) << c.name << " " << name;
      } else {
        EXPECT_TRUE(type == "q4_1" || type == "q8_0") << c.name << " " << name << " " << type;
      }
    }
    if (c.type == nullptr) continue;
    const auto named = Convert(Checkpoint(c.name), std::string("gguf_") + c.type, scratch / "named");
    ASSERT_TRUE(named.ok()) << named.status();
    EXPECT_TRUE(named->lossless) << c.name;
  }
}

TEST(GgufExport, OtherSchemesAreExactAsFloatsOrLossyAsBlocks) {
  if (!IsDirectory(Checkpoint(""))) GTEST_SKIP() << "no shared checkpoints";
  for (const char* name : {"bnb-nf4", "bnb-fp4", "bnb-int8", "ct-fp8-dynamic", "ct-mxfp4", "gptq-w4-g64-desc_act"}) {
    const ScratchFolder scratch;
    const auto exact = Convert(Checkpoint(name), "gguf", scratch / "exact");
    ASSERT_TRUE(exact.ok()) << name << ": " << exact.status();
    EXPECT_TRUE(exact->lossless) << name;
    const auto lossy = Convert(Checkpoint(name), "gguf_q4_0", scratch / "q4");
    ASSERT_TRUE(lossy.ok()) << name << ": " << lossy.status();
    EXPECT_FALSE(lossy->lossless) << name;
    EXPECT_GT(lossy->max_abs_difference, 0) << name;
  }
}

TEST(GgufExport, GoldenArchitectures) {
  if (!IsDirectory(GoldenModel("01-llama2-mha"))) GTEST_SKIP() << "no shared golden models";
  for (const char* name :
       {"01-llama2-mha", "02-llama-gqa-tied", "03-llama3-rope", "04-llama-rope-linear", "06a-llama-yarn",
        "08-qwen2-tied", "09-qwen3-qk-norm", "12-llama-sharded", "13-llama-fp16", "14-llama-bias-v5-config"}) {
    const ScratchFolder scratch;
    const auto result = Convert(GoldenModel(name), "gguf", scratch / "out");
    ASSERT_TRUE(result.ok()) << name << ": " << result.status();
    EXPECT_TRUE(result->lossless) << name;
    const auto before = ArtifactSource::Open(GoldenModel(name)), after = ArtifactSource::Open(scratch / "out");
    ASSERT_TRUE(before.ok() && after.ok()) << name;
    const DecoderConfig &a = (*before)->config(), &b = (*after)->config();
    EXPECT_EQ(a.L, b.L) << name;
    EXPECT_EQ(a.D, b.D) << name;
    EXPECT_EQ(a.KH, b.KH) << name;
    EXPECT_EQ(a.ffn, b.ffn) << name;
    EXPECT_EQ(a.max_position, b.max_position) << name;
    EXPECT_EQ(a.tied_embeddings, b.tied_embeddings) << name;
    EXPECT_EQ(a.qkv_bias, b.qkv_bias) << name;
    EXPECT_EQ(a.qk_norm, b.qk_norm) << name;
    EXPECT_FLOAT_EQ(static_cast<float>(a.norm_eps), static_cast<float>(b.norm_eps)) << name;
    EXPECT_FLOAT_EQ(static_cast<float>(a.rope.theta), static_cast<float>(b.rope.theta)) << name;
    // And back to a folder.
    const auto back = Convert(scratch / "out", "f32", scratch / "back");
    ASSERT_TRUE(back.ok()) << name << ": " << back.status();
    EXPECT_TRUE(back->lossless) << name;
  }
  for (const char* name : {"05-llama-rope-dynamic", "06b-llama-yarn-mscale", "07-mistral-swa"}) {
    const ScratchFolder scratch;
    const auto result = Convert(GoldenModel(name), "gguf", scratch / "out");
    EXPECT_EQ(GetErrorReason(result.status()).reason, "GGUF_CANNOT_HOLD") << name;
    EXPECT_FALSE(std::filesystem::exists(scratch / "out"));
  }
}

// Every tokenizer of the shared data beside a small model with as many embeddings.
TEST(GgufExport, VocabulariesGiveTheSameIds) {
  if (!IsDirectory(Tokenizers())) GTEST_SKIP() << "no shared tokenizers";
  struct Case {
    const char* folder;
    int64_t V;
    std::vector<const char*> files;
    const char* model;
    const char* pre;
  };
  for (const Case& c :
       {Case{"gpt2", 50257, {"tokenizer.json"}, "gpt2", "gpt-2"},
        Case{"gpt2", 50260, {"vocab.json", "merges.txt"}, "gpt2", "gpt-2"},
        Case{"llama2", 32000, {"tokenizer.json", "tokenizer_config.json"}, "llama", "default"},
        Case{"llama2", 32000, {"tokenizer.model", "tokenizer_config.json"}, "llama", "default"},
        Case{"llama3_1", 128256, {"tokenizer.json", "tokenizer_config.json"}, "gpt2", "llama-bpe"},
        Case{"qwen2", 151936, {"vocab.json", "merges.txt", "tokenizer_config.json"}, "gpt2", "qwen2"}}) {
    const ScratchFolder scratch;
    const std::string folder = scratch / "model";
    ASSERT_TRUE(MakeDirectories(folder).ok());
    ASSERT_TRUE(WriteTinyModel(folder, {.V = c.V}));
    for (const char* file : c.files) {
      std::filesystem::copy(Tokenizers() + c.folder + "/" + file, folder + "/" + file);
    }
    const auto result = Convert(folder, "gguf", scratch / "out");
    ASSERT_TRUE(result.ok()) << c.folder << " " << c.files[0] << ": " << result.status();
    EXPECT_TRUE(result->lossless);
    const auto file = GgufFile::Open(scratch / "out/out.gguf");
    ASSERT_TRUE(file.ok());
    EXPECT_EQ((*file)->metadata()["tokenizer.ggml.model"], c.model);
    EXPECT_EQ((*file)->metadata()["tokenizer.ggml.pre"], c.pre);
    EXPECT_EQ((*file)->metadata()["tokenizer.ggml.tokens"].size(), static_cast<size_t>(c.V));
    const auto a = LoadTokenizer(folder), b = LoadTokenizer(scratch / "out");
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(a->chat_template, b->chat_template);
    for (const char* text :
         {"The 3 foxes' dens, aren't they?", "  two  blanks\n\n\tand tabs ", "na\xc3\xafve \xe4\xbd\xa0\xe5\xa5\xbd"}) {
      EXPECT_EQ(*a->tokenizer->Encode(text, true), *b->tokenizer->Encode(text, true)) << c.folder << text;
    }
  }
}

}  // namespace
}  // namespace sage::gguf_export_test
