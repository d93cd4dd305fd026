// Where an HTTP/1.1 request ends in the bytes that came so far, so that a thread is given whole requests only.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace sage::server {

// Reads one request as its bytes arrive; `buffer` begins with it and only grows. Stricter than the HTTP library that
// answers: what two readers could understand differently is refused.
class FrameReader {
 public:
  enum class State { kHeader, kBody, kComplete, kBad };
  static constexpr size_t kMostHeader = 64 << 10, kMostBody = 64 << 20;
  static constexpr size_t kMostForm = 8192;  // what cpp-httplib takes of a form, as curl -d calls what it sends

  State Look(std::string_view buffer);
  // Once the header is whole.
  size_t header_bytes() const { return header_bytes_; }
  const std::string& method() const { return method_; }
  const std::string& path() const { return path_; }  // without the query
  bool expects_continue() const { return expects_continue_; }
  // Once complete: the whole request.
  size_t size() const { return header_bytes_ + body_bytes_; }
  // Once bad: INVALID_ARGUMENT (BAD_HTTP_REQUEST) and the HTTP status that says it.
  const absl::Status& error() const { return error_; }
  int http_code() const { return http_code_; }

 private:
  bool Refuse(int code, const std::string& rule);  // false, and bad from now on
  State Bad(int code, const std::string& rule);
  State LookAtBody(std::string_view buffer);
  bool ReadHeader(std::string_view header);  // false = refused
  bool ReadField(std::string_view line);

  State state_ = State::kHeader;
  size_t seen_ = 0;          // of the header: searched for its end
  size_t header_bytes_ = 0;  // with the empty line
  size_t body_bytes_ = 0;    // by Content-Length, or chunks read so far
  size_t next_chunk_ = 0;    // chunked: where the next size line begins, within the body
  bool has_length_ = false, chunked_ = false, trailer_ = false, expects_continue_ = false;
  bool form_ = false;
  std::string method_, path_;
  absl::Status error_;
  int http_code_ = 0;
};

}  // namespace sage::server
