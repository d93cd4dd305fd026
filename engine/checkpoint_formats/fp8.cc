// fp8 folders: vLLM and AutoFP8 (quant_method fp8 with a scale a tensor), DeepSeek and transformers (weight_scale_inv
// in blocks) and ModelOpt (hf_quant_config.json, quant_algo FP8 or FP8_PER_CHANNEL_PER_TOKEN). See quantization.md 1.6.
//
// A module is fp8 when its weight is; lists of ignored modules in the config are not needed. Tensors of a module:
// weight F8_E4M3 [N, K], weight_scale or weight_scale_inv (both multiplied), input_scale when activations are static.
#include "absl/strings/str_cat.h"
#include "engine/api/fp8_stored.h"
#include "engine/api/hf_checkpoint.h"
#include "engine/base/file.h"
#include "engine/base/status.h"

namespace sage::checkpoint_formats {
namespace {

constexpr char kModelOptFile[] = "/hf_quant_config.json";
constexpr size_t kMaxModelOptBytes = size_t{16} << 20;

absl::StatusOr<Json> ReadModelOpt(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path + kModelOptFile, kMaxModelOptBytes));
  SAGE_ASSIGN_OR_RETURN(const Json json, ParseJson(text, path + kModelOptFile));
  const auto quantization = json.is_object() ? json.find("quantization") : json.end();
  if (json.is_object() && quantization != json.end() && quantization->is_object()) return *quantization;
  return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                   absl::StrCat(path, kModelOptFile, ": quantization must be an object"));
}

class Fp8Checkpoint final : public HfCheckpoint {
 public:
  using HfCheckpoint::HfCheckpoint;
  std::string_view format() const override { return "fp8"; }
  absl::StatusOr<StoredLinear> GetLinear(std::string_view module) const override {
    const std::string name(module);
    if (!HoldsFp8(folder(), name)) return folder().GetDense(module);
    return GetFp8(folder(), name, scheme_, HasTensor(name + ".weight_scale_inv") ? "weight_scale_inv" : "weight_scale");
  }

  // Finds the scheme in config.json or hf_quant_config.json.
  absl::Status ReadConfig();

 private:
  absl::Status NotSupported(const std::string& rule) const {
    return MakeError(absl::StatusCode::kUnimplemented, "CHECKPOINT_FORMAT_NOT_SUPPORTED",
                     absl::StrCat(path(), ": ", rule));
  }
  absl::Status ReadMethodFp8(const Json& quantization);
  absl::Status ReadModelOptAlgorithm(const Json& quantization);

  Fp8Scheme scheme_;
};

absl::Status Fp8Checkpoint::ReadMethodFp8(const Json& quantization) {
  SAGE_ASSIGN_OR_RETURN(const std::string scheme, JsonString(quantization, "activation_scheme", "dynamic"));
  SAGE_ASSIGN_OR_RETURN(const std::string fmt, JsonString(quantization, "fmt", "e4m3"));
  if (scheme != "static" && scheme != "dynamic") {
    return NotSupported(absl::StrCat("activation_scheme must be static or dynamic, got '", scheme.substr(0, 40), "'"));
  }
  if (fmt != "e4m3") return NotSupported(absl::StrCat("fmt must be e4m3, got '", fmt.substr(0, 40), "'"));
  scheme_.activations = scheme == "static" ? Fp8Scheme::Activations::kStatic : Fp8Scheme::Activations::kDynamic;
  const auto block = quantization.find("weight_block_size");
  if (block == quantization.end() || block->is_null()) return absl::OkStatus();
  const bool two =
      block->is_array() && block->size() == 2 && (*block)[0].is_number_integer() && (*block)[1].is_number_integer();
  const int64_t rows = two ? (*block)[0].get<int64_t>() : 0, columns = two ? (*block)[1].get<int64_t>() : 0;
  if (rows < 2 || columns < 16 || rows > 65536 || columns > 65536) {
    return NotSupported(absl::StrCat("weight_block_size must be two integers from 2 and 16 to 65536, got ",
                                     DumpJson(*block).substr(0, 80)));
  }
  if (scheme != "dynamic") return NotSupported("weight_block_size goes with dynamic activations, got static");
  scheme_.weights = Fp8Scheme::Weights::kBlock;
  scheme_.block_rows = static_cast<int>(rows);
  scheme_.block_columns = scheme_.activation_group_size = static_cast<int>(columns);
  return absl::OkStatus();
}

absl::Status Fp8Checkpoint::ReadModelOptAlgorithm(const Json& quantization) {
  SAGE_ASSIGN_OR_RETURN(const std::string algorithm, JsonString(quantization, "quant_algo", ""));
  if (algorithm == "FP8") {
    scheme_.activations = Fp8Scheme::Activations::kStatic;
  } else if (algorithm == "FP8_PER_CHANNEL_PER_TOKEN") {
    scheme_.activations = Fp8Scheme::Activations::kDynamic;
  } else {
    return NotSupported(
        absl::StrCat("quant_algo must be FP8 or FP8_PER_CHANNEL_PER_TOKEN, got '", algorithm.substr(0, 60), "'"));
  }
  return absl::OkStatus();
}

absl::Status Fp8Checkpoint::ReadConfig() {
  const auto quantization = config().find("quantization_config");
  if (quantization != config().end() && quantization->is_object()) {
    SAGE_ASSIGN_OR_RETURN(const std::string method, JsonString(*quantization, "quant_method", ""));
    if (method == "fp8") return ReadMethodFp8(*quantization);
    if (quantization->contains("quant_algo")) return ReadModelOptAlgorithm(*quantization);
  }
  SAGE_ASSIGN_OR_RETURN(const Json modelopt, ReadModelOpt(path()));
  return ReadModelOptAlgorithm(modelopt);
}

bool RecognizeFp8(const std::string& path) {
  if (HfQuantMethodIs(path, "fp8") || HfQuantMethodIs(path, "modelopt")) return true;
  // Older ModelOpt exports say nothing in config.json.
  return HfQuantMethodIs(path, "") && FileExists(path + kModelOptFile);
}

absl::StatusOr<std::shared_ptr<Checkpoint>> OpenFp8(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(std::unique_ptr<HfFolder> folder, HfFolder::Open(path));
  auto out = std::make_shared<Fp8Checkpoint>(std::move(folder));
  SAGE_RETURN_IF_ERROR(out->ReadConfig());
  return std::shared_ptr<Checkpoint>(std::move(out));
}

}  // namespace

extern const CheckpointFormatDef kFp8;
const CheckpointFormatDef kFp8 = {.name = "fp8",
                                  .summary = "fp8 weights of vLLM and AutoFP8, DeepSeek blocks and ModelOpt",
                                  .rank = 10,
                                  .recognize = RecognizeFp8,
                                  .open = OpenFp8};

}  // namespace sage::checkpoint_formats
