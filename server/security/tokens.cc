// Tokens are kept and compared as SHA-256, so that neither memory nor the time of a comparison shows them.
#include "server/security/tokens.h"

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "server/security/file_stamp.h"

namespace sage::server {
namespace {

constexpr size_t kShortestToken = 3, kMostTokens = 10000;

absl::Status BadLine(size_t number, const std::string& rule) {
  return MakeError(absl::StatusCode::kInvalidArgument, "BAD_CONFIG",
                   absl::StrCat("token-file: line ", number, ": ", rule));
}

bool IsHex(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return isxdigit(c) != 0; });
}

bool IsBearer(const std::string& authorization) {
  return authorization.size() > 7 && absl::EqualsIgnoreCase(authorization.substr(0, 7), "Bearer ");
}

bool PositiveNumber(const std::string& text, double* out) {
  return absl::SimpleAtod(text, out) && *out > 0 && *out <= 1e9;
}

}  // namespace

const char* RoleName(Role role) {
  static const char* const kNames[] = {"read", "generate", "admin"};
  return kNames[static_cast<int>(role)];
}

absl::Duration TokenBucket::Take(absl::Time now) {
  if (last_ != absl::InfinitePast() && now > last_) {
    left_ = std::min(burst_, left_ + absl::ToDoubleSeconds(now - last_) * rate_);
  }
  last_ = std::max(last_, now);
  if (left_ >= 1) {
    left_ -= 1;
    return absl::ZeroDuration();
  }
  return absl::Seconds((1 - left_) / rate_);
}

absl::StatusOr<std::pair<std::string, TokenTable::Entry>> TokenTable::ParseLine(const std::string& line,
                                                                                size_t number) {
  const std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  Entry entry;
  std::string hash;
  if (absl::StartsWith(words[0], "sha256:")) {
    hash = absl::AsciiStrToLower(words[0].substr(7));
    if (hash.size() != 64 || !IsHex(hash)) return BadLine(number, "sha256: needs 64 hexadecimal digits");
  } else if (words[0].size() < kShortestToken) {
    return BadLine(number, absl::StrCat("a token has at least ", kShortestToken, " bytes"));
  } else {
    hash = Sha256Hex(words[0]);
  }
  entry.name = "token-" + hash.substr(0, 8);  // tells two callers apart in a log, and gives nothing away
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "read" || word == "generate" || word == "admin") {
      entry.role = word == "read" ? Role::kRead : word == "generate" ? Role::kGenerate : Role::kAdmin;
    } else if (absl::StartsWith(word, "name=") && word.size() > 5 && word.size() <= 69) {
      entry.name = word.substr(5);
    } else if (absl::StartsWith(word, "rate=") && PositiveNumber(word.substr(5), &entry.rate)) {
    } else if (absl::StartsWith(word, "burst=") && PositiveNumber(word.substr(6), &entry.burst) && entry.burst >= 1) {
    } else {
      return BadLine(number, absl::StrCat("word ", i + 1,
                                          " must be read, generate, admin, name=NAME (at most 64 bytes), rate=N or "
                                          "burst=N (at least 1)"));
    }
  }
  if (entry.burst > 0 && entry.rate == 0) return BadLine(number, "burst= needs rate=");
  if (entry.rate > 0) {
    entry.burst = entry.burst > 0 ? entry.burst : std::max(1.0, 2 * entry.rate);
    entry.bucket = std::make_unique<TokenBucket>(entry.rate, entry.burst);
  }
  return std::make_pair(std::move(hash), std::move(entry));
}

absl::StatusOr<std::unique_ptr<TokenTable>> TokenTable::Parse(const std::string& text) {
  auto out = std::make_unique<TokenTable>();
  size_t number = 0;
  for (const auto& part : absl::StrSplit(text, '\n')) {
    ++number;
    const std::string line(absl::StripAsciiWhitespace(part));
    if (line.empty() || line[0] == '#') continue;
    SAGE_ASSIGN_OR_RETURN(auto entry, ParseLine(line, number));
    if (!out->entries_.insert(std::move(entry)).second) return BadLine(number, "this token stands there twice");
    if (out->entries_.size() > kMostTokens) return BadLine(number, absl::StrCat("at most ", kMostTokens, " tokens"));
  }
  if (out->entries_.empty()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_CONFIG", "token-file: holds no token");
  }
  return out;
}

// `authorization` is "Bearer TOKEN".
const TokenTable::Entry* TokenTable::Find(const std::string& authorization) const {
  if (!IsBearer(authorization)) return nullptr;
  const auto it = entries_.find(Sha256Hex(std::string(absl::StripAsciiWhitespace(authorization.substr(7)))));
  return it == entries_.end() ? nullptr : &it->second;
}

std::string TokenTable::NameOf(const std::string& authorization) const {
  const Entry* entry = Find(authorization);
  return entry == nullptr ? "" : entry->name;
}

