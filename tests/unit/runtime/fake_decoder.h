// A decoder whose next id is a hash of the whole sequence, read back through its page tables, and a small tokenizer.
//
// A wrong page, a stale slot or a wrong position changes the hash, so every test that compares ids checks the paging.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "engine/decoder/decoder.h"
#include "engine/runtime/engine_parts.h"
#include "gtest/gtest.h"

namespace sage {

inline uint32_t HashStep(uint32_t h, int32_t id, int64_t position) {
  h ^= static_cast<uint32_t>(id) * 2654435761u + static_cast<uint32_t>(position) * 40503u;
  h *= 2246822519u;
  return h ^ (h >> 15);
}

class FakeDecoder final : public Decoder {
 public:
  static constexpr int kPageTokens = 4;

  explicit FakeDecoder(int64_t V) {
    config_.architecture = "fake";
    config_.L = 1;
    config_.hidden = 2;
    config_.V = V;
    config_.H = config_.KH = config_.D = 1;
    config_.max_position = 1 << 20;
    config_.eos_ids = {0};
  }
  const DecoderConfig& config() const override { return config_; }
  void set_rope_kind(const std::string& kind) { config_.rope.kind = kind; }

  absl::Status Forward(StepContext& ctx, const DecoderBatch& batch, KvArena& kv, float* hidden) override {
    ++steps;
    max_rows = std::max<int64_t>(max_rows, static_cast<int64_t>(batch.ids.size()));
    max_batch = std::max<int64_t>(max_batch, static_cast<int64_t>(batch.sequences.size()));
    if (delay > absl::ZeroDuration()) std::this_thread::sleep_for(absl::ToChronoMilliseconds(delay));
    if (before_forward) before_forward();
    if (!forward_status.ok()) return forward_status;
    std::vector<uint32_t> hashes(batch.ids.size());
    cells_ = &arenas_[&kv];
    cells_->resize(4096 * kPageTokens);
    for (const SequenceSlice& s : batch.sequences) {
      for (int64_t r = 0; r < s.rows; ++r) {
        const int64_t position = s.context + r;
        Cell(s, position) = {batch.ids[static_cast<size_t>(s.row_begin + r)], position};
      }
    }
    for (const SequenceSlice& s : batch.sequences) {
      for (int64_t r = 0; r < s.rows; ++r) {
        uint32_t h = 17;
        for (int64_t p = 0; p <= s.context + r; ++p) h = HashStep(h, Cell(s, p).first, Cell(s, p).second);
        hashes[static_cast<size_t>(s.row_begin + r)] = h;
      }
    }
    hidden_.resize(2 * batch.output_rows.size());
    if (hidden == nullptr) hidden = hidden_.data();
    for (size_t i = 0; i < batch.output_rows.size(); ++i) {
      const uint32_t h = hashes[static_cast<size_t>(batch.output_rows[i])];
      hidden[2 * i] = static_cast<float>(h >> 16);
      hidden[2 * i + 1] = static_cast<float>(h & 0xFFFF);
    }
    return absl::OkStatus();
  }
  absl::Status Logits(StepContext& ctx, const float* hidden, int64_t rows, float* logits) override {
    for (int64_t r = 0; r < rows; ++r) {
      const uint32_t h = (static_cast<uint32_t>(hidden[2 * r]) << 16) | static_cast<uint32_t>(hidden[2 * r + 1]);
      RowLogits(h, config_.V, logits + r * config_.V);
      if (poison >= 0 && static_cast<int64_t>(h % 64) == poison % 64) logits[r * config_.V] = NAN;
    }
    return absl::OkStatus();
  }
  absl::Status StepLogits(StepContext& ctx, int64_t begin, int64_t rows, float* logits) override {
    return Logits(ctx, hidden_.data() + 2 * begin, rows, logits);
  }
  static void RowLogits(uint32_t h, int64_t V, float* logits) {
    for (int64_t v = 0; v < V; ++v) {
      logits[v] = static_cast<float>(HashStep(h, static_cast<int32_t>(v), v) % 8000) / 1000.0f;
    }
    logits[0] -= 4;  // the end id comes rarely
  }
  // What the model says after `ids`, computed without pages.
  static std::vector<float> Reference(const std::vector<int32_t>& ids, int64_t V) {
    uint32_t h = 17;
    for (size_t p = 0; p < ids.size(); ++p) h = HashStep(h, ids[p], static_cast<int64_t>(p));
    std::vector<float> out(static_cast<size_t>(V));
    RowLogits(h, V, out.data());
    return out;
  }

