// An artifact of the daemon as a folder on this machine: streamed, checked, and there only when it is whole.
#pragma once

#include <optional>
#include <string>

#include "client/cli/command.h"

namespace sage::cli {

// A path on this machine rather than an artifact's name: it holds a '/' beyond a trailing one, and no ".." (the daemon
// refuses such a name).
bool NamesFolder(const std::string& output);
// Without '/' at the end.
std::string WithoutTrailingSlash(std::string output);
// Refuses what is there already; nothing is written.
std::optional<Failure> CheckNewFolder(const std::string& folder);
// Streams every file into a folder beside `folder`, compares sizes and sha256, and renames. What was written goes again
// when anything fails.
std::optional<Failure> ExportArtifactTo(Context& context, const std::string& artifact, const std::string& folder);
// Deletes an artifact that served to make a folder.
std::optional<Failure> DeleteArtifact(Context& context, const std::string& artifact);

}  // namespace sage::cli
