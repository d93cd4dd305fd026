// Compares the words of the flags with the fields of the document; composite words are taken apart.
#include "client/cli/capability_filter.h"

#include <cstdio>
#include <functional>
#include <set>
#include <string>

namespace sage::cli {
namespace {

using Json = nlohmann::ordered_json;

// "w8a16" -> 8, 16; false for anything else.
bool ReadComposite(const std::string& word, int* weight_bits, int* activation_bits) {
  int end = 0;
  return std::sscanf(word.c_str(), "w%da%d%n", weight_bits, activation_bits, &end) == 2 &&
         end == static_cast<int>(word.size());
}

int BitsOfActivation(const std::string& word) {
  if (word == "f32" || word == "fp32") return 32;
  if (word == "bf16" || word == "f16" || word == "fp16" || word == "none") return 16;
  if (word == "int8" || word == "fp8" || word == "fp8_e4m3") return 8;
  return 0;
}

std::optional<Failure> Keep(Json* list, const char* flag, const std::string& word, const char* field,
                            const std::function<bool(const Json&)>& fits) {
  Json kept = Json::array();
  std::set<std::string> known;
  for (const Json& row : *list) {
    known.insert(row.at(field).is_string() ? row.at(field).get<std::string>() : row.at(field).dump());
    if (fits(row)) kept.push_back(row);
  }
  if (!kept.empty()) {
    *list = std::move(kept);
    return std::nullopt;
  }
  std::string names;
  for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
  return Failure{.exit_code = kUsage,
                 .code = "INVALID_ARGUMENT",
                 .reason = "NOTHING_FITS",
                 .message = std::string(flag) + ": nothing fits \"" + word + "\"; there is " + names};
}

}  // namespace

std::optional<Failure> FilterCapabilities(const CapabilityFilter& filter, Json* all) {
  Json& strategies = (*all)["linear_strategies"];
  int weight_bits = 0, activation_bits = 0;
  if (const std::string& word = filter.kernel.weight_dtype(); !word.empty()) {
    const bool composite = ReadComposite(word, &weight_bits, &activation_bits);
    auto failure = Keep(&strategies, "--weight-dtype", word, "weight_dtype", [&](const Json& row) {
      if (composite) return row["weight_bits"] == weight_bits && row["activation_bits"] == activation_bits;
      return row["weight_dtype"] == word || row["name"] == word;
    });
    if (failure) return failure;
  }
  if (const std::string& word = filter.kernel.activation_dtype(); !word.empty()) {
    const bool composite = ReadComposite(word, &weight_bits, &activation_bits);
    if (!composite) activation_bits = BitsOfActivation(word);
    // "int4" weights with "w8a16" mean 4-bit weights and 16-bit activations: only the second number counts.
    auto failure = Keep(&strategies, "--activation-dtype", word, "activation_bits",
                        [&](const Json& row) { return row["activation_bits"] == activation_bits; });
    if (failure) return failure;
  }
  const std::string& backend = filter.kernel.backend();
  if (backend.empty() || backend == "auto") return std::nullopt;
  return Keep(&(*all)["backends"], "--backend", backend, "name",
              [&](const Json& row) { return row["name"] == backend; });
}

}  // namespace sage::cli
