// Fuzzes the records that float-coded weights come with: quant_state of bitsandbytes and float config groups.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/api/bnb_state.h"
#include "engine/api/ct_float.h"
#include "engine/base/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto state = sage::ParseBnbState(text);
  if (state.ok()) {
    const auto again = sage::ParseBnbState(sage::FormatBnbState(*state));
    // Text in `dtype` may need escapes that the writer, which writes only its own words, does not make.
    if (again.ok() && (again->N != state->N || again->K != state->K || again->blocksize != state->blocksize)) {
      __builtin_trap();
    }
  }
  const auto group = sage::ParseJson(text, "group");
  if (group.ok()) {
    sage::CtFloatSchemes schemes;
    (void)schemes.AddGroup("fuzz", "group_0", *group).ok();
  }
  return 0;
}
