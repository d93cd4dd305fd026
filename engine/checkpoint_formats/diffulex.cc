// The home-grown 4-bit layout that Diffulex wrote in January 2026: model_quantized_{gptq|awq}.safetensors beside a
// config.json, alone or beside the model's own model.safetensors.
//
//   qweight  I8 [N, (K + 1) / 2]           code + 8, even inputs in the low nibble
//   qzeros   I8 [ceil(N / g), (K + 1) / 2]  the same packing
//   scales   F32 [G, K], [G, 1] or [G]
//   g_idx    I32 [N]                        gptq only, optional: the group of each OUTPUT; else n / g
// w = q * s + zq * s in f32: groups run along the outputs, the zero is added, and scales may differ for every input. No
// integer kernel has that form, so layers become f32 when they are read; the report says so. Source: quantization.md
// 1.10 (the page that describes it: seed 003).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/api/hf_checkpoint.h"
#include "engine/base/file.h"
#include "engine/base/status.h"

namespace sage::checkpoint_formats {
namespace {

constexpr size_t kMaxMetadataBytes = size_t{64} << 20;

std::string WeightFile(const std::string& path, const char* kind) {
  return absl::StrCat(path, "/model_quantized_", kind, ".safetensors");
}

class DiffulexCheckpoint final : public HfCheckpoint {
 public:
  DiffulexCheckpoint(std::unique_ptr<HfFolder> folder, std::string kind)
      : HfCheckpoint(std::move(folder)), kind_(std::move(kind)) {}

  std::string_view format() const override { return "diffulex"; }
  bool HasLinear(std::string_view module) const override {
    return Find(std::string(module) + ".qweight") != nullptr || HfCheckpoint::HasLinear(module);
  }
  std::vector<std::string> linear_names() const override {
    std::vector<std::string> out = HfCheckpoint::linear_names();
    const auto add = [&](const std::string& name) {
      constexpr std::string_view kSuffix = ".qweight";
      if (name.size() <= kSuffix.size() || !name.ends_with(kSuffix)) return;
      const std::string module = name.substr(0, name.size() - kSuffix.size());
      if (std::find(out.begin(), out.end(), module) == out.end()) out.push_back(module);
    };
    for (const auto& [name, view] : folder().tensors()) add(name);
    if (beside_ != nullptr) {
      for (const auto& [name, view] : beside_->tensors()) add(name);
    }
    return out;
  }
  absl::StatusOr<StoredLinear> GetLinear(std::string_view module) const override;
  std::vector<std::string> notes() const override {
    return {"Diffulex's 4-bit layout: dequantized to f32, its scales vary along the inputs"};
  }
  absl::Status Read();

 private:
  struct Parts {
    int64_t N = 0, K = 0, G = 0;
    TensorView qweight, qzeros, scales;
    std::vector<int32_t> group;  // of each output
  };

  absl::Status Bad(const std::string& tensor, const std::string& rule) const {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(WeightFile(path(), kind_.c_str()), ": ", tensor, ": ", rule));
  }
  const TensorView* Find(const std::string& name) const {
    if (beside_ != nullptr) {
      const auto it = beside_->tensors().find(name);
      if (it != beside_->tensors().end()) return &it->second;
    }
    return folder().Find(name);
  }
  absl::StatusOr<Parts> Open(const std::string& module) const;
  absl::Status ReadGroups(const std::string& module, Parts* parts) const;

  std::string kind_;
  std::shared_ptr<SafetensorsFile> beside_;  // null when the folder's own tensors are these
  int64_t group_size_ = 128;
};

absl::Status DiffulexCheckpoint::Read() {
  if (FileExists(path() + "/model.safetensors") || FileExists(path() + "/model.safetensors.index.json")) {
    SAGE_ASSIGN_OR_RETURN(beside_, SafetensorsFile::Open(WeightFile(path(), kind_.c_str())));
  }
  const std::string file = absl::StrCat(path(), "/quantization_metadata_", kind_, ".json");
  if (!FileExists(file)) return absl::OkStatus();
  SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxMetadataBytes));
  SAGE_ASSIGN_OR_RETURN(const Json json, ParseJson(text, file));
  if (!json.is_object()) return Bad(file, "must be an object");
  SAGE_ASSIGN_OR_RETURN(group_size_, JsonInt(json, "group_size", group_size_));
  SAGE_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(json, "bits", 4));
  if (bits != 4) {
    return MakeError(absl::StatusCode::kUnimplemented, "CHECKPOINT_FORMAT_NOT_SUPPORTED",
                     absl::StrCat(file, ": bits must be 4, got ", bits));
  }
  if (group_size_ < 1) return Bad(file, absl::StrCat("group_size must be positive, got ", group_size_));
  return absl::OkStatus();
}

