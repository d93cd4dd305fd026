// Fuzzes what the ports read before or beside a request's own fields: where an HTTP request ends (fed whole and in
// pieces, which must agree), the trace context, the Authorization header, and inference requests of the Open Inference
// Protocol as one answer and as a stream.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/time/time.h"
#include "inference/grpc_service.pb.h"
#include "server/convert_inference.h"
#include "server/http/frame.h"
#include "server/security/tokens.h"
#include "server/telemetry/trace.h"

namespace {

namespace server = sage::server;

// The first byte of `text` is the size of the pieces.
void TryFrame(const std::string& text) {
  using State = server::FrameReader::State;
  if (text.empty()) return;
  const std::string_view request = std::string_view(text).substr(1);
  const size_t piece = static_cast<unsigned char>(text[0]) + size_t{1};
  server::FrameReader whole, pieces;
  const State at_once = whole.Look(request);
  State state = State::kHeader;
  for (size_t end = std::min(piece, request.size());; end = std::min(end + piece, request.size())) {
    state = pieces.Look(request.substr(0, end));
    if (end == request.size() || state == State::kComplete || state == State::kBad) break;
  }
  if (state != at_once) std::abort();
  if (state == State::kComplete && (pieces.size() != whole.size() || whole.size() > request.size())) std::abort();
  if (state == State::kBad && (whole.error().ok() || whole.http_code() < 400)) std::abort();
}

void TryTrace(const std::string& text) {
  const size_t line = text.find('\n');
  const server::TraceContext context =
      server::ContinueTrace({text.substr(0, line), line == std::string::npos ? "" : text.substr(line + 1)});
  if (server::Traceparent(context).size() != 55) std::abort();
  if (!context.state.empty() && context.parent_id.empty()) std::abort();
}

void TryAuthorization(const std::string& text) {
  static const auto* table = new auto(server::TokenTable::Parse("right admin\nslow read rate=1 burst=1\n"));
  if (!table->ok()) std::abort();
  const bool accepted = (**table)->Check(text, server::Role::kAdmin, absl::UnixEpoch()).ok();
  if (accepted && text.find("right") == std::string::npos) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  inference::ModelInferRequest request;
  switch (data[0] % 4) {
    case 0:
      TryFrame(text);
      break;
    case 1:
      TryTrace(text);
      break;
    case 2:
      TryAuthorization(text);
      break;
    default:
      if (!request.ParseFromString(text)) break;
      for (const bool may_stream : {false, true}) (void)server::ToInferenceInput(request, may_stream).ok();
  }
  return 0;
}
