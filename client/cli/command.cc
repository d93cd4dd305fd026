// Connecting before a command's body runs, and reading its local input files.
#include "client/cli/command.h"

#include <cstdio>
#include <fstream>
#include <iterator>

namespace sage::cli {
namespace {

// Bytes of the character at `at` by the table of RFC 3629; 0 when there is none.
size_t CharacterBytes(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0; };
  const unsigned lead = byte(at), second = byte(at + 1);
  if (lead < 0x80) return 1;
  const size_t size = lead >= 0xC2 && lead <= 0xDF   ? 2
                      : (lead & 0xF0) == 0xE0        ? 3
                      : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                     : 0;
  if (size == 0) return 0;
  // No longer form than needed, no surrogates, nothing above U+10FFFF.
  if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F)) return 0;
  if ((lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F)) return 0;
  for (size_t i = 1; i < size; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
  }
  return size;
}

}  // namespace

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
    const size_t size = CharacterBytes(text, at);
    if (size == 0) {
      char byte[8];
      std::snprintf(byte, sizeof byte, "0x%02x", static_cast<unsigned char>(text[at]));
      return Failure{.exit_code = kUsage,
                     .code = "INVALID_ARGUMENT",
                     .reason = "TEXT_INVALID_UTF8",
                     .message = what + ": must be UTF-8, got byte " + byte + " at " + std::to_string(at)};
    }
    at += size;
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
