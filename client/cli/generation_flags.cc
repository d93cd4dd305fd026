// Maps flags to GenerationOptions; absent flags stay absent on the wire.
#include "client/cli/generation_flags.h"

#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <utility>

namespace sage::cli {
namespace {

constexpr int64_t kWholeAnswer = 1 << 24;  // the most that stream_interval may be

Failure BadFlag(const std::string& message) {
  return {.exit_code = kUsage, .code = "INVALID_ARGUMENT", .reason = "BAD_FLAG", .message = message};
}

bool ParseId(const std::string& text, int32_t* out) {
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || value < INT32_MIN || value > INT32_MAX) return false;
  *out = static_cast<int32_t>(value);
  return true;
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> out;
  size_t from = 0;
  while (from <= text.size()) {
    const size_t to = std::min(text.find(separator, from), text.size());
    std::string part = text.substr(from, to - from);
    part.erase(0, part.find_first_not_of(" \t\n"));
    part.erase(part.find_last_not_of(" \t\n") + 1);
    if (!part.empty()) out.push_back(part);
    from = to + 1;
  }
  return out;
}

}  // namespace

std::optional<Failure> ParseIds(const std::string& text, std::vector<int32_t>* out) {
  for (const std::string& part : Split(text, ',')) {
    int32_t id = 0;
    if (!ParseId(part, &id))
      return BadFlag("ids must be integers separated by commas, got '" + part.substr(0, 40) + "'");
    out->push_back(id);
  }
  return std::nullopt;
}

void AddSeed(CLI::App& command, const char* help, std::function<void(uint64_t)> set) {
  command.add_option_function<uint64_t>("--seed", std::move(set), help)
      ->check(
          [](const std::string& text) {
            char* end = nullptr;
            errno = 0;
            std::strtoull(text.c_str(), &end, 10);
            const bool fits =
                !text.empty() && std::isdigit(static_cast<unsigned char>(text[0])) && *end == '\0' && errno == 0;
            return fits ? std::string() : "must be from 0 to 18446744073709551615, got " + text.substr(0, 40);
          },
          "");
}

void AddGenerationFlags(CLI::App& command, GenerationFlags& flags) {
  auto& options = flags.options;
  auto& sampling = *options.mutable_sampling();
  const auto number = [&](const char* name, const char* help, std::function<void(double)> set) {
    command.add_option_function<double>(name, std::move(set), help);
  };
  const auto integer = [&](const char* name, const char* help, std::function<void(int64_t)> set) {
    command.add_option_function<int64_t>(name, std::move(set), help);
  };
  // As wide as the wire, so that a number which does not fit is wrong usage and never another number.
  const auto narrow = [&](const char* name, const char* help, std::function<void(int32_t)> set) {
    command.add_option_function<int32_t>(name, std::move(set), help);
  };
  integer("--max-tokens", "Most tokens to generate (256)", [&options](int64_t v) { options.set_max_tokens(v); });
  number("--temperature", "0 = greedy (1)", [&sampling](double v) { sampling.set_temperature(v); });
  narrow("--top-k", "Keep the k most likely (off)", [&sampling](int32_t v) { sampling.set_top_k(v); });
  number("--top-p", "Keep this probability mass (off)", [&sampling](double v) { sampling.set_top_p(v); });
  number("--min-p", "Keep what has this share of the top probability (off)",
         [&sampling](double v) { sampling.set_min_p(v); });
  number("--repetition-penalty", "Over prompt and output (1)",
         [&sampling](double v) { sampling.set_repetition_penalty(v); });
  number("--presence-penalty", "Over the output (0)", [&sampling](double v) { sampling.set_presence_penalty(v); });
  number("--frequency-penalty", "Over the output (0)", [&sampling](double v) { sampling.set_frequency_penalty(v); });
  AddSeed(command, "Same seed, same text", [&sampling](uint64_t v) { sampling.set_seed(v); });
  command
      .add_option_function<std::vector<std::string>>(
          "--stop",
          [&options](const std::vector<std::string>& v) {
            for (const auto& s : v) options.add_stop(s);
          },
          "Stop before this text (repeatable)")
      ->take_all()
      ->allow_extra_args(false);
  command.add_option("--logit-bias", flags.logit_bias, "ID:BIAS,ID:BIAS or a JSON object");
  narrow("--logprobs", "Log-probabilities with N alternatives", [&options](int32_t v) { options.set_logprobs(v); });
  command.add_flag_function(
      "--ignore-eos", [&options](int64_t) { options.set_ignore_eos(true); }, "Go on past end tokens");
  command.add_flag_function(
      "--keep-special", [&options](int64_t) { options.set_keep_special(true); }, "Show special tokens");
  integer("--stream-interval", "Tokens that come at once (1; with --json all)",
          [&options](int64_t v) { options.set_stream_interval(v); });
  narrow("--n", "Choices (1)", [&options](int32_t v) { options.set_n(v); });
}

std::optional<Failure> FinishGenerationFlags(GenerationFlags& flags, bool shown) {
  // What is shown at the end only need not come token by token.
  if (!shown && !flags.options.has_stream_interval()) flags.options.set_stream_interval(kWholeAnswer);
  if (flags.logit_bias.empty()) return std::nullopt;
  auto& bias = *flags.options.mutable_sampling()->mutable_logit_bias();
  if (flags.logit_bias[0] == '{') {
    nlohmann::ordered_json object;
    if (auto failure = ParseJsonText("--logit-bias", flags.logit_bias, &object)) return failure;
    for (const auto& [key, value] : object.items()) {
      int32_t id = 0;
      if (!ParseId(key, &id) || !value.is_number()) return BadFlag("--logit-bias must map ids to numbers");
      bias[id] = value.get<float>();
    }
    return std::nullopt;
  }
  for (const std::string& part : Split(flags.logit_bias, ',')) {
    const size_t at = part.find_first_of(":=");
    int32_t id = 0;
    char* end = nullptr;
    if (at == part.npos || !ParseId(part.substr(0, at), &id))
      return BadFlag("--logit-bias must be ID:BIAS, got '" + part + "'");
    const std::string number = part.substr(at + 1);
    bias[id] = std::strtof(number.c_str(), &end);
    if (number.empty() || *end != '\0') return BadFlag("--logit-bias must be ID:BIAS, got '" + part + "'");
  }
  return std::nullopt;
}

}  // namespace sage::cli
