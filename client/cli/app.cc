// Builds the tree of commands, and turns what the parser throws into exit codes and error documents.
#include "client/cli/app.h"

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/command.h"

namespace sage::cli {
namespace {

void AddGlobalFlags(CLI::App& app, GlobalOptions& options) {
  app.add_option("--server", options.server, "HOST:PORT or unix:PATH of sagequantd (127.0.0.1:50551)")
      ->envname("SAGE_SERVER");
  app.add_flag("--json", options.json, "One JSON document on stdout; progress on stderr");
  app.add_option("--timeout", options.timeout_seconds, "Seconds that a call may take (no limit)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--token-file", options.token_file, "File with the bearer token");
  app.add_option("--ca", options.ca, "PEM of the authorities that sign the server's certificate; turns TLS on");
  app.add_option("--cert", options.cert, "PEM of this client's certificate");
  app.add_option("--key", options.key, "PEM of this client's key");
}

CLI::App* AddGroup(CLI::App& app, const char* name, const char* help) {
  CLI::App* group = app.add_subcommand(name, help);
  group->require_subcommand(1);
  return group;
}

// A parse that fails may not have reached --json yet.
bool AsksForJson(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0) return true;
  }
  return false;
}

// "A subcommand is required" says neither which word is wrong nor which words there are.
std::string MissingCommand(const CLI::App& app, int argc, char** argv) {
  const CLI::App* at = &app;
  std::string name = app.get_name(), wrong;
  for (int i = 1; i < argc && wrong.empty(); ++i) {
    const std::string word = argv[i];
    if (!word.empty() && word[0] == '-') {
      const CLI::Option* option = app.get_option_no_throw(word);
      if (option != nullptr && option->get_items_expected_max() > 0) ++i;
      continue;
    }
    const auto found = at->get_subcommands([&](const CLI::App* command) { return command->check_name(word); });
    if (found.empty()) {
      wrong = word;
    } else {
      at = found.front();
      absl::StrAppend(&name, " ", word);
    }
  }
  std::vector<std::string> known;
  for (const CLI::App* command : at->get_subcommands([](const CLI::App*) { return true; })) {
    known.push_back(command->get_name());
  }
  return absl::StrCat(name, ": ", wrong.empty() ? "a command is needed" : absl::StrCat("no command '", wrong, "'"),
                      ", one of ", absl::StrJoin(known, ", "));
}

}  // namespace

int RunCommandLine(int argc, char** argv) {
  const std::string program = argc > 0 ? std::filesystem::path(argv[0]).filename().string() : "sage";
  CLI::App app("SageQuant: quantize language models, serve them, and measure what it cost", program);
  app.fallthrough();
  app.require_subcommand(1);
  app.set_version_flag("--version", "sage " SAGE_VERSION);
  Context context;
  AddGlobalFlags(app, context.options);
  CLI::App* llm = AddGroup(app, "llm", "Serve and generate");
  AddEngineCommands(*llm, context);
  AddGenerateCommands(*llm, context);
  AddTextCommands(*llm, context);
  CLI::App* quant = AddGroup(app, "quant", "Quantize, convert and measure");
  AddQuantCommands(*quant, context);
  AddReportCommands(*quant, context);
  AddOperationCommands(*AddGroup(app, "operations", "Long work: what runs and what ran"), context);
  AddTopCommand(app, context);
  AddCompletionCommand(app, context);

  Session session(context.options);
  context.session = &session;
  session.WatchInterrupt();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(e);  // help or version
    context.options.json = AsksForJson(argc, argv);
    if (absl::StrContains(e.what(), "subcommand is required")) {
      return UsageError(context.options, "USAGE", MissingCommand(app, argc, argv));
    }
    return UsageError(context.options, "USAGE", e.what() + std::string(" (see ") + program + " --help)");
  }
  return context.exit_code;
}

}  // namespace sage::cli
