// Hugging Face folders with plain float weights: config.json and model.safetensors, whole or sharded.
#include "engine/api/hf_folder.h"
#include "engine/base/status.h"

namespace sage::checkpoint_formats {
namespace {

class SafetensorsCheckpoint final : public Checkpoint {
 public:
  explicit SafetensorsCheckpoint(std::unique_ptr<HfFolder> folder) : folder_(std::move(folder)) {}

  const Json& config() const override { return folder_->config(); }
  const Json& generation_config() const override { return folder_->generation_config(); }
  std::string_view format() const override { return "safetensors"; }
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
  absl::StatusOr<StoredLinear> GetLinear(std::string_view module) const override { return folder_->GetDense(module); }
  absl::StatusOr<std::string> Fingerprint() const override { return folder_->Fingerprint(); }
  size_t file_bytes() const override { return folder_->file_bytes(); }

 private:
  std::unique_ptr<HfFolder> folder_;
};

bool RecognizeSafetensors(const std::string& path) { return IsDirectory(path) && FileExists(path + "/config.json"); }

absl::StatusOr<std::shared_ptr<Checkpoint>> OpenSafetensors(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(std::unique_ptr<HfFolder> folder, HfFolder::Open(path));
  const auto quantization = folder->config().find("quantization_config");
  if (quantization != folder->config().end() && !quantization->is_null()) {
    // No format with a higher rank took it: serving its tensors as plain weights would be wrong.
    return MakeError(
        absl::StatusCode::kUnimplemented, "UNKNOWN_QUANT_METHOD",
        path + ": quantization_config.quant_method is not readable, got " +
            DumpJson(quantization->is_object() ? quantization->value("quant_method", Json()) : *quantization)
                .substr(0, 80));
  }
  return std::shared_ptr<Checkpoint>(std::make_shared<SafetensorsCheckpoint>(std::move(folder)));
}

}  // namespace

extern const CheckpointFormatDef kSafetensors;
const CheckpointFormatDef kSafetensors = {.name = "safetensors",
                                          .summary = "Hugging Face folder with F32, F16 or BF16 safetensors",
                                          .rank = 0,
                                          .recognize = RecognizeSafetensors,
                                          .open = OpenSafetensors};

}  // namespace sage::checkpoint_formats