  std::vector<BoundLayerInfo> bindings() const override { return {}; }
  size_t weight_bytes() const override { return 0; }
  std::string quantization() const override { return "f32"; }
  size_t workspace_bytes(int64_t M) const override { return 0; }

  absl::Duration delay = absl::ZeroDuration();
  std::function<void()> before_forward;
  absl::Status forward_status;
  int64_t poison = -1;
  std::atomic<int64_t> steps{0}, max_rows{0}, max_batch{0};

 private:
  std::pair<int32_t, int64_t>& Cell(const SequenceSlice& s, int64_t position) {
    const size_t page = static_cast<size_t>(s.pages[position / kPageTokens]);
    return cells_->at(page * kPageTokens + static_cast<size_t>(position % kPageTokens));
  }
  DecoderConfig config_;
  using Cells = std::vector<std::pair<int32_t, int64_t>>;
  std::map<const KvArena*, Cells> arenas_;
  Cells* cells_ = nullptr;
  std::vector<float> hidden_;  // of the last step that was given no place for it
};

// Collects the events of one request; thread-safe.
class Collector {
 public:
  GenerationSink sink() {
    return [this](const GenerationEvent& event) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (last_.last) ++events_after_last;
      Choice& c = choices[event.choice];
      c.text += event.text;
      for (const TokenRecord& token : event.tokens) {
        c.ids.push_back(token.id);
        c.records.push_back(token);
      }
      if (!event.finish_reason.empty()) {
        c.finish_reason = event.finish_reason;
        c.stop_match = event.stop_match;
      }
      seed = event.seed;
      ++events;
      if (event.last) last_ = event;
      changed_.notify_all();
    };
  }
  const GenerationEvent& Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return last_.last; });
    return last_;
  }
  void WaitForEvents(int count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return events >= count; });
  }
  bool finished() {
    std::lock_guard<std::mutex> lock(mutex_);
    return last_.last;
  }

  struct Choice {
    std::string text, finish_reason, stop_match;
    std::vector<int32_t> ids;
    std::vector<TokenRecord> records;
  };
  std::map<int, Choice> choices;
  uint64_t seed = 0;
  int events = 0, events_after_last = 0;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  GenerationEvent last_;
};

// Ids 1..26 are the letters a..z, 27 the bytes of "é" in two halves (27, 28), 0 the end.
class LetterTokenizer final : public Tokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool, bool) const override {
    std::vector<int32_t> out;
    for (const char c : text) out.push_back(c - 'a' + 1);
    return out;
  }
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special) const override {
    std::string out;
    for (const int32_t id : ids) out += TokenBytes(id, skip_special).value_or("");
    return out;
  }
  std::optional<std::string> TokenBytes(int32_t id, bool) const override {
    if (id == 0) return std::string();
    if (id == 27) return std::string("\xC3");
    if (id == 28) return std::string("\xA9");
    return std::string(1, static_cast<char>('a' + (id - 1) % 26));
  }
  std::optional<std::string> IdToToken(int32_t id) const override { return TokenBytes(id, false); }
  std::optional<int32_t> TokenToId(std::string_view) const override { return std::nullopt; }
  bool IsSpecial(int32_t id) const override { return id == 0; }
  int32_t vocab_size() const override { return 64; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return 0; }
  std::string DecodePart(absl::Span<const int32_t> ids, bool skip_special, bool) const override {
    return *Decode(ids, skip_special);
  }
  bool InByteRun(int32_t) const override { return false; }
  bool decodes_whole() const override { return false; }
  std::string kind() const override { return "letters"; }
};

struct FakeEngine {
  std::shared_ptr<InferenceEngine> engine;
  FakeDecoder* decoder = nullptr;
};

struct FakeEngineSpec {
  int64_t pages = 256, max_seqs = 8, max_step_tokens = 16, max_model_len = 256, V = 64;
  AdmissionLimits admission;
  int64_t mixed_prompt_tokens = 0;
  MetricSink* metrics = nullptr;
  bool tokenizer = false, prefix_cache = true, drafts = false;
  int threads = 2;
  absl::Duration delay = absl::ZeroDuration();
  std::function<void(FakeDecoder&)> prepare;
};

