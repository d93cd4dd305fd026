// Finds the config group of a module by its targets and checks every tensor against it.
//
// Tensors of a module (quantization.md 1.4, versions 0.8 to 0.19), signed codes of b bits, signed zeros:
//   packed:  weight_packed I32 [N, words] (code + 2^(b-1), low bits first), weight_shape [2], weight_zero_point I32
//            [words of N, G]. Newer files pack densely: words = ceil(K b / 32). For 3, 5, 6 and 7 bits older ones leave
//            the top of each word unused: words = ceil(K / floor(32 / b)).
//   bytes:   weight I8 [N, K], weight_zero_point I8 [N, G]; input_scale and input_zero_point [1] when activations are
//            static.
//   both:    weight_scale [N, G] (G = 1 by channel; [1] for a tensor), weight_g_idx I32 [K] with actorder "group".
#include "engine/api/ct_integer.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quant/packing.h"

namespace sage {
namespace {

constexpr int64_t kMostInputs = int64_t{1} << 31;

absl::Status Bad(const HfFolder& folder, const std::string& module, const std::string& rule) {
  return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                   absl::StrCat(folder.path(), ": ", module, ": ", rule));
}

std::string Described(const TensorView& view) {
  return absl::StrCat(std::string(DTypeName(view.dtype)), " ", ShapeText(view.shape));
}

int64_t SparseWords(int64_t count, int bits) { return (count + 32 / bits - 1) / (32 / bits); }

// `count` codes in a row of words, packed either way; `stride` words apart (down a column: the row length).
void UnpackWords(const uint8_t* words, int64_t stride, int64_t count, int bits, bool dense, uint8_t* codes,
                 int64_t step) {
  const int each = 32 / bits;
  const auto word = [&](int64_t w) {
    uint32_t value;
    std::memcpy(&value, words + 4 * w * stride, 4);
    return value;
  };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t bit = dense ? i * bits : i / each * 32 + i % each * bits;
    uint64_t value = word(bit / 32) >> (bit % 32);
    if (bit % 32 + bits > 32) value |= static_cast<uint64_t>(word(bit / 32 + 1)) << (32 - bit % 32);
    codes[i * step] = static_cast<uint8_t>(value & ((1u << bits) - 1));
  }
}

absl::Status ReadTargets(const std::string& where, const Json& group, std::vector<std::string>* names,
                         std::vector<ModulePattern>* patterns, bool* all) {
  const auto targets = group.find("targets");
  if (targets == group.end() || targets->is_null()) {
    *all = true;
    return absl::OkStatus();
  }
  if (!targets->is_array() || targets->size() > 100000) {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(where, ": targets must be an array of names"));
  }
  for (const Json& target : *targets) {
    const std::string text = target.is_string() ? target.get<std::string>() : "";
    if (absl::StartsWith(text, "re:")) {
      absl::StatusOr<ModulePattern> pattern = ModulePattern::Compile(text.substr(3));
      if (!pattern.ok()) return Annotate(pattern.status(), where);
      patterns->push_back(*std::move(pattern));
    } else if (text == "Linear") {
      *all = true;
    } else {
      names->push_back(text);
    }
  }
  return absl::OkStatus();
}

// Only "group" (also "dynamic", and true in the oldest files) leaves a weight_g_idx; null, "weight" and "static" do
// not.
bool OrdersGroups(const Json& weights) {
  const auto order = weights.find("actorder");
  return order != weights.end() && (*order == true || *order == "group" || *order == "dynamic");
}

struct Activations {
  bool fixed = false;  // one stored scale
  bool symmetric = true;
};

