// Folders of many files: what index and shards say must agree, and each refusal names the file and the tensor.
#include <filesystem>
#include <fstream>
#include <functional>

#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "tests/unit/checkpoint_formats/written_folder.h"

namespace sage {
namespace {

// Two shards with one tensor each, and their index.
class Shards : public WrittenFolder {
 public:
  Shards() {
    WriteJson("config.json", {{"model_type", "llama"}});
    const float value[2] = {1, 2};
    Put("a.weight", DType::kF32, {1, 2}, value, 8);
    WriteTensors("one.safetensors");
    Drop("a.weight");
    Put("b.weight", DType::kF32, {2}, value, 8);
    WriteTensors("two.safetensors");
    index = {{"weight_map", {{"a.weight", "one.safetensors"}, {"b.weight", "two.safetensors"}}}};
  }
  absl::Status OpenIt() const {
    WriteJson("model.safetensors.index.json", index);
    return OpenCheckpoint(path()).status();
  }
  void Cut(const std::string& file, size_t bytes) const {
    std::filesystem::resize_file(path() + "/" + file, std::filesystem::file_size(path() + "/" + file) - bytes);
  }
  Json index;
};

TEST(Shards, ReadTogether) { EXPECT_TRUE(Shards().OpenIt().ok()) << Shards().OpenIt(); }

TEST(Shards, ContradictionsAreRefusedByFileAndTensor) {
  struct Case {
    const char* what;
    std::function<void(Shards&)> damage;
    std::vector<const char*> says;
  };
  const Case cases[] = {
      {"data is cut", [](Shards& s) { s.Cut("two.safetensors", 1); }, {"two.safetensors"}},
      {"header is cut", [](Shards& s) { s.Cut("one.safetensors", 20); }, {"one.safetensors"}},
      {"a shard is empty", [](Shards& s) { s.Write("", "two.safetensors"); }, {"two.safetensors"}},
      {"a shard is absent",
       [](Shards& s) { std::filesystem::remove(s.path() + "/two.safetensors"); },
       {"two.safetensors"}},
      {"a tensor is absent",
       [](Shards& s) { s.index["weight_map"]["c.weight"] = "one.safetensors"; },
       {"c.weight", "one.safetensors"}},
      {"a tensor is in the other shard",
       [](Shards& s) { s.index["weight_map"]["a.weight"] = "two.safetensors"; },
       {"a.weight", "two.safetensors"}},
      {"a shard outside",
       [](Shards& s) { s.index["weight_map"]["a.weight"] = "../one.safetensors"; },
       {"one.safetensors"}},
      {"a shard that is a number", [](Shards& s) { s.index["weight_map"]["a.weight"] = 7; }, {"a.weight"}},
      {"no map",
       [](Shards& s) {
         s.index = {{"weights", 1}};
       },
       {"weight_map"}},
      {"the index is no object", [](Shards& s) { s.index = Json::array(); }, {"model.safetensors.index.json"}},
  };
  for (const Case& c : cases) {
    Shards shards;
    c.damage(shards);
    const absl::Status status = shards.OpenIt();
    EXPECT_FALSE(status.ok()) << c.what;
    for (const char* word : c.says) {
      EXPECT_NE(std::string(status.message()).find(word), std::string::npos) << c.what << ": " << status;
    }
  }
}

}  // namespace
}  // namespace sage
