// bitsandbytes folders as transformers saves them: NF4 and FP4 weights in blocks of the flat matrix, and LLM.int8.
//
// What a module is follows from its tensors, because the config names neither the modules nor, for int8, the right
// type: weight.quant_state.bitsandbytes__nf4 or __fp4 beside U8 codes, or SCB beside I8 codes (quantization.md 1.7).
// Layouts: engine/api/table_linear.h and engine/linear_strategies/bnb_int8_w8a16.cc. Everything else is plain.
#include "absl/strings/str_cat.h"
#include "engine/api/bnb_state.h"
#include "engine/api/hf_checkpoint.h"
#include "engine/api/linear_strategy.h"
#include "engine/base/status.h"

namespace sage::checkpoint_formats {
namespace {

constexpr char kBitsandbytesMethod[] = "bitsandbytes";

class BitsandbytesCheckpoint final : public HfCheckpoint {
 public:
  using HfCheckpoint::HfCheckpoint;
  std::string_view format() const override { return "bitsandbytes"; }
  absl::StatusOr<StoredLinear> GetLinear(std::string_view module) const override;

 private:
  absl::Status Bad(const std::string& module, const std::string& rule) const {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(path(), ": ", module, ": ", rule));
  }
  absl::StatusOr<StoredLinear> GetTable(const std::string& module, const std::string& type,
                                        const TensorView& state) const;
  absl::StatusOr<StoredLinear> GetInt8(const std::string& module) const;
  absl::Status CheckLoads(const std::string& module, const char* key, const char* tensors) const;
};

// load_in_8bit beside 4-bit tensors, or the other way round: one of the two is wrong, and nobody can say which.
absl::Status BitsandbytesCheckpoint::CheckLoads(const std::string& module, const char* key, const char* tensors) const {
  const auto quantization = config().find("quantization_config");
  if (quantization == config().end() || !quantization->is_object()) return absl::OkStatus();
  SAGE_ASSIGN_OR_RETURN(const bool says, JsonBool(*quantization, key, false));
  if (!says) return absl::OkStatus();
  return Bad(module, absl::StrCat("has ", tensors, ", and quantization_config says ", key, " true"));
}

absl::StatusOr<StoredLinear> BitsandbytesCheckpoint::GetLinear(std::string_view module) const {
  const std::string name(module);
  for (const char* type : {"nf4", "fp4"}) {
    const TensorView* state = folder().Find(absl::StrCat(name, ".weight.quant_state.bitsandbytes__", type));
    if (state != nullptr) return GetTable(name, type, *state);
  }
  if (HasTensor(name + ".SCB")) return GetInt8(name);
  return folder().GetDense(module);
}

absl::StatusOr<StoredLinear> BitsandbytesCheckpoint::GetTable(const std::string& module, const std::string& type,
                                                              const TensorView& state) const {
  if (state.dtype != DType::kU8) return Bad(module, "quant_state must be U8");
  SAGE_RETURN_IF_ERROR(CheckLoads(module, "load_in_8bit", "a 4-bit quant_state"));
  const auto record = ParseBnbState({state.as<char>(), state.bytes});
  if (!record.ok()) return Annotate(record.status(), absl::StrCat(path(), ": ", module));
  StoredLinear out;
  out.N = record->N;
  out.K = record->K;
  out.spec.strategy = type + "_w4a16";
  out.spec.group_size = static_cast<int>(record->blocksize);
  out.spec.double_quant = record->nested_blocksize > 0;
  out.tensors["weight.quant_state.bitsandbytes__" + type] = state;
  for (const char* name : {"weight", "weight.absmax", "weight.quant_map"}) {
    SAGE_ASSIGN_OR_RETURN(out.tensors[name], folder().Get(absl::StrCat(module, ".", name)));
  }
  if (out.spec.double_quant) {
    for (const char* name : {"weight.nested_absmax", "weight.nested_quant_map"}) {
      SAGE_ASSIGN_OR_RETURN(out.tensors[name], folder().Get(absl::StrCat(module, ".", name)));
    }
  }
  // bnb_4bit_quant_storage: the same bytes under another dtype.
  TensorView& codes = out.tensors["weight"];
  codes = {DType::kU8, {static_cast<int64_t>(codes.bytes), 1}, codes.data, codes.bytes};
  if (static_cast<int64_t>(codes.bytes) != (out.N * out.K + 1) / 2) {
    return Bad(module,
               absl::StrCat("weight must hold [", out.N, ", ", out.K, "] in nibbles, got ", codes.bytes, " bytes"));
  }
  if (const TensorView* bias = folder().Find(module + ".bias")) out.bias = *bias;
  return out;
}

absl::StatusOr<StoredLinear> BitsandbytesCheckpoint::GetInt8(const std::string& module) const {
  SAGE_RETURN_IF_ERROR(CheckLoads(module, "load_in_4bit", "8-bit codes (SCB)"));
  StoredLinear out;
  SAGE_ASSIGN_OR_RETURN(out.tensors["weight"], folder().Get(module + ".weight"));
  SAGE_ASSIGN_OR_RETURN(out.tensors["SCB"], folder().Get(module + ".SCB"));
  const TensorView& codes = out.tensors["weight"];
  if (codes.dtype != DType::kI8 || codes.shape.size() != 2) {
    return Bad(module, absl::StrCat("weight beside SCB must be I8 [N, K], got ", std::string(DTypeName(codes.dtype)),
                                    " ", ShapeText(codes.shape)));
  }
  out.N = codes.dim(0);
  out.K = codes.dim(1);
  out.spec.strategy = "bnb_int8_w8a16";
  if (const TensorView* order = folder().Find(module + ".weight_format")) out.tensors["weight_format"] = *order;
  if (const TensorView* bias = folder().Find(module + ".bias")) out.bias = *bias;
  return out;
}

bool RecognizeBitsandbytes(const std::string& path) { return HfQuantMethodIs(path, kBitsandbytesMethod); }

absl::StatusOr<std::shared_ptr<Checkpoint>> OpenBitsandbytes(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(std::unique_ptr<HfFolder> folder, HfFolder::Open(path));
  return std::shared_ptr<Checkpoint>(std::make_shared<BitsandbytesCheckpoint>(std::move(folder)));
}

absl::StatusOr<Json> WriteBitsandbytesConfig(const LinearSpec& spec, const LinearStrategyDef& strategy,
                                             const std::vector<std::string>& ignored) {
  const bool nf4 = strategy.name == "nf4_w4a16", bytes = strategy.name == "bnb_int8_w8a16";
  if (!nf4 && !bytes && strategy.name != "fp4_w4a16") return CannotStore("bitsandbytes", strategy);
  return Json{{"quant_method", "bitsandbytes"},
              {"load_in_4bit", !bytes},
              {"_load_in_4bit", !bytes},
              {"load_in_8bit", bytes},
              {"_load_in_8bit", bytes},
              {"bnb_4bit_quant_type", nf4 ? "nf4" : "fp4"},
              {"bnb_4bit_use_double_quant", spec.double_quant},
              {"bnb_4bit_compute_dtype", "bfloat16"},
              {"bnb_4bit_quant_storage", "uint8"},
              {"llm_int8_enable_fp32_cpu_offload", false},
              {"llm_int8_has_fp16_weight", false},
              {"llm_int8_skip_modules", ignored.empty() ? Json(nullptr) : Json(ignored)},
              {"llm_int8_threshold", 6.0}};
}

}  // namespace

extern const CheckpointFormatDef kBitsandbytes;
const CheckpointFormatDef kBitsandbytes = {.name = "bitsandbytes",
                                           .summary = "bitsandbytes NF4, FP4 (single and double quantized) and int8",
                                           .rank = 10,
                                           .recognize = RecognizeBitsandbytes,
                                           .open = OpenBitsandbytes,
                                           .write_config = WriteBitsandbytesConfig};

}  // namespace sage::checkpoint_formats
