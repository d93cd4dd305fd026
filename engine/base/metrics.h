// Counters, gauges and histograms without Prometheus: the engine writes to a sink, the server exports it.
//
// Calls are cheap and never block on a scrape. Labels are bounded sets (engine id, model, strategy), never request ids.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sage {

using MetricLabels = std::vector<std::pair<std::string, std::string>>;

class MetricSink {
 public:
  virtual ~MetricSink() = default;
  virtual void Increment(std::string_view name, const MetricLabels& labels, double by) = 0;
  virtual void SetGauge(std::string_view name, const MetricLabels& labels, double value) = 0;
  virtual void Observe(std::string_view name, const MetricLabels& labels, double value) = 0;
};

// Discards everything; what the engine uses when nobody listens.
MetricSink& NullMetricSink();

}  // namespace sage
