// Fuzz target: the safetensors container. Every byte that a parsed file hands out is read.
#include <cstdint>

#include "engine/tensor/safetensors_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = sage::SafetensorsFile::Parse(data, size, "fuzz");
  if (!file.ok()) return 0;
  volatile uint8_t sum = 0;
  for (const auto& [name, view] : (*file)->tensors()) {
    for (size_t i = 0; i < view.bytes; ++i) sum = static_cast<uint8_t>(sum + view.as<uint8_t>()[i]);
  }
  return 0;
}
