// One owner a call: every transition is decided under the mutex, the gRPC operation is started outside it.
#include "server/services/generation_stream.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "server/convert.h"
#include "server/convert_status.h"
#include "server/daemon.h"

namespace sage::server {
namespace {

constexpr size_t kMaxQueuedUpdates = 4096;
constexpr size_t kMaxQueuedBytes = 8 << 20;

}  // namespace

GenerationStream::GenerationStream(Daemon& daemon, const char* method)
    : daemon_(daemon), call_(daemon, "grpc", method), shared_(std::make_shared<Shared>()) {
  shared_->stream = this;
}

void GenerationStream::Start(grpc::CallbackServerContext* context, Prepare prepare) {
  const absl::Status status = call_.Open(*context, true);
  if (!status.ok()) return Fail(status);
  if (!daemon_.Quick([this, prepare = std::move(prepare)] { Submit(prepare); })) Fail(WorkersBusy());
}

// The call cannot end before this returns or hands over to the sink: nobody else sets ended_ until then.
void GenerationStream::Submit(const Prepare& prepare) {
  if (call_.cancel.cancelled()) return Fail(absl::CancelledError("cancelled by the client"));
  if (absl::Now() >= call_.deadline) {
    return Fail(
        MakeError(absl::StatusCode::kDeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline passed in the queue"));
  }
  absl::StatusOr<Prepared> prepared = prepare(call_);
  if (!prepared.ok()) return Fail(prepared.status());
  prepared->spec.deadline = call_.deadline;
  gatherer_ = UpdateGatherer(prepared->stream_interval);  // before there is a sink
  const std::shared_ptr<Shared> shared = shared_;
  const std::shared_ptr<InferenceEngine> engine = prepared->engine;
  const TokenizerFiles* files = engine->tokenizer();
  const Tokenizer* tokenizer = files == nullptr ? nullptr : files->tokenizer.get();
  const bool logprobs = prepared->spec.logprobs >= 0;
  auto handle = engine->Submit(
      std::move(prepared->spec),
      [shared, engine, tokenizer, logprobs](const GenerationEvent& e) { Push(shared, e, tokenizer, logprobs); });
  if (!handle.ok()) return Fail(handle.status());
  bool cancelled = false;
  {
    std::lock_guard lock(shared->mutex);
    if (shared->stream == nullptr) return;  // all updates were written and the call is done
    engine_ = engine;
    handle_ = *handle;
    cancelled = call_.cancel.cancelled();
  }
  if (cancelled) (*handle)->Cancel();
}

void GenerationStream::Push(const std::shared_ptr<Shared>& shared, const GenerationEvent& event,
                            const Tokenizer* tokenizer, bool logprobs) {
  quant::v1::GenerationUpdate update;
  FillUpdate(event, tokenizer, logprobs, &update);
  GenerationStream* stream;
  std::shared_ptr<GenerationHandle> cancel;
  Action action;
  {
    std::lock_guard lock(shared->mutex);
    stream = shared->stream;
    if (stream == nullptr || stream->ended_) return;
    const bool worth_writing = event.status.ok() || !event.text.empty() || !event.tokens.empty();
    if ((worth_writing || stream->gatherer_.Holds(event.choice)) && stream->gatherer_.Add(&update)) {
      stream->queue_bytes_ += update.ByteSizeLong();
      stream->queue_.push_back(std::move(update));
    }
    if (event.last) {
      stream->call_.TraceGeneration(stream->call_.began(), event);
      stream->ended_ = true;
      stream->status_ = event.status;
    } else if (stream->queue_.size() > kMaxQueuedUpdates || stream->queue_bytes_ > kMaxQueuedBytes) {
      stream->ended_ = true;
      stream->queue_.clear();
      stream->status_ = MakeError(absl::StatusCode::kResourceExhausted, "SLOW_READER",
                                  "the client reads slower than tokens are made and the stream's buffer is full");
      cancel = stream->handle_;
    }
    action = stream->Next();
  }
  if (cancel != nullptr) cancel->Cancel();
  stream->Do(action);
}

void GenerationStream::Fail(const absl::Status& status) {
  Action action;
  {
    std::lock_guard lock(shared_->mutex);
    if (!ended_) {
      ended_ = true;
      status_ = status;
    }
    action = Next();
  }
  Do(action);
}

GenerationStream::Action GenerationStream::Next() {
  if (writing_ || finished_) return Action::kNone;
  if (!queue_.empty()) {
    writing_message_ = std::move(queue_.front());
    queue_.pop_front();
    queue_bytes_ -= std::min(queue_bytes_, writing_message_.ByteSizeLong());
    writing_ = true;
    return Action::kWrite;
  }
  if (!ended_) return Action::kNone;
  finished_ = true;
  return Action::kFinish;
}

void GenerationStream::Do(Action action) {
  if (action == Action::kWrite) StartWrite(&writing_message_);
  if (action == Action::kFinish) {
    call_.SetStatus(status_);
    Finish(ToGrpcStatus(status_));
  }
}

void GenerationStream::OnWriteDone(bool ok) {
  std::shared_ptr<GenerationHandle> cancel;
  Action action;
  {
    std::lock_guard lock(shared_->mutex);
    writing_ = false;
    if (!ok) {  // the connection is gone; the engine's last event is not waited for
      queue_.clear();
      if (!ended_) status_ = absl::CancelledError("the client went away");
      ended_ = true;
      cancel = handle_;
    }
    action = Next();
  }
  if (cancel != nullptr) cancel->Cancel();
  Do(action);
}

void GenerationStream::OnCancel() {
  call_.cancel.Cancel();
  std::shared_ptr<GenerationHandle> handle;
  {
    std::lock_guard lock(shared_->mutex);
    handle = handle_;
  }
  if (handle != nullptr) handle->Cancel();  // its last event ends the call
}

void GenerationStream::OnDone() {
  {
    std::lock_guard lock(shared_->mutex);
    shared_->stream = nullptr;
  }
  delete this;
}

}  // namespace sage::server
