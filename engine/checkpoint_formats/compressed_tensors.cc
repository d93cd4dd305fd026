// compressed-tensors folders: integer weights of 2 to 8 bits (engine/api/ct_integer.h) and float weights
// (float-quantized fp8, mxfp4, nvfp4: engine/api/ct_float.h), several schemes in one folder too.
//
// What a module is follows from its own tensors and must agree with the config group that targets it; modules with a
// float weight are plain (quantization.md 1.4, versions 0.8 to 0.19).
#include <algorithm>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/api/ct_config.h"
#include "engine/api/ct_float.h"
#include "engine/api/ct_integer.h"
#include "engine/api/hf_folder.h"
#include "engine/base/status.h"

namespace sage::checkpoint_formats {
namespace {

constexpr char kCompressedTensorsMethod[] = "compressed-tensors";

class CompressedTensorsCheckpoint final : public Checkpoint {
 public:
  explicit CompressedTensorsCheckpoint(std::unique_ptr<HfFolder> folder) : folder_(std::move(folder)) {}

  const Json& config() const override { return folder_->config(); }
  const Json& generation_config() const override { return folder_->generation_config(); }
  std::string_view format() const override { return "compressed_tensors"; }
  std::string path() const override { return folder_->path(); }
  std::vector<std::string> linear_names() const override {
    std::vector<std::string> out = folder_->DenseLinearNames();
    for (const auto& [name, view] : folder_->tensors()) {
      if (absl::EndsWith(name, ".weight_packed")) out.push_back(name.substr(0, name.size() - 14));
    }
    return out;
  }
  std::vector<std::string> tensor_names() const override {
    std::vector<std::string> out;
    for (const auto& [name, view] : folder_->tensors()) out.push_back(name);
    return out;
  }
  bool HasTensor(std::string_view name) const override { return folder_->Find(name) != nullptr; }
  bool HasLinear(std::string_view module) const override {
    const std::string name(module);
    return HasTensor(name + ".weight_packed") || HasTensor(name + ".weight");
  }
  absl::StatusOr<TensorView> GetTensor(std::string_view name) const override { return folder_->Get(name); }
  absl::StatusOr<StoredLinear> GetLinear(std::string_view module) const override {
    const std::string name(module);
    const bool floats = floats_.Holds(*folder_, name);
    if (!floats && !CtIntegerSchemes::Holds(*folder_, name)) return folder_->GetDense(module);
    SAGE_ASSIGN_OR_RETURN(const bool ignored, ignored_.Holds(name));
    if (ignored) return Bad(name, "ignore names the module, and it is quantized");
    return floats ? floats_.Get(*folder_, name) : integers_.Get(*folder_, name);
  }
  absl::StatusOr<std::string> Fingerprint() const override { return folder_->Fingerprint(); }
  size_t file_bytes() const override { return folder_->file_bytes(); }

  std::vector<std::string> notes() const override { return integers_.notes(); }

  // Checks the format and collects the schemes that the config names.
  absl::Status ReadConfig();

 private:
  // What would change the values between the stored weights and a layer's output.
  absl::Status RefuseTransforms(const Json& quantization) const;

