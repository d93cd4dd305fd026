// One step of a decoder: embed, then for each layer attention and feed-forward, then the final norm and the head.
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/decoder/bound_decoder.h"

namespace sage {

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
  projection.linear->Forward(ctx, x, out, stride);
}

void BoundDecoder::Attention(StepContext& ctx, size_t l, const DecoderBatch& batch, KvArena& kv, int64_t M) {
  const BoundLayer& layer = layers_[l];
  const Kernels& ops = backend_.kernels();
  const int64_t hidden = config_.hidden, D = config_.D;
  const int64_t q_width = config_.H * D, kv_width = config_.KH * D, stride = q_width + 2 * kv_width;
  const float eps = static_cast<float>(config_.norm_eps);
  float* normed = work_.normed.as<float>();
  float* q = work_.qkv.as<float>();
  float* k = q + q_width;
  float* v = k + kv_width;

  ops.rms_norm(ctx, work_.x.as<float>(), hidden, layer.input_norm.data(), eps, M, hidden, normed, hidden);
  const StepValue input{ctx.NewValue(), normed, M, hidden, hidden};
  Run(ctx, layer.q, input, q, stride);
  Run(ctx, layer.k, input, k, stride);
  Run(ctx, layer.v, input, v, stride);
  if (config_.qk_norm) {
    ops.head_norm(ctx, q, stride, config_.H, D, layer.q_norm.data(), eps, M);
    ops.head_norm(ctx, k, stride, config_.KH, D, layer.k_norm.data(), eps, M);
  }
  const float* cos = work_.cos.as<float>();
  const float* sin = work_.sin.as<float>();
  ops.rope(ctx, q, stride, config_.H, D, cos, sin, config_.rope.interleaved, M);
  ops.rope(ctx, k, stride, config_.KH, D, cos, sin, config_.rope.interleaved, M);

  uint8_t* arena = kv.layer(static_cast<int64_t>(l));
  kv.kernel(static_cast<int64_t>(l)).Store(ctx, arena, k, stride, v, stride, batch.sequences);
  AttentionArgs args;
  args.H = config_.H;
  args.layout = kv.layout();
  args.scale = 1.0f / std::sqrt(static_cast<float>(D));
  args.window = config_.window[l];
  args.q = q;
  args.q_stride = stride;
  args.out = work_.attended.as<float>();
  args.out_stride = q_width;
  args.sequences = batch.sequences;
  kv.kernel(static_cast<int64_t>(l)).Attend(ctx, arena, args);

  const StepValue attended{ctx.NewValue(), work_.attended.as<float>(), M, q_width, q_width};
  Run(ctx, layer.o, attended, work_.projected.as<float>(), hidden);
  ops.add(ctx, work_.x.as<float>(), work_.projected.as<float>(), M * hidden);
}

void BoundDecoder::Mlp(StepContext& ctx, size_t l, int64_t M) {
  const BoundLayer& layer = layers_[l];
  const Kernels& ops = backend_.kernels();
  const int64_t hidden = config_.hidden, F = config_.ffn;
  float* normed = work_.normed.as<float>();
  float* gate = work_.gate_up.as<float>();
  float* up = gate + F;

  ops.rms_norm(ctx, work_.x.as<float>(), hidden, layer.post_attention_norm.data(), static_cast<float>(config_.norm_eps),
               M, hidden, normed, hidden);
  const StepValue input{ctx.NewValue(), normed, M, hidden, hidden};
  Run(ctx, layer.gate, input, gate, 2 * F);
  Run(ctx, layer.up, input, up, 2 * F);
  ops.silu_mul(ctx, gate, 2 * F, up, 2 * F, M, F, work_.product.as<float>());
  const StepValue product{ctx.NewValue(), work_.product.as<float>(), M, F, F};
  Run(ctx, layer.down, product, work_.projected.as<float>(), hidden);
  ops.add(ctx, work_.x.as<float>(), work_.projected.as<float>(), M * hidden);
}

absl::Status BoundDecoder::Forward(StepContext& ctx, const DecoderBatch& batch, KvArena& kv, float* hidden) {
  const int64_t M = static_cast<int64_t>(batch.ids.size());
  if (M == 0) return absl::OkStatus();
  SAGE_RETURN_IF_ERROR(Reserve(M));
  SAGE_RETURN_IF_ERROR(Embed(batch.ids, work_.x.as<float>()));
  rope_.FillTables(batch.sequences, work_.cos.as<float>(), work_.sin.as<float>());
  for (size_t l = 0; l < layers_.size(); ++l) {
    ctx.activations->Clear();
    Attention(ctx, l, batch, kv, M);
    Mlp(ctx, l, M);
  }
  ctx.activations->Clear();
  for (size_t r = 0; r < batch.output_rows.size(); ++r) {
    const float* row = work_.x.as<float>() + batch.output_rows[r] * config_.hidden;
    backend_.kernels().rms_norm(ctx, row, config_.hidden, final_norm_.data(), static_cast<float>(config_.norm_eps), 1,
                                config_.hidden, hidden + static_cast<int64_t>(r) * config_.hidden, config_.hidden);
  }
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
