// Batches of at most 512 spans every second; a collector that is away costs a bounded queue and nothing else.
#include "server/telemetry/otlp.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "httplib.h"
#include "server/telemetry/log.h"

namespace sage::server {
namespace {

constexpr size_t kMostQueued = 8192, kMostSent = 512;
constexpr int kDefaultPort = 4318;

Json Attribute(const std::string& key, const std::string& value) {
  return {{"key", key}, {"value", {{"stringValue", value}}}};
}

std::string Nanoseconds(absl::Time time) { return absl::StrCat(absl::ToUnixNanos(time)); }

}  // namespace

Json OtlpBody(const std::deque<Span>& spans, const std::string& version) {
  Json list = Json::array();
  for (const Span& span : spans) {
    Json attributes = Json::array();
    for (const auto& [key, value] : span.attributes) attributes.push_back(Attribute(key, value));
    Json out = {{"traceId", span.context.trace_id},
                {"spanId", span.context.span_id},
                {"name", span.name},
                {"kind", span.server ? 2 : 1},
                {"startTimeUnixNano", Nanoseconds(span.begin)},
                {"endTimeUnixNano", Nanoseconds(span.end)},
                {"attributes", attributes},
                {"status", {{"code", span.failed ? 2 : 0}}}};
    if (!span.context.parent_id.empty()) out["parentSpanId"] = span.context.parent_id;
    if (!span.context.state.empty()) out["traceState"] = span.context.state;
    if (span.failed) out["status"]["message"] = span.status_message;
    list.push_back(std::move(out));
  }
  const Json resource = {
      {"attributes", Json::array({Attribute("service.name", "sagequantd"), Attribute("service.version", version)})}};
  const Json scope = {{"name", "sagequantd"}, {"version", version}};
  return {{"resourceSpans", Json::array({{{"resource", resource},
                                          {"scopeSpans", Json::array({{{"scope", scope}, {"spans", list}}})}}})}};
}

absl::StatusOr<std::unique_ptr<OtlpExporter>> OtlpExporter::Create(const std::string& endpoint, MetricSink& metrics) {
  const auto bad = [&](const char* rule) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_CONFIG",
                     absl::StrCat("otlp-endpoint: ", rule, ", got \"", endpoint, "\""));
  };
  if (!absl::StartsWith(endpoint, "http://")) return bad("must be http://HOST[:PORT][/PATH]");
  std::string host = endpoint.substr(7), path = "/v1/traces";
  if (const size_t slash = host.find('/'); slash != std::string::npos) {
    if (host.size() > slash + 1) path = host.substr(slash);
    host.resize(slash);
  }
  int port = kDefaultPort;
  if (const size_t colon = host.rfind(':'); colon != std::string::npos) {
    if (!absl::SimpleAtoi(host.substr(colon + 1), &port) || port < 1 || port > 65535) return bad("the port is wrong");
    host.resize(colon);
  }
  if (host.empty()) return bad("must name a host");
  return std::unique_ptr<OtlpExporter>(new OtlpExporter(host, port, path, metrics));
}

OtlpExporter::OtlpExporter(std::string host, int port, std::string path, MetricSink& metrics)
    : host_(std::move(host)), path_(std::move(path)), port_(port), metrics_(metrics), thread_([this] { Run(); }) {}

OtlpExporter::~OtlpExporter() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void OtlpExporter::Add(Span span) {
  if (!span.context.sampled) return;
  {
    std::lock_guard lock(mutex_);
    if (queue_.size() < kMostQueued) {
      queue_.push_back(std::move(span));
      return;
    }
  }
  metrics_.Increment("sage_spans_total", {{"result", "dropped"}}, 1);
}

void OtlpExporter::Run() {
  bool reachable = true;
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait_for(lock, std::chrono::seconds(1), [this] { return closing_ || queue_.size() >= kMostSent; });
    if (queue_.empty() && closing_) return;
    if (queue_.empty()) continue;
    const size_t count = std::min(queue_.size(), kMostSent);
    const auto end = queue_.begin() + static_cast<std::ptrdiff_t>(count);
    std::deque<Span> batch(std::make_move_iterator(queue_.begin()), std::make_move_iterator(end));
    queue_.erase(queue_.begin(), end);
    const bool last = closing_;
    lock.unlock();
    const bool sent = Post(batch);
    metrics_.Increment("sage_spans_total", {{"result", sent ? "sent" : "failed"}}, static_cast<double>(batch.size()));
    if (sent != reachable) {
      reachable = sent;
      Log(sent ? LogLevel::kInfo : LogLevel::kWarn, sent ? "otlp_reachable" : "otlp_unreachable",
          {{"host", host_}, {"port", port_}});
    }
    lock.lock();
    if (last && !sent) return;  // at the end one try is enough
  }
}

bool OtlpExporter::Post(const std::deque<Span>& spans) const {
  httplib::Client client(host_, port_);
  client.set_connection_timeout(1, 0);
  client.set_read_timeout(2, 0);
  client.set_write_timeout(2, 0);
  const auto result = client.Post(path_, DumpJson(OtlpBody(spans, SAGE_VERSION)), "application/json");
  return result && result->status >= 200 && result->status < 300;
}

}  // namespace sage::server