inline FakeEngine StartFake(const FakeEngineSpec& spec = {}) {
  FakeEngine out;
  EngineParts parts;
  auto decoder = std::make_unique<FakeDecoder>(spec.V);
  decoder->delay = spec.delay;
  if (spec.prepare) spec.prepare(*decoder);
  out.decoder = decoder.get();
  parts.decoder = std::move(decoder);
  parts.threads = std::make_unique<ThreadPool>(spec.threads);
  parts.kv = std::make_unique<KvArena>();
  parts.kv_pages = spec.pages;
  parts.kv_page_tokens = FakeDecoder::kPageTokens;
  parts.prefix_cache = spec.prefix_cache;
  parts.make_arena = [](int64_t) -> absl::StatusOr<std::unique_ptr<KvArena>> { return std::make_unique<KvArena>(); };
  parts.scheduler = {spec.max_seqs, spec.max_step_tokens, spec.mixed_prompt_tokens};
  parts.scheduler.drafts = spec.drafts;
  parts.metrics = spec.metrics;
  parts.admission = spec.admission;
  parts.max_model_len = spec.max_model_len;
  parts.info.engine_id = "fake";
  if (spec.tokenizer) {
    parts.tokenizer.emplace();
    parts.tokenizer->tokenizer = std::make_shared<LetterTokenizer>();
  }
  out.engine = MakeEngine(std::move(parts));
  return out;
}

// What greedy generation gives, computed one prefix at a time.
inline std::vector<int32_t> GreedyReference(std::vector<int32_t> ids, int64_t count, int64_t V, bool stop_at_end) {
  std::vector<int32_t> out;
  while (static_cast<int64_t>(out.size()) < count) {
    const std::vector<float> logits = FakeDecoder::Reference(ids, V);
    const auto id = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    out.push_back(id);
    ids.push_back(id);
    if (stop_at_end && id == 0) break;
  }
  return out;
}

// ---- What tests of the engine share ----

inline GenerateSpec Greedy(std::vector<int32_t> prompt, int64_t max_tokens) {
  GenerateSpec spec;
  spec.prompt_ids = std::move(prompt);
  spec.sampling.temperature = 0;
  spec.max_tokens = max_tokens;
  spec.ignore_eos = true;
  return spec;
}

inline std::vector<int32_t> Prompt(int length, int salt) {
  std::vector<int32_t> out;
  for (int i = 0; i < length; ++i) out.push_back(1 + (i * 7 + salt * 13) % 60);
  return out;
}

// The pages are free once the step after the last event has looked.
inline void ExpectNoPages(InferenceEngine& engine) {
  const absl::Time until = absl::Now() + absl::Seconds(5);
  while (engine.stats().kv_pages_used != 0 && absl::Now() < until) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(engine.stats().kv_pages_used, 0);
  EXPECT_EQ(engine.stats().waiting, 0);
  EXPECT_EQ(engine.stats().waiting_tokens, 0);
}

class RecordingSink final : public MetricSink {
 public:
  void Increment(std::string_view name, const MetricLabels& labels, double by) override { Add(name, labels, by); }
  void SetGauge(std::string_view name, const MetricLabels& labels, double value) override {
    std::lock_guard<std::mutex> lock(mutex_);
    values_[std::string(name)] = value;
  }
  void Observe(std::string_view name, const MetricLabels& labels, double value) override {
    EXPECT_GE(value, 0) << name;
    Add(name, labels, 1);
  }
  double Get(const std::string& name) {
    std::lock_guard<std::mutex> lock(mutex_);
    return values_.contains(name) ? values_[name] : -1;
  }

 private:
  void Add(std::string_view name, const MetricLabels& labels, double by) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::string key(name);
    EXPECT_EQ(labels.at(0), (std::pair<std::string, std::string>("engine", "fake")));
    for (size_t i = 1; i < labels.size(); ++i) key += "," + labels[i].second;
    values_[key] += by;
  }
  std::mutex mutex_;
  std::map<std::string, double> values_;
};

}  // namespace sage
