// Bearer tokens: who calls, what the caller may do, and how often. Read from a file, read again when the file changes.
//
// One token a line: TOKEN [ROLE] [name=NAME] [rate=N] [burst=N], '#' begins a comment. ROLE is read (list, get,
// metrics), generate (read and inference) or admin (everything; what a line without a role means). sha256:HEX stands
// for a token whose hash is HEX, so that the file need not hold it. rate is calls a second, burst how many may come at
// once (default twice the rate).
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace sage::server {

enum class Role { kRead = 0, kGenerate = 1, kAdmin = 2 };
const char* RoleName(Role role);

// Calls a second with a reserve; not thread-safe.
class TokenBucket {
 public:
  TokenBucket(double rate, double burst) : rate_(rate), burst_(burst), left_(burst) {}
  // How long to wait until one more may come; zero = it was taken.
  absl::Duration Take(absl::Time now);

 private:
  double rate_, burst_, left_;
  absl::Time last_ = absl::InfinitePast();
};

class TokenTable {
 public:
  // INVALID_ARGUMENT (BAD_CONFIG) names the line, never its content. An empty text is refused.
  static absl::StatusOr<std::unique_ptr<TokenTable>> Parse(const std::string& text);

  // The caller's name when `authorization` (the header's value) carries a token of at least `role`. UNAUTHENTICATED
  // (TOKEN_MISSING, TOKEN_INVALID), PERMISSION_DENIED (ROLE_INSUFFICIENT), RESOURCE_EXHAUSTED (RATE_LIMITED).
  absl::StatusOr<std::string> Check(const std::string& authorization, Role role, absl::Time now);
  // The name of the token in `authorization`, whatever it may do; "" when it carries none of the table.
  std::string NameOf(const std::string& authorization) const;
  size_t size() const { return entries_.size(); }
  // Buckets of tokens that both tables hold go on as they are: a reload does not refill them.
  void TakeBuckets(TokenTable& old);

 private:
  struct Entry {
    Role role = Role::kAdmin;
    std::string name;
    double rate = 0, burst = 0;  // 0 = no limit
    std::unique_ptr<TokenBucket> bucket;
  };
  const Entry* Find(const std::string& authorization) const;
  static absl::StatusOr<std::pair<std::string, Entry>> ParseLine(const std::string& line, size_t number);

  std::mutex mutex_;                      // of the buckets
  std::map<std::string, Entry> entries_;  // by SHA-256 of the token
};

// The role a method needs; what is not listed needs admin.
Role RoleOfMethod(const std::string& method);
// Methods whose calls go into the audit log: everything that needs admin.
bool IsMutation(const std::string& method);

// The door: no table lets everyone in (loopback only, see CheckConfig). Thread-safe.
class Door {
 public:
  // Reads `path` ("" = no tokens).
  absl::Status Open(const std::string& path);
  // Reads the file again when it changed; a bad one is reported and the old table stays. True when it was taken up.
  absl::StatusOr<bool> Reload();
  // The caller's name ("" without tokens).
  absl::StatusOr<std::string> Check(const std::string& authorization, const std::string& method) const;
  absl::StatusOr<std::string> Check(const std::string& authorization, Role role) const;
  // Who was refused: see TokenTable.
  std::string NameOf(const std::string& authorization) const;

 private:
  std::shared_ptr<TokenTable> table() const;
  std::string path_, seen_;  // what the file was when it was last read
  mutable std::mutex mutex_;
  std::shared_ptr<TokenTable> table_;
};

}  // namespace sage::server