// input_activations: 8-bit integers with a scale for each token, or one stored scale (and zero point) of a layer's
// input.
absl::StatusOr<Activations> ReadActivations(const std::string& where, const Json& activations) {
  const auto refuse = [&](const char* rule) {
    return MakeError(absl::StatusCode::kUnimplemented, "ACTIVATION_QUANTIZATION_NOT_SUPPORTED",
                     absl::StrCat(where, ": input_activations ", rule, ", got ", DumpJson(activations).substr(0, 160)));
  };
  if (!activations.is_object()) return refuse("must be an object");
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(activations, "type", "int"));
  SAGE_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(activations, "num_bits", 8));
  const auto dynamic = activations.find("dynamic");
  const bool absent = dynamic == activations.end() || dynamic->is_null();
  if (!absent && !dynamic->is_boolean()) return refuse("must have dynamic true or false");
  Activations out;
  out.fixed = absent || !dynamic->get<bool>();
  SAGE_ASSIGN_OR_RETURN(out.symmetric, JsonBool(activations, "symmetric", true));
  SAGE_ASSIGN_OR_RETURN(const std::string strategy,
                        JsonString(activations, "strategy", out.fixed ? "tensor" : "token"));
  if (type != "int" || bits != 8) return refuse("must be 8-bit integers");
  if (out.fixed && strategy != "tensor") return refuse("that are static (dynamic false) must have strategy tensor");
  if (!out.fixed && strategy != "token") return refuse("that are dynamic must have strategy token");
  return out;
}

absl::StatusOr<Tensor*> Own(const std::string& name, DType dtype, Shape shape, StoredLinear* out) {
  SAGE_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(dtype, std::move(shape)));
  out->owned.push_back(std::make_shared<Tensor>(std::move(tensor)));
  out->tensors[name] = out->owned.back()->view();
  return out->owned.back().get();
}

absl::Status ReadShape(const HfFolder& folder, const std::string& module, StoredLinear* out) {
  SAGE_ASSIGN_OR_RETURN(const TensorView shape, folder.Get(module + ".weight_shape"));
  if (shape.elements() != 2 || (shape.dtype != DType::kI64 && shape.dtype != DType::kI32)) {
    return Bad(folder, module, absl::StrCat("weight_shape must be two integers, got ", Described(shape)));
  }
  int64_t size[2] = {};
  for (int i = 0; i < 2; ++i) {  // tensors of a file need not be aligned
    int32_t narrow = 0;
    if (shape.dtype == DType::kI64) {
      std::memcpy(&size[i], shape.as<uint8_t>() + 8 * i, 8);
    } else {
      std::memcpy(&narrow, shape.as<uint8_t>() + 4 * i, 4);
      size[i] = narrow;
    }
    if (size[i] < 1 || size[i] > kMostInputs) {
      return Bad(folder, module, absl::StrCat("weight_shape must be positive, got ", size[i]));
    }
  }
  out->N = size[0];
  out->K = size[1];
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CtModuleNames> CtModuleNames::Read(const std::string& where, const Json& list) {
  CtModuleNames out;
  if (list.is_null()) return out;
  bool all = false;  // the class Linear in `ignore` would leave nothing quantized: it says nothing about one module
  SAGE_RETURN_IF_ERROR(ReadTargets(where, {{"targets", list}}, &out.names_, &out.patterns_, &all));
  return out;
}

absl::StatusOr<bool> CtModuleNames::Holds(const std::string& module) const {
  if (std::find(names_.begin(), names_.end(), module) != names_.end()) return true;
  for (const ModulePattern& pattern : patterns_) {
    SAGE_ASSIGN_OR_RETURN(const bool matches, pattern.Matches(module));
    if (matches) return true;
  }
  return false;
}

absl::Status CtIntegerSchemes::AddGroup(const std::string& path, const std::string& name, const Json& group,
                                        const std::string& format) {
  const std::string where = absl::StrCat(path, ": ", name.substr(0, 120));
  const auto refuse = [&](const std::string& rule) {
    return MakeError(absl::StatusCode::kUnimplemented, "CHECKPOINT_FORMAT_NOT_SUPPORTED",
                     absl::StrCat(where, ": ", rule));
  };
  const Json& weights = group["weights"];
  Group out;
  out.name = name.substr(0, 120);
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(weights, "type", "int"));
  SAGE_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(weights, "num_bits", 8));
  if (type != "int" || bits < 2 || bits > 8) {
    return refuse(absl::StrCat("weights must be int with 2 to 8 bits, got ", type.substr(0, 20), " with ", bits));
  }
  out.bits = static_cast<int>(bits);
  SAGE_ASSIGN_OR_RETURN(const std::string own, JsonString(group, "format", format));
  const std::string stored = own == "mixed-precision" ? "pack-quantized" : own;
  if (stored != "pack-quantized" && stored != "int-quantized" && stored != "naive-quantized") {
    return refuse(absl::StrCat("integer weights must be pack-quantized, int-quantized or naive-quantized, got '",
                               own.substr(0, 60), "'"));
  }
  out.packed = stored == "pack-quantized";
  const auto activations = group.find("input_activations");
  out.activations = activations != group.end() && !activations->is_null();
  if (out.activations) {
    SAGE_ASSIGN_OR_RETURN(const Activations read, ReadActivations(where, *activations));
    out.static_activations = read.fixed;
    out.activation_symmetric = read.symmetric;
  }
  SAGE_ASSIGN_OR_RETURN(out.strategy, JsonString(weights, "strategy", ""));
  SAGE_ASSIGN_OR_RETURN(out.group_size, JsonInt(weights, "group_size", 0));
  SAGE_ASSIGN_OR_RETURN(out.symmetric, JsonBool(weights, "symmetric", true));
  if (out.group_size < -1 || out.group_size > kMostInputs) {
    return refuse(absl::StrCat("group_size must be -1 or positive, got ", out.group_size));
  }
  out.orders_groups = OrdersGroups(weights);
  SAGE_RETURN_IF_ERROR(ReadTargets(where, group, &out.names, &out.patterns, &out.all));
  groups_.push_back(std::move(out));
  return absl::OkStatus();
}

