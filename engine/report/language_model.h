// One side of a report: a loaded model with its own KV memory, run window by window.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/decoder/decoder.h"
#include "engine/runtime/kv_plan.h"

namespace sage {

class ReportModel {
 public:
  static absl::StatusOr<std::unique_ptr<ReportModel>> Load(const std::string& path, const KvAsked& kv, int64_t window,
                                                           ThreadPool& threads, const CancelToken& cancel);

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const Decoder& decoder() const { return *decoder_; }
  std::string kv_strategy() const { return kv_.plan.Name(); }
  const KvChoice& kv() const { return kv_; }
  double kv_bytes_per_token() const;

  // Hidden states of ids at positions [context, context + ids.size()) of the current window; hidden [rows, hidden
  // size].
  absl::Status Forward(absl::Span<const int32_t> ids, int64_t context, int64_t window, float* hidden);
  // logits [rows, V].
  absl::Status Logits(const float* hidden, int64_t rows, float* logits);

 private:
  ReportModel() = default;
  std::shared_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<KvArena> arena_;
  KvChoice kv_;
  std::vector<int32_t> pages_;
  std::vector<int64_t> rows_;
  ActivationCache cache_;
  ThreadPool* threads_ = nullptr;
};

}  // namespace sage
