// Connecting before a command's body runs, and reading its local input files.
#include "client/cli/command.h"

#include <utf8proc.h>

#include <cstdio>
#include <fstream>
#include <iterator>

namespace sage::cli {
void Context::Run(const std::function<std::optional<Failure>()>& body) {
  std::optional<Failure> failure = session->Connect();
  if (!failure) failure = body();
  if (failure) exit_code = PrintFailure(options, *failure);
}

std::optional<Failure> ReadLocalFile(const std::string& path, size_t most, std::string* out) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    return Failure{
        .exit_code = kUsage, .code = "NOT_FOUND", .reason = "FILE_NOT_FOUND", .message = "cannot read " + path};
  }
  out->assign(std::istreambuf_iterator<char>(in), {});
  if (out->size() > most) {
    return Failure{
        .exit_code = kUsage,
        .code = "INVALID_ARGUMENT",
        .reason = "FILE_TOO_LARGE",
        .message = path + ": must be at most " + std::to_string(most) + " bytes, got " + std::to_string(out->size())};
  }
  return std::nullopt;
}

std::optional<Failure> CheckUtf8(const std::string& what, const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    utf8proc_int32_t code = 0;
    const auto* const from = reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at);
    const utf8proc_ssize_t size = utf8proc_iterate(from, static_cast<utf8proc_ssize_t>(text.size() - at), &code);
    if (size <= 0) {
      char byte[8];
      std::snprintf(byte, sizeof byte, "0x%02x", static_cast<unsigned char>(text[at]));
      return Failure{.exit_code = kUsage,
                     .code = "INVALID_ARGUMENT",
                     .reason = "TEXT_INVALID_UTF8",
                     .message = what + ": must be UTF-8, got byte " + byte + " at " + std::to_string(at)};
    }
    at += static_cast<size_t>(size);
  }
  return std::nullopt;
}

std::optional<Failure> ParseJsonText(const std::string& what, const std::string& text, nlohmann::ordered_json* out) {
  *out = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!out->is_discarded()) return std::nullopt;
  return Failure{
      .exit_code = kUsage, .code = "INVALID_ARGUMENT", .reason = "JSON_INVALID", .message = what + ": invalid JSON"};
}

}  // namespace sage::cli
