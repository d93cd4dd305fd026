// Joins the updates of a choice until there are as many tokens as the client wants in one message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "sage/quant/v1/generation.pb.h"

namespace sage::server {

class UpdateGatherer {
 public:
  // `interval`: tokens of a choice in one update, at least 1.
  explicit UpdateGatherer(int64_t interval) : interval_(interval) {}

  // Takes `update`. True when something is to be written: *update is then all that its choice gathered.
  bool Add(quant::v1::GenerationUpdate* update);
  // Whether something of the choice is still to be written.
  bool Holds(int index) const { return choices_.contains(index); }

 private:
  struct Gathered {
    quant::v1::GenerationUpdate update;
    size_t bytes = 0;  // at least what it takes on the wire
  };

  int64_t interval_;
  std::map<int, Gathered> choices_;
};

}  // namespace sage::server
