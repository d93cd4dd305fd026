// The metrics of one engine: names in one place, labels made once.
#pragma once

#include <cstdint>
#include <string>

#include "engine/base/metrics.h"

namespace sage {

class EngineMetrics {
 public:
  EngineMetrics(MetricSink& sink, const std::string& engine) : sink_(sink), labels_{{"engine", engine}} {}

  void Queued(double seconds) { sink_.Observe("sage_queue_seconds", labels_, seconds); }
  void FirstToken(double seconds) { sink_.Observe("sage_time_to_first_token_seconds", labels_, seconds); }
  void NextToken(double seconds) { sink_.Observe("sage_inter_token_latency_seconds", labels_, seconds); }
  void RequestEnded(const std::string& finish_reason, double seconds) {
    sink_.Increment("sage_requests_total", {{"engine", labels_.front().second}, {"finish_reason", finish_reason}}, 1);
    sink_.Observe("sage_request_seconds", labels_, seconds);
  }
  void PromptTokens(int64_t tokens) {
    sink_.Increment("sage_prompt_tokens_total", labels_, static_cast<double>(tokens));
  }
  void GeneratedTokens(int64_t tokens) {
    sink_.Increment("sage_generated_tokens_total", labels_, static_cast<double>(tokens));
  }
  void Step(double seconds, int64_t rows, int64_t sequences, int64_t preemptions) {
    sink_.Observe("sage_step_seconds", labels_, seconds);
    sink_.Observe("sage_step_rows", labels_, static_cast<double>(rows));
    sink_.Observe("sage_batch_sequences", labels_, static_cast<double>(sequences));
    if (preemptions > 0) sink_.Increment("sage_preemptions_total", labels_, static_cast<double>(preemptions));
  }
  // Prompt tokens looked up and found when a sequence first ran.
  void PrefixCache(int64_t found, int64_t asked) {
    sink_.Increment("sage_prefix_cache_queried_tokens_total", labels_, static_cast<double>(asked));
    if (found > 0) sink_.Increment("sage_prefix_cache_hit_tokens_total", labels_, static_cast<double>(found));
  }
  void Drafts(int64_t drafted, int64_t right) {
    sink_.Increment("sage_drafted_tokens_total", labels_, static_cast<double>(drafted));
    if (right > 0) sink_.Increment("sage_draft_accepted_tokens_total", labels_, static_cast<double>(right));
  }
  void KvPages(int64_t used, int64_t cached, int64_t total) {
    sink_.SetGauge("sage_kv_pages_used", labels_, static_cast<double>(used));
    sink_.SetGauge("sage_kv_pages_cached", labels_, static_cast<double>(cached));
    sink_.SetGauge("sage_kv_pages_total", labels_, static_cast<double>(total));
  }
  void Sequences(int64_t running, int64_t waiting) {
    sink_.SetGauge("sage_sequences_running", labels_, static_cast<double>(running));
    sink_.SetGauge("sage_requests_waiting", labels_, static_cast<double>(waiting));
  }
  void ActivationCache(int64_t hits, int64_t misses) {
    if (hits > 0) sink_.Increment("sage_activation_cache_hits_total", labels_, static_cast<double>(hits));
    if (misses > 0) sink_.Increment("sage_activation_cache_misses_total", labels_, static_cast<double>(misses));
  }
  void Loaded(double seconds) { sink_.Observe("sage_load_seconds", labels_, seconds); }

 private:
  MetricSink& sink_;
  MetricLabels labels_;
};

}  // namespace sage
