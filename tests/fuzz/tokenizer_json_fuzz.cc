// Hostile tokenizer.json files: the first line break ends the file, the rest is text to encode and stream back.
#include <string_view>

#include "engine/tokenizer/loaders.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t end = all.find('\n');
  auto json = sage::ParseJson(all.substr(0, end), "fuzz");
  if (!json.ok()) return 0;
  auto tokenizer = sage::ParseTokenizerJson(*json);
  if (!tokenizer.ok() || end == std::string_view::npos) return 0;
  auto ids = (*tokenizer)->Encode(all.substr(end + 1), true, true);
  if (!ids.ok()) return 0;
  sage::StreamDecoder stream(**tokenizer, false);
  for (int32_t id : *ids) stream.Append(id);
  stream.Flush();
  return 0;
}
