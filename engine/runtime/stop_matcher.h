// Finds stop strings in streamed text: text is held back while it may be the beginning of one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sage {

class StopMatcher {
 public:
  StopMatcher() = default;
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  struct Result {
    std::string text;   // may be sent now; ends before a stop string
    std::string match;  // the stop string that is complete, empty when none is
  };
  // The match is the one that completes first; of those that complete together the longest. How the text is cut into
  // pieces changes nothing.
  Result Append(std::string_view piece);
  // What was held back, at the end of the text.
  std::string Flush();

 private:
  std::vector<std::string> stops_;
  std::string held_;
};

}  // namespace sage
