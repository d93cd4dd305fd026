// Parsing is strict (the W3C recommendation, level 1); ids are random from a generator per thread.
#include "server/telemetry/trace.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_format.h"

namespace sage::server {
namespace {

std::string RandomHex(int words) {
  thread_local std::mt19937_64 generator{(static_cast<uint64_t>(std::random_device{}()) << 32) ^
                                         std::random_device{}()};
  std::string out;
  for (int i = 0; i < words; ++i) {
    uint64_t value = generator();
    if (value == 0) value = 1;
    out += absl::StrFormat("%016x", value);
  }
  return out;
}

bool IsLowerHex(const std::string& text) {
  for (const char c : text) {
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  }
  return true;
}

bool IsState(const std::string& text) {
  return text.size() <= 512 && std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

bool AllZero(const std::string& text) { return text.find_first_not_of('0') == std::string::npos; }

}  // namespace

TraceContext ContinueTrace(const TraceHeaders& headers) {
  const std::string& traceparent = headers.traceparent;
  TraceContext out;
  out.span_id = RandomHex(1);
  // version-trace-parent-flags: 2, 32, 16 and 2 digits; a later version may append more behind another '-'.
  const bool shaped = traceparent.size() >= 55 && traceparent[2] == '-' && traceparent[35] == '-' &&
                      traceparent[52] == '-' &&
                      (traceparent.size() == 55 || (traceparent[55] == '-' && traceparent.substr(0, 2) != "00"));
  if (shaped) {
    const std::string version = traceparent.substr(0, 2), trace = traceparent.substr(3, 32),
                      parent = traceparent.substr(36, 16), flags = traceparent.substr(53, 2);
    if (IsLowerHex(version + trace + parent + flags) && version != "ff" && !AllZero(trace) && !AllZero(parent)) {
      out.trace_id = trace;
      out.parent_id = parent;
      out.sampled = (std::stoi(flags, nullptr, 16) & 1) != 0;
      if (IsState(headers.tracestate)) out.state = headers.tracestate;
      return out;
    }
  }
  out.trace_id = RandomHex(2);
  return out;
}

TraceContext ChildOf(const TraceContext& context) {
  return {context.trace_id, context.span_id, RandomHex(1), context.sampled, context.state};
}

std::string Traceparent(const TraceContext& context) {
  return "00-" + context.trace_id + "-" + context.span_id + (context.sampled ? "-01" : "-00");
}

}  // namespace sage::server
