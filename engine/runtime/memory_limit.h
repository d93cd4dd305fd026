// How much memory this process may still take: the machine's figure, lowered by a control group's limit.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace sage {

// "MemAvailable" of a /proc/meminfo text in bytes; -1 when it is not there.
int64_t ParseMemAvailable(std::string_view meminfo);
// Bytes available now; -1 when the system does not say.
int64_t AvailableMemory();

}  // namespace sage
