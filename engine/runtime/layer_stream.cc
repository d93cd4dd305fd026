// Forward pieces of a decoder layer over all calibration tokens, with the CPU backend's operators and blocked f32
// products.
#include "engine/runtime/layer_stream.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/solvers/dense_algebra.h"

namespace sage {
namespace {

constexpr int kPageTokens = 16;

}  // namespace

LayerWeights::Linear* LayerWeights::Find(std::string_view kind) {
  const std::pair<std::string_view, Linear*> places[] = {{"q_proj", &q},      {"k_proj", &k},       {"v_proj", &v},
                                                         {"o_proj", &o},      {"gate_proj", &gate}, {"up_proj", &up},
                                                         {"down_proj", &down}};
  for (const auto& [name, linear] : places) {
    if (name == kind) return linear;
  }
  return nullptr;
}

LayerStream::LayerStream(const DecoderConfig& config, ThreadPool& threads, const CancelToken& cancel)
    : config_(config), threads_(threads), cancel_(cancel), rope_(config.rope, config.D, config.max_position) {
  ctx_.threads = &threads;
  ctx_.activations = &cache_;
}

absl::StatusOr<std::unique_ptr<LayerStream>> LayerStream::Create(const ArtifactSource& source,
                                                                 std::vector<std::vector<int32_t>> samples,
                                                                 ThreadPool& threads, const CancelToken& cancel,
                                                                 const std::string& spill_folder) {
  DecoderConfig config = source.config();
  config.rope.interleaved = false;  // the source gives rows in Hugging Face order
  std::unique_ptr<LayerStream> out(new LayerStream(config, threads, cancel));
  out->samples_ = std::move(samples);
  size_t longest = 0;
  for (const auto& sample : out->samples_) {
    longest = std::max(longest, sample.size());
    out->tokens_ += static_cast<int64_t>(sample.size());
  }
  SAGE_ASSIGN_OR_RETURN(out->backend_, OpenBackend("cpu"));
  const KvLayout layout{config.KH, config.D, kPageTokens};
  const int64_t pages = (static_cast<int64_t>(longest) + kPageTokens - 1) / kPageTokens;
  SAGE_ASSIGN_OR_RETURN(out->kv_, KvArena::Allocate("f32", layout, 1, pages, *out->backend_));
  out->pages_.resize(static_cast<size_t>(pages));
  std::iota(out->pages_.begin(), out->pages_.end(), 0);
  const int64_t attended = static_cast<int64_t>(config.H) * config.D;
  out->spill_folder_ = spill_folder;
  SAGE_ASSIGN_OR_RETURN(out->x_, StateBuffer::Allocate(out->tokens_, config.hidden, spill_folder));
  SAGE_ASSIGN_OR_RETURN(out->attended_, StateBuffer::Allocate(out->tokens_, attended, spill_folder));
  SAGE_RETURN_IF_ERROR(out->Embed(source));
  return out;
}

absl::Status LayerStream::Embed(const ArtifactSource& source) {
  float* to = x_.data();
  for (const auto& sample : samples_) {
    for (const int32_t id : sample) {
      if (id < 0 || id >= config_.V) {
        return MakeError(absl::StatusCode::kInvalidArgument, "ID_OUT_OF_RANGE",
                         absl::StrCat("dataset: token id must be in [0, ", config_.V, "), got ", id));
      }
      SAGE_RETURN_IF_ERROR(source.EmbeddingRow(id, to));
      to += config_.hidden;
    }
  }
  return absl::OkStatus();
}

std::vector<int64_t> LayerStream::Lengths() const {
  std::vector<int64_t> out;
  for (const auto& sample : samples_) out.push_back(static_cast<int64_t>(sample.size()));
  return out;
}

void LayerStream::FillRope(int64_t length, float* cos, float* sin) const {
  const SequenceSlice slice[] = {
      {.row_begin = 0, .rows = length, .context = 0, .prompt_length = length, .pages = pages_.data()}};
  rope_.FillTables(slice, cos, sin);
}

absl::Status LayerStream::Keep() {
  if (kept_.data() == nullptr) {
    SAGE_ASSIGN_OR_RETURN(kept_, StateBuffer::Allocate(tokens_, config_.hidden, spill_folder_));
  }
  std::copy_n(x_.data(), tokens_ * config_.hidden, kept_.data());
  kept_.Release();
  return absl::OkStatus();
}

void LayerStream::Rewind() {
  std::copy_n(kept_.data(), tokens_ * config_.hidden, x_.data());
  x_.Release();
  kept_.Release();
}

void LayerStream::Multiply(const float* x, int64_t M, const LayerWeights::Linear& linear, float* out) {
  const int64_t N = linear.weight.shape()[0], K = linear.weight.shape()[1];
  MultiplyTransposed<float>(x, linear.weight.as<float>(), M, N, K, out, threads_);
  if (linear.bias.empty()) return;
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) out[m * N + n] += linear.bias[static_cast<size_t>(n)];
  }
}

absl::Status LayerStream::RunAttention(const LayerWeights& w, int64_t l, KvStatistics* kv) {
  int64_t begin = 0;
  for (size_t s = 0; s < samples_.size(); ++s) {
    SAGE_RETURN_IF_ERROR(cancel_.Check());
    SAGE_RETURN_IF_ERROR(AttendSample(w, l, s, begin, kv));
    begin += static_cast<int64_t>(samples_[s].size());
  }
  return absl::OkStatus();
}

