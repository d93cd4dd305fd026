// What each kind of long operation does: calibrate, convert, evaluate. Their specs are serialized requests whose output
// is an absolute path and whose dataset lies on disk.
#pragma once

#include <map>
#include <string>

#include "server/operations/runner.h"

namespace sage::server {

class Daemon;
std::map<std::string, OperationKind> OperationKinds(Daemon& daemon);

}  // namespace sage::server
