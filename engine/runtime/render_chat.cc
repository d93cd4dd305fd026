// What the text around a generation is: a conversation rendered with the model's chat template, and whether the answer
// goes on with a text.
#include <algorithm>

#include "engine/api/engine.h"
#include "engine/base/status.h"

namespace sage {

absl::StatusOr<std::string> RenderChat(const TokenizerFiles& files, OrderedJson context, bool add_generation_prompt) {
  // As Hugging Face chooses among named templates: "tool_use" when the conversation says anything of tools.
  const bool tools = context.is_object() && context.contains("tools") && !context["tools"].is_null();
  const std::string& text = tools && !files.tool_template.empty() ? files.tool_template : files.chat_template;
  if (text.empty()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NO_CHAT_TEMPLATE",
                     "chat: the model has no chat template; use generate with a prompt");
  }
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<const ChatTemplate> compiled, ChatTemplate::Compile(text));
  if (!context.is_object()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_CONVERSATION",
                     "chat: the context must be a JSON object");
  }
  // What the caller gave wins: template arguments may replace the tokens.
  if (!context.contains("bos_token")) context["bos_token"] = files.bos_token;
  if (!context.contains("eos_token")) context["eos_token"] = files.eos_token;
  if (!context.contains("add_generation_prompt")) context["add_generation_prompt"] = add_generation_prompt;
  // Hugging Face defines both in every rendering: a template that asks `tools is not none` must hear no.
  for (const char* name : {"tools", "documents"}) {
    if (!context.contains(name)) context[name] = nullptr;
  }
  return compiled->Render(context);
}

bool ContinuesText(const GenerateSpec& spec, const TokenizerFiles* files) {
  if (spec.begins_text || files == nullptr || files->tokenizer == nullptr) return false;
  return std::any_of(spec.prompt_ids.begin(), spec.prompt_ids.end(),
                     [&](int32_t id) { return !(spec.skip_special && files->tokenizer->IsSpecial(id)); });
}

}  // namespace sage
