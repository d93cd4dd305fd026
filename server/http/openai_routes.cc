// /v1/models, /v1/completions and /v1/chat/completions: whole answers and server-sent events.
#include <atomic>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "httplib.h"
#include "server/collect.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/http/openai_logprobs.h"
#include "server/http/openai_request.h"
#include "server/http/peer.h"
#include "server/http/routes.h"
#include "server/prompt.h"
#include "server/services/call.h"

namespace sage::server {
namespace {

constexpr size_t kMaxEventsWhole = 65536, kMaxEventsStream = 16384;

// Threads are what limits HTTP: some are kept for probes, metrics and management, whatever the generations do.
class Slot {
 public:
  explicit Slot(int http_threads) : taken_(++Count() <= http_threads - std::max(1, http_threads / 8)) {}
  ~Slot() { --Count(); }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;
  bool taken() const { return taken_; }

 private:
  static std::atomic<int>& Count() {
    static std::atomic<int> count{0};
    return count;
  }
  const bool taken_;
};

// A prompt that is repeated before its completions; the first token has no logprob.
struct Echo {
  std::string text;
  std::vector<TokenRecord> tokens;
};

// The events of all prompts of one request, each under the choice number prompt * n + choice.
struct Generation {
  OpenAiRequest request;
  std::string id, model;
  int64_t created = 0;
  std::shared_ptr<InferenceEngine> engine;
  std::vector<std::shared_ptr<EventQueue>> queues;
  std::vector<std::shared_ptr<GenerationHandle>> handles;
  std::unique_ptr<Call> call;
  std::unique_ptr<Slot> slot;
  std::vector<Echo> echoes;      // one a prompt, when asked for
  std::map<int, ToldText> told;  // by choice
  std::vector<bool> continues;   // whether a prompt's text stands before what is generated, by prompt
  bool echoed = false;
  size_t open = 0;  // the queue being read; prompts are answered in order
  GenerationUsage usage;
  std::vector<std::string> role_sent;
  bool done = false;
  const Echo* EchoOf(int choice) const { return echoes.empty() ? nullptr : &echoes[choice / request.spec.n]; }

