// compressed-tensors folders: pack-quantized integer weights of 4 or 8 bits, by group or by channel, and float weights
// (float-quantized fp8, mxfp4, nvfp4: engine/api/ct_float.h).
//
// Tensors of a module: weight_packed I32 [N, ceil(K b / 32)], weight_scale [N, G], weight_shape [2], weight_zero_point
// I32 [ceil(N b / 32), G] when asymmetric, weight_g_idx I32 [K] with actorder "group" (quantization.md 1.4, versions
// 0.8 to 0.19). What a module is follows from its own tensors and must agree with config_groups; modules without
// weight_packed are plain.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/api/ct_config.h"
#include "engine/api/ct_float.h"
#include "engine/api/hf_folder.h"
#include "engine/base/status.h"

namespace sage::checkpoint_formats {
namespace {

constexpr char kMethod[] = "compressed-tensors";

struct PackedScheme {
  int bits;
  const char* strategy;
};
constexpr PackedScheme kSchemes[] = {{4, "int4_w4a16"}, {8, "int8_w8a16"}};

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
    if (floats_.Holds(*folder_, name)) return floats_.Get(*folder_, name);
    const TensorView* weight = folder_->Find(name + ".weight");
    if (weight != nullptr && weight->dtype == DType::kI8) return GetBytes(name, *weight);
    if (!HasTensor(name + ".weight_packed")) return folder_->GetDense(module);
    return GetPacked(name);
  }
  absl::StatusOr<std::string> Fingerprint() const override { return folder_->Fingerprint(); }
  size_t file_bytes() const override { return folder_->file_bytes(); }

  // Checks the format and collects the bit widths that the config names.
  absl::Status ReadConfig();

 private:
  absl::Status Bad(const std::string& module, const std::string& rule) const {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(folder_->path(), ": ", module, ": ", rule));
  }
  absl::Status AddIntegerGroup(const std::string& name, const Json& group, const Json& weights,
                               const std::string& format);
  absl::StatusOr<StoredLinear> GetPacked(const std::string& module) const;
  absl::StatusOr<StoredLinear> GetBytes(const std::string& module, const TensorView& weight) const;
  absl::Status ReadShape(const std::string& module, StoredLinear* out) const;

  std::unique_ptr<HfFolder> folder_;
  std::set<int64_t> bits_;       // of pack-quantized groups
  std::set<int64_t> byte_bits_;  // of int-quantized groups
  CtFloatSchemes floats_;
};

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
  const auto groups = quantization.find("config_groups");
  if (groups == quantization.end() || !groups->is_object())
    return Bad("quantization_config", "config_groups must be an object");
  for (const auto& [name, group] : groups->items()) {
    if (!group.is_object()) return Bad(name, "must be an object");
    const auto weights = group.find("weights");
    if (weights == group.end() || !weights->is_object()) continue;
    SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(*weights, "type", "int"));
    if (type == "float") {
      SAGE_RETURN_IF_ERROR(floats_.AddGroup(folder_->path(), name, group));
      continue;
    }
    SAGE_RETURN_IF_ERROR(AddIntegerGroup(name, group, *weights, format));
  }
  return absl::OkStatus();
}

