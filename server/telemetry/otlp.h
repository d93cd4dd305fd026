// Sends ended spans to an OpenTelemetry collector: OTLP over HTTP as JSON, from a thread of its own, off by default.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/base/metrics.h"
#include "server/telemetry/trace.h"

namespace sage::server {

// The body of POST /v1/traces for these spans.
Json OtlpBody(const std::deque<Span>& spans, const std::string& version);

class OtlpExporter final : public SpanSink {
 public:
  // `endpoint` is http://HOST[:PORT][/PATH] (port 4318, path /v1/traces). INVALID_ARGUMENT (BAD_CONFIG) otherwise.
  static absl::StatusOr<std::unique_ptr<OtlpExporter>> Create(const std::string& endpoint, MetricSink& metrics);
  // Sends what is queued, but waits for no more than a few seconds.
  ~OtlpExporter() override;
  // Spans that are not sampled are not sent; a full queue drops the span and counts it (sage_spans_total).
  void Add(Span span) override;

 private:
  OtlpExporter(std::string host, int port, std::string path, MetricSink& metrics);
  void Run();
  bool Post(const std::deque<Span>& spans) const;

  const std::string host_, path_;
  const int port_;
  MetricSink& metrics_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Span> queue_;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace sage::server
