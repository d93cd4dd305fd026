// Applies a model's chat template to a conversation.
#include "engine/api/engine.h"
#include "engine/base/status.h"

namespace sage {

absl::StatusOr<std::string> RenderChat(const TokenizerFiles& files, OrderedJson context, bool add_generation_prompt) {
  if (files.chat_template.empty()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NO_CHAT_TEMPLATE",
                     "chat: the model has no chat template; use generate with a prompt");
  }
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<const ChatTemplate> compiled, ChatTemplate::Compile(files.chat_template));
  if (!context.is_object()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_CONVERSATION",
                     "chat: the context must be a JSON object");
  }
  // What the caller gave wins: template arguments may replace the tokens.
  if (!context.contains("bos_token")) context["bos_token"] = files.bos_token;
  if (!context.contains("eos_token")) context["eos_token"] = files.eos_token;
  if (!context.contains("add_generation_prompt")) context["add_generation_prompt"] = add_generation_prompt;
  return compiled->Render(context);
}

}  // namespace sage
