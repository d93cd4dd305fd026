// What the tests of calibration, conversion and reports share: the small models, scratch folders and folder comparison.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "engine/runtime/operations.h"

namespace sage {

inline std::string StoriesGguf() {
  return std::string(SAGE_SOURCE_DIR) + "/tests/data/stories260K/tinyllamas-stories-260k-f32.gguf";
}
inline std::string GoldenModel(const std::string& name) {
  return std::string(SAGE_SOURCE_DIR) + "/../shared/data/golden/models/" + name;
}

class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "sage_artifact_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

// File name -> bytes.
inline std::map<std::string, std::string> FolderBytes(const std::string& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    out[entry.path().filename().string()] = Slurp(entry.path().string());
  }
  return out;
}

inline CalibrationSpec StoriesSpec(const ScratchFolder& scratch) {
  CalibrationSpec spec;
  spec.model = StoriesGguf();
  spec.model_name = "stories260K";
  spec.weight_dtype = "int8";
  spec.group_size = -1;
  spec.output = scratch / "artifact";
  spec.work_dir = scratch / "work";
  return spec;
}

}  // namespace sage
