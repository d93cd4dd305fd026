// sage: the command line of SageQuant; also called as sage-dev and auri.
#include "client/cli/app.h"

int main(int argc, char** argv) { return sage::cli::RunCommandLine(argc, argv); }
