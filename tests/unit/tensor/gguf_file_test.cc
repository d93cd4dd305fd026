// Hand-made GGUF headers: what is read of good ones, and that each broken field is refused by name.
#include "engine/tensor/gguf_file.h"

#include <cstring>
#include <string>

#include "engine/tensor/tensor.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

// Appends little-endian fields; counts are u32 in version 1.
class Writer {
 public:
  explicit Writer(uint32_t version = 3) : version_(version) {}
  template <typename T>
  Writer& Raw(T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out_.append(bytes, sizeof(T));
    return *this;
  }
  Writer& Count(uint64_t n) { return version_ == 1 ? Raw(static_cast<uint32_t>(n)) : Raw(n); }
  Writer& Text(const std::string& text) {
    Count(text.size());
    out_ += text;
    return *this;
  }
  Writer& Header(uint64_t tensors, uint64_t pairs) {
    out_ += "GGUF";
    return Raw(version_).Count(tensors).Count(pairs);
  }
  Writer& Alignment(uint32_t n) { return Text("general.alignment").Raw(uint32_t{4}).Raw(n); }
  Writer& TensorInfo(const std::string& name, std::vector<uint64_t> sizes, uint32_t type, uint64_t offset) {
    Text(name).Raw(static_cast<uint32_t>(sizes.size()));
    for (const uint64_t size : sizes) Count(size);
    return Raw(type).Raw(offset);
  }
  Writer& Data(size_t bytes, size_t alignment = 32) {
    out_.resize((out_.size() + alignment - 1) / alignment * alignment);
    out_.append(bytes, '\x01');
    return *this;
  }
  const std::string& bytes() const { return out_; }

 private:
  uint32_t version_;
  std::string out_;
};

// A copy of exactly the input's size on the heap, so that a sanitizer sees a read past its end.
absl::StatusOr<std::shared_ptr<GgufFile>> ParseText(const std::string& bytes, std::vector<uint8_t>* memory) {
  memory->assign(bytes.begin(), bytes.end());
  memory->shrink_to_fit();
  return GgufFile::Parse(memory->data(), memory->size(), "test.gguf");
}

void ExpectRefused(const std::string& bytes, const std::string& part) {
  std::vector<uint8_t> memory;
  const auto file = ParseText(bytes, &memory);
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << part;
  EXPECT_NE(std::string(file.status().message()).find(part), std::string::npos) << file.status();
  EXPECT_NE(std::string(file.status().message()).find("test.gguf"), std::string::npos) << file.status();
}

class GgufVersionTest : public ::testing::TestWithParam<uint32_t> {};

TEST_P(GgufVersionTest, ReadsValuesAndTensors) {
  Writer w(GetParam());
  w.Header(2, 4).Text("a.u8").Raw(uint32_t{0}).Raw(uint8_t{200});
  w.Text("a.text").Raw(uint32_t{8}).Text("\xff\xfe raw");
  w.Text("a.list").Raw(uint32_t{9}).Raw(uint32_t{5}).Count(2).Raw(int32_t{-3}).Raw(int32_t{7});
  w.Text("a.flag").Raw(uint32_t{7}).Raw(uint8_t{1});
  w.TensorInfo("m", {32, 3}, 2, 0).TensorInfo("v", {4}, 0, 64).Data(64 + 16);
  std::vector<uint8_t> memory;
  const auto file = ParseText(w.bytes(), &memory);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->version(), GetParam());
  EXPECT_EQ((*file)->metadata()["a.u8"], 200);
  EXPECT_EQ((*file)->metadata()["a.text"].get<std::string>(), "\xff\xfe raw");
  EXPECT_EQ((*file)->metadata()["a.list"], Json::array({-3, 7}));
  EXPECT_EQ((*file)->metadata()["a.flag"], true);
  const GgufTensor& m = (*file)->tensors().at("m");
  EXPECT_EQ(m.shape, (std::vector<int64_t>{3, 32}));
  EXPECT_EQ(m.type, GgmlType::kQ4_0);
  EXPECT_EQ(m.bytes, 54u);
  EXPECT_EQ((*file)->tensors().at("v").data - m.data, 64);
  EXPECT_EQ((*file)->tensors().at("v").data + 16, memory.data() + memory.size());
}

