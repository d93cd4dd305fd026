// RFC 9112, sections 3 to 7: request line, fields, Content-Length and chunks.
#include "server/http/frame.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage::server {
namespace {

constexpr size_t kMostChunkLine = 256, kMostTrailer = 8 << 10;

bool IsToken(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) ||
           std::string_view("!#$%&'*+-.^_`|~").find(static_cast<char>(c)) != std::string_view::npos;
  });
}

std::string_view Strip(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

absl::string_view Abseil(std::string_view text) { return {text.data(), text.size()}; }

bool Is(std::string_view text, const char* word) { return absl::EqualsIgnoreCase(Abseil(text), word); }

// The number of a chunk's size line; false when it is none.
bool ChunkSize(std::string_view line, size_t* out) {
  const std::string_view digits = Strip(line.substr(0, line.find(';')));
  if (digits.empty() || digits.size() > 8) return false;
  *out = 0;
  for (const unsigned char c : digits) {
    if (!absl::ascii_isxdigit(c)) return false;
    *out = *out * 16 + static_cast<size_t>(absl::ascii_isdigit(c) ? c - '0' : absl::ascii_tolower(c) - 'a' + 10);
  }
  return true;
}

}  // namespace

bool FrameReader::Refuse(int code, const std::string& rule) {
  error_ = MakeError(absl::StatusCode::kInvalidArgument, "BAD_HTTP_REQUEST", absl::StrCat("request: ", rule));
  http_code_ = code;
  state_ = State::kBad;
  return false;
}

FrameReader::State FrameReader::Bad(int code, const std::string& rule) {
  Refuse(code, rule);
  return state_;
}

bool FrameReader::ReadField(std::string_view line) {
  const size_t colon = line.find(':');
  const std::string_view name = line.substr(0, colon);
  if (colon == std::string_view::npos || !IsToken(name)) return Refuse(400, "a header field is NAME: VALUE");
  const std::string_view value = Strip(line.substr(colon + 1));
  if (Is(name, "Content-Length")) {
    uint64_t length = 0;
    const bool digits = !value.empty() && value.size() <= 19 &&
                        std::all_of(value.begin(), value.end(), [](unsigned char c) { return absl::ascii_isdigit(c); });
    if (!digits || !absl::SimpleAtoi(Abseil(value), &length) || has_length_) {
      return Refuse(400, "Content-Length must be one whole number");
    }
    if (length > kMostBody) return Refuse(413, absl::StrCat("a body has at most ", kMostBody, " bytes"));
    has_length_ = true;
    body_bytes_ = length;
  } else if (Is(name, "Transfer-Encoding")) {
    if (!Is(value, "chunked") || chunked_) return Refuse(400, "Transfer-Encoding may be chunked only");
    chunked_ = true;
  } else if (Is(name, "Content-Encoding") && !value.empty() && !Is(value, "identity")) {
    // A few bytes could unpack to more than the machine holds, before anyone asked who sends them.
    return Refuse(415, "Content-Encoding is not supported: send the body as it is");
  } else if (Is(name, "Content-Type")) {
    form_ = Is(Strip(value.substr(0, value.find(';'))), "application/x-www-form-urlencoded");
  } else if (Is(name, "Expect")) {
    if (!Is(value, "100-continue")) return Refuse(417, "Expect may be 100-continue only");
    expects_continue_ = true;
  }
  return true;
}

// `header` ends with its last field's line end.
bool FrameReader::ReadHeader(std::string_view header) {
  bool first = true;
  while (!header.empty()) {
    const size_t end = header.find("\r\n");
    const std::string_view line = header.substr(0, end);
    header.remove_prefix(end + 2);
    const bool control =
        std::any_of(line.begin(), line.end(), [](unsigned char c) { return c == 0 || c == '\r' || c == '\n'; });
    if (control) return Refuse(400, "a line holds a control character");
    if (!first) {
      if (!ReadField(line)) return false;
      continue;
    }
    first = false;
    const size_t space = line.find(' '), last = line.rfind(' ');
    const bool shaped = space != std::string_view::npos && last > space + 1 && IsToken(line.substr(0, space)) &&
                        (line.substr(last + 1) == "HTTP/1.1" || line.substr(last + 1) == "HTTP/1.0");
    if (!shaped) return Refuse(400, "must begin with METHOD PATH HTTP/1.1");
    method_ = std::string(line.substr(0, space));
    const std::string_view target = line.substr(space + 1, last - space - 1);
    path_ = std::string(target.substr(0, target.find('?')));
  }
  if (first) return Refuse(400, "must begin with METHOD PATH HTTP/1.1");
  if (chunked_ && has_length_) return Refuse(400, "Content-Length and Transfer-Encoding exclude one another");
  if (form_ && body_bytes_ > kMostForm) {
    return Refuse(413, absl::StrCat("a form has at most ", kMostForm, " bytes, got ", body_bytes_,
                                    "; send JSON with Content-Type: application/json"));
  }
  return true;
}

FrameReader::State FrameReader::LookAtBody(std::string_view buffer) {
  if (!chunked_) return state_ = buffer.size() >= header_bytes_ + body_bytes_ ? State::kComplete : State::kBody;
  const std::string_view body = buffer.substr(header_bytes_);
  while (true) {
    if (next_chunk_ > kMostBody) return Bad(413, absl::StrCat("a body has at most ", kMostBody, " bytes"));
    if (next_chunk_ >= body.size()) return state_;
    const std::string_view rest = body.substr(next_chunk_);
    const size_t end = rest.find("\r\n");
    const size_t most = trailer_ ? kMostTrailer : kMostChunkLine;
    // A carriage return that came last may belong to the line's end.
    const bool ending = end == std::string_view::npos && !rest.empty() && rest.back() == '\r';
    if (std::min(end, rest.size() - (ending ? 1 : 0)) > most) return Bad(400, "a chunk's line is too long");
    if (end == std::string_view::npos) return state_;
    if (trailer_) {
      next_chunk_ += end + 2;
      if (end == 0) {
        body_bytes_ = next_chunk_;
        return state_ = State::kComplete;
      }
      continue;
    }
    size_t size = 0;
    if (!ChunkSize(rest.substr(0, end), &size)) return Bad(400, "a chunk's size is wrong");
    if (size > kMostBody) return Bad(413, absl::StrCat("a body has at most ", kMostBody, " bytes"));
    if (size == 0) {
      trailer_ = true;
      next_chunk_ += end + 2;
      continue;
    }
    const size_t whole = end + 2 + size + 2;
    if (rest.size() < whole) return state_;
    if (rest.substr(whole - 2, 2) != "\r\n") return Bad(400, "a chunk does not end where it says");
    next_chunk_ += whole;
  }
}

FrameReader::State FrameReader::Look(std::string_view buffer) {
  if (state_ == State::kComplete || state_ == State::kBad) return state_;
  if (state_ == State::kBody) return LookAtBody(buffer);
  const size_t end = buffer.substr(0, kMostHeader).find("\r\n\r\n", seen_ < 3 ? 0 : seen_ - 3);
  seen_ = std::min(buffer.size(), kMostHeader);
  if (end == std::string_view::npos) {
    return buffer.size() >= kMostHeader ? Bad(431, absl::StrCat("a header has at most ", kMostHeader, " bytes"))
                                        : state_;
  }
  header_bytes_ = end + 4;
  if (!ReadHeader(buffer.substr(0, end + 2))) return state_;
  state_ = State::kBody;
  return LookAtBody(buffer);
}

}  // namespace sage::server
