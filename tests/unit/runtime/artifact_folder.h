// What the tests of calibration, conversion and reports share: the small models, scratch folders and folder comparison.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "engine/base/file.h"
#include "engine/runtime/operations.h"
#include "gtest/gtest.h"

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

// Four bits, one scale a row, with text to look at.
inline CalibrationSpec StoriesTextSpec(const ScratchFolder& scratch, const std::string& method) {
  CalibrationSpec spec = StoriesSpec(scratch);
  spec.weight_dtype = "int4";
  spec.method = method;
  spec.dataset = scratch / "text.txt";
  spec.samples = 6;
  spec.sequence_length = 96;
  if (!FileExists(spec.dataset)) {
    std::string text;
    for (int i = 0; i < 120; ++i) {
      text += "Once upon a time there was a little dog number " + std::to_string(i * 37 % 101) +
              ". It saw a big red ball and ran to its friend Tim. They were happy all day.\n";
    }
    EXPECT_TRUE(WriteFileAtomic(spec.dataset, text).ok());
  }
  return spec;
}

}  // namespace sage