bool CtIntegerSchemes::Holds(const HfFolder& folder, const std::string& module) {
  const TensorView* packed = folder.Find(module + ".weight_packed");
  if (packed != nullptr) return packed->dtype != DType::kU8;  // U8 are the 4-bit floats
  const TensorView* weight = folder.Find(module + ".weight");
  return weight != nullptr && weight->dtype == DType::kI8;
}

// Names beat patterns beat the class, whatever order the groups have.
absl::StatusOr<const CtIntegerSchemes::Group*> CtIntegerSchemes::GroupOf(const HfFolder& folder,
                                                                         const std::string& module) const {
  for (const Group& group : groups_) {
    if (std::find(group.names.begin(), group.names.end(), module) != group.names.end()) return &group;
  }
  for (const Group& group : groups_) {
    for (const ModulePattern& pattern : group.patterns) {
      SAGE_ASSIGN_OR_RETURN(const bool matches, pattern.Matches(module));
      if (matches) return &group;
    }
  }
  for (const Group& group : groups_) {
    if (group.all) return &group;
  }
  return Bad(folder, module, "holds integers, and no integer group of config_groups targets it");
}

// N, K, the scale and what lies beside it, checked against the group.
absl::StatusOr<StoredLinear> CtIntegerSchemes::Begin(const HfFolder& folder, const std::string& module,
                                                     const Group& group) const {
  StoredLinear out;
  const TensorView* packed = folder.Find(module + ".weight_packed");
  if ((packed != nullptr) != group.packed) {
    return Bad(folder, module,
               absl::StrCat(packed != nullptr ? "has weight_packed" : "has an I8 weight", ", and ", group.name,
                            " says ", group.packed ? "pack-quantized" : "a byte a code"));
  }
  if (group.packed) {
    SAGE_RETURN_IF_ERROR(ReadShape(folder, module, &out));
    const int64_t dense = PackedWords(out.K, group.bits), sparse = SparseWords(out.K, group.bits);
    const bool two = packed->dtype == DType::kI32 && packed->shape.size() == 2 && packed->dim(0) == out.N;
    if (!two || (packed->dim(1) != dense && packed->dim(1) != sparse)) {
      return Bad(folder, module,
                 absl::StrCat("weight_packed must be I32 [", out.N, ", ", dense, "] for ", group.bits, " bits and ",
                              out.K, " inputs (weight_shape and ", group.name, "), got ", Described(*packed)));
    }
  } else {
    SAGE_ASSIGN_OR_RETURN(const TensorView weight, folder.Get(module + ".weight"));
    if (weight.shape.size() != 2 || weight.dim(0) < 1 || weight.dim(1) < 1) {
      return Bad(folder, module, absl::StrCat("weight must be [N, K], got ", ShapeText(weight.shape)));
    }
    out.N = weight.dim(0);
    out.K = weight.dim(1);
  }
  SAGE_ASSIGN_OR_RETURN(TensorView scale, folder.Get(module + ".weight_scale"));
  if (scale.shape.size() == 1 && scale.dim(0) == out.N) scale.shape = {out.N, 1};
  if (group.strategy == "tensor" && scale.elements() == 1 && IsFloat(scale.dtype)) {  // said once for every row
    const size_t width = DTypeSize(scale.dtype);
    SAGE_ASSIGN_OR_RETURN(Tensor * rows, Own("weight_scale", scale.dtype, {out.N, 1}, &out));
    for (int64_t n = 0; n < out.N; ++n) std::memcpy(rows->as<uint8_t>() + n * width, scale.data, width);
    scale = rows->view();
  }
  if (!IsFloat(scale.dtype) || scale.shape.size() != 2 || scale.dim(0) != out.N || scale.dim(1) < 1 ||
      out.K % scale.dim(1) != 0) {
    return Bad(
        folder, module,
        absl::StrCat("weight_scale must be [", out.N, ", G] with G dividing ", out.K, ", got ", Described(scale)));
  }
  const int64_t G = scale.dim(1);
  const bool lies = (group.strategy == "channel" && G != 1) ||
                    (group.strategy == "group" && group.group_size > 0 && G * group.group_size != out.K);
  if (lies) {
    return Bad(folder, module,
               absl::StrCat("weight_scale ", ShapeText(scale.shape), " for ", out.K, " inputs is not what ", group.name,
                            " says: strategy ", group.strategy, ", group_size ", group.group_size));
  }
  out.tensors["weight_scale"] = scale;
  out.spec.scale_dtype = scale.dtype;
  out.spec.group_size = G == 1 ? -1 : static_cast<int>(out.K / G);
  out.spec.symmetric = folder.Find(module + ".weight_zero_point") == nullptr;
  if (out.spec.symmetric != group.symmetric) {
    return Bad(folder, module,
               absl::StrCat(out.spec.symmetric ? "has no weight_zero_point, and " : "has a weight_zero_point, and ",
                            group.name, " says symmetric ", group.symmetric ? "true" : "false"));
  }
  if (const TensorView* g_idx = folder.Find(module + ".weight_g_idx")) {
    if (!group.orders_groups) {
      return Bad(folder, module, absl::StrCat("has a weight_g_idx, and the actorder of ", group.name, " is not group"));
    }
    out.spec.act_order = true;
    out.tensors["weight_g_idx"] = *g_idx;
  }
  if (const TensorView* bias = folder.Find(module + ".bias")) out.bias = *bias;
  return out;
}