TEST_P(GgufVersionTest, EveryTruncationIsRefused) {
  Writer w(GetParam());
  w.Header(1, 1).Text("k").Raw(uint32_t{9}).Raw(uint32_t{8}).Count(1).Text("token");
  w.TensorInfo("t", {8}, 0, 0).Data(32);
  std::vector<uint8_t> memory;
  ASSERT_TRUE(ParseText(w.bytes(), &memory).ok());
  for (size_t n = 0; n < w.bytes().size(); ++n) {
    EXPECT_FALSE(ParseText(w.bytes().substr(0, n), &memory).ok()) << n << " bytes";
  }
}

INSTANTIATE_TEST_SUITE_P(All, GgufVersionTest, ::testing::Values(1u, 2u, 3u));

TEST(GgufFileTest, MagicAndVersion) {
  ExpectRefused("", "magic");
  ExpectRefused("FUGG" + Writer().Header(0, 0).bytes().substr(4), "must begin with 'GGUF'");
  ExpectRefused(Writer(0).Header(0, 0).bytes(), "version must be 1, 2 or 3, got 0");
  ExpectRefused(Writer(4).Header(0, 0).bytes(), "version must be 1, 2 or 3, got 4");
  ExpectRefused(Writer(3u << 24).Header(0, 0).bytes(), "big-endian");
}

TEST(GgufFileTest, CountsAndLengths) {
  ExpectRefused(Writer().Header(~uint64_t{0}, 0).bytes(), "tensor count");
  ExpectRefused(Writer().Header(0, ~uint64_t{0}).bytes(), "key count");
  ExpectRefused(Writer().Header(0, 1).bytes(), "key");
  ExpectRefused(Writer().Header(0, 1).Raw(~uint64_t{0}).bytes(), "passes the end of the file");
  ExpectRefused(Writer().Header(0, 1).Text("").bytes(), "must not be empty");
  ExpectRefused(Writer().Header(0, 1).Text(std::string(70000, 'k')).bytes(), "key must be at most 65535");
  ExpectRefused(Writer().Header(0, 1).Text("k").Raw(uint32_t{8}).Raw(~uint64_t{0} - 7).bytes(), "key 'k'");
  ExpectRefused(Writer().Header(0, 1).Text("k").Raw(uint32_t{13}).bytes(), "value type must be 0 to 12, got 13");
  ExpectRefused(Writer().Header(0, 1).Text("k").Raw(uint32_t{7}).Raw(uint8_t{2}).bytes(), "booleans");
}

TEST(GgufFileTest, DuplicateKeysAndNames) {
  Writer keys;
  keys.Header(0, 2);
  for (int i = 0; i < 2; ++i) keys.Text("same").Raw(uint32_t{0}).Raw(uint8_t{1});
  ExpectRefused(keys.bytes(), "key 'same' is there twice");
  ExpectRefused(Writer().Header(2, 0).TensorInfo("t", {8}, 0, 0).TensorInfo("t", {8}, 0, 32).Data(64).bytes(),
                "tensor 't' is there twice");
}

