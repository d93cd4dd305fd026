// Parses and evaluates --require.
#include "client/cli/requirements.h"

#include <cmath>
#include <cstdlib>

namespace sage::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string Trim(std::string text) {
  text.erase(0, text.find_first_not_of(" \t\n"));
  text.erase(text.find_last_not_of(" \t\n") + 1);
  return text;
}

Failure BadRequirement(const std::string& text, const std::string& why) {
  return {.exit_code = kUsage,
          .code = "INVALID_ARGUMENT",
          .reason = "BAD_REQUIREMENT",
          .message = "--require: " + why + ", got '" + text.substr(0, 100) + "'"};
}

bool Holds(double value, const std::string& op, double number) {
  if (op == "<") return value < number;
  if (op == "<=") return value <= number;
  if (op == ">") return value > number;
  if (op == ">=") return value >= number;
  return value == number;
}

const Json* Find(const Json& document, const std::string& path) {
  const Json* at = &document;
  for (size_t from = 0; from <= path.size();) {
    const size_t to = std::min(path.find('.', from), path.size());
    if (!at->is_object()) return nullptr;
    const auto found = at->find(path.substr(from, to - from));
    if (found == at->end()) return nullptr;
    at = &*found;
    from = to + 1;
  }
  return at;
}

}  // namespace

std::optional<Failure> ParseRequirements(const std::string& text, std::vector<Requirement>* out) {
  for (size_t from = 0; from <= text.size();) {
    const size_t to = std::min(text.find(',', from), text.size());
    Requirement r{.text = Trim(text.substr(from, to - from))};
    from = to + 1;
    const size_t at = r.text.find_first_of("<>=");
    if (at == r.text.npos) return BadRequirement(r.text, "must be PATH OP NUMBER with OP one of < <= > >= ==");
    const size_t end_op = r.text.find_first_not_of("<>=", at);
    r.path = Trim(r.text.substr(0, at));
    r.op = r.text.substr(at, end_op == r.text.npos ? r.text.npos : end_op - at);
    const std::string number = end_op == r.text.npos ? "" : Trim(r.text.substr(end_op));
    if (r.op != "<" && r.op != "<=" && r.op != ">" && r.op != ">=" && r.op != "==") {
      return BadRequirement(r.text, "OP must be one of < <= > >= ==");
    }
    char* end = nullptr;
    r.number = std::strtod(number.c_str(), &end);
    if (r.path.empty()) return BadRequirement(r.text, "the path must not be empty");
    if (number.empty() || *end != '\0' || !std::isfinite(r.number))
      return BadRequirement(r.text, "must end with a number");
    out->push_back(std::move(r));
  }
  return std::nullopt;
}

std::optional<Failure> CheckRequirements(const std::vector<Requirement>& requirements, const Json& document,
                                         Json* out) {
  *out = Json::array();
  for (const Requirement& r : requirements) {
    const Json* value = Find(document, r.path);
    if (value == nullptr || !value->is_number()) {
      Failure failure = BadRequirement(r.text, "the report has no number at " + r.path);
      failure.reason = "UNKNOWN_PATH";
      return failure;
    }
    out->push_back(Json{{"require", r.text}, {"value", *value}, {"met", Holds(value->get<double>(), r.op, r.number)}});
  }
  return std::nullopt;
}

}  // namespace sage::cli
