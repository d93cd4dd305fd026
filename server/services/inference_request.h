// Between the messages of the Open Inference Protocol and the engine's structs, and the counts the protocol reports.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"
#include "inference/grpc_service.pb.h"
#include "server/convert_inference.h"

namespace sage::server {

class Call;
class Daemon;

// One generation asked for over the protocol, and how its answers look.
struct InferenceJob : InferenceInput {
  std::shared_ptr<InferenceEngine> engine;
};

// `may_stream`: the call can answer more than once (and does unless asked not to). INVALID_ARGUMENT names the field.
absl::StatusOr<InferenceJob> ToInferenceJob(Daemon& daemon, Call& call, const inference::ModelInferRequest& request,
                                            bool may_stream);

// What one answer holds.
struct InferenceOutput {
  std::string text, finish_reason;
  std::vector<int32_t> ids;
  bool last = false;

  void Add(const GenerationEvent& event);
};
void FillInferenceResponse(const InferenceJob& job, const InferenceOutput& output, inference::ModelInferResponse* out);

// Counts and times by model since the daemon started; may be used from any thread.
class InferenceStatistics {
 public:
  // `seconds` is the whole request; timings are used when it succeeded.
  void Record(const std::string& model, bool ok, double seconds, const GenerationTimings& timings);
  void Fill(const std::string& model, inference::ModelStatistics* out) const;

 private:
  static constexpr size_t kMaxModels = 1000;
  struct Row {
    uint64_t success = 0, fail = 0, last_ms = 0;
    double success_seconds = 0, fail_seconds = 0, queue_ms = 0, prefill_ms = 0, decode_ms = 0;
  };
  mutable std::mutex mutex_;
  std::map<std::string, Row> rows_;
};

}  // namespace sage::server
