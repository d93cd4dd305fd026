// Prompts to ids.
#include "server/prompt.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/convert_status.h"

namespace sage::server {

absl::StatusOr<const TokenizerFiles*> TokenizerOf(const InferenceEngine& engine) {
  const TokenizerFiles* files = engine.tokenizer();
  if (files != nullptr && files->tokenizer != nullptr) return files;
  const std::string id = engine.info().engine_id;
  return MakeError(absl::StatusCode::kFailedPrecondition, "NO_TOKENIZER",
                   absl::StrCat("engine \"", id, "\": the model has no tokenizer files, so only token ids work"),
                   {{"subject", id}});
}

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const InferenceEngine& engine, const std::string& text,
                                                  bool add_special) {
  SAGE_ASSIGN_OR_RETURN(const TokenizerFiles* files, TokenizerOf(engine));
  if (text.size() > Tokenizer::kMaxTextBytes) return BadField("text", "PROMPT_TOO_LONG", "at most 64 MiB");
  SAGE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, files->tokenizer->Encode(text, add_special));
  if (ids.empty()) return BadField("text", "PROMPT_EMPTY", "the prompt has no tokens");
  return ids;
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(const InferenceEngine& engine, const OrderedJson& context,
                                                bool add_generation_prompt) {
  SAGE_ASSIGN_OR_RETURN(const TokenizerFiles* files, TokenizerOf(engine));
  SAGE_ASSIGN_OR_RETURN(std::string text, RenderChat(*files, context, add_generation_prompt));
  return EncodePrompt(engine, text, false);
}

}  // namespace sage::server
