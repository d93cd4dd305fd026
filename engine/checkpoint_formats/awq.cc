// AWQ folders (AutoAWQ, GPTQModel): 4-bit weights with zero points in the layouts gemm, gemv and gemv_fast.
//
// Tensors of a module: qweight, qzeros, scales and bias as in engine/quant/awq_layout.h. GEMM is served as it lies in
// the file; the other two are repacked into GEMM when they are read, without loss (GEMV_FAST keeps its scaled zeros).
// The config is config.json's quantization_config or quant_config.json. What a module is follows from its own tensors;
// modules without qweight are plain. Source: quantization.md 1.3.
#include <cstring>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/api/awq_linear.h"
#include "engine/api/hf_folder.h"
#include "engine/api/quantization_config.h"
#include "engine/base/status.h"
#include "engine/quant/awq_layout.h"

namespace sage::checkpoint_formats {
namespace {

constexpr char kAwqMethod[] = "awq";
constexpr char kAwqSideFile[] = "quant_config.json";

enum class Layout { kGemm, kGemv, kGemvFast };

absl::Status AwqUnsupported(const std::string& where, const std::string& rule) {
  return MakeError(absl::StatusCode::kUnimplemented, "CHECKPOINT_FORMAT_NOT_SUPPORTED",
                   absl::StrCat(where, ": ", rule));
}

std::string TypeText(const TensorView& view) {
  return absl::StrCat(std::string(DTypeName(view.dtype)), " ", ShapeText(view.shape));
}

bool IsScaleType(DType dtype) { return dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF32; }

class AwqCheckpoint final : public Checkpoint {
 public:
  explicit AwqCheckpoint(std::unique_ptr<HfFolder> folder) : folder_(std::move(folder)) {}

  const Json& config() const override { return folder_->config(); }
  const Json& generation_config() const override { return folder_->generation_config(); }
  std::string_view format() const override { return kAwqMethod; }
  std::string path() const override { return folder_->path(); }
  std::vector<std::string> linear_names() const override {
    std::vector<std::string> out = folder_->DenseLinearNames();
    for (const auto& [name, view] : folder_->tensors()) {
      if (absl::EndsWith(name, ".qweight")) out.push_back(name.substr(0, name.size() - 8));
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
    return HasTensor(name + ".qweight") || HasTensor(name + ".weight");
  }
  absl::StatusOr<TensorView> GetTensor(std::string_view name) const override { return folder_->Get(name); }
  absl::StatusOr<StoredLinear> GetLinear(std::string_view module) const override {
    const std::string name(module);
    if (!HasTensor(name + ".qweight")) {
      if (HasTensor(name + ".qzeros")) return Bad(name, "qweight must be present beside qzeros");
      return folder_->GetDense(module);
    }
    if (HasTensor(name + ".weight")) return Bad(name, "must have either weight or qweight, got both");
    return GetQuantized(name);
  }
  std::vector<std::string> notes() const override {
    if (layout_ == Layout::kGemm) return {};
    return {layout_ == Layout::kGemv
                ? "awq: gemv words are repacked into gemm order, without loss"
                : "awq: gemv_fast words are repacked into gemm order, without loss; zeros stay the "
                  "file's rounded -(scale * zero)"};
  }
  absl::StatusOr<std::string> Fingerprint() const override { return folder_->Fingerprint(); }
  size_t file_bytes() const override { return folder_->file_bytes(); }

  absl::Status ReadConfig(const QuantizationConfig& config);

 private:
  // A module's tensors with the sizes that follow from qweight.
  struct Words {
    TensorView qweight, qzeros, scales;
    int64_t N = 0, K = 0, group = 0, G = 0;
  };

  absl::Status Bad(const std::string& module, const std::string& rule) const {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(folder_->path(), ": ", module, ": ", rule));
  }
  absl::Status CheckConvertible(const std::string& module) const;
  absl::StatusOr<Words> ReadWords(const std::string& module) const;
  absl::Status ExpectTensor(const std::string& module, const char* name, const TensorView& view, bool type_ok,
                            const char* type, const Shape& shape) const;
  absl::StatusOr<StoredLinear> GetQuantized(const std::string& module) const;
  absl::Status RepackGemv(const std::string& module, const Words& words, StoredLinear* out) const;
  absl::Status RepackFast(const std::string& module, const Words& words, StoredLinear* out) const;

