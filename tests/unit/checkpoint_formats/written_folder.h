// A Hugging Face folder under the test's temporary directory, written tensor by tensor, so that tests can make files
// that no tool would write.
#pragma once

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "engine/api/checkpoint_format.h"
#include "engine/base/json.h"
#include "gtest/gtest.h"

namespace sage {

class WrittenFolder {
 public:
  WrittenFolder() {
    static int count = 0;
    path_ = ::testing::TempDir() + "sage_folder_" + std::to_string(getpid()) + "_" + std::to_string(count++);
    std::filesystem::create_directories(path_);
  }
  ~WrittenFolder() { std::filesystem::remove_all(path_); }
  WrittenFolder(const WrittenFolder&) = delete;
  WrittenFolder& operator=(const WrittenFolder&) = delete;

  const std::string& path() const { return path_; }

  void Put(const std::string& name, DType dtype, Shape shape, const void* data, size_t bytes) {
    tensors_[name] = {dtype, std::move(shape), std::string(static_cast<const char*>(data), bytes)};
  }
  void Put(const std::string& name, const TensorView& view) {
    Put(name, view.dtype, view.shape, view.data, view.bytes);
  }
  void PutModule(const std::string& module, const StoredLinear& stored) {
    for (const auto& [name, view] : stored.tensors) Put(module + "." + name, view);
  }
  void Drop(const std::string& name) { tensors_.erase(name); }
  void WriteJson(const std::string& file, const Json& value) const {
    std::ofstream(path_ + "/" + file) << value.dump();
  }
  void Write(const std::string& text, const std::string& file) const { std::ofstream(path_ + "/" + file) << text; }

  // The tensors as one safetensors file.
  void WriteTensors(const std::string& file = "model.safetensors") const {
    Json header = Json::object();
    size_t at = 0;
    std::string data;
    for (const auto& [name, tensor] : tensors_) {
      header[name] = {{"dtype", std::string(DTypeName(tensor.dtype))},
                      {"shape", tensor.shape},
                      {"data_offsets", {at, at + tensor.bytes.size()}}};
      at += tensor.bytes.size();
      data += tensor.bytes;
    }
    const std::string text = header.dump();
    const uint64_t length = text.size();
    std::ofstream out(path_ + "/" + file, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), 8);
    out << text << data;
  }

  // Writes config and tensors, and opens the folder.
  absl::StatusOr<std::shared_ptr<Checkpoint>> Open(const Json& quantization_config) const {
    WriteJson("config.json", {{"model_type", "llama"}, {"quantization_config", quantization_config}});
    WriteTensors();
    return OpenCheckpoint(path_);
  }

 private:
  struct Written {
    DType dtype = DType::kF32;
    Shape shape;
    std::string bytes;
  };
  std::string path_;
  std::map<std::string, Written> tensors_;
};

}  // namespace sage
