// Chat templates: a Jinja interpreter for what the templates of real Hugging Face models use.
//
// Rendering follows Jinja2 3.1 as transformers calls it: trim_blocks and lstrip_blocks on, `loopcontrols` (break,
// continue), `generation` blocks, `tojson`, `raise_exception(text)`, `strftime_now(format)`. A template is outside
// input: parsing and rendering are bounded in depth, steps and output size, and every failure is a status.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/base/json.h"

namespace sage {

struct ChatTemplateLimits {
  size_t max_source_bytes = 1 << 20;
  size_t max_output_bytes = 64 << 20;
  int64_t max_steps = 20'000'000;  // evaluated nodes
  int max_depth = 200;             // nesting of expressions, blocks and macro calls
};

class ChatTemplate {
 public:
  // INVALID_ARGUMENT with reason CHAT_TEMPLATE_SYNTAX and the line.
  static absl::StatusOr<std::shared_ptr<const ChatTemplate>> Compile(std::string_view source,
                                                                     const ChatTemplateLimits& limits = {});
  ~ChatTemplate();

  // `context`: the variables (messages, tools, add_generation_prompt, bos_token, ...); object order is kept, as tojson
  // shows it. INVALID_ARGUMENT with reason CHAT_TEMPLATE_RAISED (the template called raise_exception),
  // CHAT_TEMPLATE_ERROR (undefined operation, wrong type) or CHAT_TEMPLATE_LIMIT. Thread-safe. `now` fixes the clock of
  // strftime_now (tests); 0 means the present local time.
  absl::StatusOr<std::string> Render(const OrderedJson& context, int64_t now_unix_seconds = 0) const;

 private:
  ChatTemplate();
  struct Parsed;
  std::unique_ptr<Parsed> parsed_;
  ChatTemplateLimits limits_;
};

}  // namespace sage
