// Hostile SentencePiece models and llama2.c tokenizers.
#include <string_view>

#include "engine/tokenizer/loaders.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  for (auto tokenizer : {sage::ParseSentencePiece(bytes, sage::Json()), sage::ParseLlama2c(bytes)}) {
    if (!tokenizer.ok()) continue;
    auto ids = (*tokenizer)->Encode("  Hello  w\xC3\xB6rld \xE4\xBD\xA0 <s>", true, true);
    if (ids.ok()) (*tokenizer)->DecodePart(*ids, false, true);
  }
  return 0;
}
