// Fuzz target: the GGUF container. Every byte that a parsed file hands out is read.
#include <cstdint>

#include "engine/tensor/gguf_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = sage::GgufFile::Parse(data, size, "fuzz");
  if (!file.ok()) return 0;
  volatile uint8_t sum = 0;
  for (const auto& [name, tensor] : (*file)->tensors()) {
    for (size_t i = 0; i < tensor.bytes; ++i) sum = static_cast<uint8_t>(sum + tensor.data[i]);
  }
  sum = static_cast<uint8_t>(sum + sage::DumpJson((*file)->metadata()).size());
  return 0;
}
