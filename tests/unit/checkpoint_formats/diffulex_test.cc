// Format "diffulex": the values of the layout's formula, alone and beside the model, and refusals by tensor and rule.
#include <functional>

#include "engine/api/linear_strategy.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "tests/unit/checkpoint_formats/written_folder.h"

namespace sage {
namespace {

constexpr int64_t N = 5, K = 7, G = 3, kRow = (K + 1) / 2;  // an odd number of inputs: one padded nibble
const std::string kModule = "model.layers.0.mlp.up_proj";

class DiffulexFolder : public WrittenFolder {
 public:
  DiffulexFolder() {
    for (int64_t i = 0; i < N * kRow; ++i) qweight.push_back(static_cast<uint8_t>(i * 37 + 11));
    for (int64_t i = 0; i < G * kRow; ++i) qzeros.push_back(static_cast<uint8_t>(i * 91 + 5));
    for (int64_t i = 0; i < G * K; ++i) scales.push_back(0.01f * static_cast<float>(i + 1));
    Put(kModule + ".qweight", DType::kI8, {N, kRow}, qweight.data(), qweight.size());
    Put(kModule + ".qzeros", DType::kI8, {G, kRow}, qzeros.data(), qzeros.size());
    Put(kModule + ".scales", DType::kF32, {G, K}, scales.data(), scales.size() * 4);
    WriteJson("config.json", {{"model_type", "llama"}});
    WriteJson("quantization_metadata_gptq.json", {{"group_size", 2}, {"bits", 4}});
  }
  absl::StatusOr<StoredLinear> Read() {
    WriteTensors("model_quantized_gptq.safetensors");
    const auto checkpoint = OpenCheckpoint(path());
    if (!checkpoint.ok()) return checkpoint.status();
    EXPECT_EQ((*checkpoint)->format(), "diffulex");
    kept = *checkpoint;
    return kept->GetLinear(kModule);
  }
  static float Nibble(const std::vector<uint8_t>& bytes, int64_t r, int64_t k) {
    const uint8_t byte = bytes[static_cast<size_t>(r * kRow + k / 2)];
    return static_cast<float>((k % 2 == 0 ? byte & 15 : byte >> 4) - 8);
  }
  std::vector<uint8_t> qweight, qzeros;
  std::vector<float> scales;
  std::shared_ptr<Checkpoint> kept;
};

void ExpectValues(const DiffulexFolder& folder, const absl::StatusOr<StoredLinear>& stored,
                  const std::function<int64_t(int64_t)>& group) {
  ASSERT_TRUE(stored.ok()) << stored.status();
  ASSERT_EQ(stored->N, N);
  ASSERT_EQ(stored->K, K);
  const auto values = Dequantize(*stored);
  ASSERT_TRUE(values.ok());
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      const float s = folder.scales[static_cast<size_t>(group(n) * K + k)];
      const float want =
          DiffulexFolder::Nibble(folder.qweight, n, k) * s + DiffulexFolder::Nibble(folder.qzeros, group(n), k) * s;
      ASSERT_EQ(values->as<float>()[n * K + k], want) << n << " " << k;
    }
  }
}

TEST(Diffulex, GroupsRunAlongTheOutputs) {
  DiffulexFolder folder;
  ExpectValues(folder, folder.Read(), [](int64_t n) { return n / 2; });
  const int32_t order[N] = {2, 0, 1, 1, 2};
  folder.Put(kModule + ".g_idx", DType::kI32, {N}, order, sizeof(order));
  ExpectValues(folder, folder.Read(), [&](int64_t n) { return order[n]; });
  EXPECT_EQ(folder.kept->notes().size(), 1u);
}

TEST(Diffulex, BesideTheModelItsLayersReplaceTheFloats) {
  DiffulexFolder folder;
  WrittenFolder floats;
  const std::vector<float> ones(N * K, 1.0f);
  floats.Put(kModule + ".weight", DType::kF32, {N, K}, ones.data(), ones.size() * 4);
  floats.Put("model.layers.0.mlp.down_proj.weight", DType::kF32, {K, N}, ones.data(), ones.size() * 4);
  floats.WriteTensors();
  std::filesystem::copy(floats.path() + "/model.safetensors", folder.path() + "/model.safetensors");
  ExpectValues(folder, folder.Read(), [](int64_t n) { return n / 2; });
  EXPECT_EQ(folder.kept->GetLinear("model.layers.0.mlp.down_proj")->K, N);
}

TEST(Diffulex, ContradictionsAreRefusedByTensorAndRule) {
  struct Case {
    const char* what;
    std::function<void(DiffulexFolder&)> damage;
    const char* says;
  };
  const std::vector<char> zeros(1024);
  const Case cases[] = {
      {"no zeros", [](DiffulexFolder& f) { f.Drop(kModule + ".qzeros"); }, ".qzeros: must be present"},
      {"no scales", [](DiffulexFolder& f) { f.Drop(kModule + ".scales"); }, ".scales: must be present"},
      {"other rows of zeros",
       [&](DiffulexFolder& f) {
         f.Put(kModule + ".qzeros", DType::kI8, {G, kRow - 1}, zeros.data(), G * (kRow - 1));
       },
       ".qzeros: must have rows"},
      {"other groups",
       [&](DiffulexFolder& f) {
         f.Put(kModule + ".qzeros", DType::kI8, {G + 1, kRow}, zeros.data(), (G + 1) * kRow);
         f.Put(kModule + ".scales", DType::kF32, {G + 1}, zeros.data(), (G + 1) * 4);
       },
       "must have ceil(5 / 2) rows"},
      {"scales of other shape",
       [&](DiffulexFolder& f) {
         f.Put(kModule + ".scales", DType::kF32, {G, 3}, zeros.data(), G * 12);
       },
       ".scales"},
      {"scales of other type",
       [&](DiffulexFolder& f) {
         f.Put(kModule + ".scales", DType::kF16, {G, K}, zeros.data(), G * K * 2);
       },
       ".scales"},
      {"words as weights",
       [&](DiffulexFolder& f) {
         f.Put(kModule + ".qweight", DType::kI32, {N, kRow}, zeros.data(), N * kRow * 4);
       },
       ".qweight: must be I8"},
      {"a group out of range",
       [](DiffulexFolder& f) {
         const int32_t order[N] = {0, 1, 2, 3, 0};
         f.Put(kModule + ".g_idx", DType::kI32, {N}, order, sizeof(order));
       },
       "must lie in 0 .. 2, got 3"},
      {"other bits",
       [](DiffulexFolder& f) {
         f.WriteJson("quantization_metadata_gptq.json", {{"bits", 8}});
       },
       "bits must be 4"},
      {"no group size",
       [](DiffulexFolder& f) {
         f.WriteJson("quantization_metadata_gptq.json", {{"group_size", 0}});
       },
       "group_size must be positive"},
      {"both kinds", [](DiffulexFolder& f) { f.WriteTensors("model_quantized_awq.safetensors"); }, "only one"},
  };
  for (const Case& c : cases) {
    DiffulexFolder folder;
    c.damage(folder);
    const absl::Status status = folder.Read().status();
    EXPECT_FALSE(status.ok()) << c.what;
    EXPECT_NE(std::string(status.message()).find(c.says), std::string::npos) << c.what << ": " << status;
  }
}

}  // namespace
}  // namespace sage
