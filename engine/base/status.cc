// Attaches a reason and metadata to absl::Status as one payload, and reads them back.
#include "engine/base/status.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace sage {
namespace {

constexpr char kPayloadUrl[] = "sage/error_reason";

// Payload text: the reason, then one "key=value" a line. Newlines in values become spaces.
std::string OneLine(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return out;
}

}  // namespace

absl::Status MakeError(absl::StatusCode code, std::string_view reason, std::string_view message,
                       const std::map<std::string, std::string>& metadata) {
  absl::Status status(code, absl::string_view(message.data(), message.size()));
  std::string payload = OneLine(reason);
  for (const auto& [key, value] : metadata) {
    absl::StrAppend(&payload, "\n", OneLine(key), "=", OneLine(value));
  }
  status.SetPayload(kPayloadUrl, absl::Cord(payload));
  return status;
}

ErrorReason GetErrorReason(const absl::Status& status) {
  ErrorReason out;
  auto payload = status.GetPayload(kPayloadUrl);
  if (!payload.has_value()) return out;
  const std::string text(*payload);
  bool first = true;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (first) {
      out.reason = std::string(line);
      first = false;
      continue;
    }
    const std::pair<std::string, std::string> kv = absl::StrSplit(line, absl::MaxSplits('=', 1));
    out.metadata[kv.first] = kv.second;
  }
  return out;
}

absl::Status Annotate(const absl::Status& status, std::string_view prefix) {
  if (status.ok()) return status;
  absl::Status out(status.code(),
                   absl::StrCat(absl::string_view(prefix.data(), prefix.size()), ": ", status.message()));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) { out.SetPayload(url, payload); });
  return out;
}

}  // namespace sage
