// Fuzzes datasets that travel with a request: text, JSONL and id lists.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/runtime/dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  (void)sage::ParseDataset(text, data[0] % 2 == 0 ? "d.jsonl" : "d.txt", data[0] % 3 == 0 ? "body" : "");
  return 0;
}
