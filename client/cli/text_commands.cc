// sage llm tokenize | detokenize | render.
#include <cstdio>

#include "client/cli/command.h"
#include "client/cli/generation_flags.h"
#include "sage/quant/v1/generation.grpc.pb.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;
using Json = nlohmann::ordered_json;

constexpr size_t kMaxInputBytes = size_t{60} << 20;

struct TextInput {
  std::string engine, model, text, text_file, ids, messages, tools, template_args;
  bool no_special = false, no_generation_prompt = false;
};

void AddSource(CLI::App& command, TextInput& input) {
  auto* group = command.add_option_group("source", "Whose tokenizer");
  group->add_option("--engine", input.engine, "Engine id");
  group->add_option("--model", input.model, "Model folder or GGUF; need not be loaded");
  group->require_option(1);
}

template <typename Request>
void SetSource(const TextInput& input, Request& request) {
  if (!input.engine.empty()) {
    request.set_engine_id(input.engine);
  } else {
    request.set_model(input.model);
  }
}

void Show(const Context& context, const std::vector<int32_t>& ids, const std::string& text, bool ids_first) {
  if (context.options.json) {
    PrintJson({{"ids", ids}, {"text", text}});
  } else if (ids_first) {
    std::printf("%s\n", Json(ids).dump().c_str());
  } else {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::printf("\n");
  }
}

std::optional<Failure> Tokenize(Context& context, TextInput& input) {
  if (!input.text_file.empty()) {
    if (auto failure = ReadLocalFile(input.text_file, kMaxInputBytes, &input.text)) return failure;
  }
  if (auto failure = CheckUtf8(input.text_file.empty() ? "--text" : input.text_file, input.text)) return failure;
  v1::TokenizeRequest request;
  SetSource(input, request);
  request.set_text(input.text);
  request.set_no_special(input.no_special);
  auto stub = v1::GenerationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::TokenizeResponse answer;
  const grpc::Status status = stub->Tokenize(call.get(), request, &answer);
  if (!status.ok()) return context.session->ToFailure(status);
  Show(context, {answer.ids().begin(), answer.ids().end()}, answer.text(), true);
  return std::nullopt;
}

std::optional<Failure> Detokenize(Context& context, const TextInput& input) {
  v1::DetokenizeRequest request;
  SetSource(input, request);
  std::vector<int32_t> ids;
  if (auto failure = ParseIds(input.ids, &ids)) return failure;
  request.mutable_ids()->Assign(ids.begin(), ids.end());
  request.set_no_special(input.no_special);
  auto stub = v1::GenerationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::DetokenizeResponse answer;
  const grpc::Status status = stub->Detokenize(call.get(), request, &answer);
  if (!status.ok()) return context.session->ToFailure(status);
  Show(context, ids, answer.text(), false);
  return std::nullopt;
}

std::optional<Failure> Render(Context& context, const TextInput& input) {
  v1::RenderChatRequest request;
  SetSource(input, request);
  std::string text;
  if (auto failure = ReadLocalFile(input.messages, kMaxInputBytes, &text)) return failure;
  if (auto failure = CheckUtf8(input.messages, text)) return failure;
  request.mutable_conversation()->set_messages_json(text);
  if (!input.tools.empty()) {
    std::string tools;
    if (auto failure = ReadLocalFile(input.tools, kMaxInputBytes, &tools)) return failure;
    if (auto failure = CheckUtf8(input.tools, tools)) return failure;
    request.mutable_conversation()->set_tools_json(tools);
  }
  if (auto failure = CheckUtf8("--template-args", input.template_args)) return failure;
  request.mutable_conversation()->set_template_args_json(input.template_args);
  request.set_no_generation_prompt(input.no_generation_prompt);
  auto stub = v1::GenerationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::RenderChatResponse answer;
  const grpc::Status status = stub->RenderChat(call.get(), request, &answer);
  if (!status.ok()) return context.session->ToFailure(status);
  Show(context, {answer.ids().begin(), answer.ids().end()}, answer.text(), false);
  return std::nullopt;
}

}  // namespace

void AddTextCommands(CLI::App& llm, Context& context) {
  auto input = std::make_shared<TextInput>();
  auto* tokenize = llm.add_subcommand("tokenize", "Text to ids");
  AddSource(*tokenize, *input);
  auto* text = tokenize->add_option_group("text", "What to encode");
  text->add_option("--text", input->text, "Text");
  text->add_option("--text-file", input->text_file, "File with text");
  text->require_option(1);
  tokenize->add_flag("--no-special", input->no_special, "Add no special tokens");
  tokenize->callback([input, &context] { context.Run([&] { return Tokenize(context, *input); }); });

  auto* detokenize = llm.add_subcommand("detokenize", "Ids to text");
  AddSource(*detokenize, *input);
  detokenize->add_option("--ids", input->ids, "1,2,3")->required();
  detokenize->add_flag("--no-special", input->no_special, "Leave special tokens out");
  detokenize->callback([input, &context] { context.Run([&] { return Detokenize(context, *input); }); });

  auto* render = llm.add_subcommand("render", "Apply the chat template");
  AddSource(*render, *input);
  render->add_option("--messages", input->messages, "JSON file: [{role, content}, ...]")->required();
  render->add_option("--tools", input->tools, "JSON file of tools");
  render->add_option("--template-args", input->template_args, "JSON object of template variables");
  render->add_flag("--no-generation-prompt", input->no_generation_prompt, "Do not open the assistant's turn");
  render->callback([input, &context] { context.Run([&] { return Render(context, *input); }); });
}

}  // namespace sage::cli
