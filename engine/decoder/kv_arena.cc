// Allocates the KV pages of one engine; untouched pages cost no physical memory until they are written.
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/decoder/decoder.h"

namespace sage {

absl::StatusOr<std::unique_ptr<KvArena>> KvArena::Allocate(std::string_view kv_strategy, const KvLayout& layout,
                                                           int64_t layers, int64_t pages, const Backend& backend) {
  if (pages < 1 || pages > INT32_MAX) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_KV_PAGES",
                     absl::StrCat("kv pages must be in [1, ", INT32_MAX, "], got ", pages));
  }
  SAGE_ASSIGN_OR_RETURN(const KvStrategyDef* def, FindKvStrategy(kv_strategy));
  auto out = std::make_unique<KvArena>();
  out->layout_ = layout;
  out->pages_ = pages;
  SAGE_ASSIGN_OR_RETURN(out->kernel_, def->bind(layout, backend));
  const int64_t layer_bytes = pages * static_cast<int64_t>(out->kernel_->page_bytes());
  for (int64_t l = 0; l < layers; ++l) {
    SAGE_ASSIGN_OR_RETURN(Tensor arena, Tensor::Allocate(DType::kU8, {layer_bytes}));
    out->arenas_.push_back(std::move(arena));
  }
  out->bytes_ = static_cast<size_t>(layer_bytes * layers);
  return out;
}

}  // namespace sage
