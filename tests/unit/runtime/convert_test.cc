// Conversion: what is called lossless is bitwise equal after a reload, and what is not says how far it is off.
#include "engine/base/status.h"
#include "engine/runtime/artifact_source.h"
#include "engine/tensor/float_convert.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"

namespace sage::convert_test {
namespace {

absl::StatusOr<ConvertResult> Convert(const std::string& artifact, const std::string& format,
                                      const std::string& output) {
  ThreadPool threads(2);
  return ConvertArtifact({artifact, format, output}, threads, {}, nullptr);
}

TEST(Convert, FloatsOfAGgufAreLosslessAsF32) {
  const ScratchFolder scratch;
  const auto result = Convert(StoriesGguf(), "f32", scratch / "f32");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->lossless);
  EXPECT_EQ(result->max_abs_difference, 0);
  EXPECT_EQ(result->path, scratch / "f32");
  EXPECT_GT(result->tensors, 5 * 9);
  EXPECT_FALSE(std::filesystem::exists(scratch / "f32.partial"));
  EXPECT_FALSE(std::filesystem::exists(scratch / "f32.lock"));
}

TEST(Convert, RoundingToBf16IsToldAndExact) {
  const ScratchFolder scratch;
  const auto result = Convert(StoriesGguf(), "bf16", scratch / "bf16");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->lossless);
  ThreadPool threads(2);
  const auto source = ArtifactSource::Open(StoriesGguf()), written = ArtifactSource::Open(scratch / "bf16");
  ASSERT_TRUE(source.ok() && written.ok());
  double most = 0;
  for (int64_t shard = 0; shard < (*source)->shard_count(); ++shard) {
    std::vector<std::pair<std::vector<float>, std::vector<float>>> pairs;
    for (const LinearSlot& slot : (*source)->ShardLinears(shard)) {
      const auto a = (*source)->Weight(slot, threads), b = (*written)->Weight(slot, threads);
      ASSERT_TRUE(a.ok() && b.ok());
      const int64_t count = slot.N * slot.K;
      pairs.push_back({{a->as<float>(), a->as<float>() + count}, {b->as<float>(), b->as<float>() + count}});
    }
    const auto before = (*source)->PlainValues(shard, threads), after = (*written)->PlainValues(shard, threads);
    ASSERT_TRUE(before.ok() && after.ok());
    for (size_t i = 0; i < before->size(); ++i) {
      const TensorView a = (*before)[i].view, b = (*after)[i].view;
      pairs.push_back({{a.as<float>(), a.as<float>() + a.elements()}, {b.as<float>(), b.as<float>() + b.elements()}});
    }
    for (const auto& [a, b] : pairs) {
      for (size_t i = 0; i < a.size(); ++i) {
        ASSERT_EQ(b[i], BF16ToFloat(FloatToBF16(a[i])));
        most = std::max(most, std::abs(static_cast<double>(a[i]) - b[i]));
      }
    }
  }
  EXPECT_EQ(result->max_abs_difference, most);
  EXPECT_GT(most, 0);
}

TEST(Convert, AnArtifactDequantizesAndPacksWithoutLoss) {
  const ScratchFolder scratch;
  const CalibrationSpec spec = StoriesSpec(scratch);
  ThreadPool threads(2);
  ASSERT_TRUE(CalibrateModel(spec, threads, {}, nullptr).ok());
  for (const char* format : {"f32", "compressed_tensors"}) {
    const auto result = Convert(spec.output, format, scratch / format);
    ASSERT_TRUE(result.ok()) << format << result.status();
    EXPECT_TRUE(result->lossless) << format;
    EXPECT_EQ(result->max_abs_difference, 0) << format;
  }
  const auto packed = ArtifactSource::Open(scratch / "compressed_tensors");
  ASSERT_TRUE(packed.ok());
  EXPECT_EQ((*packed)->Stored((*packed)->linears().front())->spec.strategy, "int8_w8a16");
  const auto dense = ArtifactSource::Open(scratch / "f32");
  ASSERT_TRUE(dense.ok());
  EXPECT_EQ((*dense)->checkpoint().format(), "safetensors");
}

TEST(Convert, RefusalsNameTheRuleAndLeaveNothing) {
  const ScratchFolder scratch;
  const auto reason = [&](const std::string& artifact, const std::string& format, const std::string& output) {
    return GetErrorReason(Convert(artifact, format, output).status()).reason;
  };
  EXPECT_EQ(reason(StoriesGguf(), "onnx", scratch / "a"), "UNSUPPORTED_OUTPUT_FORMAT");
  EXPECT_EQ(reason(StoriesGguf(), "compressed_tensors", scratch / "a"), "NOTHING_QUANTIZED");
  EXPECT_EQ(reason(StoriesGguf() + ".absent", "f32", scratch / "a"), "MODEL_NOT_FOUND");
  EXPECT_EQ(reason(StoriesGguf(), "f32", ""), "BAD_OUTPUT");
  ASSERT_TRUE(Convert(StoriesGguf(), "f32", scratch / "b").ok());
  EXPECT_EQ(reason(StoriesGguf(), "f32", scratch / "b"), "OUTPUT_EXISTS");
  CancelToken cancelled;
  cancelled.Cancel();
  ThreadPool threads(1);
  EXPECT_TRUE(
      absl::IsCancelled(ConvertArtifact({StoriesGguf(), "f32", scratch / "a"}, threads, cancelled, nullptr).status()));
  EXPECT_FALSE(std::filesystem::exists(scratch / "a"));
  EXPECT_FALSE(std::filesystem::exists(scratch / "a.partial"));
}

}  // namespace
}  // namespace sage::convert_test
