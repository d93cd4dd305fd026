// Reads float config groups and picks the scheme of a module by its tensors.
//
// fp8: weight F8_E4M3 [N, K], weight_scale [1], [N, 1] or blocks, input_scale [1] when activations are static.
// mxfp4, nvfp4: weight_packed U8 [N, K / 2] and weight_scale, see e2m1_linear.h.
#include "engine/api/ct_float.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

absl::Status NotSupported(const std::string& where, const std::string& rule) {
  return MakeError(absl::StatusCode::kUnimplemented, "CHECKPOINT_FORMAT_NOT_SUPPORTED",
                   absl::StrCat(where, ": ", rule));
}

// input_activations of a group; null means that they stay as they are.
absl::Status ReadActivations(const std::string& where, const Json& group, Fp8Scheme* scheme) {
  const auto activations = group.find("input_activations");
  if (activations == group.end() || activations->is_null()) return absl::OkStatus();
  const auto refuse = [&] {
    return MakeError(absl::StatusCode::kUnimplemented, "ACTIVATION_QUANTIZATION_NOT_SUPPORTED",
                     absl::StrCat(where,
                                  ": input_activations must be null or symmetric 8-bit floats, static for a "
                                  "tensor or dynamic for tokens or groups, got ",
                                  DumpJson(*activations).substr(0, 160)));
  };
  if (!activations->is_object()) return refuse();
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(*activations, "type", "int"));
  SAGE_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(*activations, "num_bits", 8));
  SAGE_ASSIGN_OR_RETURN(const bool symmetric, JsonBool(*activations, "symmetric", true));
  SAGE_ASSIGN_OR_RETURN(const std::string strategy, JsonString(*activations, "strategy", "tensor"));
  const auto dynamic = activations->find("dynamic");
  const bool is_dynamic = dynamic != activations->end() && *dynamic == true;
  const bool is_static = dynamic == activations->end() || *dynamic == false;
  if (type != "float" || bits != 8 || !symmetric) return refuse();
  if (is_static && strategy == "tensor") {
    scheme->activations = Fp8Scheme::Activations::kStatic;
    return absl::OkStatus();
  }
  if (!is_dynamic) return refuse();
  scheme->activations = Fp8Scheme::Activations::kDynamic;
  if (strategy == "token") return absl::OkStatus();
  SAGE_ASSIGN_OR_RETURN(const int64_t size, JsonInt(*activations, "group_size", 0));
  if (strategy != "group" || size < 16 || size > 65536) return refuse();
  scheme->activation_group_size = static_cast<int>(size);
  return absl::OkStatus();
}

// [rows, columns], or "rowsxcolumns" in older files.
absl::Status ReadBlock(const std::string& where, const Json& weights, Fp8Scheme* scheme) {
  const auto block = weights.find("block_structure");
  int64_t rows = 0, columns = 0;
  if (block != weights.end() && block->is_array() && block->size() == 2 && (*block)[0].is_number_integer() &&
      (*block)[1].is_number_integer()) {
    rows = (*block)[0].get<int64_t>();
    columns = (*block)[1].get<int64_t>();
  } else if (block != weights.end() && *block == "128x128") {
    rows = columns = 128;
  }
  if (rows < 2 || columns < 16 || rows > 65536 || columns > 65536) {
    return NotSupported(where, "block_structure must be two integers from 2 and 16 to 65536");
  }
  scheme->block_rows = static_cast<int>(rows);
  scheme->block_columns = static_cast<int>(columns);
  return absl::OkStatus();
}

}  // namespace

absl::Status CtFloatSchemes::AddGroup(const std::string& path, const std::string& name, const Json& group) {
  const std::string where = absl::StrCat(path, ": ", name.substr(0, 120));
  if (!group.is_object() || !group.contains("weights") || !group["weights"].is_object()) {
    return NotSupported(where, "weights must be an object");
  }
  const Json& weights = group["weights"];
  SAGE_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(weights, "num_bits", 8));
  SAGE_ASSIGN_OR_RETURN(const std::string strategy, JsonString(weights, "strategy", "tensor"));
  SAGE_ASSIGN_OR_RETURN(const bool symmetric, JsonBool(weights, "symmetric", true));
  SAGE_ASSIGN_OR_RETURN(const int64_t group_size, JsonInt(weights, "group_size", 0));
  if (!symmetric) return NotSupported(where, "float weights must be symmetric");
  if (bits == 4) {
    const bool known = (strategy == "group" && group_size == 32) || (strategy == "tensor_group" && group_size == 16);
    if (!known) return NotSupported(where, "4-bit float weights must be in groups of 32 (mxfp4) or 16 (nvfp4)");
    const auto activations = group.find("input_activations");
    if (activations != group.end() && !activations->is_null()) {
      return MakeError(absl::StatusCode::kUnimplemented, "ACTIVATION_QUANTIZATION_NOT_SUPPORTED",
                       absl::StrCat(where, ": input_activations of 4-bit float weights must be null, got ",
                                    DumpJson(*activations).substr(0, 160)));
    }
    packed_groups_.insert(group_size);
    return absl::OkStatus();
  }
  if (bits != 8) return NotSupported(where, absl::StrCat("float weights must have 4 or 8 bits, got ", bits));
  Fp8Scheme scheme;
  if (strategy == "tensor") {
    scheme.weights = Fp8Scheme::Weights::kTensor;
  } else if (strategy == "channel") {
    scheme.weights = Fp8Scheme::Weights::kChannel;
  } else if (strategy == "block") {
    scheme.weights = Fp8Scheme::Weights::kBlock;
    SAGE_RETURN_IF_ERROR(ReadBlock(where, weights, &scheme));
  } else {
    return NotSupported(where,
                        absl::StrCat("the strategy of 8-bit float weights must be tensor, channel or block, got '",
                                     strategy.substr(0, 40), "'"));
  }
  SAGE_RETURN_IF_ERROR(ReadActivations(where, group, &scheme));
  SAGE_ASSIGN_OR_RETURN(const std::string codes, JsonString(weights, "float_format", "e4m3"));
  if (codes != "e4m3" && codes != "e5m2") {
    return NotSupported(where, absl::StrCat("float_format must be e4m3 or e5m2, got '", codes.substr(0, 40), "'"));
  }
  scheme.e5m2 = codes == "e5m2";
  if (std::find(fp8_.begin(), fp8_.end(), scheme) == fp8_.end()) fp8_.push_back(scheme);
  return absl::OkStatus();
}