absl::Status DiffulexCheckpoint::ReadGroups(const std::string& module, Parts* parts) const {
  parts->group.resize(static_cast<size_t>(parts->N));
  const TensorView* g_idx = Find(module + ".g_idx");
  if (g_idx == nullptr) {
    if ((parts->N + group_size_ - 1) / group_size_ != parts->G) {
      return Bad(module + ".qzeros",
                 absl::StrCat("must have ceil(", parts->N, " / ", group_size_, ") rows, got ", parts->G));
    }
    for (int64_t n = 0; n < parts->N; ++n) {
      parts->group[static_cast<size_t>(n)] = static_cast<int32_t>(n / group_size_);
    }
    return absl::OkStatus();
  }
  if (g_idx->dtype != DType::kI32 || g_idx->shape != Shape{parts->N}) {
    return Bad(module + ".g_idx", absl::StrCat("must be I32 [", parts->N, "], got ", ShapeText(g_idx->shape)));
  }
  std::memcpy(parts->group.data(), g_idx->data, g_idx->bytes);
  for (const int32_t g : parts->group) {
    if (g < 0 || g >= parts->G) {
      return Bad(module + ".g_idx", absl::StrCat("must lie in 0 .. ", parts->G - 1, ", got ", g));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<DiffulexCheckpoint::Parts> DiffulexCheckpoint::Open(const std::string& module) const {
  Parts parts;
  TensorView* const views[] = {&parts.qweight, &parts.qzeros, &parts.scales};
  const char* const names[] = {".qweight", ".qzeros", ".scales"};
  for (int i = 0; i < 3; ++i) {
    const TensorView* found = Find(module + names[i]);
    if (found == nullptr) return Bad(module + names[i], "must be present");
    *views[i] = *found;
    if (i < 2 && (found->dtype != DType::kI8 || found->shape.size() != 2 || found->dim(0) < 1 || found->dim(1) < 1)) {
      return Bad(module + names[i], absl::StrCat("must be I8 [rows, bytes], got ", std::string(DTypeName(found->dtype)),
                                                 " ", ShapeText(found->shape)));
    }
  }
  parts.N = parts.qweight.dim(0);
  parts.G = parts.qzeros.dim(0);
  if (parts.qzeros.dim(1) != parts.qweight.dim(1)) {
    return Bad(module + ".qzeros", absl::StrCat("must have rows of ", parts.qweight.dim(1), " bytes as qweight, got ",
                                                parts.qzeros.dim(1)));
  }
  // An odd number of inputs leaves a padded nibble: only scales of [G, K] tell it from an even one.
  parts.K = parts.qweight.dim(1) * 2;
  const Shape& shape = parts.scales.shape;
  const bool by_group = shape == Shape{parts.G} || shape == Shape{parts.G, 1};
  const bool by_input = shape == Shape{parts.G, parts.K} || shape == Shape{parts.G, parts.K - 1};
  if (parts.scales.dtype != DType::kF32 || (!by_group && !by_input)) {
    return Bad(module + ".scales",
               absl::StrCat("must be F32 [", parts.G, ", ", parts.K, "], [", parts.G, ", 1] or [", parts.G, "], got ",
                            std::string(DTypeName(parts.scales.dtype)), " ", ShapeText(shape)));
  }
  if (!by_group) parts.K = shape[1];
  SAGE_RETURN_IF_ERROR(ReadGroups(module, &parts));
  return parts;
}

absl::StatusOr<StoredLinear> DiffulexCheckpoint::GetLinear(std::string_view module) const {
  const std::string name(module);
  if (Find(name + ".qweight") == nullptr) return folder().GetDense(module);
  SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(name));
  StoredLinear out;
  out.N = parts.N;
  out.K = parts.K;
  out.spec.strategy = "f32";
  SAGE_ASSIGN_OR_RETURN(Tensor memory, Tensor::Allocate(DType::kF32, {parts.N, parts.K}));
  const int64_t row = parts.qweight.dim(1);
  const bool by_group = parts.scales.elements() == parts.G;
  const auto nibble = [row](const TensorView& view, int64_t r, int64_t k) {
    const uint8_t byte = view.as<uint8_t>()[r * row + k / 2];
    return static_cast<float>((k % 2 == 0 ? byte & 15 : byte >> 4) - 8);
  };
  for (int64_t n = 0; n < parts.N; ++n) {
    const int64_t g = parts.group[static_cast<size_t>(n)];
    for (int64_t k = 0; k < parts.K; ++k) {
      float scale;
      std::memcpy(&scale, parts.scales.as<uint8_t>() + 4 * (by_group ? g : g * parts.K + k), 4);
      if (!std::isfinite(scale)) return Bad(name + ".scales", absl::StrCat("must be finite, got ", scale));
      memory.as<float>()[n * parts.K + k] = nibble(parts.qweight, n, k) * scale + nibble(parts.qzeros, g, k) * scale;
    }
  }
  out.owned.push_back(std::make_shared<Tensor>(std::move(memory)));
  out.tensors["weight"] = out.owned.back()->view();
  if (const TensorView* bias = Find(name + ".bias")) out.bias = *bias;
  return out;
}

std::string KindOf(const std::string& path) {
  std::string found;
  for (const char* kind : {"gptq", "awq"}) {
    if (!FileExists(WeightFile(path, kind))) continue;
    found = found.empty() ? kind : "both";
  }
  return found;
}

bool RecognizeDiffulex(const std::string& path) {
  return IsDirectory(path) && FileExists(path + "/config.json") && !KindOf(path).empty() && HfQuantMethodIs(path, "");
}

absl::StatusOr<std::shared_ptr<Checkpoint>> OpenDiffulex(const std::string& path) {
  const std::string kind = KindOf(path);
  if (kind == "both") {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(path, ": holds model_quantized_gptq and model_quantized_awq; only one can be meant"));
  }
  SAGE_ASSIGN_OR_RETURN(std::unique_ptr<HfFolder> folder, HfFolder::Open(path, "model_quantized_" + kind));
  auto out = std::make_shared<DiffulexCheckpoint>(std::move(folder), kind);
  SAGE_RETURN_IF_ERROR(out->Read());
  return std::shared_ptr<Checkpoint>(std::move(out));
}

}  // namespace

extern const CheckpointFormatDef kDiffulex;
const CheckpointFormatDef kDiffulex = {.name = "diffulex",
                                       .summary = "Diffulex's 4-bit layout of January 2026, read as f32",
                                       .rank = 11,
                                       .recognize = RecognizeDiffulex,
                                       .open = OpenDiffulex};

}  // namespace sage::checkpoint_formats
