// Long operations on disk (SQLite, WAL): they survive a restart, and request ids are answered once.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct sqlite3;

namespace sage::server {

// Values are those of sage.quant.v1.OperationState.
enum class OperationState { kPending = 1, kRunning = 2, kSucceeded = 3, kFailed = 4, kCancelled = 5 };
inline bool IsEnded(OperationState state) { return state >= OperationState::kSucceeded; }
const char* OperationStateName(OperationState state);  // "RUNNING"

struct OperationRecord {
  std::string id, kind, target, request_id;
  OperationState state = OperationState::kPending;
  std::string spec;  // serialized request, to run it again
  std::string stage, unit;
  int64_t done = 0, total = 0;
  std::string error;   // serialized google.rpc.Status
  std::string result;  // serialized google.protobuf.Any
  std::string result_json;
  int64_t create_ms = 0, start_ms = 0, end_ms = 0, update_ms = 0;  // Unix time
  bool cancel_requested = false;
  int attempts = 0;
  // The present phase (a run of one unit and total), for the ETA; not stored.
  int64_t phase_start_ms = 0, phase_start_done = 0;
};

struct OperationPage {
  std::vector<OperationRecord> records;
  std::string next_page_token;
};

class OperationStore {
 public:
  // `kept` ended operations stay, and as many answers to request ids; older ones go, but for the newest success of a
  // kind on a target (an artifact's calibration and report; starts of engines leave nothing behind and go).
  static absl::StatusOr<std::unique_ptr<OperationStore>> Open(const std::string& path, int64_t kept = 10000);
  ~OperationStore();

  absl::Status Create(const OperationRecord& record);  // and forgets what is too old
  absl::Status Update(const OperationRecord& record);  // everything but id, kind, spec, request_id, create_ms
  absl::StatusOr<OperationRecord> Get(const std::string& id) const;  // NOT_FOUND (OPERATION_NOT_FOUND)
  // Newest first; `kind` "" and `state` 0 mean all. INVALID_ARGUMENT (BAD_PAGE_TOKEN).
  absl::StatusOr<OperationPage> List(const std::string& kind, int state, int page_size, const std::string& token) const;
  std::vector<OperationRecord> Unfinished() const;  // oldest first
  // The newest succeeded operation of a kind on a target.
  absl::StatusOr<OperationRecord> NewestSucceeded(const std::string& kind, const std::string& target) const;

  // The answer first given to `request_id`, or nullopt when it is new (the caller then records one). ABORTED
  // (REQUEST_ID_REUSED) when it came with another method or body.
  absl::StatusOr<std::optional<std::string>> FindRequest(const std::string& request_id, const std::string& method,
                                                         const std::string& body_hash) const;
  absl::Status RecordRequest(const std::string& request_id, const std::string& method, const std::string& body_hash,
                             const std::string& answer);

 private:
  OperationStore(sqlite3* db, int64_t kept) : db_(db), kept_(kept) {}
  sqlite3* db_;
  const int64_t kept_;
  mutable std::mutex mutex_;
};

}  // namespace sage::server
