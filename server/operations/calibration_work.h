// What a calibration that its user cancelled leaves behind goes; what a restart or a failure cut short stays, to be
// resumed.
#pragma once

#include <string>

namespace sage::server {

// Removes the unfinished artifacts of WORK_DIR whose ".progress.json" names `output` (or the folder a GGUF is written
// from, OUTPUT.staged), with their progress and locks. Call when their work has ended.
void DiscardCalibration(const std::string& work_dir, const std::string& output);

}  // namespace sage::server
