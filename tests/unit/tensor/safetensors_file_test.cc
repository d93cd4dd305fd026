// Hand-made safetensors headers: what is read of good ones, and that each broken rule is refused by name.
#include "engine/tensor/safetensors_file.h"

#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace sage {
namespace {

std::string File(const std::string& header, size_t data, uint64_t length) {
  char bytes[8];
  std::memcpy(bytes, &length, 8);
  return std::string(bytes, 8) + header + std::string(data, '\x01');
}
std::string File(const std::string& header, size_t data) { return File(header, data, header.size()); }

// A copy of exactly the input's size on the heap, so that a sanitizer sees a read past its end.
absl::StatusOr<std::shared_ptr<SafetensorsFile>> ParseText(const std::string& bytes, std::vector<uint8_t>* memory) {
  memory->assign(bytes.begin(), bytes.end());
  memory->shrink_to_fit();
  return SafetensorsFile::Parse(memory->data(), memory->size(), "test.safetensors");
}

void ExpectRefused(const std::string& bytes, const std::string& part) {
  std::vector<uint8_t> memory;
  const auto file = ParseText(bytes, &memory);
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << part;
  EXPECT_NE(std::string(file.status().message()).find(part), std::string::npos) << file.status();
  EXPECT_NE(std::string(file.status().message()).find("test.safetensors"), std::string::npos) << file.status();
}

TEST(SafetensorsFileTest, ReadsTensorsAndMetadata) {
  std::vector<uint8_t> memory;
  const auto file = ParseText(File(R"({"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]},)"
                                   R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
                                   R"("e":{"dtype":"U8","shape":[0,5],"data_offsets":[12,12]},)"
                                   R"("__metadata__":{"format":"pt"}}   )",
                                   16),
                              &memory);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 3u);
  const TensorView& a = (*file)->tensors().at("a");
  EXPECT_EQ(a.dtype, DType::kBF16);
  EXPECT_EQ(a.shape, (Shape{2, 3}));
  EXPECT_EQ(a.bytes, 12u);
  EXPECT_EQ(a.as<uint8_t>() + 16, memory.data() + memory.size());
  EXPECT_EQ((*file)->tensors().at("b").bytes, 4u);
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
}

TEST(SafetensorsFileTest, EveryTruncationIsRefused) {
  const std::string good = File(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 4);
  std::vector<uint8_t> memory;
  ASSERT_TRUE(ParseText(good, &memory).ok());
  for (size_t n = 0; n < good.size(); ++n) EXPECT_FALSE(ParseText(good.substr(0, n), &memory).ok()) << n << " bytes";
  EXPECT_FALSE(ParseText(good + "x", &memory).ok());
}

TEST(SafetensorsFileTest, HeaderRules) {
  ExpectRefused("1234567", "at least 8 bytes");
  ExpectRefused(File("{}", 0, 3), "passes the end of the file");
  ExpectRefused(File("{}", 0, 100'000'001), "at most 100000000");
  ExpectRefused(File("{}", 0, ~uint64_t{0}), "at most 100000000");
  ExpectRefused(File("{}", 0, ~uint64_t{0} - 7), "at most 100000000");  // 8 + length wraps to 0
  ExpectRefused(File("", 0), "begin with '{'");
  ExpectRefused(File(" {}", 0), "begin with '{'");
  ExpectRefused(File("[]", 0), "begin with '{'");
  ExpectRefused(File("{", 0), "invalid JSON");
  ExpectRefused(File("{\"\xff\":1}", 0), "invalid JSON");
  ExpectRefused(File("{\"a\":" + std::string(1000, '['), 0), "nesting");
  ExpectRefused(File(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}})", 1), "duplicate key 'a'");
  ExpectRefused(File(R"({"__metadata__":{"n":1}})", 0), "must hold strings");
  ExpectRefused(File(R"({"__metadata__":[]})", 0), "must be an object");
  ExpectRefused(File(R"({"a":[]})", 0), "must be an object");
}

std::string One(const std::string& dtype, const std::string& shape, const std::string& offsets, size_t data) {
  return File(R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}", data);
}

TEST(SafetensorsFileTest, TensorRules) {
  ExpectRefused(One("\"F4\"", "[1]", "[0,1]", 1), "dtype is not known, got 'F4'");
  ExpectRefused(One("7", "[1]", "[0,1]", 1), "dtype must be a string");
  ExpectRefused(One("\"U8\"", "1", "[0,1]", 1), "shape must be an array");
  ExpectRefused(One("\"U8\"", "[-1]", "[0,1]", 1), "shape must hold sizes");
  ExpectRefused(One("\"U8\"", "[1.5]", "[0,1]", 1), "shape must hold sizes");
  ExpectRefused(One("\"U8\"", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]", 1), "shape must be an array");
  // Products that wrap 64 bits to the size of the data.
  ExpectRefused(One("\"U8\"", "[281474976710656,65536]", "[0,0]", 0), "does not fill");
  ExpectRefused(One("\"F64\"", "[281474976710656,8192]", "[0,0]", 0), "does not fill");
  ExpectRefused(One("\"U8\"", "[2]", "[0,1]", 1), "does not fill");
  ExpectRefused(One("\"F32\"", "[1]", "[0,3]", 3), "does not fill");
  ExpectRefused(One("\"U8\"", "[1]", "[0]", 1), "must be two sizes");
  ExpectRefused(One("\"U8\"", "[1]", "[-1,0]", 1), "must be two sizes");
  ExpectRefused(One("\"U8\"", "[1]", "[1,0]", 1), "must lie within");
  ExpectRefused(One("\"U8\"", "[1]", "[0,2]", 1), "must lie within");
  ExpectRefused(One("\"U8\"", "[1]", "[18446744073709551615,18446744073709551615]", 1), "must lie within");
}

TEST(SafetensorsFileTest, CoverageRules) {
  const auto two = [](const std::string& first, const std::string& second, size_t data) {
    return File(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
                    R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}",
                data);
  };
  std::vector<uint8_t> memory;
  EXPECT_TRUE(ParseText(two("[4,8]", "[0,4]", 8), &memory).ok());
  ExpectRefused(two("[0,4]", "[3,7]", 7), "'b' overlaps");
  ExpectRefused(two("[0,4]", "[0,4]", 4), "overlaps");
  ExpectRefused(two("[0,4]", "[5,9]", 9), "hole before tensor 'b'");
  ExpectRefused(two("[1,5]", "[5,9]", 9), "hole before tensor 'a'");
  ExpectRefused(two("[0,4]", "[4,8]", 9), "cover 8 of 9");
}

}  // namespace
}  // namespace sage
