// Loads a model for a report and runs it over windows.
#include "engine/report/language_model.h"

#include <numeric>

#include "engine/base/status.h"

namespace sage {
namespace {

constexpr int kPageTokens = 16;

}  // namespace

absl::StatusOr<std::unique_ptr<ReportModel>> ReportModel::Load(const std::string& path, const KvAsked& kv,
                                                               int64_t window, ThreadPool& threads,
                                                               const CancelToken& cancel) {
  std::unique_ptr<ReportModel> out(new ReportModel());
  out->threads_ = &threads;
  SAGE_ASSIGN_OR_RETURN(out->checkpoint_, OpenCheckpoint(path));
  SAGE_ASSIGN_OR_RETURN(out->backend_, OpenBackend("cpu"));
  SAGE_ASSIGN_OR_RETURN(out->decoder_,
                        Decoder::Load(out->checkpoint_, DecoderLoadSpec(), *out->backend_, threads, cancel, nullptr));
  const int64_t pages = (window + kPageTokens - 1) / kPageTokens;
  SAGE_ASSIGN_OR_RETURN(out->kv_, ChooseKvPlan(*out->checkpoint_, out->decoder_->config(), kv, kPageTokens));
  const KvPlan& plan = out->kv_.plan;
  SAGE_ASSIGN_OR_RETURN(out->arena_, KvArena::Allocate(plan, out->decoder_->kv_layout(kPageTokens),
                                                       KvPageEntries(pages, plan.sink_pages), *out->backend_));
  out->pages_.resize(static_cast<size_t>(out->arena_->pages()));
  std::iota(out->pages_.begin(), out->pages_.end(), 0);
  return out;
}

double ReportModel::kv_bytes_per_token() const { return static_cast<double>(arena_->page_bytes()) / kPageTokens; }

absl::Status ReportModel::Forward(absl::Span<const int32_t> ids, int64_t context, int64_t window, float* hidden) {
  StepContext ctx;
  ctx.threads = threads_;
  ctx.activations = &cache_;
  rows_.resize(ids.size());
  std::iota(rows_.begin(), rows_.end(), 0);
  const SequenceSlice slice[] = {{.row_begin = 0,
                                  .rows = static_cast<int64_t>(ids.size()),
                                  .context = context,
                                  .prompt_length = window,
                                  .pages = pages_.data()}};
  return decoder_->Forward(ctx, {ids, slice, rows_}, *arena_, hidden);
}

absl::Status ReportModel::Logits(const float* hidden, int64_t rows, float* logits) {
  StepContext ctx;
  ctx.threads = threads_;
  ctx.activations = &cache_;
  return decoder_->Logits(ctx, hidden, rows, logits);
}

}  // namespace sage