  std::unique_ptr<HfFolder> folder_;
  Layout layout_ = Layout::kGemm;
  int64_t group_size_ = -1;
  std::vector<std::string> dense_;  // modules_to_not_convert: parts of names
};

absl::Status AwqCheckpoint::ReadConfig(const QuantizationConfig& config) {
  const std::string where = absl::StrCat(folder_->path(), ": ", config.source);
  const Json& values = config.values;
  for (const char* key : {"bits", "group_size"}) {
    if (!values.contains(key)) return Bad(config.source, absl::StrCat(key, " must be present"));
  }
  SAGE_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(values, "bits", 4));
  if (bits != 4) return AwqUnsupported(where, absl::StrCat("bits must be 4, got ", bits));
  SAGE_ASSIGN_OR_RETURN(group_size_, JsonInt(values, "group_size", -1));
  if (group_size_ != -1 && (group_size_ < 1 || group_size_ > std::numeric_limits<int32_t>::max())) {
    return Bad(config.source, absl::StrCat("group_size must be -1 or positive, got ", group_size_));
  }
  SAGE_ASSIGN_OR_RETURN(const bool zero_point, JsonBool(values, "zero_point", true));
  if (!zero_point) return AwqUnsupported(where, "zero_point must be true, got false");
  SAGE_ASSIGN_OR_RETURN(const std::string format, JsonString(values, "checkpoint_format", "gemm"));
  SAGE_ASSIGN_OR_RETURN(const std::string version, JsonString(values, "version", format));
  const std::string word = absl::AsciiStrToLower(version);
  if (word != "gemm" && word != "gemv" && word != "gemv_fast") {
    return AwqUnsupported(where,
                          absl::StrCat("version must be gemm, gemv or gemv_fast, got '", version.substr(0, 60), "'"));
  }
  layout_ = word == "gemm" ? Layout::kGemm : word == "gemv" ? Layout::kGemv : Layout::kGemvFast;
  for (const std::string& rule : config.dynamic_keys) {
    if (absl::StartsWith(rule, "-:")) continue;  // excluded modules have no qweight
    return AwqUnsupported(where,
                          absl::StrCat("dynamic must only exclude modules, got rule '", rule.substr(0, 120), "'"));
  }
  const auto dense = values.find("modules_to_not_convert");
  if (dense == values.end() || dense->is_null()) return absl::OkStatus();
  if (!dense->is_array()) return Bad(config.source, "modules_to_not_convert must be a list of names");
  for (const Json& name : *dense) {
    if (!name.is_string() || name.get_ref<const std::string&>().empty()) {
      return Bad(config.source, "modules_to_not_convert must hold names");
    }
    dense_.push_back(name.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status AwqCheckpoint::CheckConvertible(const std::string& module) const {
  for (const std::string& part : dense_) {
    if (!absl::StrContains(module, part)) continue;
    return Bad(module,
               absl::StrCat("modules_to_not_convert names '", part.substr(0, 120), "', but the module has a qweight"));
  }
  return absl::OkStatus();
}

absl::Status AwqCheckpoint::ExpectTensor(const std::string& module, const char* name, const TensorView& view,
                                         bool type_ok, const char* type, const Shape& shape) const {
  if (type_ok && view.shape == shape) return absl::OkStatus();
  return Bad(module, absl::StrCat(name, " must be ", type, " ", ShapeText(shape), ", got ", TypeText(view)));
}

absl::StatusOr<AwqCheckpoint::Words> AwqCheckpoint::ReadWords(const std::string& module) const {
  Words out;
  SAGE_ASSIGN_OR_RETURN(out.qweight, folder_->Get(module + ".qweight"));
  SAGE_ASSIGN_OR_RETURN(out.qzeros, folder_->Get(module + ".qzeros"));
  SAGE_ASSIGN_OR_RETURN(out.scales, folder_->Get(module + ".scales"));
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 8;
  const DType type = layout_ == Layout::kGemvFast ? DType::kI16 : DType::kI32;
  const TensorView& q = out.qweight;
  if (q.dtype != type || q.shape.size() != 2 || q.dim(0) < 1 || q.dim(1) < 1 || q.dim(0) > kMost || q.dim(1) > kMost) {
    const char* wanted = layout_ == Layout::kGemm   ? "I32 [K, N / 8]"
                         : layout_ == Layout::kGemv ? "I32 [N, K / 8]"
                                                    : "I16 [N / 4, K]";
    return Bad(module, absl::StrCat("qweight must be ", wanted, ", got ", TypeText(q)));
  }
  out.N = layout_ == Layout::kGemm ? q.dim(1) * 8 : layout_ == Layout::kGemv ? q.dim(0) : q.dim(0) * 4;
  out.K = layout_ == Layout::kGemv ? q.dim(1) * 8 : layout_ == Layout::kGemm ? q.dim(0) : q.dim(1);
  out.group = group_size_ == -1 ? out.K : group_size_;
  if (out.K % out.group != 0 || out.N % 8 != 0) {
    return Bad(module, absl::StrCat("group_size must divide K and 8 must divide N, got N=", out.N, ", K=", out.K,
                                    ", group_size=", group_size_));
  }
  out.G = out.K / out.group;
  return out;
}

absl::StatusOr<StoredLinear> AwqCheckpoint::GetQuantized(const std::string& module) const {
  SAGE_RETURN_IF_ERROR(CheckConvertible(module));
  SAGE_ASSIGN_OR_RETURN(const Words words, ReadWords(module));
  StoredLinear out;
  out.N = words.N;
  out.K = words.K;
  out.spec.strategy = "awq_w4a16";
  out.spec.symmetric = false;
  out.spec.group_size = words.G == 1 ? -1 : static_cast<int>(words.group);
  out.spec.scale_dtype = words.scales.dtype;
  if (layout_ == Layout::kGemm) {
    SAGE_RETURN_IF_ERROR(
        ExpectTensor(module, "qzeros", words.qzeros, words.qzeros.dtype == DType::kI32, "I32", {words.G, words.N / 8}));
    SAGE_RETURN_IF_ERROR(
        ExpectTensor(module, "scales", words.scales, IsScaleType(words.scales.dtype), "F16", {words.G, words.N}));
    out.tensors = {{"qweight", words.qweight}, {"qzeros", words.qzeros}, {"scales", words.scales}};
  } else if (layout_ == Layout::kGemv) {
    SAGE_RETURN_IF_ERROR(RepackGemv(module, words, &out));
  } else {
    SAGE_RETURN_IF_ERROR(RepackFast(module, words, &out));
  }
  if (const TensorView* bias = folder_->Find(module + ".bias")) out.bias = *bias;
  return out;
}

// An owned tensor of `out`.
absl::StatusOr<Tensor*> Add(StoredLinear* out, const char* name, DType dtype, Shape shape) {
  SAGE_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(dtype, std::move(shape)));
  out->owned.push_back(std::make_shared<Tensor>(std::move(tensor)));
  out->tensors[name] = out->owned.back()->view();
  return out->owned.back().get();
}

absl::Status AddGemm(const char* name, const std::vector<uint8_t>& codes, int64_t N, int64_t columns,
                     StoredLinear* out) {
  SAGE_ASSIGN_OR_RETURN(Tensor * words, Add(out, name, DType::kI32, {columns, N / 8}));
  PackAwqGemm(codes.data(), N, columns, words->as<uint32_t>());
  return absl::OkStatus();
}

absl::Status AwqCheckpoint::RepackGemv(const std::string& module, const Words& words, StoredLinear* out) const {
  const int64_t N = words.N, K = words.K, G = words.G, width = AwqZeroWords(K, words.group);
  if (width == 0) {
    return AwqUnsupported(folder_->path(),
                          absl::StrCat(module, ": gemv has group sizes 32, 64 and from 128 on, got ", words.group));
  }
  SAGE_RETURN_IF_ERROR(
      ExpectTensor(module, "qzeros", words.qzeros, words.qzeros.dtype == DType::kI32, "I32", {N, width}));
  SAGE_RETURN_IF_ERROR(
      ExpectTensor(module, "scales", words.scales, IsScaleType(words.scales.dtype), "F16", {N, 8 * width}));
  std::vector<uint8_t> codes(static_cast<size_t>(N * K));
  UnpackAwqGemv(words.qweight.data, N, K, K / 8, codes.data());
  SAGE_RETURN_IF_ERROR(AddGemm("qweight", codes, N, K, out));
  codes.resize(static_cast<size_t>(N * G));
  UnpackAwqGemv(words.qzeros.data, N, G, width, codes.data());
  SAGE_RETURN_IF_ERROR(AddGemm("qzeros", codes, N, G, out));
  SAGE_ASSIGN_OR_RETURN(Tensor * scales, Add(out, "scales", words.scales.dtype, {G, N}));
  const size_t size = DTypeSize(words.scales.dtype);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t g = 0; g < G; ++g) {
      std::memcpy(scales->as<uint8_t>() + static_cast<size_t>(g * N + n) * size,
                  words.scales.as<uint8_t>() + static_cast<size_t>(n * 8 * width + g) * size, size);
    }
  }
  return absl::OkStatus();
}

absl::Status AwqCheckpoint::RepackFast(const std::string& module, const Words& words, StoredLinear* out) const {
  const int64_t N = words.N, K = words.K, G = words.G, width = AwqZeroWords(K, words.group);
  if (width == 0 || K % 64 != 0) {
    return AwqUnsupported(folder_->path(),
                          absl::StrCat(module,
                                       ": gemv_fast has group sizes 32, 64 and from 128 on and K a multiple of 64, "
                                       "got K=",
                                       K, ", group_size=", words.group));
  }
  SAGE_RETURN_IF_ERROR(
      ExpectTensor(module, "qzeros", words.qzeros, words.qzeros.dtype == DType::kF16, "F16", {8 * width, N}));
  SAGE_RETURN_IF_ERROR(
      ExpectTensor(module, "scales", words.scales, words.scales.dtype == DType::kF16, "F16", {8 * width, N}));
  std::vector<uint8_t> codes(static_cast<size_t>(N * K));
  UnpackAwqFast(words.qweight.data, N, K, codes.data());
  SAGE_RETURN_IF_ERROR(AddGemm("qweight", codes, N, K, out));
  // The first G rows; the rest is padding.
  const size_t bytes = static_cast<size_t>(G * N) * 2;
  out->tensors["scales"] = {DType::kF16, {G, N}, words.scales.data, bytes};
  out->tensors["scaled_zeros"] = {DType::kF16, {G, N}, words.qzeros.data, bytes};
  return absl::OkStatus();
}

bool RecognizeAwq(const std::string& path) {
  return FolderQuantizedBy(path, kAwqMethod, kAwqSideFile, /*unnamed=*/true);
}

absl::StatusOr<std::shared_ptr<Checkpoint>> OpenAwq(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(const QuantizationConfig config, ReadQuantizationConfig(path));
  SAGE_ASSIGN_OR_RETURN(std::unique_ptr<HfFolder> folder, HfFolder::Open(path));
  auto out = std::make_shared<AwqCheckpoint>(std::move(folder));
  SAGE_RETURN_IF_ERROR(out->ReadConfig(config));
  return std::shared_ptr<Checkpoint>(std::move(out));
}

absl::StatusOr<Json> WriteAwqConfig(const LinearSpec& spec, const LinearStrategyDef& strategy,
                                    const std::vector<std::string>& ignored) {
  if (strategy.name != "awq_w4a16") return CannotStore("awq", strategy);
  return AwqQuantizationConfig(spec, ignored);
}

}  // namespace

extern const CheckpointFormatDef kAwq;
const CheckpointFormatDef kAwq = {.name = kAwqMethod,
                                  .summary = "AutoAWQ and GPTQModel folders: 4-bit weights, gemm, gemv and gemv_fast",
                                  .rank = 11,
                                  .recognize = RecognizeAwq,
                                  .open = OpenAwq,
                                  .write_config = WriteAwqConfig};

}  // namespace sage::checkpoint_formats
