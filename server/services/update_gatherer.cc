// Texts and tokens are appended; everything else is what the newest update says.
#include "server/services/update_gatherer.h"

#include <string>
#include <utility>

namespace sage::server {
namespace {

// Far below the 4 MiB that clients take by default, whatever one more token brings.
constexpr size_t kMostBytes = 256 << 10;

}  // namespace

bool UpdateGatherer::Add(quant::v1::GenerationUpdate* update) {
  if (interval_ <= 1) return true;
  Gathered& gathered = choices_[update->index()];
  gathered.bytes += update->ByteSizeLong();
  std::string text = std::move(*gathered.update.mutable_text());
  text += update->text();
  gathered.update.MergeFrom(*update);
  gathered.update.set_text(std::move(text));
  const bool wanted = gathered.update.tokens_size() >= interval_ || gathered.bytes >= kMostBytes;
  if (!wanted && !update->last() && update->finish_reason().empty()) return false;
  *update = std::move(gathered.update);
  choices_.erase(update->index());
  return true;
}

}  // namespace sage::server