absl::StatusOr<CtIntegerSchemes::Codes> CtIntegerSchemes::Unpack(const HfFolder& folder, const std::string& module,
                                                                 const Group& group, const StoredLinear& out) const {
  const int64_t N = out.N, K = out.K, G = out.tensors.at("weight_scale").dim(1);
  const uint8_t bias = static_cast<uint8_t>(1u << (group.bits - 1));
  Codes result;
  result.codes.resize(static_cast<size_t>(N * K));
  const TensorView* zero = folder.Find(module + ".weight_zero_point");
  if (zero != nullptr) result.zeros.resize(static_cast<size_t>(N * G));
  const auto from_bytes = [&](const TensorView& view, std::vector<uint8_t>* to) -> absl::Status {
    for (size_t i = 0; i < to->size(); ++i) {
      const int code = view.as<int8_t>()[i];
      if (code < -int{bias} || code >= int{bias}) {
        return Bad(
            folder, module,
            absl::StrCat("codes of ", group.bits, " bits must be ", -int{bias}, " .. ", bias - 1, ", got ", code));
      }
      (*to)[i] = static_cast<uint8_t>(code + bias);
    }
    return absl::OkStatus();
  };
  if (!group.packed) {
    SAGE_ASSIGN_OR_RETURN(const TensorView weight, folder.Get(module + ".weight"));
    SAGE_RETURN_IF_ERROR(from_bytes(weight, &result.codes));
    if (zero == nullptr) return result;
    if (zero->dtype != DType::kI8 || zero->shape != Shape{N, G}) {
      return Bad(folder, module,
                 absl::StrCat("weight_zero_point must be I8 [", N, ", ", G, "], got ", Described(*zero)));
    }
    SAGE_RETURN_IF_ERROR(from_bytes(*zero, &result.zeros));
    return result;
  }
  SAGE_ASSIGN_OR_RETURN(const TensorView packed, folder.Get(module + ".weight_packed"));
  const int64_t words = packed.dim(1);
  const bool dense = words == PackedWords(K, group.bits);
  for (int64_t n = 0; n < N; ++n) {
    UnpackWords(packed.as<uint8_t>() + 4 * n * words, 1, K, group.bits, dense, result.codes.data() + n * K, 1);
  }
  if (zero == nullptr) return result;
  // Packed the same way; for few rows the height alone would not tell.
  const int64_t height = dense ? PackedWords(N, group.bits) : SparseWords(N, group.bits);
  if (zero->dtype != DType::kI32 || zero->shape != Shape{height, G}) {
    return Bad(folder, module,
               absl::StrCat("weight_zero_point must be I32 [", height, ", ", G, "], got ", Described(*zero)));
  }
  for (int64_t g = 0; g < G; ++g) {
    UnpackWords(zero->as<uint8_t>() + 4 * g, G, N, group.bits, dense, result.zeros.data() + g, G);
  }
  return result;
}

