// sage llm generate | chat | score.
#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "client/cli/command.h"
#include "client/cli/generation_flags.h"
#include "sage/quant/v1/generation.grpc.pb.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;
using Json = nlohmann::ordered_json;

constexpr size_t kMaxInputBytes = size_t{60} << 20;

Json TopJson(const google::protobuf::RepeatedPtrField<v1::TokenAlternative>& top) {
  Json out = Json::array();
  for (const v1::TokenAlternative& t : top)
    out.push_back({{"id", t.id()}, {"token", t.token()}, {"logprob", t.logprob()}});
  return out;
}

// Collects a stream into the document of `generate`; prints text as it comes when asked.
class Collector {
 public:
  Collector(bool logprobs, bool print) : logprobs_(logprobs), print_(print) {}

  void Add(const v1::GenerationUpdate& message) {
    const size_t i = static_cast<size_t>(std::max(0, message.index()));
    if (i >= choices_.size()) choices_.resize(i + 1);
    Choice& choice = choices_[i];
    choice.text += message.text();
    for (const v1::GeneratedToken& token : message.tokens()) {
      choice.ids.push_back(token.id());
      if (logprobs_)
        choice.logprobs.push_back({{"id", token.id()},
                                   {"token", token.token()},
                                   {"logprob", token.logprob()},
                                   {"top", TopJson(token.top())}});
    }
    if (!message.finish_reason().empty()) choice.finish_reason = message.finish_reason();
    if (!message.stop_match().empty()) choice.stop_match = message.stop_match();
    if (message.seed() != 0) seed_ = message.seed();
    if (message.has_usage()) usage_ = message.usage();
    if (message.has_timings()) timings_ = message.timings();
    if (print_ && i == 0) {
      std::fwrite(message.text().data(), 1, message.text().size(), stdout);
      std::fflush(stdout);
    }
  }

  Json Document() const {
    Json out = {{"choices", Json::array()}};
    for (size_t i = 0; i < choices_.size(); ++i) {
      const Choice& c = choices_[i];
      out["choices"].push_back({{"index", i},
                                {"text", c.text},
                                {"token_ids", c.ids},
                                {"finish_reason", c.finish_reason},
                                {"stop_match", c.stop_match},
                                {"logprobs", logprobs_ ? c.logprobs : Json(nullptr)}});
    }
    out["usage"] = {{"prompt_tokens", usage_.prompt_tokens()},
                    {"completion_tokens", usage_.completion_tokens()},
                    {"cached_tokens", usage_.cached_tokens()}};
    out["timings"] = {{"queue_ms", timings_.queue_ms()},
                      {"prefill_ms", timings_.prefill_ms()},
                      {"decode_ms", timings_.decode_ms()},
                      {"first_token_ms", timings_.first_token_ms()}};
    out["seed"] = seed_;
    return out;
  }

  void PrintRest() const {
    for (size_t i = 1; i < choices_.size(); ++i) std::printf("\n--- choice %zu\n%s", i, choices_[i].text.c_str());
    std::printf("\n");
    TellUnreadable();
    if (isatty(STDERR_FILENO) && timings_.decode_ms() > 0 && usage_.completion_tokens() > 1) {
      std::fprintf(stderr, "[%lld tokens, %.1f tokens/s, first token after %.0f ms]\n",
                   static_cast<long long>(usage_.completion_tokens()),
                   1000.0 * static_cast<double>(usage_.completion_tokens() - 1) / timings_.decode_ms(),
                   timings_.first_token_ms());
    }
  }
  const std::string& text() const { return choices_.empty() ? empty_ : choices_[0].text; }

 private:
  struct Choice {
    std::string text, finish_reason, stop_match;
    std::vector<int32_t> ids;
    Json logprobs = Json::array();
  };
  // A model without tokenizer files makes ids and no text: they must not be lost without --json.
  void TellUnreadable() const {
    for (const Choice& choice : choices_) {
      if (!choice.text.empty() || choice.ids.empty() || choice.finish_reason != "length") continue;
      std::string ids;
      for (const int32_t id : choice.ids) ids += (ids.empty() ? "" : ",") + std::to_string(id);
      std::fprintf(stderr, "no text came with the ids %s\n", ids.c_str());
    }
  }

  bool logprobs_, print_;
  std::string empty_;
  std::vector<Choice> choices_;
  v1::GenerationUsage usage_;
  v1::GenerationTimings timings_;
  uint64_t seed_ = 0;
};

template <typename Reader>
std::optional<Failure> Drain(Context& context, Reader& reader, Collector& collector) {
  v1::GenerationUpdate message;
  while (reader->Read(&message)) collector.Add(message);
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return context.session->ToFailure(status);
  return std::nullopt;
}

std::optional<Failure> RunChat(Context& context, const v1::ChatRequest& request, Collector& collector) {
  auto stub = v1::GenerationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  auto reader = stub->Chat(call.get(), request);
  return Drain(context, reader, collector);
}

