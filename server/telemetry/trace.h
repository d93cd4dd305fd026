// W3C trace context: what a caller sends in `traceparent`, and the span this daemon makes of a call.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace sage::server {

struct TraceContext {
  std::string trace_id;   // 32 lower-case hex digits, not all zero
  std::string parent_id;  // 16: the caller's span; empty = none
  std::string span_id;    // 16: ours
  bool sampled = true;
  std::string state;  // what other systems on the way keep there; passed on unread
};

// As the caller sent them; "" = absent.
struct TraceHeaders {
  std::string traceparent, tracestate;
};

// The caller's trace with a span id of ours; a fresh trace, without the state, when `traceparent` is absent or not
// well-formed. A state of more than 512 bytes, or with anything but printable ASCII, is dropped.
TraceContext ContinueTrace(const TraceHeaders& headers);
// The context of a span inside that of `context`.
TraceContext ChildOf(const TraceContext& context);
// The header for what we call or answer: "00-TRACE-SPAN-01".
std::string Traceparent(const TraceContext& context);

struct Span {
  TraceContext context;
  std::string name;
  bool server = true;  // false: internal
  absl::Time begin, end;
  std::vector<std::pair<std::string, std::string>> attributes;
  bool failed = false;
  std::string status_message;
};

// Where ended spans go. Adding one never blocks and never fails the call.
class SpanSink {
 public:
  virtual ~SpanSink() = default;
  virtual void Add(Span span) = 0;
};

}  // namespace sage::server
