// The sampling and stopping flags that `generate` and `chat` share.
#pragma once

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

void AddGenerationFlags(CLI::App& command, GenerationFlags& flags);
// Applies what needs parsing after the flags were read. `shown`: the text is printed as it comes.
std::optional<Failure> FinishGenerationFlags(GenerationFlags& flags, bool shown);
// "1,2,3".
std::optional<Failure> ParseIds(const std::string& text, std::vector<int32_t>* out);

}  // namespace sage::cli
