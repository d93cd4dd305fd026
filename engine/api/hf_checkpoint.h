// A checkpoint that is a Hugging Face folder: everything but what a quantized linear layer is made of.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/api/hf_folder.h"

namespace sage {

class HfCheckpoint : public Checkpoint {
 public:
  explicit HfCheckpoint(std::unique_ptr<HfFolder> folder) : folder_(std::move(folder)) {}

  const Json& config() const override { return folder_->config(); }
  const Json& generation_config() const override { return folder_->generation_config(); }
  std::string path() const override { return folder_->path(); }
  std::vector<std::string> linear_names() const override { return folder_->DenseLinearNames(); }
  std::vector<std::string> tensor_names() const override {
    std::vector<std::string> out;
    for (const auto& [name, view] : folder_->tensors()) out.push_back(name);
    return out;
  }
  bool HasTensor(std::string_view name) const override { return folder_->Find(name) != nullptr; }
  bool HasLinear(std::string_view module) const override { return HasTensor(std::string(module) + ".weight"); }
  absl::StatusOr<TensorView> GetTensor(std::string_view name) const override { return folder_->Get(name); }
  absl::StatusOr<std::string> Fingerprint() const override { return folder_->Fingerprint(); }
  size_t file_bytes() const override { return folder_->file_bytes(); }

 protected:
  const HfFolder& folder() const { return *folder_; }

 private:
  std::unique_ptr<HfFolder> folder_;
};

}  // namespace sage
