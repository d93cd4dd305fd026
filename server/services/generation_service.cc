// GenerationService: streams of Generate and Chat, scores, and the tokenizer.
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "sage/quant/v1/generation.grpc.pb.h"
#include "server/convert.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/prompt.h"
#include "server/services/call.h"
#include "server/services/generation_stream.h"
#include "server/services/services.h"

namespace sage::server {
namespace {

constexpr int kMaxIds = 16 << 20;

class GenerationService final : public pb::GenerationService::CallbackService {
 public:
  explicit GenerationService(Daemon& daemon) : daemon_(daemon) {}

  grpc::ServerWriteReactor<pb::GenerationUpdate>* Generate(grpc::CallbackServerContext* context,
                                                           const pb::GenerateRequest* request) override {
    auto* stream = new GenerationStream(daemon_, "Generate");
    stream->Start(context, [this, request](Call& call) { return PrepareGenerate(call, *request); });
    return stream;
  }
  grpc::ServerWriteReactor<pb::GenerationUpdate>* Chat(grpc::CallbackServerContext* context,
                                                       const pb::ChatRequest* request) override {
    auto* stream = new GenerationStream(daemon_, "Chat");
    stream->Start(context, [this, request](Call& call) { return PrepareChat(call, *request); });
    return stream;
  }
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const pb::ScoreRequest* request,
                                  pb::ScoreResponse* response) override {
    return RunUnary(daemon_, context, "Score", Lane::kSlow, Admission::kNeeded,
                    [=, this](Call& call) { return RunScore(call, *request, response); });
  }
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const pb::TokenizeRequest* request,
                                     pb::TokenizeResponse* response) override {
    return RunUnary(daemon_, context, "Tokenize", Lane::kQuick, Admission::kNeeded,
                    [=, this](Call&) { return RunTokenize(*request, response); });
  }
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const pb::DetokenizeRequest* request,
                                       pb::DetokenizeResponse* response) override {
    return RunUnary(daemon_, context, "Detokenize", Lane::kQuick, Admission::kNeeded, [=, this](Call&) -> absl::Status {
      SAGE_ASSIGN_OR_RETURN(Source source, Find(*request));
      const std::vector<int32_t> ids(request->ids().begin(), request->ids().end());
      SAGE_ASSIGN_OR_RETURN(*response->mutable_text(), source.files->tokenizer->Decode(ids, request->no_special()));
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* RenderChat(grpc::CallbackServerContext* context, const pb::RenderChatRequest* request,
                                       pb::RenderChatResponse* response) override {
    return RunUnary(daemon_, context, "RenderChat", Lane::kQuick, Admission::kNeeded, [=, this](Call&) -> absl::Status {
      SAGE_ASSIGN_OR_RETURN(Source source, Find(*request));
      SAGE_ASSIGN_OR_RETURN(OrderedJson chat, ToChatContext(request->conversation()));
      SAGE_ASSIGN_OR_RETURN(std::string text,
                            sage::RenderChat(*source.files, std::move(chat), !request->no_generation_prompt()));
      SAGE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, source.files->tokenizer->Encode(text, false));
      response->set_text(std::move(text));
      response->mutable_ids()->Add(ids.begin(), ids.end());
      return absl::OkStatus();
    });
  }

 private:
  struct Source {  // one of the two keeps the files alive
    std::shared_ptr<InferenceEngine> engine;
    std::shared_ptr<const TokenizerFiles> loaded;
    const TokenizerFiles* files = nullptr;
  };

  template <typename Request>
  absl::StatusOr<Source> Find(const Request& request) {
    Source source;
    if (request.source_case() == Request::kModel) {
      SAGE_ASSIGN_OR_RETURN(std::string path, daemon_.paths().ResolveModel(request.model()));
      SAGE_ASSIGN_OR_RETURN(source.loaded, daemon_.tokenizers().Load(path));
      source.files = source.loaded.get();
      return source;
    }
    SAGE_ASSIGN_OR_RETURN(source.engine, daemon_.engines().Find(request.engine_id()));
    SAGE_ASSIGN_OR_RETURN(source.files, TokenizerOf(*source.engine));
    return source;
  }

  absl::StatusOr<GenerationStream::Prepared> PrepareGenerate(Call& call, const pb::GenerateRequest& request) {
    GenerationStream::Prepared out;
    if (!request.request_id().empty()) call.request_id = request.request_id().substr(0, 128);
    SAGE_ASSIGN_OR_RETURN(out.engine, daemon_.engines().Find(request.engine_id()));
    call.SetEngine(out.engine->info().engine_id);
    SAGE_ASSIGN_OR_RETURN(out.spec, ToGenerateSpec(request.options()));
    SAGE_ASSIGN_OR_RETURN(out.stream_interval, ToStreamInterval(request.options()));
    out.spec.request_id = call.request_id;
    if (request.prompt_case() == pb::GenerateRequest::kTokenIds) {
      if (request.token_ids().ids_size() > kMaxIds) return BadField("token_ids", "PROMPT_TOO_LONG", "too many ids");
      out.spec.prompt_ids.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
      if (out.spec.prompt_ids.empty()) return BadField("token_ids", "PROMPT_EMPTY", "at least one id is needed");
    } else if (request.prompt_case() == pb::GenerateRequest::kText) {
      SAGE_ASSIGN_OR_RETURN(out.spec.prompt_ids,
                            EncodePrompt(*out.engine, request.text(), !request.options().no_add_special()));
    } else {
      return BadField("prompt", "PROMPT_EMPTY", "text or token_ids is needed");
    }
    return out;
  }

  absl::StatusOr<GenerationStream::Prepared> PrepareChat(Call& call, const pb::ChatRequest& request) {
    GenerationStream::Prepared out;
    if (!request.request_id().empty()) call.request_id = request.request_id().substr(0, 128);
    SAGE_ASSIGN_OR_RETURN(out.engine, daemon_.engines().Find(request.engine_id()));
    call.SetEngine(out.engine->info().engine_id);
    SAGE_ASSIGN_OR_RETURN(out.spec, ToGenerateSpec(request.options()));
    SAGE_ASSIGN_OR_RETURN(out.stream_interval, ToStreamInterval(request.options()));
    out.spec.request_id = call.request_id;
    SAGE_ASSIGN_OR_RETURN(OrderedJson chat, ToChatContext(request.conversation()));
    SAGE_ASSIGN_OR_RETURN(out.spec.prompt_ids, EncodeChat(*out.engine, chat, !request.no_generation_prompt()));
    out.spec.begins_text = !request.no_generation_prompt();
    return out;
  }

  absl::Status RunScore(Call& call, const pb::ScoreRequest& request, pb::ScoreResponse* response) {
    SAGE_ASSIGN_OR_RETURN(std::shared_ptr<InferenceEngine> engine, daemon_.engines().Find(request.engine_id()));
    call.SetEngine(engine->info().engine_id);
    ScoreSpec spec;
    if (request.window() != 0) spec.window = request.window();
    if (spec.window < 2) return BadField("window", "OUT_OF_RANGE", absl::StrCat("at least 2, got ", spec.window));
    if (request.max_windows() < 0) return BadField("max_windows", "OUT_OF_RANGE", "must not be negative");
    if (request.top() < 0 || request.top() > 100) {
      return BadField("top", "OUT_OF_RANGE", absl::StrCat("must be from 0 to 100, got ", request.top()));
    }
    spec.max_windows = request.max_windows();
    spec.top = request.top() == 0 && request.positions() ? 1 : request.top();
    if (request.input_case() == pb::ScoreRequest::kTokenIds) {
      spec.ids.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
    } else {
      SAGE_ASSIGN_OR_RETURN(spec.ids, EncodePrompt(*engine, request.text(), true));
    }
    SAGE_ASSIGN_OR_RETURN(ScoreResult result, engine->Score(spec, call.cancel, [](const Progress&) {}));
    if (request.top() == 0) {
      for (ScorePosition& position : result.positions) position.top.clear();
    }
    FillScore(result, response);
    return absl::OkStatus();
  }

  absl::Status RunTokenize(const pb::TokenizeRequest& request, pb::TokenizeResponse* response) {
    SAGE_ASSIGN_OR_RETURN(Source source, Find(request));
    const Tokenizer& tokenizer = *source.files->tokenizer;
    SAGE_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                          tokenizer.Encode(request.text(), !request.no_special(), !request.no_parse_special()));
    SAGE_ASSIGN_OR_RETURN(*response->mutable_text(), tokenizer.Decode(ids, false));
    response->mutable_ids()->Add(ids.begin(), ids.end());
    return absl::OkStatus();
  }

  Daemon& daemon_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeGenerationService(Daemon& daemon) {
  return std::make_unique<GenerationService>(daemon);
}

}  // namespace sage::server
