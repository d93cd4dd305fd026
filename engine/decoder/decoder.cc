// One step of a decoder: embed, then for each layer attention and feed-forward, then the final norm and the head.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/decoder/bound_decoder.h"

namespace sage {

namespace {

// Up to here the weights' way through memory is what linear layers wait for; reading ahead brings 16 rows nothing.
constexpr int64_t kStreamingRows = 8;

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

// A step of decoding sequences that all want their row: the same operators run again for the next ids.
bool RepeatsAs(const DecoderBatch& batch) {
  return batch.output_rows.size() == batch.ids.size() &&
         std::all_of(batch.sequences.begin(), batch.sequences.end(),
                     [](const SequenceSlice& slice) { return slice.rows == 1; });
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
  const auto make = [&](DeviceBuffer& buffer, int64_t columns) -> absl::Status {
    buffer = DeviceBuffer();
    SAGE_ASSIGN_OR_RETURN(buffer, memory_.Allocate(static_cast<size_t>(M * columns) * sizeof(float)));
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
  SAGE_RETURN_IF_ERROR(make(work_.hidden, config_.hidden));
  if (!memory_.is_host()) SAGE_RETURN_IF_ERROR(make(work_.ids, 1));
  work_.M = M;
  return absl::OkStatus();
}

absl::Status BoundDecoder::ReserveLogits(int64_t rows) {
  const auto make = [&](DeviceBuffer& buffer, int64_t columns) -> absl::Status {
    const auto bytes = static_cast<size_t>(rows * columns) * sizeof(float);
    if (buffer.bytes() >= bytes) return absl::OkStatus();
    buffer = DeviceBuffer();
    SAGE_ASSIGN_OR_RETURN(buffer, memory_.Allocate(bytes));
    return absl::OkStatus();
  };
  SAGE_RETURN_IF_ERROR(make(work_.logits, config_.V));
  return make(work_.head_input, config_.hidden);
}

absl::Status BoundDecoder::CheckIds(absl::Span<const int32_t> ids) const {
  for (const int64_t id : ids) {
    if (id < 0 || id >= config_.V) {
      return MakeError(absl::StatusCode::kInvalidArgument, "ID_OUT_OF_RANGE",
                       absl::StrCat("token id must be in [0, ", config_.V, "), got ", id));
    }
  }
  return absl::OkStatus();
}

absl::Status BoundDecoder::Plan(const DecoderBatch& batch, const StepContext& ctx, const KvLayout& layout,
                                Step* step) const {
  const auto M = static_cast<int64_t>(batch.ids.size());
  step->wanted = static_cast<int64_t>(batch.output_rows.size());
  step->trims = ctx.observer == nullptr && 2 * step->wanted <= M;
  step->output_rows = batch.output_rows;
  step->repeats = ctx.observer == nullptr && ctx.profile == nullptr && RepeatsAs(batch);
  step->M = step->repeats ? backend_.StepRows(M) : M;
  absl::Span<const SequenceSlice> sequences = batch.sequences;
  if (step->M > M) {
    step->wanted = step->M;
    step->padded.assign(sequences.begin(), sequences.end());
    step->padded.resize(static_cast<size_t>(step->M));  // sequences without rows
    sequences = step->padded;
    step->padded_rows.resize(static_cast<size_t>(step->M));
    std::iota(step->padded_rows.begin(), step->padded_rows.end(), 0);
    step->output_rows = step->padded_rows;
  }
  SAGE_ASSIGN_OR_RETURN(step->sequences, backend_.Place(0, sequences, layout));
  if (!step->trims) return absl::OkStatus();
  auto slice = batch.sequences.begin();
  for (const int64_t row : batch.output_rows) {
    while (row >= slice->row_begin + slice->rows) ++slice;
    const auto to = static_cast<int64_t>(step->kept.size());
    step->kept.push_back({to, 1, slice->context + row - slice->row_begin, slice->prompt_length, slice->pages});
  }
  SAGE_ASSIGN_OR_RETURN(step->last, backend_.Place(1, step->kept, layout));
  return absl::OkStatus();
}

absl::Status BoundDecoder::Prepare(const DecoderBatch& batch, const Step& step) {
  SAGE_RETURN_IF_ERROR(CheckIds(batch.ids));
  const auto M = static_cast<size_t>(step.M);
  const bool host = memory_.is_host();
  const auto room = [&](const DeviceBuffer& buffer, std::vector<float>& own, int64_t columns) {
    if (host) return buffer.as<float>();
    own.assign(M * static_cast<size_t>(columns), 0.0f);
    return own.data();
  };
  const int64_t half = config_.D / 2, hidden = config_.hidden;
  float* const cos = room(work_.cos, work_.host_cos, half);
  float* const sin = room(work_.sin, work_.host_sin, half);
  rope_.FillTables(batch.sequences, cos, sin);
  if (embedding_rows_ != nullptr) {
    work_.host_ids.assign(batch.ids.begin(), batch.ids.end());
    work_.host_ids.resize(M, 0);
    memory_.Upload(work_.ids.as<void>(), work_.host_ids.data(), M * sizeof(int32_t));
  } else {
    float* const x = room(work_.x, work_.host_x, hidden);
    for (size_t m = 0; m < batch.ids.size(); ++m) {
      const int64_t id = batch.ids[m];
      SAGE_RETURN_IF_ERROR(
          embedding_strategy_->dequantize_rows(embedding_, id, id + 1, x + static_cast<int64_t>(m) * hidden));
    }
    if (!host) memory_.Upload(work_.x.as<void>(), x, M * static_cast<size_t>(hidden) * sizeof(float));
  }
  if (host) return absl::OkStatus();
  memory_.Upload(work_.cos.as<void>(), cos, M * static_cast<size_t>(half) * sizeof(float));
  memory_.Upload(work_.sin.as<void>(), sin, M * static_cast<size_t>(half) * sizeof(float));
  return absl::OkStatus();
}

void BoundDecoder::Observe(StepContext& ctx, const BoundProjection& projection, const StepValue& x) const {
  if (ctx.observer == nullptr) return;
  StepValue seen = x;
  std::vector<float> copy;
  if (!memory_.is_host()) {
    copy.resize(static_cast<size_t>(x.M * x.stride));
    seen.data = copy.data();
    if (!memory_.Download(copy.data(), x.data, copy.size() * sizeof(float)).ok()) seen.M = 0;
  }
  ctx.observer->Observe(projection.module, seen);
}

void BoundDecoder::ReadNext(StepContext& ctx, std::initializer_list<const BoundProjection*> next, int64_t M) const {
  if (!memory_.is_host()) return;
  std::array<ReadAhead::Matrix, ReadAhead::kMatrices> matrices;
  size_t count = 0;
  if (M <= kStreamingRows) {
    for (const BoundProjection* projection : next) matrices[count++] = projection->linear->streamed();
  }
  ctx.threads->read_ahead().Set(absl::MakeConstSpan(matrices).first(count));
}

void BoundDecoder::Run(StepContext& ctx, const BoundProjection& projection, const StepValue& x, float* out,
                       int64_t stride) const {
  Observe(ctx, projection, x);
  if (ctx.profile == nullptr) return projection.linear->Forward(ctx, x, out, stride);
  const std::string_view name = std::string_view(projection.module).substr(projection.module.rfind('.') + 1);
  Time(ctx, name, static_cast<int64_t>(projection.linear->weight_bytes()),
       [&] { projection.linear->Forward(ctx, x, out, stride); });
}

void BoundDecoder::RunTogether(StepContext& ctx, std::string_view name, std::initializer_list<Product> products,
                               const StepValue& x, int64_t stride) {
  int64_t bytes = 0;
  for (const Product& p : products) {
    Observe(ctx, *p.projection, x);
    bytes += static_cast<int64_t>(p.projection->linear->weight_bytes());
  }
  Time(ctx, name, bytes, [&] {
    // Kernels of a device are enqueued one by one.
    ctx.group = memory_.is_host() ? &group_ : nullptr;
    for (const Product& p : products) p.projection->linear->Forward(ctx, x, p.out, stride);
    if (ctx.group == nullptr) return;
    ctx.group = nullptr;
    group_.Run(*ctx.threads);
  });
}

void BoundDecoder::Project(StepContext& ctx, size_t l, const StepSequences& sequences, KvArena& kv, int64_t M) {
  const BoundLayer& layer = layers_[l];
  const Kernels& ops = backend_.kernels();
  const int64_t hidden = config_.hidden, D = config_.D;
  const int64_t q_width = config_.H * D, kv_width = config_.KH * D, stride = q_width + 2 * kv_width;
  const float eps = static_cast<float>(config_.norm_eps);
  float* normed = work_.normed.as<float>();
  float* q = work_.qkv.as<float>();
  float* k = q + q_width;
  float* v = k + kv_width;

  const StepValue input{ctx.NewValue(), normed, M, hidden, hidden};
  ReadNext(ctx, {&layer.o}, M);
  RunTogether(ctx, "qkv_proj", {{&layer.q, q}, {&layer.k, k}, {&layer.v, v}}, input, stride);
  if (config_.qk_norm) {
    Time(ctx, "head_norm", 0, [&] {
      ops.head_norm(ctx, q, stride, config_.H, D, layer.q_norm.as<float>(), eps, M);
      ops.head_norm(ctx, k, stride, config_.KH, D, layer.k_norm.as<float>(), eps, M);
    });
  }
  Time(ctx, "rope", 0, [&] {
    const float* cos = work_.cos.as<float>();
    const float* sin = work_.sin.as<float>();
    // The heads of k lie behind those of q.
    ops.rope(ctx, q, stride, config_.H + config_.KH, D, cos, sin, config_.rope.interleaved, M);
  });

  Time(ctx, "kv_store", 0, [&] {
    const auto layer_index = static_cast<int64_t>(l);
    kv.kernel(layer_index).Store(ctx, kv.layer(layer_index), k, stride, v, stride, sequences);
  });
}

void BoundDecoder::Attend(StepContext& ctx, size_t l, const StepSequences& sequences, KvArena& kv, int64_t M) {
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
  Time(ctx, "attention", CachedBytes(sequences.slices, kv.layout(), kernel, config_.window[l]),
       [&] { kernel.Attend(ctx, kv.layer(static_cast<int64_t>(l)), args); });

  const StepValue attended{ctx.NewValue(), work_.attended.as<float>(), M, q_width, q_width};
  ReadNext(ctx, {&layer.gate, &layer.up}, M);
  Run(ctx, layer.o, attended, work_.projected.as<float>(), hidden);
  AddProjected(ctx, M, &layer.post_attention_norm);
}

void BoundDecoder::AddProjected(StepContext& ctx, int64_t M, const DeviceBuffer* norm) {
  const int64_t K = config_.hidden;
  float* const x = work_.x.as<float>();
  float* const projected = work_.projected.as<float>();
  if (communicator_ != nullptr) {
    Time(ctx, "all_reduce", 0, [&] { sum_status_.Update(communicator_->Sum(projected, M * K)); });
  }
  Time(ctx, "residual", 0, [&] {
    if (norm == nullptr) return backend_.kernels().add(ctx, x, projected, M * K);
    backend_.kernels().add_rms_norm(ctx, x, projected, norm->as<float>(), static_cast<float>(config_.norm_eps), M, K,
                                    work_.normed.as<float>());
  });
}

void BoundDecoder::KeepRows(const Step& step) {
  const int64_t stride = static_cast<int64_t>(config_.H + 2 * config_.KH) * config_.D;
  const auto move = [&](const DeviceBuffer& rows, int64_t row_stride, int64_t width, int64_t from, int64_t to) {
    if (from == to) return;
    memory_.Copy(rows.as<float>() + to * row_stride, rows.as<float>() + from * row_stride,
                 static_cast<size_t>(width) * sizeof(float));
  };
  for (int64_t to = 0; to < step.wanted; ++to) {
    const int64_t row = step.output_rows[static_cast<size_t>(to)];
    move(work_.qkv, stride, config_.H * config_.D, row, to);
    move(work_.x, config_.hidden, config_.hidden, row, to);
  }
}

void BoundDecoder::Mlp(StepContext& ctx, size_t l, int64_t M) {
  const BoundLayer& layer = layers_[l];
  const Kernels& ops = backend_.kernels();
  const int64_t hidden = config_.hidden, F = config_.ffn;
  float* normed = work_.normed.as<float>();
  float* gate = work_.gate_up.as<float>();
  float* up = gate + F;

  const StepValue input{ctx.NewValue(), normed, M, hidden, hidden};
  ReadNext(ctx, {&layer.down}, M);
  RunTogether(ctx, "gate_up_proj", {{&layer.gate, gate}, {&layer.up, up}}, input, 2 * F);
  Time(ctx, "silu_mul", 0, [&] { ops.silu_mul(ctx, gate, 2 * F, up, 2 * F, M, F, work_.product.as<float>()); });
  const StepValue product{ctx.NewValue(), work_.product.as<float>(), M, F, F};
  if (l + 1 < layers_.size()) {
    const BoundLayer& next = layers_[l + 1];
    ReadNext(ctx, {&next.q, &next.k, &next.v}, M);
  } else {
    ReadNext(ctx, {&head_}, M);
  }
  Run(ctx, layer.down, product, work_.projected.as<float>(), hidden);
  AddProjected(ctx, M, l + 1 < layers_.size() ? &layers_[l + 1].input_norm : nullptr);
}

// The final norm of the wanted rows, consecutive ones together.
void BoundDecoder::NormRows(StepContext& ctx, const Step& step) {
  const int64_t K = config_.hidden;
  for (int64_t r = 0; r < step.wanted;) {
    const int64_t row = step.trims ? r : step.output_rows[static_cast<size_t>(r)];
    int64_t count = 1;
    while (r + count < step.wanted && (step.trims || step.output_rows[static_cast<size_t>(r + count)] == row + count)) {
      ++count;
    }
    backend_.kernels().rms_norm(ctx, work_.x.as<float>() + row * K, K, final_norm_.as<float>(),
                                static_cast<float>(config_.norm_eps), count, K, step.hidden + r * K, K);
    r += count;
  }
}

void BoundDecoder::RunLayers(StepContext& ctx, const Step& step, KvArena& kv) {
  if (embedding_rows_ != nullptr) {
    Time(ctx, "embed", 0, [&] { embedding_rows_->Gather(ctx, work_.ids.as<int32_t>(), step.M, work_.x.as<float>()); });
  }
  Time(ctx, "norm", 0, [&] {
    backend_.kernels().rms_norm(ctx, work_.x.as<float>(), config_.hidden, layers_[0].input_norm.as<float>(),
                                static_cast<float>(config_.norm_eps), step.M, config_.hidden, work_.normed.as<float>(),
                                config_.hidden);
  });
  for (size_t l = 0; l < layers_.size(); ++l) {
    const bool last = step.trims && l + 1 == layers_.size();
    ctx.activations->Clear();
    Project(ctx, l, step.sequences, kv, step.M);
    if (last) KeepRows(step);
    if (last && step.wanted == 0) break;
    Attend(ctx, l, last ? step.last : step.sequences, kv, last ? step.wanted : step.M);
    Mlp(ctx, l, last ? step.wanted : step.M);
  }
  ctx.activations->Clear();
  Time(ctx, "norm", 0, [&] { NormRows(ctx, step); });
}

absl::Status BoundDecoder::Forward(StepContext& ctx, const DecoderBatch& batch, KvArena& kv, float* hidden) {
  if (batch.ids.empty()) return absl::OkStatus();
  UseDevice(ctx);
  Step step;
  SAGE_RETURN_IF_ERROR(Plan(batch, ctx, kv.layout(), &step));
  SAGE_RETURN_IF_ERROR(Reserve(step.M));
  absl::Status prepared;
  Time(ctx, "embed", 0, [&] { prepared = Prepare(batch, step); });
  SAGE_RETURN_IF_ERROR(prepared);
  const bool downloads = hidden != nullptr && !memory_.is_host();
  step.hidden = hidden == nullptr || downloads ? work_.hidden.as<float>() : hidden;
  const StepKey key{step.repeats, step.M, kv.layer(0)};
  SAGE_RETURN_IF_ERROR(backend_.RunStep(key, [&] { RunLayers(ctx, step, kv); }));
  SAGE_RETURN_IF_ERROR(std::exchange(sum_status_, absl::OkStatus()));
  if (!downloads) return absl::OkStatus();
  return memory_.Download(hidden, step.hidden,
                          batch.output_rows.size() * static_cast<size_t>(config_.hidden) * sizeof(float));
}

absl::Status BoundDecoder::Logits(StepContext& ctx, const float* hidden, int64_t rows, float* logits) {
  UseDevice(ctx);
  if (!memory_.is_host()) {
    SAGE_RETURN_IF_ERROR(ReserveLogits(rows));
    memory_.Upload(work_.head_input.as<void>(), hidden, static_cast<size_t>(rows * config_.hidden) * sizeof(float));
    hidden = work_.head_input.as<float>();
  }
  return HeadLogits(ctx, hidden, rows, logits);
}

absl::Status BoundDecoder::StepLogits(StepContext& ctx, int64_t begin, int64_t rows, float* logits) {
  UseDevice(ctx);
  if (!memory_.is_host()) SAGE_RETURN_IF_ERROR(ReserveLogits(rows));
  return HeadLogits(ctx, work_.hidden.as<float>() + begin * config_.hidden, rows, logits);
}

absl::Status BoundDecoder::HeadLogits(StepContext& ctx, const float* hidden, int64_t rows, float* logits) {
  const bool host = memory_.is_host();
  const StepValue input{ctx.NewValue(), hidden, rows, config_.hidden, config_.hidden};
  ReadNext(ctx, {&layers_[0].q, &layers_[0].k, &layers_[0].v}, rows);
  Run(ctx, head_, input, host ? logits : work_.logits.as<float>(), config_.V);
  ctx.activations->Clear();
  if (host) return absl::OkStatus();
  return memory_.Download(logits, work_.logits.as<float>(), static_cast<size_t>(rows * config_.V) * sizeof(float));
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