// The packed form of codes of `bits` bits in a strategy of `width` bits: the middle of both ranges is one place.
absl::Status CtIntegerSchemes::AddWords(const Codes& codes, int bits, int width, StoredLinear* out) const {
  const int up = (1 << (width - 1)) - (1 << (bits - 1));
  const int64_t N = out->N, K = out->K, G = out->tensors.at("weight_scale").dim(1), words = PackedWords(K, width);
  SAGE_ASSIGN_OR_RETURN(Tensor * packed, Own("weight_packed", DType::kI32, {N, words}, out));
  std::vector<uint8_t> moved(codes.codes);
  for (uint8_t& code : moved) code = static_cast<uint8_t>(code + up);
  for (int64_t n = 0; n < N; ++n) PackCodes(moved.data() + n * K, K, width, packed->as<uint32_t>() + n * words);
  SAGE_ASSIGN_OR_RETURN(Tensor * shape, Own("weight_shape", DType::kI64, {2}, out));
  shape->as<int64_t>()[0] = N;
  shape->as<int64_t>()[1] = K;
  if (codes.zeros.empty()) return absl::OkStatus();
  moved = codes.zeros;
  for (uint8_t& zero : moved) zero = static_cast<uint8_t>(zero + up);
  SAGE_ASSIGN_OR_RETURN(Tensor * zeros, Own("weight_zero_point", DType::kI32, {PackedWords(N, width), G}, out));
  PackCodesByColumn(moved.data(), N, G, width, zeros->as<uint32_t>());
  return absl::OkStatus();
}

// The form of the strategies with 8-bit activations, from packed codes.
absl::Status CtIntegerSchemes::AddBytes(const Codes& codes, int bits, StoredLinear* out) const {
  const int bias = 1 << (bits - 1);
  const int64_t G = out->tensors.at("weight_scale").dim(1);
  const auto add = [&](const char* name, const std::vector<uint8_t>& from, Shape shape) -> absl::Status {
    SAGE_ASSIGN_OR_RETURN(Tensor * to, Own(name, DType::kI8, std::move(shape), out));
    for (size_t i = 0; i < from.size(); ++i) to->as<int8_t>()[i] = static_cast<int8_t>(from[i] - bias);
    return absl::OkStatus();
  };
  SAGE_RETURN_IF_ERROR(add("weight", codes.codes, {out->N, out->K}));
  return codes.zeros.empty() ? absl::OkStatus() : add("weight_zero_point", codes.zeros, {out->N, G});
}

