// JSON from outside: bounded parsing and typed access that answers with a status instead of throwing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace sage {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

struct JsonLimits {
  size_t max_bytes = 512u << 20;
  int max_depth = 64;
  bool reject_duplicate_keys = false;
};

// INVALID_ARGUMENT with the byte offset on malformed text, bad UTF-8, excess depth or size.
// `what` names the source in the message.
absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view what, const JsonLimits& limits = {});
absl::StatusOr<OrderedJson> ParseOrderedJson(std::string_view text, std::string_view what,
                                             const JsonLimits& limits = {});

// Typed members. A missing or null member gives `fallback`; another type is INVALID_ARGUMENT naming the key.
absl::StatusOr<int64_t> JsonInt(const Json& object, const char* key, int64_t fallback);
absl::StatusOr<double> JsonDouble(const Json& object, const char* key, double fallback);
absl::StatusOr<bool> JsonBool(const Json& object, const char* key, bool fallback);
absl::StatusOr<std::string> JsonString(const Json& object, const char* key, std::string_view fallback);

// `dump` that never throws: invalid UTF-8 becomes U+FFFD.
std::string DumpJson(const Json& value, int indent = -1);

}  // namespace sage
