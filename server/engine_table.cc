// Life cycle of engines: STARTING -> RUNNING -> STOPPING -> gone, or FAILED until stopped or replaced.
#include "server/engine_table.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "server/model_paths.h"
#include "server/security/file_stamp.h"

namespace sage::server {
namespace {

constexpr size_t kMaxFailed = 50, kTokenizersKept = 8;
constexpr absl::Duration kFailureKept = absl::Hours(1), kTokenizerKept = absl::Minutes(1);

// Whatever a tokenizer of `path` may be read from, by name and FileStamp.
std::string TokenizerStamp(const std::string& path) {
  static const std::set<std::string> kExtensions = {".json", ".jinja", ".model", ".bin", ".txt", ".gguf"};
  std::string out = FileStamp(path);
  std::set<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    if (kExtensions.count(it->path().extension().string()) != 0) names.insert(it->path().filename().string());
  }
  for (const std::string& name : names)
    absl::StrAppend(&out, "\n", name, ":", FileStamp(absl::StrCat(path, "/", name)));
  return out;
}

auto Key(const EngineSpec& s) {
  return std::tie(s.model, s.quantization, s.attn_quantization, s.mlp_quantization, s.layer_quantization,
                  s.head_quantization, s.kv_quantization, s.backend, s.max_seqs, s.max_model_len, s.kv_bytes,
                  s.max_queue_requests, s.max_queue_tokens, s.max_step_tokens, s.draft_mode, s.prefix_cache,
                  s.kv_include, s.kv_exclude, s.kv_sink_tokens);
}

std::string IdFromModel(const std::string& name) {
  std::string leaf = name;
  while (!leaf.empty() && leaf.back() == '/') leaf.pop_back();
  if (const size_t slash = leaf.rfind('/'); slash != std::string::npos) leaf = leaf.substr(slash + 1);
  if (leaf.size() > 5 && leaf.substr(leaf.size() - 5) == ".gguf") leaf.resize(leaf.size() - 5);
  for (char& c : leaf) {
    if (!isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-' && c != '_') c = '-';
  }
  while (!leaf.empty() && leaf.front() == '.') leaf.erase(leaf.begin());
  return leaf.empty() ? "engine" : leaf.substr(0, 100);
}

// Not PERMISSION_DENIED: paths a client may not name are refused before, so it is a file the daemon cannot read.
bool IsRequestsFault(const absl::Status& error) {
  return absl::IsInvalidArgument(error) || absl::IsNotFound(error) || absl::IsUnimplemented(error) ||
         absl::IsOutOfRange(error) || absl::IsFailedPrecondition(error);
}

absl::Status NotFound(const std::string& engine_id) {
  return MakeError(absl::StatusCode::kNotFound, "ENGINE_NOT_FOUND",
                   absl::StrCat("engine: no engine has the id \"", engine_id, "\""), {{"engine_id", engine_id}});
}

}  // namespace

EngineRecord EngineTable::RecordOf(const Entry& entry) {
  EngineRecord out;
  out.operation = entry.operation;
  if (entry.engine != nullptr) {
    out.info = entry.engine->info();
    out.stats = entry.engine->stats();
    const TokenizerFiles* files = entry.engine->tokenizer();
    out.has_tokenizer = files != nullptr && files->tokenizer != nullptr;
    out.has_chat_template = files != nullptr && !files->chat_template.empty();
  } else {
    out.info = entry.info;
  }
  out.info.engine_id = entry.spec.engine_id;
  out.info.model = entry.spec.model_name;
  out.info.model_path = entry.spec.model;
  if (entry.engine == nullptr || entry.state != "RUNNING") out.info.state = entry.state;
  if (!entry.error.ok()) out.info.error = entry.error;
  out.refused = entry.state == "FAILED" && IsRequestsFault(entry.error);
  return out;
}

absl::StatusOr<std::string> EngineTable::ChooseId(const EngineSpec& spec) const {
  const auto usable = [&](const std::string& id) {  // free, failed, or the same specification
    const auto it = entries_.find(id);
    return it == entries_.end() || it->second->state == "FAILED" ||
           (it->second->state != "STOPPING" && Key(it->second->spec) == Key(spec));
  };
  if (!spec.engine_id.empty()) {
    if (usable(spec.engine_id)) return spec.engine_id;
    return MakeError(absl::StatusCode::kAlreadyExists, "ENGINE_EXISTS",
                     absl::StrCat("engine_id: \"", spec.engine_id,
                                  "\" is taken by an engine of another specification; "
                                  "stop it or choose another id"),
                     {{"engine_id", spec.engine_id}});
  }
  const std::string stem = IdFromModel(spec.model_name.empty() ? spec.model : spec.model_name);
  std::string id = stem;
  for (int i = 2; !usable(id); ++i) id = absl::StrCat(stem, "-", i);
  return id;
}

absl::StatusOr<std::string> EngineTable::Check(EngineSpec spec) const {
  std::lock_guard lock(mutex_);
  return ChooseId(spec);
}

absl::StatusOr<EngineRecord> EngineTable::Start(EngineSpec spec,
                                                const std::function<std::string(const std::string&)>& begun,
                                                const CancelToken& cancel, const ProgressFn& progress) {
  std::shared_ptr<Entry> entry;
  std::shared_ptr<InferenceEngine> broken;  // replaced: its files changed while it ran
  {
    std::unique_lock lock(mutex_);
    SAGE_ASSIGN_OR_RETURN(spec.engine_id, ChooseId(spec));
    auto it = entries_.find(spec.engine_id);
    if (it != entries_.end() && it->second->state == "RUNNING" && it->second->engine->info().state == "FAILED") {
      broken = it->second->engine;
      entries_.erase(it);
      it = entries_.end();
    }
    if (it != entries_.end() && it->second->state != "FAILED") {
      entry = it->second;
      while (entry->state == "STARTING" && !cancel.cancelled()) changed_.wait_for(lock, std::chrono::milliseconds(50));
      SAGE_RETURN_IF_ERROR(cancel.Check());
      if (!entry->error.ok()) return entry->error;
      return RecordOf(*entry);
    }
    entry = std::make_shared<Entry>();
    entry->spec = spec;
    entry->info.started_at = absl::Now();
    entry->info.backend = spec.backend;
    entries_[spec.engine_id] = entry;
  }
  if (broken != nullptr) broken->Stop(absl::Now());
  broken = nullptr;
  const std::string operation = begun(spec.engine_id);
  {
    std::lock_guard lock(mutex_);
    entry->operation = operation;
  }
  absl::StatusOr<std::shared_ptr<InferenceEngine>> engine = runtime_.StartEngine(spec, cancel, progress);
  std::unique_lock lock(mutex_);
  if (engine.ok() && (cancel.cancelled() || entry->cancel.cancelled())) {
    std::shared_ptr<InferenceEngine> unwanted = *engine;
    engine = absl::CancelledError("cancelled while the engine started");
    lock.unlock();
    unwanted->Stop(absl::Now());
    unwanted = nullptr;
    lock.lock();
  }
  if (!engine.ok()) {
    entry->state = "FAILED";
    entry->error = engine.status();
    entry->failed_at = absl::Now();
    if (absl::IsCancelled(engine.status())) {
      entries_.erase(spec.engine_id);
    } else {
      KeepLatestFailures();
    }
    changed_.notify_all();
    return engine.status();
  }
  entry->engine = *std::move(engine);
  entry->state = "RUNNING";
  changed_.notify_all();
  return RecordOf(*entry);
}

// Whoever started the last one has not asked yet why it failed: the one that failed longest ago goes.
void EngineTable::KeepLatestFailures() {
  for (;;) {
    size_t failed = 0;
    auto oldest = entries_.end();
    for (auto it = entries_.begin(); it != entries_.end(); ++it) {
      if (it->second->state != "FAILED") continue;
      ++failed;
      if (oldest == entries_.end() || it->second->failed_at < oldest->second->failed_at) oldest = it;
    }
    if (failed <= kMaxFailed) return;
    entries_.erase(oldest);
  }
}

absl::StatusOr<std::shared_ptr<InferenceEngine>> EngineTable::Find(const std::string& engine_id) const {
  std::lock_guard lock(mutex_);
  auto it = entries_.find(engine_id);
  if (engine_id.empty()) {
    it = entries_.end();
    for (auto each = entries_.begin(); each != entries_.end(); ++each) {
      if (each->second->state != "RUNNING") continue;
      if (it != entries_.end()) {
        return MakeError(absl::StatusCode::kInvalidArgument, "ENGINE_NOT_NAMED",
                         "engine_id: must be named when more than one engine runs", {{"field", "engine_id"}});
      }
      it = each;
    }
  }
  if (it == entries_.end()) return NotFound(engine_id);
  const Entry& entry = *it->second;
  if (entry.state == "FAILED") {
    return MakeError(absl::StatusCode::kFailedPrecondition, "ENGINE_FAILED",
                     absl::StrCat("engine \"", it->first, "\" failed: ", entry.error.message()),
                     {{"engine_id", it->first}, {"subject", it->first}});
  }
  if (entry.state != "RUNNING") {
    return MakeError(absl::StatusCode::kUnavailable, entry.state == "STOPPING" ? "ENGINE_DRAINING" : "ENGINE_NOT_READY",
                     absl::StrCat("engine \"", it->first, "\" is ", entry.state), {{"engine_id", it->first}});
  }
  return entry.engine;
}

absl::StatusOr<EngineRecord> EngineTable::Get(const std::string& engine_id) const {
  std::lock_guard lock(mutex_);
  auto it = entries_.find(engine_id);
  if (it == entries_.end()) return NotFound(engine_id);
  return RecordOf(*it->second);
}

std::vector<EngineRecord> EngineTable::List() const {
  std::lock_guard lock(mutex_);
  std::vector<EngineRecord> out;
  for (const auto& [id, entry] : entries_) out.push_back(RecordOf(*entry));
  return out;
}

absl::StatusOr<EngineRecord> EngineTable::Stop(const std::string& engine_id, absl::Time deadline) {
  std::shared_ptr<Entry> entry;
  {
    std::unique_lock lock(mutex_);
    auto it = entries_.find(engine_id);
    if (it == entries_.end()) return NotFound(engine_id);
    entry = it->second;
    if (entry->state == "STARTING") entry->cancel.Cancel();
    while (entry->state == "STARTING") changed_.wait(lock);
    if (entry->engine != nullptr) entry->state = "STOPPING";
  }
  if (entry->engine != nullptr) entry->engine->Stop(deadline);
  std::lock_guard lock(mutex_);
  EngineRecord record = RecordOf(*entry);
  record.info.state = "STOPPED";
  auto it = entries_.find(engine_id);
  if (it != entries_.end() && it->second == entry) entries_.erase(it);
  changed_.notify_all();
  return record;
}

void EngineTable::StopAll(absl::Time deadline) {
  std::vector<std::string> ids;
  for (const EngineRecord& record : List()) ids.push_back(record.info.engine_id);
  std::vector<std::thread> stops;
  for (const std::string& id : ids) stops.emplace_back([this, id, deadline] { (void)Stop(id, deadline); });
  for (std::thread& stop : stops) stop.join();
}

bool EngineTable::UsesPath(const std::string& path) const {
  std::lock_guard lock(mutex_);
  return std::any_of(entries_.begin(), entries_.end(), [&](const auto& item) {
    return item.second->state != "FAILED" &&
           (item.second->spec.model == path || item.second->spec.quantization == path);
  });
}

int64_t EngineTable::RunningRequests() const {
  int64_t total = 0;
  for (const EngineRecord& record : List()) total += record.stats.running + record.stats.waiting;
  return total;
}

void EngineTable::DropOldFailures(absl::Time now) {
  std::lock_guard lock(mutex_);
  std::erase_if(entries_, [&](const auto& item) {
    return item.second->state == "FAILED" && now - item.second->failed_at > kFailureKept;
  });
}

absl::StatusOr<std::shared_ptr<const TokenizerFiles>> TokenizerCache::Load(const std::string& path) {
  const std::string stamp = TokenizerStamp(path);
  {
    std::lock_guard lock(mutex_);
    for (Kept& kept : kept_) {
      if (kept.path != path || kept.stamp != stamp) continue;
      kept.used = absl::Now();
      return kept.files;
    }
  }
  SAGE_ASSIGN_OR_RETURN(TokenizerFiles loaded, LoadTokenizer(path));
  auto files = std::make_shared<const TokenizerFiles>(std::move(loaded));
  std::lock_guard lock(mutex_);
  std::erase_if(kept_, [&](const Kept& kept) { return kept.path == path; });
  if (kept_.size() >= kTokenizersKept) {
    kept_.erase(
        std::min_element(kept_.begin(), kept_.end(), [](const Kept& a, const Kept& b) { return a.used < b.used; }));
  }
  // Read before the files were: should they have changed between, the next call sees another stamp and reads again.
  kept_.push_back({path, stamp, absl::Now(), files});
  return std::shared_ptr<const TokenizerFiles>(files);
}

void TokenizerCache::DropUnused(absl::Time now) {
  std::lock_guard lock(mutex_);
  std::erase_if(kept_, [&](const Kept& kept) { return now - kept.used > kTokenizerKept; });
}

size_t TokenizerCache::size() const {
  std::lock_guard lock(mutex_);
  return kept_.size();
}

}  // namespace sage::server
