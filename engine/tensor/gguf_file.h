// The GGUF container, versions 1 to 3: metadata and tensor directory of a memory-mapped file.
//
// Layout (little-endian): "GGUF", u32 version, counts (u32 in v1, u64 in v2 and v3), key-value pairs, tensor infos,
// then data at the next multiple of general.alignment (default 32). Source: ggml docs/gguf.md. Every size is checked
// before it is used.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/file.h"
#include "engine/base/json.h"

namespace sage {

// ggml type ids that we can read (quantization.md 1.8).
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kBF16 = 30,
};

struct GgufValue {
  // What a metadata value holds, as the file numbers it.
  enum Type : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };
};

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  // outermost first (the file stores fastest first): [N, K]
  GgmlType type = GgmlType::kF32;
  const uint8_t* data = nullptr;  // into the map
  size_t bytes = 0;
};

class GgufFile {
 public:
  // INVALID_ARGUMENT with file and field on anything malformed; UNIMPLEMENTED for a tensor type that is not readable is
  // reported when the tensor is asked for, not here.
  static absl::StatusOr<std::shared_ptr<GgufFile>> Open(const std::string& path);
  // The same parser over bytes that outlive the object (tests, fuzzing).
  static absl::StatusOr<std::shared_ptr<GgufFile>> Parse(const uint8_t* data, size_t size, const std::string& name);

  uint32_t version() const { return version_; }
  // Metadata as JSON: numbers, booleans, strings (raw bytes, maybe not UTF-8), and arrays of them.
  // Large arrays (vocabularies) are here too: "tokenizer.ggml.tokens" is an array of strings.
  const Json& metadata() const { return metadata_; }
  const std::map<std::string, GgufTensor>& tensors() const { return tensors_; }
  const MappedFile* file() const { return file_.get(); }

 private:
  GgufFile() = default;
  friend class GgufParser;
  uint32_t version_ = 0;
  Json metadata_;
  std::map<std::string, GgufTensor> tensors_;
  std::shared_ptr<MappedFile> file_;
};

}  // namespace sage
