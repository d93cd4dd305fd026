// The Prometheus exporter: families are made on first use from the catalogue; a name outside it is still exported.
#include "server/telemetry/metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <map>
#include <mutex>
#include <vector>

#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace sage::server {
namespace {

using Buckets = std::vector<double>;

const Buckets& SecondsBuckets() {
  static const auto* buckets =
      new Buckets{.0005, .001, .0025, .005, .01, .02, .04, .06, .08, .1, .15, .2,  .25, .3,  .4,
                  .5,    .75,  1,     1.5,  2.5, 5,   7.5, 10,  20,  40, 80,  160, 320, 640, 1280};
  return *buckets;
}
const Buckets& CountBuckets() {
  static const auto* buckets = new Buckets{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
  return *buckets;
}

struct Entry {
  const char* name;
  const char* help;
};
constexpr Entry kCatalogue[] = {
    {"sage_requests_total", "Generation requests that ended, by finish reason"},
    {"sage_queue_seconds", "Time from admission to the first step of a request"},
    {"sage_time_to_first_token_seconds", "Time from admission to the first token"},
    {"sage_inter_token_latency_seconds", "Time between two tokens of one choice"},
    {"sage_request_seconds", "Time from admission to the end of a request"},
    {"sage_prompt_tokens_total", "Prompt tokens of admitted requests"},
    {"sage_generated_tokens_total", "Tokens generated"},
    {"sage_step_seconds", "Duration of one engine step"},
    {"sage_step_rows", "Token rows in one engine step"},
    {"sage_batch_sequences", "Sequences in one engine step"},
    {"sage_preemptions_total", "Sequences that gave their KV pages back and were computed again"},
    {"sage_kv_pages_used", "KV pages in use"},
    {"sage_kv_pages_cached", "KV pages no request holds that keep a prefix for later ones; counted as free"},
    {"sage_prefix_cache_queried_tokens_total", "Prompt tokens looked up in the prefix cache"},
    {"sage_prefix_cache_hit_tokens_total", "Prompt tokens whose KV pages were there already"},
    {"sage_drafted_tokens_total", "Ids guessed by speculation"},
    {"sage_draft_accepted_tokens_total", "Guessed ids that were right"},
    {"sage_kv_pages_total", "KV pages of the engine"},
    {"sage_kv_page_tokens", "Tokens one KV page holds"},
    {"sage_sequences_running", "Sequences being decoded"},
    {"sage_requests_waiting", "Requests waiting for their first step"},
    {"sage_tokens_waiting", "Prompt tokens of waiting requests"},
    {"sage_activation_cache_hits_total", "Quantized activations reused within a step"},
    {"sage_activation_cache_misses_total", "Quantized activations computed"},
    {"sage_load_seconds", "Time to load a model and start its engine"},
    {"sage_engine_step_age_seconds", "Age of the last finished step while there is work"},
    {"sage_engine_state", "1 for the state an engine is in"},
    {"sage_engine_weight_bytes", "Weight bytes of an engine"},
    {"sage_engine_kv_bytes", "KV cache bytes of an engine"},
    {"sage_engine_info", "What an engine runs; always 1"},
    {"sage_rpc_requests_total", "Calls that ended, by interface, method and status code"},
    {"sage_rpc_request_seconds", "Duration of calls, by interface and method"},
    {"sage_rpc_in_flight", "Calls in progress, by interface"},
    {"sage_grpc_connections", "Open connections of the gRPC port"},
    {"sage_http_connections", "Open connections of the HTTP port"},
    {"sage_rejections_total", "Calls, requests of streams and connections that were refused, by reason"},
    {"sage_operations", "Long operations by kind and state since the daemon started"},
    {"sage_operations_finished_total", "Long operations that ended, by kind and state"},
    {"sage_operation_seconds", "Duration of long operations"},
    {"sage_operation_progress_ratio", "Progress of running operations, largest of the kind, 0 to 1"},
    {"sage_kv_used_ratio", "Share of the engine's KV pages in use, 0 to 1"},
    {"sage_cpu_limit", "CPUs the daemon may use, by affinity and control group"},
    {"sage_compute_threads", "Compute threads of the daemon"},
    {"sage_memory_limit_bytes", "Memory the daemon may use: the control group's limit or the machine's memory"},
    {"sage_data_free_bytes", "Free bytes of the file system that holds the data folder"},
    {"sage_data_size_bytes", "Size of the file system that holds the data folder"},
    {"sage_tls_certificate_end_seconds", "When the server's certificate ends, in Unix time"},
    {"sage_tls_client_ca_end_seconds", "When the first of the client authorities ends, in Unix time"},
    {"sage_reload_failing", "1 while changed tokens or a changed certificate could not be taken up"},
    {"sage_reloads_total", "Tokens and certificates taken up again after their files changed, by result"},
    {"sage_spans_total", "Spans sent to the collector, failed or dropped"},
    {"sage_process_start_time_seconds", "When the daemon started, in Unix time"},
    {"sage_process_cpu_seconds_total", "CPU time of the daemon"},
    {"sage_process_open_files", "File descriptors of the daemon"},
    {"sage_process_resident_memory_bytes", "Resident memory of the daemon"},
    {"sage_process_virtual_memory_bytes", "Virtual memory of the daemon"},
    {"sage_build_info", "Version of the daemon; always 1"},
    {"sage_ready", "1 while requests are admitted"},
    {"sage_calibration_layers_total", "Layers calibrated"},
    {"sage_calibration_layer_seconds", "Time to calibrate one layer"},
};

std::string Help(std::string_view name) {
  for (const Entry& entry : kCatalogue) {
    if (name == entry.name) return entry.help;
  }
  return "See the engine's metrics";
}

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

prometheus::Labels ToLabels(const MetricLabels& labels) {
  prometheus::Labels out;
  for (const auto& [key, value] : labels) out[key] = value;
  return out;
}

// What /proc says of this process. `cpu_seconds` is what was counted so far.
void AddProcess(PrometheusMetrics& metrics, double start, std::atomic<double>& cpu_seconds) {
  metrics.SetGauge("sage_process_start_time_seconds", {}, start);
  if (FILE* file = std::fopen("/proc/self/statm", "r")) {
    long long virtual_pages = 0, resident_pages = 0;
    if (std::fscanf(file, "%lld %lld", &virtual_pages, &resident_pages) == 2) {
      const double page = static_cast<double>(sysconf(_SC_PAGESIZE));
      metrics.SetGauge("sage_process_virtual_memory_bytes", {}, static_cast<double>(virtual_pages) * page);
      metrics.SetGauge("sage_process_resident_memory_bytes", {}, static_cast<double>(resident_pages) * page);
    }
    std::fclose(file);
  }
  rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) == 0) {
    const double now = static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                       static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    metrics.Increment("sage_process_cpu_seconds_total", {}, now - cpu_seconds.exchange(now));
  }
  std::error_code error;
  int64_t open = 0;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end; it.increment(error)) {
    ++open;
  }
  if (open > 0) metrics.SetGauge("sage_process_open_files", {}, static_cast<double>(open));
}

}  // namespace

