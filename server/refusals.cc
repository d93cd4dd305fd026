// By code first, then by reason.
#include "server/refusals.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "server/convert_status.h"

namespace sage::server {

bool IsRefusal(const absl::Status& status) {
  if (status.ok()) return false;
  if (status.code() == absl::StatusCode::kResourceExhausted) return true;
  const std::string reason = ReasonOf(status);
  return std::find(std::begin(kOtherRefusals), std::end(kOtherRefusals), reason) != std::end(kOtherRefusals);
}

}  // namespace sage::server