  ~Generation() {
    for (const auto& handle : handles) handle->Cancel();  // no effect on one that ended
  }
  int Choice(const GenerationEvent& event) const { return static_cast<int>(open) * request.spec.n + event.choice; }
};

// `no_first`: the first of the tokens has no logprob, because nothing stands before it.
Json LogprobsJson(Generation& generation, int choice, const std::vector<TokenRecord>& tokens, bool no_first = false) {
  const TokenizerFiles* files = generation.engine->tokenizer();
  const Tokenizer* tokenizer = files == nullptr ? nullptr : files->tokenizer.get();
  const auto [told, first] = generation.told.try_emplace(choice);
  if (first) {
    const size_t prompt = static_cast<size_t>(choice / generation.request.spec.n);
    told->second.begun = generation.continues[prompt] && generation.echoes.empty();
    told->second.skips_special = generation.request.spec.skip_special;
  }
  return generation.request.chat ? ChatLogprobs(tokenizer, tokens, told->second)
                                 : CompletionLogprobs(tokenizer, tokens, no_first, told->second);
}

Json UsageJson(const GenerationUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

Json Envelope(const Generation& generation, bool chunk) {
  const char* object = !generation.request.chat ? "text_completion"
                       : chunk                  ? "chat.completion.chunk"
                                                : "chat.completion";
  return {{"id", generation.id}, {"object", object}, {"created", generation.created}, {"model", generation.model}};
}

// The prompt as text, with the logprobs of its tokens where they were asked for.
absl::StatusOr<Echo> MakeEcho(Generation& generation, const std::string* text, const std::vector<int32_t>& ids) {
  Echo out;
  if (text != nullptr) {
    out.text = *text;
  } else {
    SAGE_ASSIGN_OR_RETURN(const TokenizerFiles* files, TokenizerOf(*generation.engine));
    SAGE_ASSIGN_OR_RETURN(out.text, files->tokenizer->Decode(ids, true));
  }
  if (!generation.request.logprobs) return out;
  out.tokens.push_back({ids[0], 0, {}});
  if (ids.size() == 1) return out;
  const int top = generation.request.spec.logprobs;
  ScoreSpec spec;
  spec.ids = ids;
  spec.window = static_cast<int64_t>(ids.size());
  spec.top = std::max(top, 1);
  SAGE_ASSIGN_OR_RETURN(ScoreResult score, generation.engine->Score(spec, generation.call->cancel, nullptr));
  for (ScorePosition& position : score.positions) {
    if (top == 0) position.top.clear();
    out.tokens.push_back({position.id, position.logprob, std::move(position.top)});
  }
  return out;
}

// Admits and submits every prompt; the first refusal cancels the others.
absl::Status Begin(Daemon& daemon, Generation& generation) {
  OpenAiRequest& request = generation.request;
  SAGE_ASSIGN_OR_RETURN(generation.engine, daemon.engines().Find(request.model));
  generation.model = generation.engine->info().engine_id;
  generation.call->SetEngine(generation.model);
  std::vector<std::vector<int32_t>> prompts = std::move(request.ids);
  for (const std::vector<int32_t>& ids : prompts) {
    if (!request.echo) break;
    SAGE_ASSIGN_OR_RETURN(Echo echo, MakeEcho(generation, nullptr, ids));
    generation.echoes.push_back(std::move(echo));
  }
  for (const std::string& text : request.texts) {
    SAGE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, EncodePrompt(*generation.engine, text, true));
    if (request.echo) {
      SAGE_ASSIGN_OR_RETURN(Echo echo, MakeEcho(generation, &text, ids));
      generation.echoes.push_back(std::move(echo));
    }
    prompts.push_back(std::move(ids));
  }
  if (request.chat) {
    SAGE_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                          EncodeChat(*generation.engine, request.chat_context, request.add_generation_prompt));
    prompts.push_back(std::move(ids));
    request.spec.begins_text = request.add_generation_prompt;
  }
  for (std::vector<int32_t>& prompt : prompts) {
    GenerateSpec spec = request.spec;
    spec.prompt_ids = std::move(prompt);
    generation.continues.push_back(ContinuesText(spec, generation.engine->tokenizer()));
    spec.request_id = generation.call->request_id;
    auto queue = std::make_shared<EventQueue>(request.stream ? kMaxEventsStream : kMaxEventsWhole);
    auto handle = generation.engine->Submit(std::move(spec), queue->Sink(queue));
    if (!handle.ok()) return handle.status();
    queue->SetHandle(*handle);
    generation.queues.push_back(std::move(queue));
    generation.handles.push_back(*std::move(handle));
  }
  return absl::OkStatus();
}

// The next event, or nullopt after a tenth of a second. Adds up the usage and moves on to the next prompt.
std::optional<GenerationEvent> NextEvent(Generation& generation, int* choice) {
  std::optional<GenerationEvent> event =
      generation.queues[generation.open]->Next(absl::Now() + absl::Milliseconds(100));
  if (!event) return event;
  *choice = generation.Choice(*event);
  if (event->last) {
    if (generation.queues[generation.open]->overflowed()) {
      event->status = MakeError(absl::StatusCode::kResourceExhausted, "SLOW_READER",
                                "the client reads slower than tokens are made and the stream's buffer is full");
    }
    generation.call->TraceGeneration(generation.call->began(), *event);
    generation.usage.prompt_tokens += event->usage.prompt_tokens;
    generation.usage.completion_tokens += event->usage.completion_tokens;
    generation.usage.cached_tokens += event->usage.cached_tokens;
    if (++generation.open == generation.queues.size() || !event->status.ok()) generation.done = true;
  }
  return event;
}

std::string ChunkText(Generation& generation, const GenerationEvent& event, int choice) {
  Json row = {{"index", choice}, {"finish_reason", nullptr}, {"logprobs", nullptr}};
  if (!event.finish_reason.empty()) row["finish_reason"] = event.finish_reason;
  if (generation.request.logprobs) row["logprobs"] = LogprobsJson(generation, choice, event.tokens);
  if (generation.request.chat) {
    Json delta = Json::object();
    if (generation.role_sent.size() <= static_cast<size_t>(choice)) generation.role_sent.resize(choice + 1);
    if (generation.role_sent[choice].empty()) delta["role"] = generation.role_sent[choice] = "assistant";
    if (!event.text.empty() || delta.contains("role")) delta["content"] = event.text;
    row["delta"] = delta;
  } else {
    row["text"] = event.text;
  }
  Json chunk = Envelope(generation, true);
  chunk["choices"] = Json::array({row});
  if (generation.request.include_usage) chunk["usage"] = nullptr;
  return absl::StrCat("data: ", DumpJson(chunk), "\n\n");
}

// The chunks that repeat the prompts, before anything else.
std::string EchoChunks(Generation& generation) {
  std::string out;
  const int count = static_cast<int>(generation.echoes.size()) * generation.request.spec.n;
  for (int choice = 0; choice < count; ++choice) {
    const Echo& echo = *generation.EchoOf(choice);
    Json row = {{"index", choice}, {"finish_reason", nullptr}, {"logprobs", nullptr}, {"text", echo.text}};
    if (generation.request.logprobs) row["logprobs"] = LogprobsJson(generation, choice, echo.tokens, true);
    Json chunk = Envelope(generation, true);
    chunk["choices"] = Json::array({row});
    if (generation.request.include_usage) chunk["usage"] = nullptr;
    absl::StrAppend(&out, "data: ", DumpJson(chunk), "\n\n");
  }
  return out;
}

// One turn of the stream: waits for an event and writes it. False ends the connection.
bool WriteTurn(const std::shared_ptr<Generation>& generation, httplib::DataSink& sink) {
  const auto send = [&](const std::string& text) { return sink.write(text.data(), text.size()); };
  if (!std::exchange(generation->echoed, true) && !generation->echoes.empty() && !send(EchoChunks(*generation))) {
    generation->call->SetStatus(absl::CancelledError("the client went away"));
    return false;
  }
  int choice = 0;
  std::optional<GenerationEvent> event = NextEvent(*generation, &choice);
  if (!event) {
    if (sink.is_writable()) return true;
    generation->call->SetStatus(absl::CancelledError("the client went away"));
    return false;
  }
  const bool worth = !event->text.empty() || !event->finish_reason.empty() || generation->request.logprobs;
  if (event->status.ok() && worth && !send(ChunkText(*generation, *event, choice))) {
    generation->call->SetStatus(absl::CancelledError("the client went away"));
    return false;
  }
  if (!generation->done) return true;
  if (!event->status.ok()) {
    generation->call->SetStatus(event->status);
    send(absl::StrCat("data: ", DumpJson(OpenAiError(event->status)), "\n\n"));
  } else if (generation->request.include_usage) {
    Json chunk = Envelope(*generation, true);
    chunk["choices"] = Json::array();
    chunk["usage"] = UsageJson(generation->usage);
    send(absl::StrCat("data: ", DumpJson(chunk), "\n\n"));
  }
  send("data: [DONE]\n\n");
  sink.done();
  return true;
}

Json ChoiceJson(Generation& generation, int index, std::string text, const std::string& finish_reason,
                std::vector<TokenRecord> tokens) {
  Json row = {{"index", index}, {"finish_reason", finish_reason}, {"logprobs", nullptr}};
  if (const Echo* echo = generation.EchoOf(index); echo != nullptr) {
    text = echo->text + text;
    tokens.insert(tokens.begin(), echo->tokens.begin(), echo->tokens.end());
  }
  if (generation.request.logprobs) row["logprobs"] = LogprobsJson(generation, index, tokens, generation.request.echo);
  if (generation.request.chat) {
    row["message"] = {{"role", "assistant"}, {"content", text}};
  } else {
    row["text"] = text;
  }
  return row;
}

void AnswerWhole(Generation& generation, const httplib::Request& http, httplib::Response& response) {
  const PeerWatch peer(http);
  absl::Time next_look = absl::Now();
  const size_t count = generation.queues.size() * static_cast<size_t>(generation.request.spec.n);
  std::vector<std::string> texts(count), reasons(count);
  std::vector<std::vector<TokenRecord>> tokens(count);
  while (!generation.done) {
    int choice = 0;
    std::optional<GenerationEvent> event = NextEvent(generation, &choice);
    const bool look = absl::Now() >= next_look;
    if (look) next_look = absl::Now() + absl::Milliseconds(100);
    if (look && peer.gone()) {  // the handles are cancelled with the generation
      const absl::Status gone = absl::CancelledError("the client went away");
      generation.call->SetStatus(gone);
      return SetError(gone, response);
    }
    if (!event) continue;
    if (event->last && !event->status.ok()) {
      generation.call->SetStatus(event->status);
      return SetError(event->status, response);
    }
    if (choice < 0 || static_cast<size_t>(choice) >= count) continue;
    texts[choice] += event->text;
    if (!event->finish_reason.empty()) reasons[choice] = event->finish_reason;
    if (generation.request.logprobs) {
      tokens[choice].insert(tokens[choice].end(), event->tokens.begin(), event->tokens.end());
    }
  }
  Json body = Envelope(generation, false);
  body["choices"] = Json::array();
  for (size_t i = 0; i < count; ++i) {
    body["choices"].push_back(ChoiceJson(generation, static_cast<int>(i), texts[i], reasons[i], tokens[i]));
  }
  body["usage"] = UsageJson(generation.usage);
  SetJson(body, response);
}

void Complete(Daemon& daemon, bool chat, const httplib::Request& http, httplib::Response& response) {
  auto generation = std::make_shared<Generation>();
  generation->call = std::make_unique<Call>(daemon, "http", chat ? "ChatCompletions" : "Completions");
  if (!OpenCall(*generation->call, http, true, response)) return;
  generation->slot = std::make_unique<Slot>(daemon.config().http_threads);
  absl::StatusOr<OpenAiRequest> request = ParseOpenAiRequest(http.body, chat);
  absl::Status status = request.status();
  if (!generation->slot->taken()) {
    status = MakeError(absl::StatusCode::kResourceExhausted, "HTTP_BUSY",
                       "as many generations run over HTTP as the daemon's http_threads allow; retry, or use gRPC");
  }
  if (status.ok()) {
    generation->request = *std::move(request);
    generation->created = absl::ToUnixSeconds(absl::Now());
    generation->id = NewId(chat ? "chatcmpl" : "cmpl");
    status = Begin(daemon, *generation);
  }
  if (!status.ok()) {
    generation->call->SetStatus(status);
    return SetError(status, response);
  }
  if (!generation->request.stream) return AnswerWhole(*generation, http, response);
  response.set_header("Cache-Control", "no-cache");
  response.set_chunked_content_provider(
      "text/event-stream", [generation](size_t, httplib::DataSink& sink) { return WriteTurn(generation, sink); },
      [generation](bool) {  // also called when the client went away
        for (const auto& handle : generation->handles) handle->Cancel();
      });
}

Json ModelJson(const EngineRecord& record) {
  return {{"id", record.info.engine_id},
          {"object", "model"},
          {"created", absl::ToUnixSeconds(record.info.started_at)},
          {"owned_by", "sagequant"},
          {"root", record.info.model},
          {"max_model_len", record.info.max_model_len},
          {"quantization", record.info.quantization},
          {"kv_quant", record.info.kv_quant},
          {"backend", record.info.backend},
          {"chat", record.has_chat_template}};
}

}  // namespace

