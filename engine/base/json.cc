// Bounded JSON parsing: a SAX pass checks depth and duplicate keys before the tree is built.
#include "engine/base/json.h"

#include <cmath>
#include <unordered_set>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

// Walks the text without building anything, so that a hostile document costs no memory beyond one open-key set per
// level.
class LimitChecker : public nlohmann::json_sax<Json> {
 public:
  explicit LimitChecker(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool start_array(std::size_t) override { return Enter(); }
  bool end_array() override { return Leave(); }
  bool key(string_t& name) override {
    if (!limits_.reject_duplicate_keys) return true;
    if (keys_.back().insert(name).second) return true;
    error_ = absl::StrCat("duplicate key '", name.substr(0, 80), "'");
    return false;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    error_ = absl::StrCat("at byte ", position, ": ", std::string(e.what()).substr(0, 200));
    return false;
  }
  const std::string& error() const { return error_; }

 private:
  bool Enter() {
    if (limits_.reject_duplicate_keys) keys_.emplace_back();
    if (++depth_ <= limits_.max_depth) return true;
    error_ = absl::StrCat("nesting must be at most ", limits_.max_depth);
    return false;
  }
  bool Leave() {
    --depth_;
    if (limits_.reject_duplicate_keys) keys_.pop_back();
    return true;
  }

  JsonLimits limits_;
  int depth_ = 0;
  std::vector<std::unordered_set<std::string>> keys_;
  std::string error_;
};

template <typename Tree>
absl::StatusOr<Tree> Parse(std::string_view text, std::string_view what, const JsonLimits& limits) {
  const std::string name(what);
  if (text.size() > limits.max_bytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, "JSON_TOO_LARGE",
                     absl::StrCat(name, ": JSON must be at most ", limits.max_bytes, " bytes, got ", text.size()));
  }
  LimitChecker checker(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &checker)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "JSON_INVALID",
                     absl::StrCat(name, ": invalid JSON: ", checker.error()));
  }
  Tree out = Tree::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (out.is_discarded()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "JSON_INVALID", absl::StrCat(name, ": invalid JSON"));
  }
  return out;
}

absl::Status WrongType(const char* key, const char* want, const Json& value) {
  return MakeError(absl::StatusCode::kInvalidArgument, "JSON_WRONG_TYPE",
                   absl::StrCat("'", key, "' must be ", want, ", got ", value.type_name()));
}

const Json* Find(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return nullptr;
  return &*it;
}

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view what, const JsonLimits& limits) {
  return Parse<Json>(text, what, limits);
}

absl::StatusOr<OrderedJson> ParseOrderedJson(std::string_view text, std::string_view what, const JsonLimits& limits) {
  return Parse<OrderedJson>(text, what, limits);
}

absl::StatusOr<int64_t> JsonInt(const Json& object, const char* key, int64_t fallback) {
  const Json* value = Find(object, key);
  if (value == nullptr) return fallback;
  if (value->is_number_unsigned()) {
    const uint64_t n = value->get<uint64_t>();
    if (n > static_cast<uint64_t>(INT64_MAX)) return WrongType(key, "an integer below 2^63", *value);
    return static_cast<int64_t>(n);
  }
  if (value->is_number_integer()) return value->get<int64_t>();
  if (value->is_number_float()) {
    const double n = value->get<double>();
    if (std::floor(n) == n && std::abs(n) < 9e15) return static_cast<int64_t>(n);
  }
  return WrongType(key, "an integer", *value);
}

absl::StatusOr<double> JsonDouble(const Json& object, const char* key, double fallback) {
  const Json* value = Find(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_number()) return WrongType(key, "a number", *value);
  return value->get<double>();
}

absl::StatusOr<bool> JsonBool(const Json& object, const char* key, bool fallback) {
  const Json* value = Find(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return WrongType(key, "a boolean", *value);
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonString(const Json& object, const char* key, std::string_view fallback) {
  const Json* value = Find(object, key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) return WrongType(key, "a string", *value);
  return value->get<std::string>();
}

std::string DumpJson(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace sage
