// The beginning of a written GGUF: byte for byte, and read back by our own reader.
#include "engine/tensor/gguf_writer.h"

#include <cstring>

#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

std::string Reason(const GgufKeys& keys, const std::vector<GgufTensorEntry>& tensors) {
  return GetErrorReason(GgufBeginning(keys, tensors).status()).reason;
}

TEST(GgufWriter, SmallestFileByteForByte) {
  GgufKeys keys;
  keys.AddU32("a", 7);
  const auto bytes = GgufBeginning(keys, {});
  ASSERT_TRUE(bytes.ok());
  const std::string want = std::string("GGUF\x03\0\0\0", 8) + std::string(8, '\0') +
                           std::string("\x01\0\0\0\0\0\0\0", 8) + std::string("\x01\0\0\0\0\0\0\0a", 9) +
                           std::string("\x04\0\0\0\x07\0\0\0", 8) + std::string(23, '\0');
  EXPECT_EQ(*bytes, want);
}

TEST(GgufWriter, ReadsBackEveryKindOfKeyAndTensor) {
  GgufKeys keys;
  keys.AddString("general.architecture", "llama");
  keys.AddU32("u", 4000000000u);
  keys.AddI32("i", -5);
  keys.AddF32("f", 1e-5f);
  keys.AddBool("b", true);
  keys.AddString("s", std::string("\xff\0x", 3));
  keys.AddStrings("ss", {"a", "", "\xe2\x96\x81"});
  keys.AddI32s("is", {1, -2, 3});
  keys.AddF32s("fs", {0.5f, -1e30f});
  std::vector<GgufTensorEntry> tensors = {{"x", {3, 32}, GgmlType::kQ8_0, 3 * 34}, {"y", {5}, GgmlType::kF32, 20}};
  const auto beginning = GgufBeginning(keys, tensors);
  ASSERT_TRUE(beginning.ok());
  EXPECT_EQ(beginning->size() % kGgufAlignment, 0u);
  std::string file = *beginning;
  for (const GgufTensorEntry& tensor : tensors) {
    file += std::string(tensor.bytes, tensor.name[0]);
    file += std::string(GgufPadding(tensor.bytes), '\0');
  }
  const auto read = GgufFile::Parse(reinterpret_cast<const uint8_t*>(file.data()), file.size(), "written");
  ASSERT_TRUE(read.ok()) << read.status();
  const Json& meta = (*read)->metadata();
  EXPECT_EQ(meta["u"], 4000000000u);
  EXPECT_EQ(meta["i"], -5);
  EXPECT_EQ(meta["f"], static_cast<double>(1e-5f));
  EXPECT_EQ(meta["b"], true);
  EXPECT_EQ(meta["s"].get<std::string>(), std::string("\xff\0x", 3));
  EXPECT_EQ(meta["ss"], Json({"a", "", "\xe2\x96\x81"}));
  EXPECT_EQ(meta["is"], Json({1, -2, 3}));
  EXPECT_EQ(meta["fs"][1], static_cast<double>(-1e30f));
  const GgufTensor& x = (*read)->tensors().at("x");
  EXPECT_EQ(x.shape, (std::vector<int64_t>{3, 32}));
  EXPECT_EQ(x.bytes, 102u);
  EXPECT_EQ(x.data[101], 'x');
  EXPECT_EQ((*read)->tensors().at("y").data[0], 'y');
}

TEST(GgufWriter, SizeDependsOnNamesAndShapesOnly) {
  GgufKeys keys;
  keys.AddU32("general.file_type", 0);
  const auto a = GgufBeginning(keys, {{"x", {4, 256}, GgmlType::kF32, 0}});
  const auto b = GgufBeginning(keys, {{"x", {4, 256}, GgmlType::kQ6_K, 840}});
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->size(), b->size());
}

TEST(GgufWriter, RefusesWhatNoReaderTakes) {
  GgufKeys twice;
  twice.AddU32("a", 1);
  twice.AddBool("a", true);
  EXPECT_EQ(Reason(twice, {}), "GGUF_INVALID");
  GgufKeys empty;
  empty.AddU32("", 1);
  EXPECT_EQ(Reason(empty, {}), "GGUF_INVALID");
  const GgufKeys none;
  EXPECT_EQ(Reason(none, {{"x", {1}, GgmlType::kF32, 4}, {"x", {1}, GgmlType::kF32, 4}}), "GGUF_INVALID");
  EXPECT_EQ(Reason(none, {{"", {1}, GgmlType::kF32, 4}}), "GGUF_INVALID");
  EXPECT_EQ(Reason(none, {{std::string(64, 'x'), {1}, GgmlType::kF32, 4}}), "GGUF_INVALID");
  EXPECT_EQ(Reason(none, {{"x", {}, GgmlType::kF32, 4}}), "GGUF_INVALID");
  EXPECT_EQ(Reason(none, {{"x", {1, 0}, GgmlType::kF32, 4}}), "GGUF_INVALID");
  EXPECT_EQ(Reason(none, {{"x", {1, 1, 1, 1, 1}, GgmlType::kF32, 4}}), "GGUF_INVALID");
}

}  // namespace
}  // namespace sage
