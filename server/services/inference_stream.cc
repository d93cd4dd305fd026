// Owners of one call each; see the header for who may touch what.
#include "server/services/inference_stream.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "grpcpp/server_context.h"
#include "server/convert_status.h"
#include "server/daemon.h"

namespace sage::server {
namespace {

constexpr size_t kMaxActive = 64;
constexpr size_t kMaxQueuedAnswers = 4096;
constexpr size_t kMaxQueuedBytes = 8 << 20;

}  // namespace

InferenceCall::InferenceCall(Daemon& daemon, InferenceStatistics& statistics)
    : daemon_(daemon),
      statistics_(statistics),
      call_(daemon, "grpc", "ModelInfer"),
      shared_(std::make_shared<Shared>()),
      began_(absl::Now()) {}

void InferenceCall::Start(grpc::CallbackServerContext* context, const inference::ModelInferRequest* request,
                          inference::ModelInferResponse* response) {
  response_ = response;
  const absl::Status status = call_.Open(*context, true);
  if (!status.ok()) return End(status);
  if (!daemon_.Quick([this, request] { Submit(*request); })) End(WorkersBusy());
}

// The reactor may be gone as soon as the engine has taken the request: only locals are used afterwards.
void InferenceCall::Submit(const inference::ModelInferRequest& request) {
  if (call_.cancel.cancelled()) return End(absl::CancelledError("cancelled by the client"));
  absl::StatusOr<InferenceJob> job = ToInferenceJob(daemon_, call_, request, /*may_stream=*/false);
  if (!job.ok()) return End(job.status());
  job_ = *std::move(job);
  const std::shared_ptr<Shared> shared = shared_;
  const std::shared_ptr<InferenceEngine> engine = job_.engine;
  auto handle = engine->Submit(job_.spec, [this](const GenerationEvent& event) { Take(event); });
  if (!handle.ok()) return End(handle.status());
  bool cancelled;
  {
    std::lock_guard lock(shared->mutex);
    shared->handle = *handle;
    cancelled = shared->cancelled;
  }
  if (cancelled) (*handle)->Cancel();
}

void InferenceCall::Take(const GenerationEvent& event) {
  output_.Add(event);
  if (!event.last) return;
  call_.TraceGeneration(began_, event);
  statistics_.Record(job_.model, event.status.ok(), absl::ToDoubleSeconds(absl::Now() - began_), event.timings);
  if (event.status.ok()) FillInferenceResponse(job_, output_, response_);
  End(event.status);
}

void InferenceCall::End(const absl::Status& status) {
  call_.SetStatus(status);
  Finish(ToGrpcStatus(status));
}

void InferenceCall::OnCancel() {
  call_.cancel.Cancel();
  std::shared_ptr<GenerationHandle> handle;
  {
    std::lock_guard lock(shared_->mutex);
    shared_->cancelled = true;
    handle = shared_->handle;
  }
  if (handle != nullptr) handle->Cancel();  // its last event ends the call
}

struct InferenceStream::Running {
  InferenceJob job;
  InferenceOutput output;
  absl::Time began = absl::Now();
};

InferenceStream::InferenceStream(Daemon& daemon, InferenceStatistics& statistics)
    : daemon_(daemon),
      statistics_(statistics),
      call_(daemon, "grpc", "ModelStreamInfer"),
      shared_(std::make_shared<Shared>()) {
  shared_->stream = this;
}

void InferenceStream::Start(grpc::CallbackServerContext* context) {
  const auto& metadata = context->client_metadata();
  const auto flag = metadata.find("triton_grpc_error");
  status_errors_ = flag != metadata.end() && flag->second == "true";
  const absl::Status status = call_.Open(*context, true);
  Action action;
  {
    std::lock_guard lock(shared_->mutex);
    if (!status.ok()) EndWith(status);
    action = Next();
  }
  Do(action);
}

void InferenceStream::OnReadDone(bool ok) {
  std::shared_ptr<inference::ModelInferRequest> request;
  uint64_t ticket = 0;
  Action action;
  {
    std::lock_guard lock(shared_->mutex);
    reading_ = false;
    if (!ok || ended_) {
      reads_done_ = true;
    } else {
      request = std::make_shared<inference::ModelInferRequest>(std::move(reading_message_));
      reading_message_.Clear();
      ticket = next_ticket_++;
      active_[ticket] = nullptr;
      ++submits_;
    }
    action = Next();
  }
  Do(action);
  if (request == nullptr) return;  // submits_ keeps the reactor until Submit or Fail has counted it down
  if (!daemon_.Quick([this, ticket, request] { Submit(ticket, *request); })) Fail(ticket, *request, WorkersBusy());
}

void InferenceStream::Submit(uint64_t ticket, const inference::ModelInferRequest& request) {
  if (call_.cancel.cancelled()) return Fail(ticket, request, absl::CancelledError("cancelled by the client"));
  if (const absl::Status admitted = daemon_.Admit(); !admitted.ok()) return Fail(ticket, request, admitted);
  absl::StatusOr<InferenceJob> job = ToInferenceJob(daemon_, call_, request, /*may_stream=*/true);
  if (!job.ok()) return Fail(ticket, request, job.status());
  auto running = std::make_shared<Running>();
  running->job = *std::move(job);
  const std::shared_ptr<InferenceEngine> engine = running->job.engine;
  const std::shared_ptr<Shared> shared = shared_;
  auto handle = engine->Submit(running->job.spec, [shared, ticket, running](const GenerationEvent& event) {
    Push(shared, ticket, *running, event);
  });
  if (!handle.ok()) return Fail(ticket, request, handle.status());
  bool cancel;
  Action action;
  {
    std::lock_guard lock(shared->mutex);
    --submits_;
    if (const auto it = active_.find(ticket); it != active_.end()) it->second = *handle;
    cancel = ended_ || call_.cancel.cancelled();
    action = Next();
  }
  if (action != Action::kNone) Do(action);  // otherwise the reactor may be gone
  if (cancel) (*handle)->Cancel();
}

void InferenceStream::Push(const std::shared_ptr<Shared>& shared, uint64_t ticket, Running& running,
                           const GenerationEvent& event) {
  running.output.Add(event);
  inference::ModelStreamInferResponse response;
  const bool something =
      !running.output.text.empty() || running.output.last || (running.job.wants_ids && !running.output.ids.empty());
  const bool answer = event.status.ok() && something && (running.job.streaming || running.output.last);
  if (answer) {
    FillInferenceResponse(running.job, running.output, response.mutable_infer_response());
    running.output = InferenceOutput();
  }
  Handles cancel;
  InferenceStream* stream;
  Action action;
  {
    std::lock_guard lock(shared->mutex);
    stream = shared->stream;
    if (stream == nullptr) return;
    if (event.last) {
      stream->active_.erase(ticket);
      stream->call_.TraceGeneration(running.began, event);
      stream->statistics_.Record(running.job.model, event.status.ok(),
                                 absl::ToDoubleSeconds(absl::Now() - running.began), event.timings);
    }
    if (answer) stream->Queue(std::move(response));
    if (event.last && !event.status.ok()) {
      cancel = stream->QueueError(running.job.model, running.job.id, event.status);
    }
    const bool overflow = stream->queue_.size() > kMaxQueuedAnswers || stream->queue_bytes_ > kMaxQueuedBytes;
    if (overflow && !stream->ended_) {
      cancel =
          stream->EndWith(MakeError(absl::StatusCode::kResourceExhausted, "SLOW_READER",
                                    "the client reads slower than answers are made and the stream's buffer is full"));
    }
    action = stream->Next();
  }
  if (action != Action::kNone) stream->Do(action);
  for (const auto& handle : cancel) handle->Cancel();
}

void InferenceStream::Fail(uint64_t ticket, const inference::ModelInferRequest& request, const absl::Status& status) {
  const std::shared_ptr<Shared> shared = shared_;
  Handles cancel;
  Action action;
  {
    std::lock_guard lock(shared->mutex);
    --submits_;
    active_.erase(ticket);
    cancel = QueueError(request.model_name(), request.id(), status);
    action = Next();
  }
  if (action != Action::kNone) Do(action);
  for (const auto& handle : cancel) handle->Cancel();
}

void InferenceStream::Queue(inference::ModelStreamInferResponse response) {
  if (ended_) return;
  queue_bytes_ += response.ByteSizeLong();
  queue_.push_back(std::move(response));
}

InferenceStream::Handles InferenceStream::QueueError(const std::string& model, const std::string& id,
                                                     const absl::Status& status) {
  if (status_errors_) return EndWith(status);
  daemon_.CountRefusal(status);  // the stream goes on: its end tells nothing of this request
  inference::ModelStreamInferResponse response;
  const grpc::Status wire = ToGrpcStatus(status);  // its message is valid UTF-8
  response.set_error_message("[" + ReasonOf(status) + "] " + wire.error_message());
  auto* infer = response.mutable_infer_response();
  infer->set_model_name(model);
  infer->set_id(id);
  (*infer->mutable_parameters())["triton_final_response"].set_bool_param(true);
  Queue(std::move(response));
  return {};
}

InferenceStream::Handles InferenceStream::EndWith(const absl::Status& status) {
  Handles handles;
  if (!ended_) status_ = status;
  ended_ = true;
  queue_.clear();
  queue_bytes_ = 0;
  for (const auto& [ticket, handle] : active_) {
    if (handle != nullptr) handles.push_back(handle);
  }
  return handles;
}

InferenceStream::Action InferenceStream::Next() {
  if (finished_) return Action::kNone;
  if (!reading_ && !reads_done_ && !ended_ && active_.size() < kMaxActive) {
    reading_ = starting_read_ = true;
    return Action::kRead;
  }
  if (!writing_ && !queue_.empty()) {
    writing_message_ = std::move(queue_.front());
    queue_.pop_front();
    queue_bytes_ -= std::min(queue_bytes_, writing_message_.ByteSizeLong());
    writing_ = true;
    return Action::kWrite;
  }
  const bool complete = ended_ || (reads_done_ && active_.empty());
  if (complete && submits_ == 0 && !writing_ && !starting_read_ && queue_.empty()) {
    finished_ = true;
    return Action::kFinish;
  }
  return Action::kNone;
}

void InferenceStream::Do(Action action) {
  const std::shared_ptr<Shared> shared = shared_;
  while (action != Action::kNone) {
    if (action == Action::kFinish) {
      call_.SetStatus(status_);
      Finish(ToGrpcStatus(status_));
      return;
    }
    // While a write is under way nobody can finish, so `this` stays; a read in the making holds it by starting_read_.
    if (action == Action::kWrite) {
      StartWrite(&writing_message_);
      return;
    }
    StartRead(&reading_message_);
    std::lock_guard lock(shared->mutex);
    starting_read_ = false;
    action = Next();
  }
}

void InferenceStream::OnWriteDone(bool ok) {
  Handles cancel;
  Action action;
  {
    std::lock_guard lock(shared_->mutex);
    writing_ = false;
    if (!ok) cancel = EndWith(absl::CancelledError("the client went away"));
    action = Next();
  }
  for (const auto& handle : cancel) handle->Cancel();
  if (action != Action::kNone) Do(action);
}

void InferenceStream::OnCancel() {
  call_.cancel.Cancel();
  Handles cancel;
  Action action;
  {
    std::lock_guard lock(shared_->mutex);
    cancel = EndWith(absl::CancelledError("cancelled by the client"));
    action = Next();
  }
  for (const auto& handle : cancel) handle->Cancel();
  if (action != Action::kNone) Do(action);
}

void InferenceStream::OnDone() {
  {
    std::lock_guard lock(shared_->mutex);
    shared_->stream = nullptr;
  }
  delete this;
}

}  // namespace sage::server