absl::StatusOr<StoredLinear> CtIntegerSchemes::Get(const HfFolder& folder, const std::string& module) const {
  SAGE_ASSIGN_OR_RETURN(const Group* group, GroupOf(folder, module));
  SAGE_ASSIGN_OR_RETURN(StoredLinear out, Begin(folder, module, *group));
  const auto as_stored = [&](std::initializer_list<const char*> names) {
    for (const char* name : names) {
      if (const TensorView* tensor = folder.Find(absl::StrCat(module, ".", name))) out.tensors[name] = *tensor;
    }
  };
  const bool four = group->bits == 4, rounds = group->activations;
  // Bytes without 8-bit activations have no strategy of their own: four codes of them are a word of int8_w8a16.
  out.spec.strategy =
      rounds ? (four ? "int4_w4a8" : "int8_w8a8") : (four && group->packed ? "int4_w4a16" : "int8_w8a16");
  const bool wants_bytes = rounds && !four, same_width = four || group->bits == 8;
  if (group->packed && !wants_bytes && same_width) {
    as_stored({"weight_packed", "weight_shape", "weight_zero_point"});
  } else {
    SAGE_ASSIGN_OR_RETURN(const Codes codes, Unpack(folder, module, *group, out));  // in range, zeros in shape
    if (wants_bytes && !group->packed) {
      as_stored({"weight", "weight_zero_point"});
    } else if (wants_bytes) {
      SAGE_RETURN_IF_ERROR(AddBytes(codes, group->bits, &out));
    } else {
      SAGE_RETURN_IF_ERROR(AddWords(codes, group->bits, rounds ? 4 : 8, &out));
    }
  }
  if (rounds) SAGE_RETURN_IF_ERROR(AddActivations(folder, module, *group, &out));
  return out;
}

// The stored scale and zero point of a layer's input, exactly where the config says that there are some.
absl::Status CtIntegerSchemes::AddActivations(const HfFolder& folder, const std::string& module, const Group& group,
                                              StoredLinear* out) const {
  const TensorView* scale = folder.Find(module + ".input_scale");
  const TensorView* zero = folder.Find(module + ".input_zero_point");
  const auto contradicts = [&](const char* what, const char* said) {
    return Bad(folder, module, absl::StrCat(what, ", and ", group.name, " says ", said));
  };
  out->spec.static_activations = group.static_activations;
  out->spec.activation_symmetric = group.activation_symmetric;
  if (!group.static_activations) {
    if (scale != nullptr) return contradicts("has an input_scale", "dynamic activations");
    if (zero != nullptr) return contradicts("has an input_zero_point", "dynamic activations");
    return absl::OkStatus();
  }
  if (scale == nullptr) return contradicts("has no input_scale", "static activations");
  if (zero == nullptr && !group.activation_symmetric) {
    return contradicts("has no input_zero_point", "static activations with symmetric false");
  }
  if (zero != nullptr && group.activation_symmetric) {
    return contradicts("has an input_zero_point", "static activations with symmetric true");
  }
  out->tensors["input_scale"] = *scale;
  if (zero != nullptr) out->tensors["input_zero_point"] = *zero;
  return absl::OkStatus();
}

std::vector<std::string> CtIntegerSchemes::notes() const {
  std::set<std::string> out;
  for (const Group& group : groups_) {
    if (!group.activations && (!group.packed || (group.bits != 4 && group.bits != 8))) {
      out.insert(absl::StrCat(group.bits, "-bit integers, ", group.packed ? "packed" : "a byte a code",
                              ": repacked losslessly to 8-bit codes"));
    }
  }
  return {out.begin(), out.end()};
}

}  // namespace sage
