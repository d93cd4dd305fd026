// Fuzzes chat templates: the input is a template, a NUL byte and a JSON context.
#include <cstddef>
#include <cstdint>
#include <string>

#include "engine/base/json.h"
#include "engine/tokenizer/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t cut = input.find('\0');
  sage::ChatTemplateLimits limits;
  limits.max_steps = 20'000;
  limits.max_output_bytes = 1 << 16;
  const auto compiled = sage::ChatTemplate::Compile(input.substr(0, cut), limits);
  if (!compiled.ok()) return 0;
  sage::OrderedJson context = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}, {"add_generation_prompt", true}};
  if (cut != input.npos) {
    auto given = sage::ParseOrderedJson(input.substr(cut + 1), "context", {.max_bytes = 1 << 16, .max_depth = 20});
    if (given.ok() && given->is_object()) context = *given;
  }
  (void)(*compiled)->Render(context, 1700000000);
  return 0;
}