// Weight-only integers are packed; with 8-bit activations they are bytes, or packed too.
absl::Status CompressedTensorsCheckpoint::AddIntegerGroup(const std::string& name, const Json& group,
                                                          const Json& weights, const std::string& format) {
  const auto refuse = [&](const char* reason, const std::string& rule) {
    return MakeError(absl::StatusCode::kUnimplemented, reason, absl::StrCat(folder_->path(), ": ", name, ": ", rule));
  };
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(weights, "type", "int"));
  SAGE_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(weights, "num_bits", 8));
  if (type != "int" || (bits != 4 && bits != 8)) {
    return refuse("CHECKPOINT_FORMAT_NOT_SUPPORTED",
                  absl::StrCat("weights must be int with 4 or 8 bits, got ", type, " with ", bits));
  }
  SAGE_ASSIGN_OR_RETURN(const std::string own, JsonString(group, "format", format));
  const auto activations = group.find("input_activations");
  const bool small = activations != group.end() && !activations->is_null();
  if (small != (own == "int-quantized") || (!small && own != "pack-quantized")) {
    return refuse("CHECKPOINT_FORMAT_NOT_SUPPORTED",
                  absl::StrCat("integer weights must be pack-quantized, or int-quantized with 8-bit activations, got '",
                               own.substr(0, 60), small ? "' with activations" : "' without activations"));
  }
  if (!small) {
    bits_.insert(bits);
    return absl::OkStatus();
  }
  SAGE_ASSIGN_OR_RETURN(const std::string a_type, JsonString(*activations, "type", "int"));
  SAGE_ASSIGN_OR_RETURN(const int64_t a_bits, JsonInt(*activations, "num_bits", 8));
  SAGE_ASSIGN_OR_RETURN(const std::string a_strategy, JsonString(*activations, "strategy", "token"));
  if (a_type != "int" || a_bits != 8 || (a_strategy != "token" && a_strategy != "tensor")) {
    return refuse("ACTIVATION_QUANTIZATION_NOT_SUPPORTED",
                  absl::StrCat("input_activations must be 8-bit integers by token or by tensor, got ",
                               DumpJson(*activations).substr(0, 120)));
  }
  byte_bits_.insert(bits);
  return absl::OkStatus();
}

absl::Status CompressedTensorsCheckpoint::ReadShape(const std::string& module, StoredLinear* out) const {
  SAGE_ASSIGN_OR_RETURN(const TensorView shape, folder_->Get(module + ".weight_shape"));
  if (shape.elements() != 2 || (shape.dtype != DType::kI64 && shape.dtype != DType::kI32)) {
    return Bad(module, absl::StrCat("weight_shape must be two integers, got ", ShapeText(shape.shape)));
  }
  int64_t size[2] = {};
  for (int i = 0; i < 2; ++i) {
    const size_t width = DTypeSize(shape.dtype);
    int32_t narrow = 0;  // tensors of a file need not be aligned
    if (width == 8) {
      std::memcpy(&size[i], shape.as<uint8_t>() + 8 * i, 8);
    } else {
      std::memcpy(&narrow, shape.as<uint8_t>() + 4 * i, 4);
      size[i] = narrow;
    }
    if (size[i] < 1 || size[i] > (int64_t{1} << 31))
      return Bad(module, absl::StrCat("weight_shape must be positive, got ", size[i]));
  }
  out->N = size[0];
  out->K = size[1];
  return absl::OkStatus();
}

absl::StatusOr<StoredLinear> CompressedTensorsCheckpoint::GetPacked(const std::string& module) const {
  StoredLinear out;
  SAGE_RETURN_IF_ERROR(ReadShape(module, &out));
  for (const char* name : {"weight_packed", "weight_scale", "weight_shape"}) {
    SAGE_ASSIGN_OR_RETURN(out.tensors[name], folder_->Get(absl::StrCat(module, ".", name)));
  }
  const TensorView& packed = out.tensors["weight_packed"];
  const TensorView& scale = out.tensors["weight_scale"];
  if (packed.dtype != DType::kI32 || packed.shape.size() != 2 || packed.dim(0) != out.N) {
    return Bad(module, absl::StrCat("weight_packed must be I32 [", out.N, ", words], got ", ShapeText(packed.shape)));
  }
  const PackedScheme* scheme = nullptr;
  for (const PackedScheme& s : kSchemes) {
    if (packed.dim(1) == (out.K * s.bits + 31) / 32 && bits_.count(s.bits) > 0) scheme = &s;
  }
  if (scheme == nullptr) {
    return Bad(module,
               absl::StrCat("weight_packed of ", packed.dim(1), " words for ", out.K,
                            " inputs fits none of the bit widths [", absl::StrJoin(bits_, ", "), "] of the config"));
  }
  if (!IsFloat(scale.dtype) || scale.shape.size() != 2 || scale.dim(0) != out.N || scale.dim(1) < 1 ||
      out.K % scale.dim(1) != 0) {
    return Bad(module, absl::StrCat("weight_scale must be [", out.N, ", G] with G dividing ", out.K, ", got ",
                                    ShapeText(scale.shape)));
  }
  out.spec.strategy = scheme->strategy;
  out.spec.scale_dtype = scale.dtype;
  out.spec.group_size = scale.dim(1) == 1 ? -1 : static_cast<int>(out.K / scale.dim(1));
  if (const TensorView* zero = folder_->Find(module + ".weight_zero_point")) {
    if (zero->dtype != DType::kI32) {
      return Bad(module,
                 absl::StrCat("weight_zero_point must be packed I32, got ", std::string(DTypeName(zero->dtype))));
    }
    out.spec.symmetric = false;
    out.tensors["weight_zero_point"] = *zero;
  }
  if (const TensorView* g_idx = folder_->Find(module + ".weight_g_idx")) {
    out.spec.act_order = true;
    out.tensors["weight_g_idx"] = *g_idx;
  }
  if (const TensorView* bias = folder_->Find(module + ".bias")) out.bias = *bias;
  return out;
}

