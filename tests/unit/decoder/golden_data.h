// Reads the golden tensors of transformers for tests: a plain safetensors reader that shares no code with the
// product's.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace sage {

inline std::string GoldenFolder() { return std::string(SAGE_SOURCE_DIR) + "/../shared/data/golden"; }
inline bool HaveGolden() { return std::filesystem::exists(GoldenFolder() + "/models"); }

class GoldenTensors {
 public:
  explicit GoldenTensors(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(in), {});
    uint64_t size = 0;
    std::memcpy(&size, bytes_.data(), 8);
    header_ = nlohmann::json::parse(bytes_.substr(8, size));
    begin_ = 8 + size;
  }
  bool Has(const std::string& name) const { return header_.contains(name); }
  std::vector<int64_t> Shape(const std::string& name) const { return header_[name]["shape"]; }
  template <typename T>
  std::vector<T> Get(const std::string& name) const {
    const auto& offsets = header_[name]["data_offsets"];
    const size_t from = offsets[0], to = offsets[1];
    std::vector<T> out((to - from) / sizeof(T));
    std::memcpy(out.data(), bytes_.data() + begin_ + from, to - from);
    return out;
  }

 private:
  std::string bytes_;
  nlohmann::json header_;
  size_t begin_ = 0;
};

}  // namespace sage
