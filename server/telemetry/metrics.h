// Metrics as Prometheus text: a sink for the engine and the server, with a catalogue of names, help texts and buckets.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "engine/base/metrics.h"

namespace sage::server {

class PrometheusMetrics final : public MetricSink {
 public:
  PrometheusMetrics();
  ~PrometheusMetrics() override;

  void Increment(std::string_view name, const MetricLabels& labels, double by) override;
  void SetGauge(std::string_view name, const MetricLabels& labels, double value) override;
  void Observe(std::string_view name, const MetricLabels& labels, double value) override;
  // Forgets the gauges whose label `key` is `value` (an engine that stopped).
  void RemoveGauges(std::string_view key, std::string_view value);

  // Called at each scrape, before the text is made, to set gauges; must not block.
  void SetCollector(std::function<void()> collect);
  // The whole exposition, text format 0.0.4.
  std::string Text();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sage::server
