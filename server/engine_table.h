// The engines of the daemon by id: started once, found by every request, stopped with drain. Also caches tokenizers.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"

namespace sage::server {

// What the daemon knows of one engine beside the engine itself.
struct EngineRecord {
  EngineInfo info;
  EngineStats stats;
  std::string operation;  // id of the start operation
  bool has_tokenizer = false, has_chat_template = false;
  bool refused = false;  // FAILED for what the request asked: nothing was loaded, and nobody need be alarmed
};

class EngineTable {
 public:
  explicit EngineTable(Runtime& runtime) : runtime_(runtime) {}

  // Blocks until the engine runs. An empty engine_id is made from the model's name. The same specification answers the
  // engine that is there (and waits for it while STARTING); another one is ALREADY_EXISTS (ENGINE_EXISTS). `begun` is
  // called once with the id when a new engine is being made, and answers the operation's id.
  absl::StatusOr<EngineRecord> Start(EngineSpec spec, const std::function<std::string(const std::string&)>& begun,
                                     const CancelToken& cancel, const ProgressFn& progress);
  // The id Start would use, or why it would refuse; changes nothing.
  absl::StatusOr<std::string> Check(EngineSpec spec) const;

  // A running engine; "" = the only one. NOT_FOUND (ENGINE_NOT_FOUND), UNAVAILABLE (ENGINE_NOT_READY),
  // INVALID_ARGUMENT (ENGINE_NOT_NAMED) when "" is ambiguous.
  absl::StatusOr<std::shared_ptr<InferenceEngine>> Find(const std::string& engine_id) const;
  absl::StatusOr<EngineRecord> Get(const std::string& engine_id) const;
  std::vector<EngineRecord> List() const;  // by id
  // Blocks until it has stopped. The engine is gone afterwards; the answer is its last record, state STOPPED.
  absl::StatusOr<EngineRecord> Stop(const std::string& engine_id, absl::Time deadline);
  void StopAll(absl::Time deadline);
  bool UsesPath(const std::string& path) const;
  int64_t RunningRequests() const;
  // Failed starts leave the list an hour after they failed.
  void DropOldFailures(absl::Time now);

 private:
  struct Entry {
    EngineSpec spec;
    EngineInfo info;  // while there is no engine
    std::shared_ptr<InferenceEngine> engine;
    std::string state = "STARTING", operation;
    absl::Status error;
    absl::Time failed_at = absl::InfiniteFuture();
    CancelToken cancel;
  };
  absl::StatusOr<std::string> ChooseId(const EngineSpec& spec) const;  // with mutex_ held
  static EngineRecord RecordOf(const Entry& entry);
  void KeepLatestFailures();  // with mutex_ held

  Runtime& runtime_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::shared_ptr<Entry>> entries_;
};

// Tokenizers of model folders that no engine holds; the last few are kept while they are used. What is kept belongs to
// the files it was read from: other files under the same path are read again.
class TokenizerCache {
 public:
  absl::StatusOr<std::shared_ptr<const TokenizerFiles>> Load(const std::string& path);
  // Those that nobody asked for in the last minute go.
  void DropUnused(absl::Time now);
  size_t size() const;

 private:
  struct Kept {
    std::string path, stamp;
    absl::Time used;
    std::shared_ptr<const TokenizerFiles> files;
  };
  mutable std::mutex mutex_;
  std::vector<Kept> kept_;
};

}  // namespace sage::server
