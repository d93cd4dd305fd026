// Backends that have a name in the interface but are not part of this build: asking for one is answered with the reason
// and what to do, not as a misspelt word.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace sage {

struct AbsentBackend {
  std::string_view name, summary;
  std::string_view reason;  // why it is not here, and the remedy
};

// Those of the interface's names that the generated table does not hold.
std::vector<AbsentBackend> AbsentBackends();
// UNIMPLEMENTED (BACKEND_ABSENT) when `name` is one of them.
absl::Status CheckBackendPresent(std::string_view name);

}  // namespace sage
