// What happens in a step and to the requests it advances.
#include "engine/runtime/step_loop.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/runtime/draft.h"
#include "engine/runtime/logprobs.h"
#include "engine/runtime/utf8.h"

namespace sage {
namespace {

constexpr int64_t kLogitRows = 64;  // bounds the memory of logits; the head's weights are read once a chunk

int64_t MonotonicNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

SchedulerLimits Limits(const EngineParts& parts) {
  SchedulerLimits out = parts.scheduler;
  out.max_model_len = parts.max_model_len;
  return out;
}

}  // namespace

StepLoop::StepLoop(EngineParts& parts, Inbox& inbox)
    : parts_(parts),
      inbox_(inbox),
      pool_(parts.kv_pages, parts.kv_page_tokens, parts.kv_sink_pages, parts.prefix_cache),
      scheduler_(pool_, Limits(parts)),
      metrics_(*parts.metrics, parts.info.engine_id),
      samplers_(static_cast<size_t>(parts.threads->size())) {
  metrics_.KvPages(0, 0, pool_.pages());
}

void StepLoop::Run() {
  Inbox::Work work;
  while (true) {
    const bool busy = !scheduler_.idle() || score_run_ != nullptr || !score_jobs_.empty() || profile_run_ != nullptr ||
                      !profile_jobs_.empty();
    if (!busy) busy_.store(false, std::memory_order_release);
    if (!inbox_.Take(busy, &work)) return;
    if (!busy) {
      progress_ns_.store(MonotonicNs(), std::memory_order_release);
      busy_.store(true, std::memory_order_release);
    }
    Accept(std::exchange(work, {}));
    Step();
    ScoreStep();
    ProfileStep();
    progress_ns_.store(MonotonicNs(), std::memory_order_release);
  }
}

void StepLoop::Accept(Inbox::Work work) {
  for (std::shared_ptr<GenerationRequest>& request : work.requests) {
    const GenerateSpec& spec = request->spec;
    request->queued = request->unfinished = spec.n;
    request->usage.prompt_tokens = static_cast<int64_t>(spec.prompt_ids.size());
    prompt_tokens_.fetch_add(request->usage.prompt_tokens, std::memory_order_relaxed);
    metrics_.PromptTokens(request->usage.prompt_tokens);
    for (int choice = 0; choice < spec.n; ++choice) {
      auto sequence = std::make_shared<Sequence>();
      sequence->request = request;
      sequence->choice = choice;
      sequence->ids = spec.prompt_ids;
      sequence->prompt_length = sequence->length();
      SetPrefixRoot(*sequence);
      sequence->stops = StopMatcher(spec.stop);
      if (parts_.tokenizer.has_value()) {
        const Tokenizer& tokenizer = *parts_.tokenizer->tokenizer;
        sequence->text =
            std::make_unique<StreamDecoder>(tokenizer, spec.skip_special, ContinuesText(spec, &*parts_.tokenizer));
      }
      scheduler_.Add(std::move(sequence));
    }
  }
  for (std::shared_ptr<ScoreJob>& job : work.scores) score_jobs_.push_back(std::move(job));
  for (std::shared_ptr<ProfileJob>& job : work.profiles) profile_jobs_.push_back(std::move(job));
}

void StepLoop::SetPrefixRoot(Sequence& sequence) const {
  const DecoderConfig& config = parts_.decoder->config();
  if (config.rope.kind != "dynamic") return;
  sequence.prefix_positions = sequence.prompt_length;
  sequence.prefix_root = kAnyPrefix - static_cast<uint64_t>(sequence.prompt_length);
  sequence.prefix = {sequence.prefix_root, 0};
}

void StepLoop::Step() {
  const int64_t begin = MonotonicNs();
  EndRequests();
  const StepPlan plan = scheduler_.Schedule();
  NoteAdmitted(plan, absl::Now());
  if (!plan.slices.empty()) {
    absl::Status status = Forward(plan);
    if (status.ok()) status = Sample();
    if (status.ok()) status = parts_.files.Check();  // before anything that zeros gave is told
    if (status.ok()) {
      Emit(plan);
    } else {
      for (const ScheduledRows& slice : plan.slices) slice.sequence->request->status.Update(status);
    }
  }
  Publish(static_cast<double>(MonotonicNs() - begin) * 1e-9, plan);
}

void StepLoop::EndRequests() {
  if (scheduler_.idle()) return;
  const absl::Time now = absl::Now();
  const bool stop = inbox_.cancel_all();
  const auto ended = scheduler_.Reap([&](const Sequence& sequence) {
    GenerationRequest& request = *sequence.request;
    request.status.Update(request.Verdict(now));
    if (stop) request.status.Update(absl::CancelledError("the engine was stopped"));
    return !request.status.ok();
  });
  for (const std::shared_ptr<Sequence>& sequence : ended) {
    const absl::Status& status = sequence->request->status;
    GenerationEvent event;
    event.finish_reason = absl::IsCancelled(status) || absl::IsDeadlineExceeded(status) ? "cancelled" : "error";
    FlushText(*sequence, event);
    FinishChoice(*sequence, event, now);
  }
}

void StepLoop::NoteAdmitted(const StepPlan& plan, absl::Time now) {
  int64_t requests = 0, tokens = 0;
  absl::Duration waited;
  for (const std::shared_ptr<Sequence>& sequence : plan.admitted) {
    GenerationRequest& request = *sequence->request;
    if (request.queued == request.spec.n) {
      request.scheduled_at = now;
      metrics_.Queued(absl::ToDoubleSeconds(now - request.submitted_at));
      waited = std::max(waited, now - request.submitted_at);
    }
    tokens += sequence->prompt_length;
    const int64_t cached = std::min(sequence->computed, sequence->prompt_length);
    if (sequence->choice == 0) request.usage.cached_tokens = cached;
    metrics_.PrefixCache(cached, sequence->prompt_length);
    if (--request.queued == 0) ++requests;
  }
  if (tokens > 0) inbox_.LeftQueue(requests, tokens, waited);
  running_.store(scheduler_.running(), std::memory_order_relaxed);
}

StepContext StepLoop::NewContext() {
  StepContext ctx;
  ctx.threads = parts_.threads.get();
  ctx.activations = &activations_;
  return ctx;
}

absl::Status StepLoop::Forward(const StepPlan& plan) {
  ids_.clear();
  slices_.clear();
  output_rows_.clear();
  outputs_.clear();
  for (const ScheduledRows& scheduled : plan.slices) {
    Sequence& sequence = *scheduled.sequence;
    SequenceSlice slice;
    slice.row_begin = static_cast<int64_t>(ids_.size());
    slice.rows = scheduled.rows;
    slice.context = sequence.computed;
    slice.prompt_length = sequence.prompt_length;
    slice.pages = sequence.pages.data();
    slices_.push_back(slice);
    const auto first = sequence.ids.begin() + sequence.computed;
    const int64_t outputs = scheduled.outputs(), drafts = std::max<int64_t>(0, outputs - 1);
    ids_.insert(ids_.end(), first, first + scheduled.rows - drafts);
    if (drafts > 0) ids_.insert(ids_.end(), sequence.draft.begin(), sequence.draft.end());
    for (int64_t i = 0; i < outputs; ++i) {
      output_rows_.push_back(static_cast<int64_t>(ids_.size()) - outputs + i);
      outputs_.emplace_back(&sequence, i);
    }
  }
  StepContext ctx = NewContext();
  return parts_.decoder->Forward(ctx, {ids_, slices_, output_rows_}, *parts_.kv, nullptr);
}

void StepLoop::SampleRow(const Sequence& sequence, int64_t drafts, const float* logits, Sampler& sampler,
                         Sampled* out) const {
  const GenerateSpec& spec = sequence.request->spec;
  const auto row = absl::MakeConstSpan(logits, static_cast<size_t>(parts_.decoder->config().V));
  std::vector<int32_t> guessed;
  absl::Span<const int32_t> before = sequence.output_ids();
  if (drafts > 0) {
    guessed.assign(before.begin(), before.end());
    guessed.insert(guessed.end(), sequence.draft.begin(), sequence.draft.begin() + drafts);
    before = guessed;
  }
  const SamplingHistory history{absl::MakeConstSpan(spec.prompt_ids), before};
  const absl::StatusOr<int32_t> id = sampler.Sample(row, history, spec.sampling, sequence.request->seed,
                                                    sequence.choice, static_cast<int64_t>(before.size()));
  out->status = id.status();
  out->token = TokenRecord();
  if (!id.ok()) return;
  out->token.id = *id;
  if (spec.logprobs < 0) return;
  const absl::StatusOr<double> normalizer = LogNormalizer(row);
  out->status = normalizer.status();
  if (!normalizer.ok()) return;
  out->token.logprob = static_cast<double>(row[static_cast<size_t>(*id)]) - *normalizer;
  for (const auto& [top, logit] : TopLogits(row, spec.logprobs)) {
    out->token.top.push_back({top, TokenText(top), static_cast<double>(logit) - *normalizer});
  }
}

absl::Status StepLoop::Sample() {
  const int64_t rows = static_cast<int64_t>(outputs_.size());
  const int64_t V = parts_.decoder->config().V;
  sampled_.resize(outputs_.size());
  logits_.resize(static_cast<size_t>(std::min(rows, kLogitRows) * V));
  StepContext ctx = NewContext();
  for (int64_t begin = 0; begin < rows; begin += kLogitRows) {
    const int64_t count = std::min(kLogitRows, rows - begin);
    SAGE_RETURN_IF_ERROR(parts_.decoder->StepLogits(ctx, begin, count, logits_.data()));
    parts_.threads->Run(count, [&](int64_t row, int worker) {
      const auto r = static_cast<size_t>(begin + row);
      SampleRow(*outputs_[r].first, outputs_[r].second, logits_.data() + row * V,
                samplers_[static_cast<size_t>(worker)], &sampled_[r]);
    });
  }
  return absl::OkStatus();
}

int64_t StepLoop::Take(const ScheduledRows& slice, absl::Span<const Sampled> sampled, absl::Time now) {
  Sequence& sequence = *slice.sequence;
  const int64_t outputs = slice.outputs(), drafts = std::max<int64_t>(0, outputs - 1);
  int64_t right = 0;
  const auto guessed = [&](int64_t i) {
    const Sampled& s = sampled[static_cast<size_t>(i)];
    return s.status.ok() && s.token.id == sequence.draft[static_cast<size_t>(i)];
  };
  while (right < drafts && guessed(right)) ++right;
  sequence.computed += slice.rows - drafts + right;
  const size_t length = sequence.ids.size();
  sequence.ids.insert(sequence.ids.end(), sequence.draft.begin(), sequence.draft.begin() + right);
  const int64_t shared = std::min(sequence.computed, sequence.prefix_positions);
  pool_.Register(absl::MakeConstSpan(sequence.ids).first(static_cast<size_t>(shared)), sequence.pages, sequence.prefix);
  sequence.ids.resize(length);
  if (drafts > 0) {
    sequence.draft_length = NextDraftLength(drafts, right);
    metrics_.Drafts(drafts, right);
  }
  sequence.draft.clear();
  if (outputs == 0) return 0;
  int64_t taken = 0;
  do {
    Advance(slice.sequence, sampled[static_cast<size_t>(taken++)], now);
  } while (taken <= right && !sequence.ended);
  return taken;
}

void StepLoop::Emit(const StepPlan& plan) {
  const absl::Time now = absl::Now();
  size_t next = 0;
  int64_t tokens = 0;
  for (const ScheduledRows& slice : plan.slices) {
    const auto outputs = static_cast<size_t>(slice.outputs());
    tokens += Take(slice, absl::MakeConstSpan(sampled_).subspan(next, outputs), now);
    next += outputs;
  }
  generated_tokens_.fetch_add(tokens, std::memory_order_relaxed);
  if (tokens > 0) metrics_.GeneratedTokens(tokens);
}

void StepLoop::Advance(const std::shared_ptr<Sequence>& sequence, const Sampled& sampled, absl::Time now) {
  GenerationRequest& request = *sequence->request;
  const GenerateSpec& spec = request.spec;
  if (!sampled.status.ok()) {
    request.status.Update(sampled.status);  // the next step ends the request
    sequence->ended = true;
    return;
  }
  if (request.first_token_at == absl::InfiniteFuture()) {
    request.first_token_at = now;
    metrics_.FirstToken(absl::ToDoubleSeconds(now - request.submitted_at));
  }
  if (sequence->output_length() > 0) metrics_.NextToken(absl::ToDoubleSeconds(now - sequence->last_token_at));
  sequence->last_token_at = now;
  const int32_t id = sampled.token.id;
  sequence->ids.push_back(id);
  ++request.usage.completion_tokens;

  GenerationEvent event;
  event.tokens.push_back(sampled.token);
  const bool end_id = !spec.ignore_eos && Contains(parts_.decoder->config().eos_ids, id);
  if (end_id || Contains(spec.stop_ids, id)) {
    event.finish_reason = "stop";
    event.stop_match = absl::StrCat(id);
    FlushText(*sequence, event);
  } else {
    AppendText(*sequence, event);
    if (event.finish_reason.empty() &&
        (sequence->output_length() >= spec.max_tokens || sequence->length() >= parts_.max_model_len)) {
      event.finish_reason = "length";
      FlushText(*sequence, event);
    }
  }
  if (!event.finish_reason.empty()) return FinishChoice(*sequence, event, now);
  event.choice = sequence->choice;
  event.seed = request.seed;
  request.sink(event);
}

void StepLoop::AppendText(Sequence& sequence, GenerationEvent& event) const {
  if (sequence.text == nullptr) return;
  StopMatcher::Result result = sequence.stops.Append(sequence.text->Append(sequence.ids.back()));
  event.text += result.text;
  if (result.match.empty()) return;
  event.finish_reason = "stop";
  event.stop_match = std::move(result.match);
}

void StepLoop::FlushText(Sequence& sequence, GenerationEvent& event) const {
  if (sequence.text == nullptr) return;
  StopMatcher::Result result = sequence.stops.Append(sequence.text->Flush());
  event.text += result.text;
  if (result.match.empty()) {
    event.text += sequence.stops.Flush();
  } else if (event.finish_reason == "length") {  // the last, incomplete character completed a stop string
    event.finish_reason = "stop";
    event.stop_match = std::move(result.match);
  }
}

void StepLoop::FinishChoice(Sequence& sequence, GenerationEvent& event, absl::Time now) {
  GenerationRequest& request = *sequence.request;
  sequence.ended = true;
  scheduler_.Remove(sequence);
  if (!sequence.ever_ran) inbox_.LeftQueue(--request.queued == 0 ? 1 : 0, sequence.prompt_length);
  event.choice = sequence.choice;
  event.seed = request.seed;
  event.last = --request.unfinished == 0;
  if (event.last) {
    const auto ms = [](absl::Time from, absl::Time to) { return absl::ToDoubleMilliseconds(to - from); };
    const absl::Time scheduled = std::min(request.scheduled_at, now), first = std::min(request.first_token_at, now);
    event.usage = request.usage;
    event.timings.queue_ms = ms(request.submitted_at, scheduled);
    event.timings.prefill_ms = ms(scheduled, first);
    event.timings.decode_ms = ms(first, now);
    event.timings.first_token_ms = ms(request.submitted_at, first);
    event.status = request.status;
    running_.store(scheduler_.running(), std::memory_order_relaxed);
    metrics_.RequestEnded(event.finish_reason, absl::ToDoubleSeconds(now - request.submitted_at));
  }
  request.sink(event);
  if (event.last) request.sink = nullptr;  // what it holds may hold the handle, which holds the request
}

std::string StepLoop::TokenText(int32_t id) const {
  if (!parts_.tokenizer.has_value()) return std::string();
  return ReplaceInvalidUtf8(parts_.tokenizer->tokenizer->TokenBytes(id, false).value_or(std::string()));
}

void StepLoop::ScoreStep() {
  if (score_run_ == nullptr) {
    if (score_jobs_.empty()) return;
    const std::shared_ptr<ScoreJob> job = std::move(score_jobs_.front());
    score_jobs_.pop_front();
    if (job->cancelled.load(std::memory_order_acquire) || inbox_.cancel_all()) {
      return job->Finish(absl::CancelledError("score: cancelled while it waited"));
    }
    auto run = ScoreRun::Start(job, *parts_.decoder, parts_.make_arena, parts_.kv_page_tokens,
                               parts_.scheduler.max_step_tokens);
    if (!run.ok()) return job->Finish(run.status());
    score_run_ = std::move(*run);
  }
  StepContext ctx = NewContext();
  // While others generate, a chunk is as small as a prompt's would be beside them.
  const SchedulerLimits& limits = parts_.scheduler;
  const bool alone = scheduler_.idle() || limits.mixed_prompt_tokens <= 0;
  absl::StatusOr<bool> complete =
      score_run_->RunChunk(ctx, alone ? limits.max_step_tokens : limits.mixed_prompt_tokens);
  if (const absl::Status files = parts_.files.Check(); !files.ok()) complete = files;
  if (inbox_.cancel_all()) complete = absl::CancelledError("score: the engine was stopped");
  if (complete.ok() && !*complete) return;
  ScoreJob& job = score_run_->job();
  if (complete.ok()) {
    ScoreResult result = score_run_->TakeResult();
    for (ScorePosition& position : result.positions) {
      for (TokenLogprob& other : position.top) other.token = TokenText(other.id);
    }
    job.Finish(std::move(result));
  } else {
    job.Finish(complete.status());
  }
  score_run_.reset();
}

void StepLoop::ProfileStep() {
  if (profile_run_ == nullptr) {
    if (profile_jobs_.empty()) return;
    const std::shared_ptr<ProfileJob> job = std::move(profile_jobs_.front());
    profile_jobs_.pop_front();
    if (job->cancelled.load(std::memory_order_acquire) || inbox_.cancel_all()) {
      return job->Finish(absl::CancelledError("profile: cancelled while it waited"));
    }
    auto run = ProfileRun::Start(job, *parts_.decoder, parts_.make_arena, parts_.kv_page_tokens,
                                 parts_.scheduler.max_step_tokens);
    if (!run.ok()) return job->Finish(run.status());
    profile_run_ = std::move(*run);
  }
  StepContext ctx = NewContext();
  absl::StatusOr<bool> complete = profile_run_->RunStep(ctx);
  if (const absl::Status files = parts_.files.Check(); !files.ok()) complete = files;
  if (inbox_.cancel_all()) complete = absl::CancelledError("profile: the engine was stopped");
  if (complete.ok() && !*complete) return;
  ProfileJob& job = profile_run_->job();
  if (complete.ok()) {
    job.Finish(profile_run_->TakeResult());
  } else {
    job.Finish(complete.status());
  }
  profile_run_.reset();
}

void StepLoop::Publish(double step_seconds, const StepPlan& plan) {
  metrics_.KvPages(pool_.used(), pool_.cached(), pool_.pages());
  metrics_.Sequences(scheduler_.running(), inbox_.waiting_requests());
  if (plan.slices.empty()) return;
  steps_.fetch_add(1, std::memory_order_relaxed);
  metrics_.Step(step_seconds, plan.rows, static_cast<int64_t>(plan.slices.size()), plan.preempted);
  metrics_.ActivationCache(activations_.hits() - hits_seen_, activations_.misses() - misses_seen_);
  hits_seen_ = activations_.hits();
  misses_seen_ = activations_.misses();
  hits_.store(hits_seen_, std::memory_order_relaxed);
  misses_.store(misses_seen_, std::memory_order_relaxed);
  running_.store(scheduler_.running(), std::memory_order_relaxed);
}

EngineStats StepLoop::Stats() const {
  EngineStats out;
  out.running = running_.load(std::memory_order_relaxed);
  out.waiting = inbox_.waiting_requests();
  out.waiting_tokens = inbox_.waiting_tokens();
  out.kv_pages_used = pool_.used();
  out.kv_pages_total = pool_.pages();
  out.kv_page_tokens = pool_.page_tokens();
  out.prompt_tokens_total = prompt_tokens_.load(std::memory_order_relaxed);
  out.generated_tokens_total = generated_tokens_.load(std::memory_order_relaxed);
  out.steps_total = steps_.load(std::memory_order_relaxed);
  out.activation_hits_total = hits_.load(std::memory_order_relaxed);
  out.activation_misses_total = misses_.load(std::memory_order_relaxed);
  if (busy_.load(std::memory_order_acquire)) {
    out.last_step_age_seconds =
        static_cast<double>(MonotonicNs() - progress_ns_.load(std::memory_order_acquire)) * 1e-9;
  }
  return out;
}

}  // namespace sage
