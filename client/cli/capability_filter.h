// Which plug-ins of a server fit what is asked: the flags of `sage quant capabilities` against its document.
#pragma once

#include <optional>

#include "client/cli/options.h"
#include "sage/quant/v1/quantization.pb.h"

namespace sage::cli {

struct CapabilityFilter {
  bool any = false;                               // a flag was given
  ::sage::quant::v1::SelectKernelRequest kernel;  // its fields are the flags
};

// Removes the linear strategies and backends that do not fit. A word that nothing has is a usage error that names those
// that exist.
std::optional<Failure> FilterCapabilities(const CapabilityFilter& filter, nlohmann::ordered_json* all);

}  // namespace sage::cli
