// The beginning of a GGUF v3 file: header, keys and tensor directory, exactly as the reader of gguf_file.h expects
// them.
//
// The number of bytes depends on names and shapes only, so a writer may put the data first and come back with the
// types. Every number is little-endian; tensors follow each other at multiples of 32 in the order given.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tensor/gguf_file.h"

namespace sage {

inline constexpr uint64_t kGgufAlignment = 32;

// Key-value pairs in the order they are added; a key that is there already is an error of GgufBeginning.
class GgufKeys {
 public:
  void AddU32(const std::string& key, uint32_t value);
  void AddI32(const std::string& key, int32_t value);
  void AddF32(const std::string& key, float value);
  void AddBool(const std::string& key, bool value);
  void AddString(const std::string& key, std::string_view value);
  void AddStrings(const std::string& key, const std::vector<std::string>& values);
  void AddI32s(const std::string& key, const std::vector<int32_t>& values);
  void AddF32s(const std::string& key, const std::vector<float>& values);
  void Append(const GgufKeys& others);

  bool Has(const std::string& key) const;
  const std::vector<std::string>& names() const { return names_; }
  const std::string& bytes() const { return bytes_; }

 private:
  void Begin(const std::string& key, uint32_t type);

  std::vector<std::string> names_;
  std::string bytes_;
};

struct GgufTensorEntry {
  std::string name;
  std::vector<int64_t> shape;  // outermost first
  GgmlType type = GgmlType::kF32;
  uint64_t bytes = 0;  // of the data, without padding
};

// Everything before the data, padded to its first byte. INVALID_ARGUMENT (GGUF_INVALID) on a name or key that is there
// twice, is empty or too long, or a shape that a file cannot hold.
absl::StatusOr<std::string> GgufBeginning(const GgufKeys& keys, const std::vector<GgufTensorEntry>& tensors);

inline uint64_t GgufPadding(uint64_t bytes) { return (kGgufAlignment - bytes % kGgufAlignment) % kGgufAlignment; }

}  // namespace sage
