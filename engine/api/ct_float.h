// The float schemes of a compressed-tensors folder: float-quantized (fp8) and the packed E2M1 formats.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "engine/api/fp8_stored.h"

namespace sage {

class CtFloatSchemes {
 public:
  // One entry of config_groups whose weights are of type "float". UNIMPLEMENTED names what is not served.
  absl::Status AddGroup(const std::string& path, const std::string& name, const Json& group);
  // True when the module's tensors are of one of these schemes.
  bool Holds(const HfFolder& folder, const std::string& module) const;
  absl::StatusOr<StoredLinear> Get(const HfFolder& folder, const std::string& module) const;

 private:
  absl::StatusOr<StoredLinear> GetPacked(const HfFolder& folder, const std::string& module) const;

  std::vector<Fp8Scheme> fp8_;       // distinct
  std::set<int64_t> packed_groups_;  // 32 for mxfp4, 16 for nvfp4
};

}  // namespace sage
