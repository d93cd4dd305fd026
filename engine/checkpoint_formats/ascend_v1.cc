// AscendV1 folders as msModelSlim writes them: quant_model_description.json says the type of every tensor,
// quant_model_weight*.safetensors hold them (whole or in parts with an index), config.json says nothing.
//
//   FLOAT           weight
//   W8A16           weight I8 [N, K], weight_scale, weight_offset [N, 1] or [N, G]
//   W8A8_DYNAMIC    the same [N, 1]; activations by token
//   W8A8            weight I8, input_scale and input_offset [1], deq_scale [N] = input_scale * weight_scale (f32, or
//   its
//                   bits in an int64), quant_bias I32 [N] = round(bias / deq_scale - sum_k(code) * input_offset)
//   W4A8_DYNAMIC    weight I8 [N / 2, K]: rows 2j in the low nibble and 2j + 1 in the high one, two's complement;
//                   weight_scale, weight_offset [N, 1]; scale_bias is for a kernel and not read
//   C8              k_proj.kv_cache_scale, k_proj.kv_cache_offset and those of v_proj [KH * D]: answered by name
// w = (code - offset) * scale. Older files call the types of C8 tensors W8A8. Source: seed-systems.md C3.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/api/hf_checkpoint.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/quant/packing.h"
#include "engine/tensor/float_convert.h"

namespace sage::checkpoint_formats {
namespace {

constexpr char kDescription[] = "quant_model_description.json";
constexpr size_t kMaxDescriptionBytes = size_t{256} << 20;

class AscendCheckpoint final : public HfCheckpoint {
 public:
  using HfCheckpoint::HfCheckpoint;
  std::string_view format() const override { return "ascend_v1"; }
  absl::StatusOr<StoredLinear> GetLinear(std::string_view module) const override;
  absl::Status ReadDescription();

 private:
  absl::Status Bad(const std::string& tensor, const std::string& rule) const {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(path(), ": ", tensor, ": ", rule));
  }
  absl::StatusOr<std::string> TypeOf(const std::string& tensor) const;
  absl::Status AddScale(const std::string& module, StoredLinear* out) const;
  absl::Status AddZeros(const std::string& module, int bits, StoredLinear* out) const;
  absl::Status AddWords(const int8_t* codes, int bits, StoredLinear* out) const;
  absl::Status AddStatic(const std::string& module, StoredLinear* out) const;
  absl::Status AddNibbles(const TensorView& weight, StoredLinear* out) const;
  absl::StatusOr<std::vector<float>> Floats(const std::string& name, int64_t count) const;

  std::map<std::string, std::string, std::less<>> types_;  // tensor -> type
};

absl::StatusOr<Tensor*> Own(const std::string& name, DType dtype, Shape shape, StoredLinear* out) {
  SAGE_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(dtype, std::move(shape)));
  out->owned.push_back(std::make_shared<Tensor>(std::move(tensor)));
  out->tensors[name] = out->owned.back()->view();
  return out->owned.back().get();
}

absl::Status AscendCheckpoint::ReadDescription() {
  const std::string file = path() + "/" + kDescription;
  SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxDescriptionBytes));
  SAGE_ASSIGN_OR_RETURN(const Json json, ParseJson(text, file));
  if (!json.is_object()) return Bad(kDescription, "must be an object of tensor to type");
  for (const auto& [name, type] : json.items()) {
    if (!type.is_string() || name.find('.') == name.npos) continue;  // version, group_size, metadata, ...
    types_[name] = type.get<std::string>();
    const bool weight = absl::EndsWith(name, ".weight") || absl::EndsWith(name, "_scale");
    if (weight && !HasTensor(name)) {
      return Bad(name, absl::StrCat("is ", types_[name].substr(0, 40), " by ", kDescription, " and in no weight file"));
    }
  }
  if (types_.empty()) return Bad(kDescription, "must name the type of at least one tensor");
  return absl::OkStatus();
}

absl::StatusOr<std::string> AscendCheckpoint::TypeOf(const std::string& tensor) const {
  const auto it = types_.find(tensor);
  if (it != types_.end()) return it->second;
  return Bad(tensor, absl::StrCat("is in the weights and has no type in ", kDescription));
}

