// Finds, normalises and compares the quantization configs of a folder.
#include "engine/api/quantization_config.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/api/hf_folder.h"
#include "engine/base/file.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr size_t kMaxBytes = size_t{16} << 20;
constexpr const char* kSideFiles[] = {"quantize_config.json", "quant_config.json"};
// What decides how the words of a file are read.
constexpr const char* kDecisive[] = {"bits",       "group_size", "desc_act",    "sym", "checkpoint_format",
                                     "zero_point", "version",    "quant_method"};

absl::StatusOr<OrderedJson> ReadObject(const std::string& file) {
  SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxBytes));
  SAGE_ASSIGN_OR_RETURN(OrderedJson out, ParseOrderedJson(text, file));
  if (out.is_object()) return out;
  return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                   absl::StrCat(file, ": must be a JSON object"));
}

QuantizationConfig Normalise(const OrderedJson& object, const std::string& source) {
  QuantizationConfig out;
  out.source = source;
  out.values = Json(object);
  const auto rename = [&](const char* from, const char* to) {
    if (out.values.contains(from) && !out.values.contains(to)) out.values[to] = out.values[from];
  };
  rename("w_bit", "bits");
  rename("q_group_size", "group_size");
  rename("format", "checkpoint_format");
  const auto dynamic = object.find("dynamic");
  if (dynamic != object.end() && dynamic->is_object()) {
    for (const auto& [key, value] : dynamic->items()) out.dynamic_keys.push_back(key);
  }
  return out;
}

absl::Status CheckAgreement(const std::string& path, const QuantizationConfig& a, const QuantizationConfig& b) {
  for (const char* key : kDecisive) {
    const auto left = a.values.find(key), right = b.values.find(key);
    if (left == a.values.end() || right == b.values.end() || *left == *right) continue;
    return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                     absl::StrCat(path, ": ", a.source, " and ", b.source, " must agree, got ", key, "=",
                                  DumpJson(*left).substr(0, 60), " and ", DumpJson(*right).substr(0, 60)));
  }
  return absl::OkStatus();
}

}  // namespace

bool FolderQuantizedBy(const std::string& path, std::string_view method, const std::string& side_file, bool unnamed) {
  if (HfQuantMethodIs(path, method)) return true;
  const std::string file = path + "/" + side_file;
  if (!HfQuantMethodIs(path, "") || !FileExists(file)) return false;
  const auto object = ReadObject(file);
  if (!object.ok()) return unnamed;  // opening it says what is wrong
  const auto name = object->find("quant_method");
  if (name == object->end()) return unnamed;
  return name->is_string() && name->get<std::string>() == method;
}

absl::StatusOr<QuantizationConfig> ReadQuantizationConfig(const std::string& path) {
  std::optional<QuantizationConfig> out;
  SAGE_ASSIGN_OR_RETURN(const OrderedJson config, ReadObject(path + "/config.json"));
  const auto inner = config.find("quantization_config");
  if (inner != config.end() && inner->is_object()) out = Normalise(*inner, "config.json");
  for (const char* name : kSideFiles) {
    if (!FileExists(path + "/" + name)) continue;
    SAGE_ASSIGN_OR_RETURN(const OrderedJson object, ReadObject(path + "/" + name));
    QuantizationConfig side = Normalise(object, name);
    if (!out) {
      out = std::move(side);
    } else {
      SAGE_RETURN_IF_ERROR(CheckAgreement(path, *out, side));
    }
  }
  if (out) return *std::move(out);
  return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID",
                   absl::StrCat(path, ": config.json must have a quantization_config"));
}

}  // namespace sage