struct GenerateInput {
  std::string engine, prompt, prompt_file, prompt_ids;
  bool no_special = false, gives_ids = false;
  GenerationFlags flags;
};

std::optional<Failure> Generate(Context& context, GenerateInput& input) {
  v1::GenerateRequest request;
  request.set_engine_id(input.engine);
  if (auto failure = FinishGenerationFlags(input.flags, !context.options.json)) return failure;
  *request.mutable_options() = input.flags.options;
  if (input.no_special) request.mutable_options()->set_no_add_special(true);
  if (input.gives_ids) {
    std::vector<int32_t> ids;
    if (auto failure = ParseIds(input.prompt_ids, &ids)) return failure;
    if (ids.empty()) {
      return Failure{.exit_code = kUsage,
                     .code = "INVALID_ARGUMENT",
                     .reason = "PROMPT_EMPTY",
                     .message = "--prompt-ids: at least one id is needed, got '" + input.prompt_ids + "'"};
    }
    request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  } else if (!input.prompt_file.empty()) {
    if (auto failure = ReadLocalFile(input.prompt_file, kMaxInputBytes, &input.prompt)) return failure;
    if (auto failure = CheckUtf8(input.prompt_file, input.prompt)) return failure;
    request.set_text(input.prompt);
  } else {
    if (auto failure = CheckUtf8("--prompt", input.prompt)) return failure;
    request.set_text(input.prompt);
  }
  auto stub = v1::GenerationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  auto reader = stub->Generate(call.get(), request);
  Collector collector(request.options().has_logprobs(), !context.options.json);
  if (auto failure = Drain(context, reader, collector)) return failure;
  if (context.options.json) {
    PrintJson(collector.Document());
  } else {
    collector.PrintRest();
  }
  return std::nullopt;
}

void AddGenerate(CLI::App& llm, Context& context) {
  auto input = std::make_shared<GenerateInput>();
  auto* command = llm.add_subcommand("generate", "Continue a prompt");
  command->add_option("--engine", input->engine, "Engine id")->required();
  auto* group = command->add_option_group("prompt", "What to continue");
  group->add_option("--prompt", input->prompt, "Text");
  group->add_option("--prompt-file", input->prompt_file, "File with text");
  group->add_option_function<std::string>(
      "--prompt-ids",
      [input](const std::string& ids) {
        input->prompt_ids = ids;
        input->gives_ids = true;
      },
      "Token ids: 1,2,3");
  group->require_option(1);
  command->add_flag("--no-special", input->no_special, "Add no special tokens to the prompt");
  AddGenerationFlags(*command, input->flags);
  command->callback([input, &context] { context.Run([&] { return Generate(context, *input); }); });
}

struct ChatInput {
  std::string engine, message, system, messages_file, tools_file, template_args;
  GenerationFlags flags;
};

// Reads lines from the terminal until end of file or /exit; the conversation so far goes with every turn.
std::optional<Failure> Interactive(Context& context, const ChatInput& input, v1::ChatRequest request, Json messages) {
  const bool terminal = isatty(STDIN_FILENO) == 1;
  if (terminal) std::fprintf(stderr, "Chat with %s. /reset begins anew, /exit leaves.\n", input.engine.c_str());
  const Json initial = messages;
  std::string line;
  while (true) {
    if (terminal) std::fprintf(stderr, "> ");
    if (!std::getline(std::cin, line) || line == "/exit") return std::nullopt;
    if (line == "/reset") {
      messages = initial;
      continue;
    }
    if (line.empty()) continue;
    if (auto failure = CheckUtf8("input", line)) return failure;
    messages.push_back({{"role", "user"}, {"content", line}});
    request.mutable_conversation()->set_messages_json(messages.dump(-1, ' ', false, Json::error_handler_t::replace));
    Collector collector(request.options().has_logprobs(), !context.options.json);
    if (auto failure = RunChat(context, request, collector)) return failure;
    if (context.options.json) {
      PrintJson(collector.Document());
    } else {
      collector.PrintRest();
    }
    messages.push_back({{"role", "assistant"}, {"content", collector.text()}});
  }
}

std::optional<Failure> Chat(Context& context, ChatInput& input) {
  v1::ChatRequest request;
  request.set_engine_id(input.engine);
  for (const auto& [flag, text] : {std::pair("--template-args", &input.template_args),
                                   std::pair("--message", &input.message), std::pair("--system", &input.system)}) {
    if (auto failure = CheckUtf8(flag, *text)) return failure;
  }
  request.mutable_conversation()->set_template_args_json(input.template_args);
  if (auto failure = FinishGenerationFlags(input.flags, !context.options.json)) return failure;
  *request.mutable_options() = input.flags.options;
  std::string tools;
  if (!input.tools_file.empty()) {
    if (auto failure = ReadLocalFile(input.tools_file, kMaxInputBytes, &tools)) return failure;
    if (auto failure = CheckUtf8(input.tools_file, tools)) return failure;
    request.mutable_conversation()->set_tools_json(tools);
  }
  Json messages = Json::array();
  if (!input.messages_file.empty()) {
    std::string text;
    if (auto failure = ReadLocalFile(input.messages_file, kMaxInputBytes, &text)) return failure;
    if (auto failure = ParseJsonText(input.messages_file, text, &messages)) return failure;
    if (messages.is_object() && messages.contains("messages")) messages = Json(messages["messages"]);
  }
  if (!input.system.empty()) messages.insert(messages.begin(), Json{{"role", "system"}, {"content", input.system}});
  if (input.message.empty() && input.messages_file.empty()) return Interactive(context, input, request, messages);
  if (!input.message.empty()) messages.push_back({{"role", "user"}, {"content", input.message}});
  request.mutable_conversation()->set_messages_json(messages.dump(-1, ' ', false, Json::error_handler_t::replace));
  Collector collector(request.options().has_logprobs(), !context.options.json);
  if (auto failure = RunChat(context, request, collector)) return failure;
  if (context.options.json) {
    PrintJson(collector.Document());
  } else {
    collector.PrintRest();
  }
  return std::nullopt;
}

