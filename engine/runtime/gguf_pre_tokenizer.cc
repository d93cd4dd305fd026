// Compares the steps of a pre-tokenizer, in order, with those that llama.cpp's names stand for.
#include "engine/runtime/gguf_pre_tokenizer.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr char kLlama3[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kTekken[] = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
                           R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
                           R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kGpt4o[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Known {
  const char* name;
  std::vector<std::string> steps;
};

// "digits", "bytes" (with GPT-2's own pattern), "bytes only", or a Split's regex.
std::string StepOf(const Json& part) {
  const std::string type = part.value("type", Json()).is_string() ? part["type"].get<std::string>() : "";
  if (type == "Digits") return part.value("individual_digits", Json()) == Json(true) ? "digits" : "digit runs";
  if (type == "ByteLevel") {
    if (part.value("add_prefix_space", Json()) == Json(true)) return "bytes after a blank";
    return part.value("use_regex", Json(true)) == Json(true) ? "bytes" : "bytes only";
  }
  if (type == "Split" && part.contains("pattern") && part["pattern"].is_object() &&
      part.value("invert", Json(false)) == Json(false) && part.value("behavior", Json()) == Json("Isolated")) {
    const Json regex = part["pattern"].value("Regex", Json());
    if (regex.is_string()) return regex.get<std::string>();
  }
  return absl::StrCat("a step of type '", type, "'");
}

}  // namespace

absl::StatusOr<std::string> GgufPreTokenizer(const Json& json) {
  static const Known* const kKnown = new Known[7]{
      {"gpt-2", {"bytes"}},
      {"smollm", {"digits", "bytes"}},
      {"llama-bpe", {kLlama3, "bytes only"}},
      {"qwen2", {kQwen2, "bytes only"}},
      {"tekken", {kTekken, "bytes only"}},
      {"gpt-4o", {kGpt4o, "bytes only"}},
      {"default",
       {R"([\p{P}\$\+<=>\^~\|`]+)", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
        R"(\p{N}+)", "[0-9][0-9][0-9]", "bytes only"}},
  };
  std::vector<std::string> steps;
  const Json pre = json.value("pre_tokenizer", Json());
  if (pre.is_object() && pre.value("type", Json()) == Json("Sequence") && pre.contains("pretokenizers") &&
      pre["pretokenizers"].is_array()) {
    for (const Json& part : pre["pretokenizers"]) steps.push_back(part.is_object() ? StepOf(part) : "");
  } else if (pre.is_object()) {
    steps.push_back(StepOf(pre));
  }
  const Json normalizer = json.value("normalizer", Json());
  const bool nfc = normalizer.is_object() && normalizer.value("type", Json()) == Json("NFC");
  for (int i = 0; i < 7; ++i) {
    if (steps != kKnown[i].steps) continue;
    // llama.cpp leaves out the NFC step that Qwen2's own files have.
    if (normalizer.is_null() || (nfc && std::string(kKnown[i].name) == "qwen2")) return std::string(kKnown[i].name);
  }
  return MakeError(
      absl::StatusCode::kUnimplemented, "GGUF_TOKENIZER",
      absl::StrCat("GGUF tokenizer: no name of llama.cpp stands for the pre-tokenizer [", absl::StrJoin(steps, " | "),
                   "]", normalizer.is_null() ? "" : " with normalizer " + DumpJson(normalizer).substr(0, 120)));
}

}  // namespace sage