absl::StatusOr<std::string> TokenTable::Check(const std::string& authorization, Role role, absl::Time now) {
  if (!IsBearer(authorization)) {
    return MakeError(absl::StatusCode::kUnauthenticated, "TOKEN_MISSING", "authorization: a bearer token is needed");
  }
  const Entry* found = Find(authorization);
  if (found == nullptr) {
    return MakeError(absl::StatusCode::kUnauthenticated, "TOKEN_INVALID", "authorization: the token is not accepted");
  }
  const Entry& entry = *found;
  if (entry.role < role) {
    return MakeError(absl::StatusCode::kPermissionDenied, "ROLE_INSUFFICIENT",
                     absl::StrCat("authorization: this call needs the role ", RoleName(role), ", the token has ",
                                  RoleName(entry.role)),
                     {{"role", RoleName(entry.role)}, {"needed", RoleName(role)}});
  }
  if (entry.bucket != nullptr) {
    std::lock_guard lock(mutex_);
    const absl::Duration wait = entry.bucket->Take(now);
    if (wait > absl::ZeroDuration()) {
      return MakeError(
          absl::StatusCode::kResourceExhausted, "RATE_LIMITED",
          absl::StrCat("authorization: the token may make ", entry.rate, " calls a second; wait ",
                       absl::FormatDuration(absl::Ceil(wait, absl::Milliseconds(1)))),
          {{"rate", absl::StrCat(entry.rate)}, {"retry_after_ms", absl::StrCat(absl::ToInt64Milliseconds(wait) + 1)}});
    }
  }
  return entry.name;
}

void TokenTable::TakeBuckets(TokenTable& old) {
  std::scoped_lock lock(mutex_, old.mutex_);
  for (auto& [hash, entry] : entries_) {
    const auto it = old.entries_.find(hash);
    const bool same = it != old.entries_.end() && it->second.rate == entry.rate && it->second.burst == entry.burst;
    // A copy: calls that hold the old table go on with theirs.
    if (same && it->second.bucket != nullptr) entry.bucket = std::make_unique<TokenBucket>(*it->second.bucket);
  }
}

Role RoleOfMethod(const std::string& method) {
  static const auto* read = new std::set<std::string>{
      "ListCapabilities", "SelectKernel",   "ListArtifacts", "GetArtifact",     "VerifyArtifact",
      "ListEngines",      "GetEngine",      "GetReport",     "GetOperation",    "ListOperations",
      "WaitOperation",    "WatchOperation", "ServerLive",    "ServerReady",     "ModelReady",
      "ServerMetadata",   "ModelMetadata",  "ModelConfig",   "ModelStatistics", "RepositoryIndex",
      "Models",           "Model",          "Status",        "Backends",        "Gpu",
      "Metrics",          "Unrouted"};
  static const auto* generate = new std::set<std::string>{"Generate",   "Chat",       "Score",           "Tokenize",
                                                          "Detokenize", "RenderChat", "ChatCompletions", "Completions",
                                                          "Embeddings", "ModelInfer", "ModelStreamInfer"};
  if (read->count(method) != 0) return Role::kRead;
  return generate->count(method) != 0 ? Role::kGenerate : Role::kAdmin;
}

bool IsMutation(const std::string& method) { return RoleOfMethod(method) == Role::kAdmin; }

absl::Status Door::Open(const std::string& path) {
  path_ = path;
  if (path_.empty()) return absl::OkStatus();
  return Reload().status();
}

absl::StatusOr<bool> Door::Reload() {
  if (path_.empty()) return false;
  const std::string stamp = FileStamp(path_);
  if (stamp == seen_ && table() != nullptr) return false;  // without a table nothing has been read: never an open door
  seen_ = stamp;
  SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path_, 1 << 20));
  SAGE_ASSIGN_OR_RETURN(std::shared_ptr<TokenTable> fresh, TokenTable::Parse(text));
  std::lock_guard lock(mutex_);
  if (table_ != nullptr) fresh->TakeBuckets(*table_);
  table_ = std::move(fresh);
  return true;
}

std::shared_ptr<TokenTable> Door::table() const {
  std::lock_guard lock(mutex_);
  return table_;
}

absl::StatusOr<std::string> Door::Check(const std::string& authorization, Role role) const {
  const std::shared_ptr<TokenTable> now = table();
  if (now == nullptr) return std::string();
  return now->Check(authorization, role, absl::Now());
}

std::string Door::NameOf(const std::string& authorization) const {
  const std::shared_ptr<TokenTable> now = table();
  return now == nullptr ? "" : now->NameOf(authorization);
}

absl::StatusOr<std::string> Door::Check(const std::string& authorization, const std::string& method) const {
  return Check(authorization, RoleOfMethod(method));
}

}  // namespace sage::server
