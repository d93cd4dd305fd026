// Allocates the KV pages of one engine; untouched pages cost no physical memory until they are written.
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/decoder/decoder.h"

namespace sage {

absl::StatusOr<std::unique_ptr<KvArena>> KvArena::Allocate(const KvPlan& plan, const KvLayout& layout, int64_t pages,
                                                           const Backend& backend) {
  if (pages < 1 || pages > INT32_MAX) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_KV_PAGES",
                     absl::StrCat("kv pages must be in [1, ", INT32_MAX, "], got ", pages));
  }
  auto out = std::make_unique<KvArena>();
  out->layout_ = layout;
  out->layout_.sink_pages = plan.sink_pages;
  out->pages_ = pages;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    SAGE_ASSIGN_OR_RETURN(const KvStrategyDef* def, FindKvStrategy(plan.layers[l].strategy));
    KvLayout own = out->layout_;
    own.scales = plan.layers[l].scales;
    absl::StatusOr<std::unique_ptr<KvKernel>> kernel = def->bind(own, backend);
    if (!kernel.ok()) return Annotate(kernel.status(), absl::StrCat("layer ", l));
    const int64_t bytes = pages * static_cast<int64_t>((*kernel)->page_bytes());
    SAGE_ASSIGN_OR_RETURN(DeviceBuffer arena, backend.memory().Allocate(static_cast<size_t>(bytes)));
    out->kernels_.push_back(*std::move(kernel));
    out->arenas_.push_back(std::move(arena));
    out->bytes_ += static_cast<size_t>(bytes);
  }
  return out;
}

absl::StatusOr<std::unique_ptr<KvArena>> KvArena::Allocate(std::string_view kv_strategy, const KvLayout& layout,
                                                           int64_t layers, int64_t pages, const Backend& backend) {
  return Allocate(UniformKvPlan(kv_strategy, layers), layout, pages, backend);
}

}  // namespace sage
