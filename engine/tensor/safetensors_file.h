// The safetensors container: one memory-mapped file of named tensors.
//
// Layout (little-endian): u64 header length (at most 100,000,000), that many bytes of JSON beginning with '{'
// {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {string: string}}, then the data. Offsets are
// relative to the end of the header; tensors cover the data without holes or overlaps. Source: safetensors README,
// format 0.x.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base/file.h"
#include "engine/tensor/tensor.h"

namespace sage {

class SafetensorsFile {
 public:
  // INVALID_ARGUMENT with file, tensor and rule on anything malformed.
  static absl::StatusOr<std::shared_ptr<SafetensorsFile>> Open(const std::string& path);
  // The same parser over bytes that outlive the object (tests, fuzzing).
  static absl::StatusOr<std::shared_ptr<SafetensorsFile>> Parse(const uint8_t* data, size_t size,
                                                                const std::string& name);

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const MappedFile* file() const { return file_.get(); }

 private:
  SafetensorsFile() = default;
  friend class SafetensorsParser;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
  std::shared_ptr<MappedFile> file_;
};

}  // namespace sage