// `count` floats of a tensor of any shape; an int64 holds the bits of an f32.
absl::StatusOr<std::vector<float>> AscendCheckpoint::Floats(const std::string& name, int64_t count) const {
  SAGE_ASSIGN_OR_RETURN(const TensorView view, folder().Get(name));
  if (view.elements() != count || !(IsFloat(view.dtype) || view.dtype == DType::kI64)) {
    return Bad(name, absl::StrCat("must hold ", count, " floats, got ", std::string(DTypeName(view.dtype)), " ",
                                  ShapeText(view.shape)));
  }
  std::vector<float> out(static_cast<size_t>(count));
  if (view.dtype != DType::kI64) {
    SAGE_RETURN_IF_ERROR(ToFloat(view, out.data()));
  } else {
    for (int64_t i = 0; i < count; ++i) std::memcpy(&out[static_cast<size_t>(i)], view.as<uint8_t>() + 8 * i, 4);
  }
  for (const float value : out) {
    if (!std::isfinite(value)) return Bad(name, absl::StrCat("must be finite, got ", value));
  }
  return out;
}

absl::Status AscendCheckpoint::AddScale(const std::string& module, StoredLinear* out) const {
  const std::string name = module + ".weight_scale";
  SAGE_ASSIGN_OR_RETURN(TensorView scale, folder().Get(name));
  if (scale.shape.size() == 1) scale.shape = {scale.dim(0), 1};
  if (!IsFloat(scale.dtype) || scale.dtype == DType::kF64 || scale.shape.size() != 2 || scale.dim(0) != out->N ||
      scale.dim(1) < 1 || out->K % scale.dim(1) != 0) {
    return Bad(name, absl::StrCat("must be [", out->N, ", G] with G dividing ", out->K, ", got ",
                                  std::string(DTypeName(scale.dtype)), " ", ShapeText(scale.shape)));
  }
  out->tensors["weight_scale"] = scale;
  out->spec.scale_dtype = scale.dtype;
  out->spec.group_size = scale.dim(1) == 1 ? -1 : static_cast<int>(out->K / scale.dim(1));
  return absl::OkStatus();
}

// Offsets that are all zero say "symmetric"; others are signed zero points of `bits` bits, one I8 each.
absl::Status AscendCheckpoint::AddZeros(const std::string& module, int bits, StoredLinear* out) const {
  const std::string name = module + ".weight_offset";
  out->spec.symmetric = true;
  if (!HasTensor(name)) return absl::OkStatus();
  const int64_t G = out->tensors.at("weight_scale").dim(1);
  SAGE_ASSIGN_OR_RETURN(const std::vector<float> offsets, Floats(name, out->N * G));
  const float low = static_cast<float>(-(1 << (bits - 1))), high = -low - 1;
  bool any = false;
  for (const float offset : offsets) {
    if (offset != std::floor(offset) || offset < low || offset > high) {
      return Bad(name, absl::StrCat("offsets must be whole and in ", low, " .. ", high, ", got ", offset));
    }
    any = any || offset != 0;
  }
  if (!any) return absl::OkStatus();
  out->spec.symmetric = false;
  SAGE_ASSIGN_OR_RETURN(Tensor * zeros, Own("weight_zero_point", DType::kI8, {out->N, G}, out));
  for (size_t i = 0; i < offsets.size(); ++i) zeros->as<int8_t>()[i] = static_cast<int8_t>(offsets[i]);
  return absl::OkStatus();
}

// Signed codes [N, K] of `bits` bits as the words of pack-quantized; zeros are packed down the rows.
absl::Status AscendCheckpoint::AddWords(const int8_t* codes, int bits, StoredLinear* out) const {
  const int64_t N = out->N, K = out->K, row = PackedWords(K, bits);
  const int half = 1 << (bits - 1);
  SAGE_ASSIGN_OR_RETURN(Tensor * packed, Own("weight_packed", DType::kI32, {N, row}, out));
  std::vector<uint8_t> line(static_cast<size_t>(K));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) line[static_cast<size_t>(k)] = static_cast<uint8_t>(codes[n * K + k] + half);
    PackCodes(line.data(), K, bits, packed->as<uint32_t>() + n * row);
  }
  SAGE_ASSIGN_OR_RETURN(Tensor * shape, Own("weight_shape", DType::kI64, {2}, out));
  shape->as<int64_t>()[0] = N;
  shape->as<int64_t>()[1] = K;
  const auto it = out->tensors.find("weight_zero_point");
  if (it == out->tensors.end()) return absl::OkStatus();
  const TensorView zeros = it->second;
  const int64_t G = zeros.dim(1);
  std::vector<uint8_t> up(static_cast<size_t>(N * G));
  for (size_t i = 0; i < up.size(); ++i) up[i] = static_cast<uint8_t>(zeros.as<int8_t>()[i] + half);
  SAGE_ASSIGN_OR_RETURN(Tensor * words, Own("weight_zero_point", DType::kI32, {PackedWords(N, bits), G}, out));
  PackCodesByColumn(up.data(), N, G, bits, words->as<uint32_t>());
  return absl::OkStatus();
}