// int-quantized: a byte a code; the static scale of the activations beside it where there is one.
absl::StatusOr<StoredLinear> CompressedTensorsCheckpoint::GetBytes(const std::string& module,
                                                                   const TensorView& weight) const {
  if (byte_bits_.size() != 1) {
    return Bad(module, absl::StrCat("weight is I8, and config_groups must name one int-quantized bit width, got [",
                                    absl::StrJoin(byte_bits_, ", "), "]"));
  }
  if (weight.shape.size() != 2)
    return Bad(module, absl::StrCat("weight must be [N, K], got ", ShapeText(weight.shape)));
  StoredLinear out;
  out.N = weight.dim(0);
  out.K = weight.dim(1);
  out.tensors["weight"] = weight;
  SAGE_ASSIGN_OR_RETURN(TensorView scale, folder_->Get(module + ".weight_scale"));
  if (scale.shape.size() == 1 && scale.dim(0) == out.N) scale.shape = {out.N, 1};
  if (!IsFloat(scale.dtype) || scale.shape.size() != 2 || scale.dim(0) != out.N || scale.dim(1) < 1 ||
      out.K % scale.dim(1) != 0) {
    return Bad(module, absl::StrCat("weight_scale must be [", out.N, ", G] with G dividing ", out.K, ", got ",
                                    ShapeText(scale.shape)));
  }
  out.tensors["weight_scale"] = scale;
  out.spec.strategy = *byte_bits_.begin() == 4 ? "int4_w4a8" : "int8_w8a8";
  out.spec.scale_dtype = scale.dtype;
  out.spec.group_size = scale.dim(1) == 1 ? -1 : static_cast<int>(out.K / scale.dim(1));
  for (const char* name : {"weight_zero_point", "input_scale", "input_zero_point"}) {
    if (const TensorView* tensor = folder_->Find(absl::StrCat(module, ".", name))) out.tensors[name] = *tensor;
  }
  out.spec.symmetric = out.tensors.count("weight_zero_point") == 0;
  if (const TensorView* bias = folder_->Find(module + ".bias")) out.bias = *bias;
  return out;
}

bool Recognize(const std::string& path) { return HfQuantMethodIs(path, kMethod); }

absl::StatusOr<std::shared_ptr<Checkpoint>> Open(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(std::unique_ptr<HfFolder> folder, HfFolder::Open(path));
  auto out = std::make_shared<CompressedTensorsCheckpoint>(std::move(folder));
  SAGE_RETURN_IF_ERROR(out->ReadConfig());
  return std::shared_ptr<Checkpoint>(std::move(out));
}

}  // namespace

extern const CheckpointFormatDef kCompressedTensors;
const CheckpointFormatDef kCompressedTensors = {
    .name = "compressed_tensors",
    .summary = "compressed-tensors: 4- and 8-bit integers with 16- or 8-bit activations, fp8, mxfp4, nvfp4",
    .rank = 10,
    .recognize = Recognize,
    .open = Open,
    .write_config = CompressedTensorsConfig,
    .merge_configs = MergeCompressedTensorsConfigs};

}  // namespace sage::checkpoint_formats
