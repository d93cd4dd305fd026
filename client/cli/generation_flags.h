// The sampling and stopping flags that `generate` and `chat` share.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "client/cli/command.h"
#include "sage/quant/v1/generation.pb.h"

namespace sage::cli {

struct GenerationFlags {
  ::sage::quant::v1::GenerationOptions options;
  std::string logit_bias;  // ID:BIAS,... or a JSON object
};

// --seed takes what 64 bits hold; CLI11 alone lets -1 and what is too large pass as other numbers.
void AddSeed(CLI::App& command, const char* help, std::function<void(uint64_t)> set);
void AddGenerationFlags(CLI::App& command, GenerationFlags& flags);
// Applies what needs parsing after the flags were read. `shown`: the text is printed as it comes.
std::optional<Failure> FinishGenerationFlags(GenerationFlags& flags, bool shown);
// "1,2,3".
std::optional<Failure> ParseIds(const std::string& text, std::vector<int32_t>* out);

}  // namespace sage::cli
