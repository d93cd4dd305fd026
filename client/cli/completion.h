// Shell completion scripts, written from the tree of commands and flags itself.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace sage::cli {

// `shell` is bash, zsh or fish.
std::string CompletionScript(const CLI::App& app, const std::string& shell);

}  // namespace sage::cli
