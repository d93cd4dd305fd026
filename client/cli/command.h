// What a command needs, and the registration functions of the command groups.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>

#include "client/cli/options.h"
#include "client/cli/session.h"

namespace sage::cli {

// Shared by all commands of a run. A command's callback sets `exit_code`.
struct Context {
  GlobalOptions options;
  Session* session = nullptr;
  int exit_code = kDone;

  // Runs `body` on a connected session; prints a failure in the asked form.
  void Run(const std::function<std::optional<Failure>()>& body);
};

void AddEngineCommands(CLI::App& llm, Context& context);
void AddProfileCommand(CLI::App& engine, Context& context);
void AddGenerateCommands(CLI::App& llm, Context& context);
void AddTextCommands(CLI::App& llm, Context& context);
void AddQuantCommands(CLI::App& quant, Context& context);
void AddCapabilityCommand(CLI::App& quant, Context& context);
void AddReportCommands(CLI::App& quant, Context& context);
void AddOperationCommands(CLI::App& operations, Context& context);
void AddTopCommand(CLI::App& app, Context& context);
void AddCompletionCommand(CLI::App& app, Context& context);

// Reads a local file; Failure on errors. `most` bounds its size in bytes.
std::optional<Failure> ReadLocalFile(const std::string& path, size_t most, std::string* out);
// Text that is sent must be UTF-8 (TEXT_INVALID_UTF8, with the place of the first byte that is none); `what` is the
// flag or file it came from.
std::optional<Failure> CheckUtf8(const std::string& what, const std::string& text);
// Parses a JSON file or text.
std::optional<Failure> ParseJsonText(const std::string& what, const std::string& text, nlohmann::ordered_json* out);

}  // namespace sage::cli