bool CtFloatSchemes::Holds(const HfFolder& folder, const std::string& module) const {
  if (HoldsFp8(folder, module)) return !fp8_.empty();
  const TensorView* packed = folder.Find(module + ".weight_packed");
  return packed != nullptr && packed->dtype == DType::kU8 && !packed_groups_.empty();
}

absl::StatusOr<StoredLinear> CtFloatSchemes::Get(const HfFolder& folder, const std::string& module) const {
  if (!HoldsFp8(folder, module)) return GetPacked(folder, module);
  SAGE_ASSIGN_OR_RETURN(const TensorView weight, folder.Get(module + ".weight"));
  SAGE_ASSIGN_OR_RETURN(const TensorView scale, folder.Get(module + ".weight_scale"));
  const bool has_input = folder.Find(module + ".input_scale") != nullptr;
  const Fp8Scheme* found = nullptr;
  for (const Fp8Scheme& scheme : fp8_) {
    const bool is_static = scheme.activations == Fp8Scheme::Activations::kStatic;
    if (weight.shape.size() != 2 || is_static != has_input) continue;
    if (!ScaleFits(scheme, scale.shape, weight.dim(0), weight.dim(1))) continue;
    if (scheme.e5m2 && weight.dtype != DType::kF8E5M2) continue;
    if (found != nullptr &&
        (found->activations != scheme.activations || found->activation_group_size != scheme.activation_group_size)) {
      return NotSupported(absl::StrCat(folder.path(), ": ", module),
                          "two config groups with the same weights but other activations fit the module");
    }
    found = &scheme;
  }
  if (found != nullptr) return GetFp8(folder, module, *found, "weight_scale");
  return MakeError(
      absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
      absl::StrCat(folder.path(), ": ", module, ": weight ", std::string(DTypeName(weight.dtype)), " ",
                   ShapeText(weight.shape), " with weight_scale ", ShapeText(scale.shape),
                   has_input ? " and" : " without", " input_scale fits none of the config's float groups"));
}

absl::StatusOr<StoredLinear> CtFloatSchemes::GetPacked(const HfFolder& folder, const std::string& module) const {
  const auto bad = [&](const std::string& rule) {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(folder.path(), ": ", module, ": ", rule));
  };
  StoredLinear out;
  for (const char* name : {"weight_packed", "weight_scale"}) {
    SAGE_ASSIGN_OR_RETURN(out.tensors[name], folder.Get(absl::StrCat(module, ".", name)));
  }
  const TensorView &packed = out.tensors["weight_packed"], &scale = out.tensors["weight_scale"];
  if (packed.shape.size() != 2 || scale.shape.size() != 2 || packed.dim(0) < 1 || packed.dim(1) < 1 ||
      packed.dim(1) > (int64_t{1} << 31) || scale.dim(0) != packed.dim(0)) {
    return bad(absl::StrCat("weight_packed must be [N, K / 2] and weight_scale [N, G], got ", ShapeText(packed.shape),
                            " and ", ShapeText(scale.shape)));
  }
  out.N = packed.dim(0);
  out.K = packed.dim(1) * 2;
  const TensorView* global = folder.Find(module + ".weight_global_scale");
  const int64_t group = global != nullptr ? 16 : 32;
  if (packed_groups_.count(group) == 0 || out.K % group != 0 || scale.dim(1) != out.K / group) {
    return bad(absl::StrCat("weight_scale ", ShapeText(scale.shape), global != nullptr ? " with" : " without",
                            " weight_global_scale fits none of the config's 4-bit float groups for K=", out.K));
  }
  out.spec.strategy = global != nullptr ? "nvfp4_w4a16" : "mxfp4_w4a16";
  out.spec.group_size = static_cast<int>(group);
  if (global != nullptr) out.tensors["weight_global_scale"] = *global;
  if (const TensorView* bias = folder.Find(module + ".bias")) out.bias = *bias;
  return out;
}

}  // namespace sage