// Scales and bias come out of what the integer kernel adds and multiplies by.
absl::Status AscendCheckpoint::AddStatic(const std::string& module, StoredLinear* out) const {
  SAGE_ASSIGN_OR_RETURN(const std::vector<float> input, Floats(module + ".input_scale", 1));
  SAGE_ASSIGN_OR_RETURN(const std::vector<float> offset, Floats(module + ".input_offset", 1));
  SAGE_ASSIGN_OR_RETURN(const std::vector<float> deq, Floats(module + ".deq_scale", out->N));
  const float zero = offset[0];
  if (!(input[0] > 0)) return Bad(module + ".input_scale", absl::StrCat("must be positive, got ", input[0]));
  if (zero != std::floor(zero) || zero < -128 || zero > 127) {
    return Bad(module + ".input_offset", absl::StrCat("must be whole and in -128 .. 127, got ", zero));
  }
  SAGE_ASSIGN_OR_RETURN(Tensor * scale, Own("weight_scale", DType::kF32, {out->N, 1}, out));
  for (int64_t n = 0; n < out->N; ++n) {
    const float value = deq[static_cast<size_t>(n)] / input[0];
    if (!std::isfinite(value)) return Bad(module + ".deq_scale", "over input_scale must be finite");
    scale->as<float>()[n] = value;
  }
  SAGE_ASSIGN_OR_RETURN(Tensor * input_scale, Own("input_scale", DType::kF32, {1}, out));
  input_scale->as<float>()[0] = input[0];
  SAGE_ASSIGN_OR_RETURN(Tensor * input_zero, Own("input_zero_point", DType::kI8, {1}, out));
  input_zero->as<int8_t>()[0] = static_cast<int8_t>(zero);
  out->spec.scale_dtype = DType::kF32;
  if (!HasTensor(module + ".quant_bias")) {
    return Bad(module + ".quant_bias", "must be present beside input_offset");
  }
  SAGE_ASSIGN_OR_RETURN(const TensorView quantized, folder().Get(module + ".quant_bias"));
  if (quantized.dtype != DType::kI32 || quantized.elements() != out->N) {
    return Bad(module + ".quant_bias",
               absl::StrCat("must be I32 [", out->N, "], got ", std::string(DTypeName(quantized.dtype)), " ",
                            ShapeText(quantized.shape)));
  }
  std::vector<float> bias(static_cast<size_t>(out->N));
  bool any = false;
  const int8_t* codes = out->tensors.at("weight").as<int8_t>();
  for (int64_t n = 0; n < out->N; ++n) {
    int32_t stored;
    std::memcpy(&stored, quantized.as<uint8_t>() + 4 * n, 4);
    int64_t sum = 0;
    for (int64_t k = 0; k < out->K; ++k) sum += codes[n * out->K + k];
    const int64_t whole = stored + sum * static_cast<int64_t>(zero);
    bias[static_cast<size_t>(n)] = static_cast<float>(static_cast<double>(whole) * deq[static_cast<size_t>(n)]);
    any = any || whole != 0;
  }
  if (!any) return absl::OkStatus();  // the layer has none
  SAGE_ASSIGN_OR_RETURN(Tensor memory, Tensor::Allocate(DType::kF32, {out->N}));
  std::memcpy(memory.as<float>(), bias.data(), bias.size() * 4);
  out->owned.push_back(std::make_shared<Tensor>(std::move(memory)));
  out->bias = out->owned.back()->view();
  return absl::OkStatus();
}

absl::Status AscendCheckpoint::AddNibbles(const TensorView& weight, StoredLinear* out) const {
  std::vector<int8_t> codes(static_cast<size_t>(out->N * out->K));
  for (int64_t i = 0; i < weight.elements(); ++i) {
    const uint8_t byte = weight.as<uint8_t>()[i];
    const size_t at = static_cast<size_t>(i / out->K * 2 * out->K + i % out->K);
    codes[at] = static_cast<int8_t>(static_cast<int8_t>(byte << 4) >> 4);
    codes[at + static_cast<size_t>(out->K)] = static_cast<int8_t>(static_cast<int8_t>(byte) >> 4);
  }
  return AddWords(codes.data(), 4, out);
}

