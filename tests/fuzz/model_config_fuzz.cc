// Fuzzes config.json: whatever parses must list its weights without overflow, and bad fields must be refused.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/api/model.h"
#include "engine/base/json.h"
#include "engine/decoder/rope.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto config = sage::ParseJson({reinterpret_cast<const char*>(data), size}, "config.json");
  if (!config.ok()) return 0;
  const auto parsed = sage::ParseModelConfig(*config, *config);
  if (!parsed.ok()) return 0;
  if (sage::ListLinears(*parsed).empty() || sage::ListTensors(*parsed).empty()) __builtin_trap();
  const sage::Rope rope(parsed->rope, parsed->D, parsed->max_position);
  std::vector<float> frequencies(static_cast<size_t>(parsed->D));
  rope.InverseFrequencies(parsed->max_position + 1, frequencies.data());
  return 0;
}
