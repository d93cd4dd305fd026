// The public face of the Jinja interpreter: compile once, render with a context.
#include "engine/tokenizer/chat_template.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/jinja_interpreter.h"

namespace sage {

struct ChatTemplate::Parsed {
  jinja::Program program;
};

ChatTemplate::ChatTemplate() : parsed_(std::make_unique<Parsed>()) {}
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::shared_ptr<const ChatTemplate>> ChatTemplate::Compile(std::string_view source,
                                                                          const ChatTemplateLimits& limits) {
  if (source.size() > limits.max_source_bytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, "CHAT_TEMPLATE_LIMIT",
                     absl::StrCat("chat template: the source must be at most ", limits.max_source_bytes, " bytes, got ",
                                  source.size()));
  }
  std::shared_ptr<ChatTemplate> out(new ChatTemplate);
  out->limits_ = limits;
  SAGE_RETURN_IF_ERROR(jinja::Parse(source, limits.max_depth, &out->parsed_->program));
  return std::shared_ptr<const ChatTemplate>(std::move(out));
}

absl::StatusOr<std::string> ChatTemplate::Render(const OrderedJson& context, int64_t now_unix_seconds) const {
  jinja::Interpreter interpreter(parsed_->program, limits_, now_unix_seconds);
  if (!interpreter.Run(context)) return interpreter.status();
  return interpreter.TakeOutput();
}

}  // namespace sage