TEST(GgufFileTest, Arrays) {
  const auto array = [](uint32_t type, uint64_t count) {
    return Writer().Header(0, 1).Text("k").Raw(uint32_t{9}).Raw(type).Count(count).bytes();
  };
  ExpectRefused(array(0, ~uint64_t{0}), "array of");
  ExpectRefused(array(10, uint64_t{1} << 61), "array of");  // times 8 wraps to 0
  ExpectRefused(array(8, 1) + std::string(4, '\0'), "array of");
  ExpectRefused(array(13, 0), "value type must be 0 to 12");
  ExpectRefused(array(0, 9'000'000) + std::string(9'000'000, '\0'), "elements in all");
  Writer nested;
  nested.Header(0, 1).Text("k").Raw(uint32_t{9});
  for (int i = 0; i < 5; ++i) nested.Raw(uint32_t{9}).Count(1);
  nested.Raw(uint32_t{0}).Count(0);
  ExpectRefused(nested.bytes(), "nested at most");
}

TEST(GgufFileTest, Alignment) {
  for (const uint32_t bad : {0u, 3u, 48u, 1u << 21}) {
    ExpectRefused(Writer().Header(0, 1).Alignment(bad).bytes(), "general.alignment");
  }
  ExpectRefused(Writer().Header(0, 1).Text("general.alignment").Raw(uint32_t{8}).Text("32").bytes(),
                "general.alignment");
  std::vector<uint8_t> memory;
  const auto file =
      ParseText(Writer().Header(1, 1).Alignment(64).TensorInfo("t", {8}, 0, 0).Data(32, 64).bytes(), &memory);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(((*file)->tensors().at("t").data - memory.data()) % 64, 0);
}

TEST(GgufFileTest, Shapes) {
  const auto tensor = [](std::vector<uint64_t> sizes, uint32_t type = 0, uint64_t offset = 0) {
    return Writer().Header(1, 0).TensorInfo("t", std::move(sizes), type, offset).Data(64).bytes();
  };
  ExpectRefused(tensor({1, 1, 1, 1, 1}), "at most 4 dimensions, got 5");
  ExpectRefused(tensor({0}), "sizes must be in");
  ExpectRefused(tensor({~uint64_t{0}}), "sizes must be in");
  ExpectRefused(tensor({uint64_t{1} << 40, uint64_t{1} << 40}), "larger than the file");
  // 2^16 * 2^16 * 2^16 * 2^16 elements wrap to 0 and would pass a size check made after the product.
  ExpectRefused(tensor({1u << 16, 1u << 16, 1u << 16, 1u << 16}), "larger than the file");
  ExpectRefused(tensor({31, 2}, 2), "whole blocks of 32");
  ExpectRefused(tensor({128}, 12), "whole blocks of 256");
}

TEST(GgufFileTest, Offsets) {
  const auto tensor = [](uint64_t offset, size_t data) {
    return Writer().Header(1, 0).TensorInfo("t", {8}, 0, offset).Data(data).bytes();
  };
  ExpectRefused(tensor(16, 64), "offset must be a multiple of 32, got 16");
  ExpectRefused(tensor(32, 32), "pass the end of the data");
  ExpectRefused(tensor(0, 31), "pass the end of the data");
  ExpectRefused(tensor(~uint64_t{0} - 31, 64), "pass the end of the data");  // offset + bytes wraps
  ExpectRefused(Writer().Header(2, 0).TensorInfo("a", {16}, 0, 0).TensorInfo("b", {8}, 0, 32).Data(64).bytes(),
                "tensor 'b' overlaps");
  ExpectRefused(Writer().Header(2, 0).TensorInfo("a", {8}, 0, 0).TensorInfo("b", {8}, 0, 0).Data(64).bytes(),
                "overlaps");
}

TEST(GgufFileTest, UnreadableTypesAreListedButHaveNoBytes) {
  std::vector<uint8_t> memory;
  const auto file = ParseText(Writer().Header(1, 0).TensorInfo("t", {32}, 39, 0).Data(32).bytes(), &memory);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors().at("t").bytes, 0u);
}

TEST(GgufFileTest, MetadataOnly) {
  std::vector<uint8_t> memory;
  const auto file = ParseText(Writer().Header(0, 1).Alignment(32).bytes(), &memory);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->tensors().empty());
}

}  // namespace
}  // namespace sage