absl::Status LayerStream::AttendSample(const LayerWeights& w, int64_t l, size_t sample, int64_t begin,
                                       KvStatistics* kv) {
  const Kernels& ops = backend_->kernels();
  const int64_t M = static_cast<int64_t>(samples_[sample].size()), hidden = config_.hidden, D = config_.D;
  const int64_t q_width = config_.H * D, kv_width = config_.KH * D;
  const float eps = static_cast<float>(config_.norm_eps);
  std::vector<float> normed(static_cast<size_t>(M * hidden)), q(static_cast<size_t>(M * q_width));
  std::vector<float> k(static_cast<size_t>(M * kv_width)), v(k.size());
  std::vector<float> cos(static_cast<size_t>(M * D / 2)), sin(cos.size());
  ops.rms_norm(ctx_, x_.data() + begin * hidden, hidden, w.input_norm.data(), eps, M, hidden, normed.data(), hidden);
  Multiply(normed.data(), M, w.q, q.data());
  Multiply(normed.data(), M, w.k, k.data());
  Multiply(normed.data(), M, w.v, v.data());
  if (config_.qk_norm) {
    ops.head_norm(ctx_, q.data(), q_width, config_.H, D, w.q_norm.data(), eps, M);
    ops.head_norm(ctx_, k.data(), kv_width, config_.KH, D, w.k_norm.data(), eps, M);
  }
  const SequenceSlice slice[] = {{.row_begin = 0, .rows = M, .context = 0, .prompt_length = M, .pages = pages_.data()}};
  rope_.FillTables(slice, cos.data(), sin.data());
  ops.rope(ctx_, q.data(), q_width, config_.H, D, cos.data(), sin.data(), false, M);
  ops.rope(ctx_, k.data(), kv_width, config_.KH, D, cos.data(), sin.data(), false, M);
  if (kv != nullptr) SAGE_RETURN_IF_ERROR(kv->AddSample(k.data(), v.data(), M));
  kv_->kernel(0).Store(ctx_, kv_->layer(0), k.data(), kv_width, v.data(), kv_width, slice);
  AttentionArgs args;
  args.H = config_.H;
  args.layout = kv_->layout();
  args.scale = 1.0f / std::sqrt(static_cast<float>(D));
  args.window = config_.window[static_cast<size_t>(l)];
  args.q = q.data();
  args.q_stride = q_width;
  args.out = attended_.data() + begin * q_width;
  args.out_stride = q_width;
  args.sequences = slice;
  kv_->kernel(0).Attend(ctx_, kv_->layer(0), args);
  return absl::OkStatus();
}

int64_t LayerStream::Width(LayerInput input) const {
  switch (input) {
    case LayerInput::kAttended:
      return static_cast<int64_t>(config_.H) * config_.D;
    case LayerInput::kProduct:
      return config_.ffn;
    default:
      return config_.hidden;
  }
}

void LayerStream::Rows(LayerInput input, const LayerWeights& w, int64_t begin, int64_t M, float* out) {
  const Kernels& ops = backend_->kernels();
  const int64_t hidden = config_.hidden, F = config_.ffn;
  const float eps = static_cast<float>(config_.norm_eps);
  if (input == LayerInput::kAttended) {
    const int64_t width = Width(input);
    std::copy_n(attended_.data() + begin * width, M * width, out);
    return;
  }
  const bool product = input == LayerInput::kProduct;
  if (product) normed_.resize(static_cast<size_t>(kChunkRows * hidden));
  if (product) up_.resize(static_cast<size_t>(kChunkRows * F));
  const std::vector<float>& norm = input == LayerInput::kAttention ? w.input_norm : w.post_norm;
  float* to = product ? normed_.data() : out;
  ops.rms_norm(ctx_, Hidden(begin), hidden, norm.data(), eps, M, hidden, to, hidden);
  if (!product) return;
  Multiply(normed_.data(), M, w.gate, out);
  Multiply(normed_.data(), M, w.up, up_.data());
  ops.silu_mul(ctx_, out, F, up_.data(), F, M, F, out);
}

absl::Status LayerStream::Visit(LayerInput input, const LayerWeights& w, VisitRows visit) {
  std::vector<float> rows(static_cast<size_t>(kChunkRows * Width(input)));
  for (int64_t begin = 0; begin < tokens_; begin += kChunkRows) {
    SAGE_RETURN_IF_ERROR(cancel_.Check());
    const int64_t M = std::min(kChunkRows, tokens_ - begin);
    Rows(input, w, begin, M, rows.data());
    SAGE_RETURN_IF_ERROR(visit(rows.data(), M));
  }
  x_.Release();
  attended_.Release();
  return absl::OkStatus();
}

void LayerStream::Project(LayerInput input, const LayerWeights& w, const float* rows, int64_t M, float* out) {
  Multiply(rows, M, input == LayerInput::kAttended ? w.o : w.down, out);
}

// A chunk's rows are read before they change, and no later chunk reads them.
absl::Status LayerStream::Add(LayerInput input, const LayerWeights& w, const VisitRows* visit) {
  const int64_t hidden = config_.hidden;
  std::vector<float> projected(static_cast<size_t>(kChunkRows * hidden));
  int64_t begin = 0;
  return Visit(input, w, [&](const float* rows, int64_t M) {
    Project(input, w, rows, M, projected.data());
    backend_->kernels().add(ctx_, x_.data() + begin * hidden, projected.data(), M * hidden);
    begin += M;
    return visit == nullptr ? absl::OkStatus() : (*visit)(rows, M);
  });
}

absl::Status LayerStream::Run(const LayerWeights& w, int64_t l) {
  SAGE_RETURN_IF_ERROR(RunAttention(w, l));
  SAGE_RETURN_IF_ERROR(AddAttention(w));
  return AddMlp(w);
}

}  // namespace sage
