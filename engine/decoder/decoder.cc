// One step of a decoder: embed, then for each layer attention and feed-forward, then the final norm and the head.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/decoder/bound_decoder.h"

namespace sage {

namespace {

// Bytes of keys and values of one layer that the rows of a step have to read.
int64_t CachedBytes(absl::Span<const SequenceSlice> sequences, const KvLayout& layout, const KvKernel& kernel,
                    int64_t window) {
  const int64_t tokens = layout.page_tokens;
  int64_t pages = 0;
  for (const SequenceSlice& slice : sequences) {
    const int64_t length = slice.context + slice.rows;
    const int64_t first = window > 0 ? std::max<int64_t>(0, slice.context + 1 - window) / tokens : 0;
    pages += (length + tokens - 1) / tokens - first;
  }
  return pages * static_cast<int64_t>(kernel.page_bytes());
}

}  // namespace

size_t BoundDecoder::workspace_bytes(int64_t M) const {
  const int64_t qkv = static_cast<int64_t>(config_.H + 2 * config_.KH) * config_.D;
  const int64_t attended = static_cast<int64_t>(config_.H) * config_.D;
  return sizeof(float) * static_cast<size_t>(M * (3 * config_.hidden + qkv + attended + 3 * config_.ffn + config_.D));
}

absl::Status BoundDecoder::Reserve(int64_t M) {
  if (M <= work_.M) return absl::OkStatus();
  const int64_t qkv = static_cast<int64_t>(config_.H + 2 * config_.KH) * config_.D;
  const auto make = [&](Tensor& tensor, int64_t columns) -> absl::Status {
    SAGE_ASSIGN_OR_RETURN(tensor, Tensor::Allocate(DType::kF32, {M, columns}));
    return absl::OkStatus();
  };
  work_.M = 0;
  SAGE_RETURN_IF_ERROR(make(work_.x, config_.hidden));
  SAGE_RETURN_IF_ERROR(make(work_.normed, config_.hidden));
  SAGE_RETURN_IF_ERROR(make(work_.projected, config_.hidden));
  SAGE_RETURN_IF_ERROR(make(work_.qkv, qkv));
  SAGE_RETURN_IF_ERROR(make(work_.attended, static_cast<int64_t>(config_.H) * config_.D));
  SAGE_RETURN_IF_ERROR(make(work_.gate_up, 2 * config_.ffn));
  SAGE_RETURN_IF_ERROR(make(work_.product, config_.ffn));
  SAGE_RETURN_IF_ERROR(make(work_.cos, config_.D / 2));
  SAGE_RETURN_IF_ERROR(make(work_.sin, config_.D / 2));
  work_.M = M;
  return absl::OkStatus();
}

absl::Status BoundDecoder::Embed(absl::Span<const int32_t> ids, float* x) const {
  for (size_t m = 0; m < ids.size(); ++m) {
    const int64_t id = ids[m];
    if (id < 0 || id >= config_.V) {
      return MakeError(absl::StatusCode::kInvalidArgument, "ID_OUT_OF_RANGE",
                       absl::StrCat("token id must be in [0, ", config_.V, "), got ", id));
    }
    SAGE_RETURN_IF_ERROR(
        embedding_strategy_->dequantize_rows(embedding_, id, id + 1, x + static_cast<int64_t>(m) * config_.hidden));
  }
  return absl::OkStatus();
}

void BoundDecoder::Run(StepContext& ctx, const BoundProjection& projection, const StepValue& x, float* out,
                       int64_t stride) const {
  if (ctx.observer != nullptr) ctx.observer->Observe(projection.module, x);
  if (ctx.profile == nullptr) return projection.linear->Forward(ctx, x, out, stride);
  const std::string_view name = std::string_view(projection.module).substr(projection.module.rfind('.') + 1);
  Timed(ctx, name, static_cast<int64_t>(projection.linear->weight_bytes()),
        [&] { projection.linear->Forward(ctx, x, out, stride); });
}

void BoundDecoder::RunTogether(StepContext& ctx, std::string_view name, std::initializer_list<Product> products,
                               const StepValue& x, int64_t stride) {
  int64_t bytes = 0;
  for (const Product& p : products) {
    if (ctx.observer != nullptr) ctx.observer->Observe(p.projection->module, x);
    bytes += static_cast<int64_t>(p.projection->linear->weight_bytes());
  }
  Timed(ctx, name, bytes, [&] {
    ctx.group = &group_;
    for (const Product& p : products) p.projection->linear->Forward(ctx, x, p.out, stride);
    ctx.group = nullptr;
    group_.Run(*ctx.threads);
  });
}

void BoundDecoder::Project(StepContext& ctx, size_t l, const DecoderBatch& batch, KvArena& kv, int64_t M) {
  const BoundLayer& layer = layers_[l];
  const Kernels& ops = backend_.kernels();
  const int64_t hidden = config_.hidden, D = config_.D;
  const int64_t q_width = config_.H * D, kv_width = config_.KH * D, stride = q_width + 2 * kv_width;
  const float eps = static_cast<float>(config_.norm_eps);
  float* normed = work_.normed.as<float>();
  float* q = work_.qkv.as<float>();
  float* k = q + q_width;
  float* v = k + kv_width;

  Timed(ctx, "norm", 0, [&] {
    ops.rms_norm(ctx, work_.x.as<float>(), hidden, layer.input_norm.data(), eps, M, hidden, normed, hidden);
  });
  const StepValue input{ctx.NewValue(), normed, M, hidden, hidden};
  RunTogether(ctx, "qkv_proj", {{&layer.q, q}, {&layer.k, k}, {&layer.v, v}}, input, stride);
  if (config_.qk_norm) {
    Timed(ctx, "head_norm", 0, [&] {
      ops.head_norm(ctx, q, stride, config_.H, D, layer.q_norm.data(), eps, M);
      ops.head_norm(ctx, k, stride, config_.KH, D, layer.k_norm.data(), eps, M);
    });
  }
  Timed(ctx, "rope", 0, [&] {
    const float* cos = work_.cos.as<float>();
    const float* sin = work_.sin.as<float>();
    ops.rope(ctx, q, stride, config_.H, D, cos, sin, config_.rope.interleaved, M);
    ops.rope(ctx, k, stride, config_.KH, D, cos, sin, config_.rope.interleaved, M);
  });

  Timed(ctx, "kv_store", 0, [&] {
    const auto layer_index = static_cast<int64_t>(l);
    kv.kernel(layer_index).Store(ctx, kv.layer(layer_index), k, stride, v, stride, batch.sequences);
  });
}

void BoundDecoder::Attend(StepContext& ctx, size_t l, absl::Span<const SequenceSlice> sequences, KvArena& kv,
                          int64_t M) {
  const BoundLayer& layer = layers_[l];
  const int64_t hidden = config_.hidden, q_width = config_.H * config_.D;
  AttentionArgs args;
  args.H = config_.H;
  args.layout = kv.layout();
  args.scale = 1.0f / std::sqrt(static_cast<float>(config_.D));
  args.window = config_.window[l];
  args.q = work_.qkv.as<float>();
  args.q_stride = q_width + 2 * config_.KH * config_.D;
  args.out = work_.attended.as<float>();
  args.out_stride = q_width;
  args.sequences = sequences;
  const KvKernel& kernel = kv.kernel(static_cast<int64_t>(l));
  Timed(ctx, "attention", CachedBytes(sequences, kv.layout(), kernel, config_.window[l]),
        [&] { kernel.Attend(ctx, kv.layer(static_cast<int64_t>(l)), args); });

  const StepValue attended{ctx.NewValue(), work_.attended.as<float>(), M, q_width, q_width};
  Run(ctx, layer.o, attended, work_.projected.as<float>(), hidden);
  Timed(ctx, "residual", 0,
        [&] { backend_.kernels().add(ctx, work_.x.as<float>(), work_.projected.as<float>(), M * hidden); });
}

void BoundDecoder::KeepRows(const DecoderBatch& batch, std::vector<SequenceSlice>& kept) {
  const int64_t stride = static_cast<int64_t>(config_.H + 2 * config_.KH) * config_.D;
  const auto move = [](float* rows, int64_t row_stride, int64_t width, int64_t from, int64_t to) {
    std::copy_n(rows + from * row_stride, from == to ? 0 : width, rows + to * row_stride);
  };
  auto slice = batch.sequences.begin();
  for (const int64_t row : batch.output_rows) {
    while (row >= slice->row_begin + slice->rows) ++slice;
    const auto to = static_cast<int64_t>(kept.size());
    kept.push_back({to, 1, slice->context + row - slice->row_begin, slice->prompt_length, slice->pages});
    move(work_.qkv.as<float>(), stride, config_.H * config_.D, row, to);
    move(work_.x.as<float>(), config_.hidden, config_.hidden, row, to);
  }
}

void BoundDecoder::Mlp(StepContext& ctx, size_t l, int64_t M) {
  const BoundLayer& layer = layers_[l];
  const Kernels& ops = backend_.kernels();
  const int64_t hidden = config_.hidden, F = config_.ffn;
  float* normed = work_.normed.as<float>();
  float* gate = work_.gate_up.as<float>();
  float* up = gate + F;

  Timed(ctx, "norm", 0, [&] {
    ops.rms_norm(ctx, work_.x.as<float>(), hidden, layer.post_attention_norm.data(),
                 static_cast<float>(config_.norm_eps), M, hidden, normed, hidden);
  });
  const StepValue input{ctx.NewValue(), normed, M, hidden, hidden};
  RunTogether(ctx, "gate_up_proj", {{&layer.gate, gate}, {&layer.up, up}}, input, 2 * F);
  Timed(ctx, "silu_mul", 0, [&] { ops.silu_mul(ctx, gate, 2 * F, up, 2 * F, M, F, work_.product.as<float>()); });
  const StepValue product{ctx.NewValue(), work_.product.as<float>(), M, F, F};
  Run(ctx, layer.down, product, work_.projected.as<float>(), hidden);
  Timed(ctx, "residual", 0, [&] { ops.add(ctx, work_.x.as<float>(), work_.projected.as<float>(), M * hidden); });
}

absl::Status BoundDecoder::Forward(StepContext& ctx, const DecoderBatch& batch, KvArena& kv, float* hidden) {
  const int64_t M = static_cast<int64_t>(batch.ids.size());
  if (M == 0) return absl::OkStatus();
  SAGE_RETURN_IF_ERROR(Reserve(M));
  absl::Status embedded;
  Timed(ctx, "embed", 0, [&] {
    embedded = Embed(batch.ids, work_.x.as<float>());
    rope_.FillTables(batch.sequences, work_.cos.as<float>(), work_.sin.as<float>());
  });
  SAGE_RETURN_IF_ERROR(embedded);
  // Behind the keys and values of the last layer only the wanted rows go on.
  const auto wanted = static_cast<int64_t>(batch.output_rows.size());
  const bool trims = ctx.observer == nullptr && 2 * wanted <= M;
  std::vector<SequenceSlice> kept;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const bool last = trims && l + 1 == layers_.size();
    ctx.activations->Clear();
    Project(ctx, l, batch, kv, M);
    if (last) KeepRows(batch, kept);
    if (last && kept.empty()) break;
    Attend(ctx, l, last ? absl::MakeConstSpan(kept) : batch.sequences, kv, last ? wanted : M);
    Mlp(ctx, l, last ? wanted : M);
  }
  ctx.activations->Clear();
  Timed(ctx, "norm", 0, [&] {
    for (int64_t r = 0; r < wanted; ++r) {
      const int64_t row = trims ? r : batch.output_rows[static_cast<size_t>(r)];
      backend_.kernels().rms_norm(ctx, work_.x.as<float>() + row * config_.hidden, config_.hidden, final_norm_.data(),
                                  static_cast<float>(config_.norm_eps), 1, config_.hidden, hidden + r * config_.hidden,
                                  config_.hidden);
    }
  });
  return absl::OkStatus();
}

void BoundDecoder::Logits(StepContext& ctx, const float* hidden, int64_t rows, float* logits) {
  const StepValue input{ctx.NewValue(), hidden, rows, config_.hidden, config_.hidden};
  Run(ctx, head_, input, logits, config_.V);
  ctx.activations->Clear();
}

std::vector<BoundLayerInfo> BoundDecoder::bindings() const {
  std::vector<BoundLayerInfo> out;
  const auto add = [&](const BoundProjection& p) {
    out.push_back({p.module, p.strategy, p.linear->kernel(), p.linear->weight_bytes()});
  };
  for (const BoundLayer& layer : layers_) {
    for (const BoundProjection* p : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
      add(*p);
  }
  add(head_);
  return out;
}

}  // namespace sage