void AddChat(CLI::App& llm, Context& context) {
  auto input = std::make_shared<ChatInput>();
  auto* command = llm.add_subcommand("chat", "Chat through the model's template; without a message, interactively");
  command->add_option("--engine", input->engine, "Engine id")->required();
  command->add_option("--message", input->message, "One message");
  command->add_option("--system", input->system, "System message");
  command->add_option("--messages", input->messages_file, "JSON file: [{role, content}, ...]");
  command->add_option("--tools", input->tools_file, "JSON file of tools");
  command->add_option("--template-args", input->template_args, "JSON object of template variables");
  AddGenerationFlags(*command, input->flags);
  command->callback([input, &context] { context.Run([&] { return Chat(context, *input); }); });
}

struct ScoreInput {
  std::string engine, text_file, ids_file;
  int64_t window = 0, windows = 0;
  int32_t top = 0;
};

std::optional<Failure> Score(Context& context, const ScoreInput& input) {
  v1::ScoreRequest request;
  request.set_engine_id(input.engine);
  request.set_window(input.window);
  request.set_max_windows(input.windows);
  request.set_top(input.top);
  std::string text;
  if (auto failure = ReadLocalFile(input.text_file.empty() ? input.ids_file : input.text_file, kMaxInputBytes, &text))
    return failure;
  if (!input.text_file.empty()) {
    if (auto failure = CheckUtf8(input.text_file, text)) return failure;
    request.set_text(text);
  } else {
    Json ids;
    if (auto failure = ParseJsonText(input.ids_file, text, &ids)) return failure;
    for (const Json& id : ids) {
      if (!id.is_number_integer()) {
        return Failure{.exit_code = kUsage,
                       .code = "INVALID_ARGUMENT",
                       .reason = "JSON_INVALID",
                       .message = input.ids_file + ": must be a JSON array of integers"};
      }
      request.mutable_token_ids()->add_ids(id.get<int32_t>());
    }
    request.mutable_token_ids();
  }
  auto stub = v1::GenerationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::ScoreResponse answer;
  const grpc::Status status = stub->Score(call.get(), request, &answer);
  if (!status.ok()) return context.session->ToFailure(status);
  if (!context.options.json) {
    std::printf("ppl %.4f  nll %.4f  scored %lld  windows %lld of %lld\n", answer.ppl(), answer.nll(),
                static_cast<long long>(answer.scored()), static_cast<long long>(answer.windows()),
                static_cast<long long>(answer.window()));
    return std::nullopt;
  }
  Json out = {{"nll", answer.nll()}, {"ppl", answer.ppl()}, {"scored", answer.scored()}, {"windows", answer.windows()}};
  out["window"] = answer.window();
  if (input.top > 0) {
    out["positions"] = Json::array();
    for (const v1::ScorePosition& p : answer.positions()) {
      out["positions"].push_back(
          {{"id", p.id()}, {"logprob", p.logprob()}, {"rank", p.rank()}, {"top", TopJson(p.top())}});
    }
  }
  PrintJson(out);
  return std::nullopt;
}

void AddScore(CLI::App& llm, Context& context) {
  auto input = std::make_shared<ScoreInput>();
  auto* command = llm.add_subcommand("score", "How likely a text is: nll and perplexity");
  command->add_option("--engine", input->engine, "Engine id")->required();
  auto* group = command->add_option_group("input", "What to score");
  group->add_option("--text-file", input->text_file, "File with text");
  group->add_option("--ids-file", input->ids_file, "JSON array of token ids");
  group->require_option(1);
  command->add_option("--window", input->window, "Positions a window (2048)");
  command->add_option("--windows", input->windows, "Most windows (all)");
  command->add_option("--top", input->top, "Alternatives for every position");
  command->callback([input, &context] { context.Run([&] { return Score(context, *input); }); });
}

}  // namespace

void AddGenerateCommands(CLI::App& llm, Context& context) {
  AddGenerate(llm, context);
  AddChat(llm, context);
  AddScore(llm, context);
}

}  // namespace sage::cli