absl::StatusOr<StoredLinear> AscendCheckpoint::GetLinear(std::string_view module) const {
  const std::string name(module);
  SAGE_ASSIGN_OR_RETURN(const std::string type, TypeOf(name + ".weight"));
  if (type == "FLOAT") return folder().GetDense(module);
  if (type != "W8A16" && type != "W8A8" && type != "W8A8_DYNAMIC" && type != "W4A8_DYNAMIC") {
    return MakeError(absl::StatusCode::kUnimplemented, "CHECKPOINT_FORMAT_NOT_SUPPORTED",
                     absl::StrCat(path(), ": ", name,
                                  ".weight: type must be FLOAT, W8A16, W8A8, W8A8_DYNAMIC or "
                                  "W4A8_DYNAMIC, got '",
                                  type.substr(0, 60), "'"));
  }
  SAGE_ASSIGN_OR_RETURN(const TensorView weight, folder().Get(name + ".weight"));
  if (weight.dtype != DType::kI8 || weight.shape.size() != 2 || weight.dim(0) < 1 || weight.dim(1) < 1) {
    return Bad(name + ".weight", absl::StrCat("must be I8 [N, K] for ", type, ", got ",
                                              std::string(DTypeName(weight.dtype)), " ", ShapeText(weight.shape)));
  }
  StoredLinear out;
  const bool four = type == "W4A8_DYNAMIC";
  out.N = weight.dim(0) * (four ? 2 : 1);
  out.K = weight.dim(1);
  if (const TensorView* bias = folder().Find(name + ".bias")) out.bias = *bias;
  if (type == "W8A8") {
    out.spec.strategy = "int8_w8a8";
    out.tensors["weight"] = weight;
    SAGE_RETURN_IF_ERROR(AddStatic(name, &out));
    return out;
  }
  SAGE_RETURN_IF_ERROR(AddScale(name, &out));
  SAGE_RETURN_IF_ERROR(AddZeros(name, four ? 4 : 8, &out));
  out.spec.strategy = four ? "int4_w4a8" : type == "W8A16" ? "int8_w8a16" : "int8_w8a8";
  if (four) {
    SAGE_RETURN_IF_ERROR(AddNibbles(weight, &out));
  } else if (type == "W8A16") {
    SAGE_RETURN_IF_ERROR(AddWords(weight.as<int8_t>(), 8, &out));
  } else {
    out.tensors["weight"] = weight;
  }
  return out;
}

bool RecognizeAscendV1(const std::string& path) {
  return IsDirectory(path) && FileExists(absl::StrCat(path, "/", kDescription)) && FileExists(path + "/config.json") &&
         HfQuantMethodIs(path, "");
}

// "quant_model_weights" or another name that begins with quant_model_weight; the first by name.
std::string Stem(const std::string& path) {
  std::string best;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    std::string name = entry.path().filename().string();
    if (!absl::StartsWith(name, "quant_model_weight")) continue;
    for (const char* end : {".safetensors.index.json", ".safetensors"}) {
      if (!absl::EndsWith(name, end)) continue;
      name = name.substr(0, name.size() - std::strlen(end));
      if (name.find("-of-") == name.npos && (best.empty() || name < best)) best = name;
      break;
    }
  }
  return best.empty() ? "quant_model_weights" : best;
}

absl::StatusOr<std::shared_ptr<Checkpoint>> OpenAscendV1(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(std::unique_ptr<HfFolder> folder, HfFolder::Open(path, Stem(path)));
  auto out = std::make_shared<AscendCheckpoint>(std::move(folder));
  SAGE_RETURN_IF_ERROR(out->ReadDescription());
  return std::shared_ptr<Checkpoint>(std::move(out));
}

}  // namespace

extern const CheckpointFormatDef kAscendV1;
const CheckpointFormatDef kAscendV1 = {
    .name = "ascend_v1",
    .summary =
        "msModelSlim's AscendV1: W8A16, W8A8 static and dynamic, W4A8, C8 scales of the KV cache; written by convert",
    .rank = 12,
    .recognize = RecognizeAscendV1,
    .open = OpenAscendV1};

}  // namespace sage::checkpoint_formats