  absl::Status Bad(const std::string& module, const std::string& rule) const {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(folder_->path(), ": ", module, ": ", rule));
  }
  std::unique_ptr<HfFolder> folder_;
  CtIntegerSchemes integers_;
  CtFloatSchemes floats_;
  CtModuleNames ignored_;
};

absl::Status CompressedTensorsCheckpoint::RefuseTransforms(const Json& quantization) const {
  const auto refuse = [&](const std::string& rule) {
    return MakeError(absl::StatusCode::kUnimplemented, "CHECKPOINT_FORMAT_NOT_SUPPORTED",
                     absl::StrCat(folder_->path(), ": ", rule));
  };
  const auto sparsity = quantization.find("sparsity_config");
  if (sparsity != quantization.end() && sparsity->is_object() && !sparsity->empty()) {
    SAGE_ASSIGN_OR_RETURN(const std::string format, JsonString(*sparsity, "format", "dense"));
    if (format != "dense")
      return refuse(absl::StrCat("sparsity_config: must be dense, got '", format.substr(0, 60), "'"));
  }
  const auto transforms = quantization.find("transform_config");
  if (transforms == quantization.end() || !transforms->is_object() || !transforms->contains("config_groups")) {
    return absl::OkStatus();
  }
  // Those of weights are folded into the stored values; the others turn what flows through the model.
  for (const auto& [name, scheme] : (*transforms)["config_groups"].items()) {
    const auto apply = scheme.is_object() ? scheme.find("apply") : scheme.end();
    if (!scheme.is_object() || apply == scheme.end() || !apply->is_array()) {
      return refuse(absl::StrCat("transform_config: ", name.substr(0, 60), " must have an array 'apply'"));
    }
    for (const Json& place : *apply) {
      if (!place.is_object()) return refuse("transform_config: an entry of 'apply' must be an object");
      SAGE_ASSIGN_OR_RETURN(const std::string location, JsonString(place, "location", ""));
      if (absl::StartsWith(location, "weight_")) continue;
      return refuse(absl::StrCat("transform_config: ", name.substr(0, 60),
                                 " must be folded into the weights, got location '", location.substr(0, 40),
                                 "' (turned while the model runs)"));
    }
  }
  return absl::OkStatus();
}

absl::Status CompressedTensorsCheckpoint::ReadConfig() {
  const Json& quantization = folder_->config()["quantization_config"];
  SAGE_ASSIGN_OR_RETURN(const std::string format, JsonString(quantization, "format", "pack-quantized"));
  // "dense" is a folder with plain weights that has only a scheme for the KV cache.
  static constexpr const char* kFormats[] = {
      "pack-quantized",  "int-quantized",        "float-quantized",      "naive-quantized",
      "mixed-precision", "mxfp4-pack-quantized", "nvfp4-pack-quantized", "dense"};
  if (std::find(std::begin(kFormats), std::end(kFormats), format) == std::end(kFormats)) {
    return MakeError(absl::StatusCode::kUnimplemented, "CHECKPOINT_FORMAT_NOT_SUPPORTED",
                     absl::StrCat(folder_->path(), ": compressed-tensors format must be one of [",
                                  absl::StrJoin(kFormats, ", "), "], got '", format.substr(0, 60), "'"));
  }
  SAGE_RETURN_IF_ERROR(RefuseTransforms(quantization));
  SAGE_ASSIGN_OR_RETURN(ignored_,
                        CtModuleNames::Read(folder_->path() + ": ignore", quantization.value("ignore", Json())));
  const auto groups = quantization.find("config_groups");
  if (groups == quantization.end() || !groups->is_object())
    return Bad("quantization_config", "config_groups must be an object");
  for (const auto& [name, group] : groups->items()) {
    if (!group.is_object()) return Bad(name, "must be an object");
    const auto outputs = group.find("output_activations");
    if (outputs != group.end() && !outputs->is_null()) {
      return MakeError(absl::StatusCode::kUnimplemented, "ACTIVATION_QUANTIZATION_NOT_SUPPORTED",
                       absl::StrCat(folder_->path(), ": ", name.substr(0, 120),
                                    ": output_activations must be null, got ", DumpJson(*outputs).substr(0, 160)));
    }
    const auto weights = group.find("weights");
    if (weights == group.end() || !weights->is_object()) continue;
    SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(*weights, "type", "int"));
    if (type == "float") {
      SAGE_RETURN_IF_ERROR(floats_.AddGroup(folder_->path(), name, group));
      continue;
    }
    SAGE_RETURN_IF_ERROR(integers_.AddGroup(folder_->path(), name, group, format));
  }
  return absl::OkStatus();
}

bool RecognizeCompressedTensors(const std::string& path) { return HfQuantMethodIs(path, kCompressedTensorsMethod); }

absl::StatusOr<std::shared_ptr<Checkpoint>> OpenCompressedTensors(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(std::unique_ptr<HfFolder> folder, HfFolder::Open(path));
  auto out = std::make_shared<CompressedTensorsCheckpoint>(std::move(folder));
  SAGE_RETURN_IF_ERROR(out->ReadConfig());
  return std::shared_ptr<Checkpoint>(std::move(out));
}

}  // namespace

extern const CheckpointFormatDef kCompressedTensors;
const CheckpointFormatDef kCompressedTensors = {
    .name = "compressed_tensors",
    .summary = "compressed-tensors: integers of 2 to 8 bits with 16- or 8-bit activations, fp8, mxfp4, nvfp4",
    .rank = 10,
    .recognize = RecognizeCompressedTensors,
    .open = OpenCompressedTensors,
    .write_config = CompressedTensorsConfig,
    .merge_configs = MergeCompressedTensorsConfigs};

}  // namespace sage::checkpoint_formats