void AddOpenAiRoutes(Daemon& daemon, httplib::Server& server) {
  server.Get("/v1/models", [&daemon](const httplib::Request& request, httplib::Response& response) {
    Call call(daemon, "http", "Models");
    if (!OpenCall(call, request, false, response)) return;
    Json list = Json::array();
    for (const EngineRecord& record : daemon.engines().List()) {
      if (record.info.state != "RUNNING") continue;
      list.push_back(ModelJson(record));
    }
    SetJson({{"object", "list"}, {"data", list}}, response);
  });
  server.Get(R"(/v1/models/([A-Za-z0-9._-]+))",
             [&daemon](const httplib::Request& request, httplib::Response& response) {
               Call call(daemon, "http", "Model");
               if (!OpenCall(call, request, false, response)) return;
               absl::StatusOr<EngineRecord> record = daemon.engines().Get(request.matches[1]);
               call.SetStatus(record.status());
               record.ok() ? SetJson(ModelJson(*record), response) : SetError(record.status(), response);
             });
  for (const char* path : {"/v1/completions", "/v1/chat/completions", "/v1/embeddings"}) {
    server.Get(path, [&daemon](const httplib::Request& request, httplib::Response& response) {
      response.set_header("Allow", "POST");
      RefuseUnrouted(daemon, request,
                     MakeError(absl::StatusCode::kInvalidArgument, "METHOD_NOT_ALLOWED",
                               absl::StrCat(request.path, ": must be called by POST, got ", request.method)),
                     response);
      response.status = 405;
    });
  }
  server.Post("/v1/embeddings", [&daemon](const httplib::Request& request, httplib::Response& response) {
    Call call(daemon, "http", "Embeddings");
    if (!OpenCall(call, request, true, response)) return;
    const absl::Status status = MakeError(absl::StatusCode::kUnimplemented, "EMBEDDINGS_UNSUPPORTED",
                                          "/v1/embeddings: this daemon serves text generation only");
    call.SetStatus(status);
    SetError(status, response);
  });
  server.Post("/v1/completions", [&daemon](const httplib::Request& request, httplib::Response& response) {
    Complete(daemon, false, request, response);
  });
  server.Post("/v1/chat/completions", [&daemon](const httplib::Request& request, httplib::Response& response) {
    Complete(daemon, true, request, response);
  });
}

}  // namespace sage::server
