// One table, command path -> words that may follow, printed in each shell's own language.
#include "client/cli/completion.h"

#include <cstdio>
#include <utility>
#include <vector>

#include "client/cli/command.h"

namespace sage::cli {
namespace {

struct Row {
  std::string path;  // " llm engine", "" for the program itself
  std::string words;
};

void AppendOptions(const CLI::App& app, std::string* words) {
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) *words += " --" + name;
  }
  for (const CLI::App* group : app.get_subcommands([](const CLI::App* a) { return a->get_name().empty(); })) {
    AppendOptions(*group, words);
  }
}

// The tree is as deep as the commands that this program declares (three).
void Walk(const CLI::App& app, const std::string& path, const std::string& global, std::vector<Row>* rows) {
  std::string words;
  const auto children = app.get_subcommands([](const CLI::App* a) { return !a->get_name().empty(); });
  for (const CLI::App* child : children) words += " " + child->get_name();
  AppendOptions(app, &words);
  if (!path.empty()) words += global;
  rows->push_back({path, words.empty() ? words : words.substr(1)});
  for (const CLI::App* child : children) Walk(*child, path + " " + child->get_name(), global, rows);
}

std::string PathPattern(const std::vector<Row>& rows, const char* separator) {
  std::string out;
  for (const Row& row : rows) {
    if (!row.path.empty()) out += (out.empty() ? "'" : std::string(separator) + "'") + row.path + "'";
  }
  return out;
}

std::string Bash(const std::vector<Row>& rows) {
  std::string out =
      "_sage() {\n  local path='' words='' i\n  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    case \"$path ${COMP_WORDS[i]}\" in\n      " +
      PathPattern(rows, "|") + ") path=\"$path ${COMP_WORDS[i]}\" ;;\n    esac\n  done\n  case \"$path\" in\n";
  for (const Row& row : rows) out += "    '" + row.path + "') words='" + row.words + "' ;;\n";
  return out +
         "  esac\n  COMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n}\n"
         "complete -o default -F _sage sage sage-dev auri\n";
}

std::string Zsh(const std::vector<Row>& rows) {
  std::string out =
      "#compdef sage sage-dev auri\n_sage() {\n  local path_='' i\n  local -a choices\n"
      "  for ((i = 2; i < CURRENT; i++)); do\n    case \"$path_ ${words[i]}\" in\n      " +
      PathPattern(rows, "|") + ") path_=\"$path_ ${words[i]}\" ;;\n    esac\n  done\n  case \"$path_\" in\n";
  for (const Row& row : rows) out += "    '" + row.path + "') choices=(" + row.words + ") ;;\n";
  return out + "  esac\n  compadd -a choices || _files\n}\ncompdef _sage sage sage-dev auri\n";
}

std::string Fish(const std::vector<Row>& rows) {
  std::string out =
      "function __sage_path\n  set -l path ''\n  for word in (commandline -opc)[2..-1]\n"
      "    if contains -- \"$path $word\" " +
      PathPattern(rows, " ") +
      "\n      set path \"$path $word\"\n    end\n  end\n  test \"$path\" = \"$argv[1]\"\nend\n";
  for (const Row& row : rows) {
    for (const char* program : {"sage", "sage-dev", "auri"}) {
      out += std::string("complete -c ") + program + " -n \"__sage_path '" + row.path + "'\" -a '" + row.words + "'\n";
    }
  }
  return out;
}

}  // namespace

std::string CompletionScript(const CLI::App& app, const std::string& shell) {
  std::string global;
  AppendOptions(app, &global);
  std::vector<Row> rows;
  Walk(app, "", global, &rows);
  if (shell == "zsh") return Zsh(rows);
  return shell == "fish" ? Fish(rows) : Bash(rows);
}

void AddCompletionCommand(CLI::App& app, Context& context) {
  auto shell = std::make_shared<std::string>();
  auto* command = app.add_subcommand("completion", "Print a completion script: source <(sage completion bash)");
  command->add_option("shell", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->callback([shell, &app] { std::fputs(CompletionScript(app, *shell).c_str(), stdout); });
}

}  // namespace sage::cli
