// Whether a file changed: followed links included, as Kubernetes changes mounted secrets by swapping a link.
#pragma once

#include <string>

namespace sage::server {

// Device, inode, size and time of what `path` leads to; "" when there is nothing.
std::string FileStamp(const std::string& path);

}  // namespace sage::server
