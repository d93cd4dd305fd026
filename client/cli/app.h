// The whole command line as a function, so that tests run it without a process.
#pragma once

namespace sage::cli {

// Parses, runs one command and returns the exit code. Catches SIGINT from then on: call it once a process.
int RunCommandLine(int argc, char** argv);

}  // namespace sage::cli