struct PrometheusMetrics::State {
  prometheus::Registry registry{prometheus::Registry::InsertBehavior::Merge};
  std::mutex mutex;
  std::map<std::string, prometheus::Family<prometheus::Counter>*, std::less<>> counters;
  std::map<std::string, prometheus::Family<prometheus::Gauge>*, std::less<>> gauges;
  std::map<std::string, prometheus::Family<prometheus::Histogram>*, std::less<>> histograms;
  std::map<std::pair<std::string, MetricLabels>, prometheus::Counter*> counter_cells;
  std::map<std::pair<std::string, MetricLabels>, prometheus::Gauge*> gauge_cells;
  std::map<std::pair<std::string, MetricLabels>, prometheus::Histogram*> histogram_cells;
  std::function<void()> collect;
  std::atomic<double> cpu_seconds{0};
  const double start = static_cast<double>(std::time(nullptr));
};

PrometheusMetrics::PrometheusMetrics() : state_(std::make_unique<State>()) {}
PrometheusMetrics::~PrometheusMetrics() = default;

void PrometheusMetrics::Increment(std::string_view name, const MetricLabels& labels, double by) {
  if (!(by >= 0)) return;  // 0 makes the series, so that the first increase is seen as one
  prometheus::Counter* counter;
  {
    std::lock_guard lock(state_->mutex);
    auto& cell = state_->counter_cells[{std::string(name), labels}];
    if (cell == nullptr) {
      auto& family = state_->counters[std::string(name)];
      if (family == nullptr) {
        family = &prometheus::BuildCounter().Name(std::string(name)).Help(Help(name)).Register(state_->registry);
      }
      cell = &family->Add(ToLabels(labels));
    }
    counter = cell;
  }
  counter->Increment(by);
}

void PrometheusMetrics::SetGauge(std::string_view name, const MetricLabels& labels, double value) {
  std::lock_guard lock(state_->mutex);
  auto& cell = state_->gauge_cells[{std::string(name), labels}];
  if (cell == nullptr) {
    auto& family = state_->gauges[std::string(name)];
    if (family == nullptr) {
      family = &prometheus::BuildGauge().Name(std::string(name)).Help(Help(name)).Register(state_->registry);
    }
    cell = &family->Add(ToLabels(labels));
  }
  cell->Set(value);
}

void PrometheusMetrics::Observe(std::string_view name, const MetricLabels& labels, double value) {
  prometheus::Histogram* histogram;
  {
    std::lock_guard lock(state_->mutex);
    auto& cell = state_->histogram_cells[{std::string(name), labels}];
    if (cell == nullptr) {
      auto& family = state_->histograms[std::string(name)];
      if (family == nullptr) {
        family = &prometheus::BuildHistogram().Name(std::string(name)).Help(Help(name)).Register(state_->registry);
      }
      cell = &family->Add(ToLabels(labels), EndsWith(name, "_seconds") ? SecondsBuckets() : CountBuckets());
    }
    histogram = cell;
  }
  histogram->Observe(value);
}

void PrometheusMetrics::RemoveGauges(std::string_view key, std::string_view value) {
  std::lock_guard lock(state_->mutex);
  for (auto it = state_->gauge_cells.begin(); it != state_->gauge_cells.end();) {
    bool match = false;
    for (const auto& [label, text] : it->first.second) match = match || (label == key && text == value);
    if (match) {
      state_->gauges[it->first.first]->Remove(it->second);
      it = state_->gauge_cells.erase(it);
    } else {
      ++it;
    }
  }
}

void PrometheusMetrics::SetCollector(std::function<void()> collect) {
  std::lock_guard lock(state_->mutex);
  state_->collect = std::move(collect);
}

std::string PrometheusMetrics::Text() {
  std::function<void()> collect;
  {
    std::lock_guard lock(state_->mutex);
    collect = state_->collect;
  }
  if (collect) collect();
  AddProcess(*this, state_->start, state_->cpu_seconds);
  return prometheus::TextSerializer().Serialize(state_->registry.Collect());
}

}  // namespace sage::server
