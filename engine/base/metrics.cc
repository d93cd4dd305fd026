// The sink that discards.
#include "engine/base/metrics.h"

namespace sage {
namespace {

class Discard final : public MetricSink {
  void Increment(std::string_view, const MetricLabels&, double) override {}
  void SetGauge(std::string_view, const MetricLabels&, double) override {}
  void Observe(std::string_view, const MetricLabels&, double) override {}
};

}  // namespace

MetricSink& NullMetricSink() {
  static Discard* sink = new Discard();
  return *sink;
}

}  // namespace sage
