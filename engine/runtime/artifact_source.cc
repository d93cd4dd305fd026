// Reads weights, biases and plain tensors of any checkpoint in Hugging Face order, as artifacts need them.
#include "engine/runtime/artifact_source.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quant/integer_grid.h"
#include "engine/tensor/float_convert.h"

namespace sage {
namespace {

DType FloatDType(const Json& config, bool gguf) {
  for (const char* key : {"torch_dtype", "dtype"}) {
    const auto it = config.find(key);
    if (it == config.end() || !it->is_string()) continue;
    const std::string word = it->get<std::string>();
    if (word == "bfloat16") return DType::kBF16;
    if (word == "float16") return DType::kF16;
    if (word == "float32") return DType::kF32;
  }
  return gguf ? DType::kF16 : DType::kF32;
}

absl::StatusOr<std::shared_ptr<Tensor>> NewTensor(DType dtype, const Shape& shape) {
  SAGE_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(dtype, shape));
  return std::make_shared<Tensor>(std::move(tensor));
}

constexpr const char* kEmbeddings = "model.embed_tokens";

// Rows [first, last) as f32.
absl::Status ParallelDequantize(const StoredLinear& stored, int64_t first, int64_t last, ThreadPool& threads,
                                float* out) {
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
  const int64_t rows = 32;
  const int64_t tasks = (last - first + rows - 1) / rows;
  std::vector<absl::Status> results(static_cast<size_t>(tasks));
  threads.Run(tasks, [&](int64_t task, int) {
    const int64_t begin = first + task * rows;
    const int64_t end = std::min(last, begin + rows);
    results[static_cast<size_t>(task)] = def->dequantize_rows(stored, begin, end, out + (begin - first) * stored.K);
  });
  for (const absl::Status& status : results) SAGE_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

// F32, F16 or BF16, rounded half to even; false for another type.
bool WriteFloats(const float* values, int64_t count, DType dtype, void* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, values, static_cast<size_t>(count) * sizeof(float));
    return true;
  }
  if (dtype != DType::kF16 && dtype != DType::kBF16) return false;
  uint16_t* const to = static_cast<uint16_t*>(out);
  for (int64_t i = 0; i < count; ++i) to[i] = dtype == DType::kF16 ? FloatToF16(values[i]) : FloatToBF16(values[i]);
  return true;
}

bool IsPlainFloat(DType dtype) { return IsFloat(dtype) && dtype != DType::kF64; }

}  // namespace

int64_t LayerOfName(const std::string& name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (name.compare(0, kPrefix.size(), kPrefix) != 0) return -1;
  const size_t dot = name.find('.', kPrefix.size());
  int64_t layer = -1;
  if (dot == name.npos || !absl::SimpleAtoi(name.substr(kPrefix.size(), dot - kPrefix.size()), &layer)) return -1;
  return layer;
}

absl::StatusOr<NamedTensor> ConvertFloats(const std::string& name, const float* values, const Shape& shape,
                                          DType dtype) {
  SAGE_ASSIGN_OR_RETURN(std::shared_ptr<Tensor> out, NewTensor(dtype, shape));
  SAGE_ASSIGN_OR_RETURN(const int64_t count, ElementCount(shape));
  if (!WriteFloats(values, count, dtype, out->as<uint8_t>())) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_DTYPE",
                     absl::StrCat(name, ": floats are written as F32, F16 or BF16"));
  }
  return NamedTensor{name, out->view(), out};
}

absl::StatusOr<std::unique_ptr<ArtifactSource>> ArtifactSource::Open(const std::string& path) {
  std::unique_ptr<ArtifactSource> source(new ArtifactSource());
  SAGE_ASSIGN_OR_RETURN(source->checkpoint_, OpenCheckpoint(path));
  const Json& config = source->checkpoint_->config();
  SAGE_ASSIGN_OR_RETURN(source->config_, ParseModelConfig(config, source->checkpoint_->generation_config()));
  SAGE_ASSIGN_OR_RETURN(source->interleaved_, JsonBool(config, "sage_rope_interleaved", false));
  source->linears_ = ListLinears(source->config_);
  source->tensors_ = ListTensors(source->config_);
  source->float_dtype_ = FloatDType(config, source->is_gguf());
  return source;
}

void ArtifactSource::Rotate(std::unique_ptr<ModelRotation> rotation) {
  rotation_ = std::move(rotation);
  head_was_tied_ = config_.tied_embeddings;
  config_.tied_embeddings = false;
  linears_ = ListLinears(config_);
}

std::vector<LinearSlot> ArtifactSource::ShardLinears(int64_t shard) const {
  std::vector<LinearSlot> out;
  for (const LinearSlot& slot : linears_) {
    if (slot.layer == shard || (slot.layer < 0 && shard == config_.L)) out.push_back(slot);
  }
  return out;
}

std::vector<int64_t> ArtifactSource::RowOrder(const LinearSlot& slot) const {
  if (!interleaved_ || (slot.kind != "q_proj" && slot.kind != "k_proj")) return {};
  // Rotary pair i of a head lies in rows (2i, 2i + 1) of the source and in rows (i, i + D/2) of the artifact.
  const int64_t D = config_.D;
  std::vector<int64_t> order(static_cast<size_t>(slot.N));
  for (int64_t n = 0; n < slot.N; ++n) {
    const int64_t head = n / D, r = n % D;
    order[static_cast<size_t>(n)] = head * D + (r % (D / 2)) * 2 + r / (D / 2);
  }
  return order;
}

absl::StatusOr<StoredLinear> ArtifactSource::Stored(const LinearSlot& slot) const {
  SAGE_ASSIGN_OR_RETURN(StoredLinear stored, checkpoint_->GetLinear(SharesEmbeddings(slot) ? kEmbeddings : slot.name));
  if (stored.N != slot.N || stored.K != slot.K) {
    return MakeError(absl::StatusCode::kInvalidArgument, "SHAPE_MISMATCH",
                     absl::StrCat(slot.name, ": must be [", slot.N, ", ", slot.K, "] by config.json, got [", stored.N,
                                  ", ", stored.K, "]"));
  }
  return stored;
}

absl::StatusOr<Tensor> ArtifactSource::Weight(const LinearSlot& slot, ThreadPool& threads) const {
  SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, Stored(slot));
  SAGE_ASSIGN_OR_RETURN(Tensor values, Tensor::Allocate(DType::kF32, {slot.N, slot.K}));
  const absl::Status status = ParallelDequantize(stored, 0, stored.N, threads, values.as<float>());
  if (!status.ok()) return Annotate(status, slot.name);
  if (rotation_ != nullptr) {
    SAGE_ASSIGN_OR_RETURN(const std::vector<float> norm, FoldedNorm(slot));
    rotation_->Rotate(slot, norm, slot.N, values.as<float>(), threads);
  }
  const std::vector<int64_t> order = RowOrder(slot);
  if (order.empty()) return values;
  SAGE_ASSIGN_OR_RETURN(Tensor moved, Tensor::Allocate(DType::kF32, {slot.N, slot.K}));
  for (int64_t n = 0; n < slot.N; ++n) {
    std::memcpy(moved.as<float>() + n * slot.K, values.as<float>() + order[static_cast<size_t>(n)] * slot.K,
                static_cast<size_t>(slot.K) * sizeof(float));
  }
  return moved;
}

absl::StatusOr<TensorView> ArtifactSource::DenseWeight(const LinearSlot& slot) const {
  SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, Stored(slot));
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
  const auto it = stored.tensors.find("weight");
  // Memory that only the StoredLinear owns would not outlive this call.
  if (def->quantizes || it == stored.tensors.end() || !IsFloat(it->second.dtype) || !stored.owned.empty() ||
      !RowOrder(slot).empty() || rotation_ != nullptr) {
    return TensorView{};
  }
  return it->second;
}

absl::StatusOr<NamedTensor> ArtifactSource::FloatWeight(const LinearSlot& slot, ThreadPool& threads) const {
  const std::string name = slot.name + ".weight";
  SAGE_ASSIGN_OR_RETURN(const TensorView dense, DenseWeight(slot));
  if (!dense.empty()) return NamedTensor{name, dense, nullptr};
  DType dtype = float_dtype_;
  if (rotation_ != nullptr) {
    SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, Stored(slot));
    const auto it = stored.tensors.find("weight");
    if (it != stored.tensors.end() && IsPlainFloat(it->second.dtype)) dtype = it->second.dtype;
    if (slot.layer < 0) return RotatedTable(name, &slot, dtype, threads);
  }
  SAGE_ASSIGN_OR_RETURN(const Tensor weight, Weight(slot, threads));
  return ConvertFloats(name, weight.as<float>(), {slot.N, slot.K}, dtype);
}

absl::StatusOr<std::vector<float>> ArtifactSource::FoldedNorm(const LinearSlot& slot) const {
  const std::string norm = ModelRotation::NormBefore(slot);
  if (norm.empty()) return std::vector<float>();
  SAGE_ASSIGN_OR_RETURN(const TensorView view, checkpoint_->GetTensor(norm + ".weight"));
  if (view.elements() != slot.K) {
    return MakeError(absl::StatusCode::kInvalidArgument, "SHAPE_MISMATCH",
                     absl::StrCat(norm, ".weight: must have ", slot.K, " values, got ", ShapeText(view.shape)));
  }
  std::vector<float> values(static_cast<size_t>(slot.K));
  SAGE_RETURN_IF_ERROR(ToFloat(view, values.data()));
  return values;
}

absl::StatusOr<NamedTensor> ArtifactSource::RotatedTable(const std::string& name, const LinearSlot* head, DType dtype,
                                                         ThreadPool& threads) const {
  constexpr int64_t kRows = 1024;
  const int64_t hidden = config_.hidden;
  std::vector<float> norm;
  if (head != nullptr) {
    SAGE_ASSIGN_OR_RETURN(norm, FoldedNorm(*head));
  }
  SAGE_ASSIGN_OR_RETURN(const StoredLinear table,
                        head != nullptr ? Stored(*head) : checkpoint_->GetLinear(kEmbeddings));
  if (table.N != config_.V || table.K != hidden) {
    return MakeError(absl::StatusCode::kInvalidArgument, "SHAPE_MISMATCH",
                     absl::StrCat(name, ": must be [", config_.V, ", ", hidden, "] by config.json, got [", table.N,
                                  ", ", table.K, "]"));
  }
  SAGE_ASSIGN_OR_RETURN(std::shared_ptr<Tensor> out, NewTensor(dtype, {table.N, hidden}));
  std::vector<float> rows(static_cast<size_t>(kRows * hidden));
  for (int64_t begin = 0; begin < table.N; begin += kRows) {
    const int64_t count = std::min(kRows, table.N - begin);
    SAGE_RETURN_IF_ERROR(ParallelDequantize(table, begin, begin + count, threads, rows.data()));
    if (head != nullptr) {
      rotation_->Rotate(*head, norm, count, rows.data(), threads);
    } else {
      rotation_->RotateEmbeddings(rows.data(), count, threads);
    }
    uint8_t* const to = out->as<uint8_t>() + static_cast<size_t>(begin * hidden) * DTypeSize(dtype);
    if (!WriteFloats(rows.data(), count * hidden, dtype, to)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "BAD_DTYPE",
                       absl::StrCat(name, ": floats are written as F32, F16 or BF16"));
    }
  }
  return NamedTensor{name, out->view(), out};
}

DType ArtifactSource::EmbeddingDType(DType fallback) const {
  const absl::StatusOr<TensorView> view = checkpoint_->GetTensor(absl::StrCat(kEmbeddings, ".weight"));
  return view.ok() && IsPlainFloat(view->dtype) ? view->dtype : fallback;
}

// A norm that is folded away is all ones; the embeddings turn; the norms of q and k stay.
absl::StatusOr<NamedTensor> ArtifactSource::RotatedPlain(const std::string& name, DType fallback,
                                                         ThreadPool& threads) const {
  if (!ModelRotation::FoldsNorm(name)) return RotatedTable(name, nullptr, EmbeddingDType(fallback), threads);
  SAGE_ASSIGN_OR_RETURN(const TensorView view, checkpoint_->GetTensor(name));
  const std::vector<float> ones(static_cast<size_t>(config_.hidden), 1.0f);
  return ConvertFloats(name, ones.data(), {config_.hidden}, IsPlainFloat(view.dtype) ? view.dtype : fallback);
}

absl::Status ArtifactSource::EmbeddingRow(int64_t id, float* out) const {
  SAGE_ASSIGN_OR_RETURN(const StoredLinear table, checkpoint_->GetLinear(kEmbeddings));
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* strategy, FindLinearStrategy(table.spec.strategy));
  SAGE_RETURN_IF_ERROR(strategy->dequantize_rows(table, id, id + 1, out));
  if (rotation_ == nullptr) return absl::OkStatus();
  ThreadPool one(1);
  rotation_->RotateEmbeddings(out, 1, one);
  const DType dtype = EmbeddingDType(float_dtype_);
  for (int64_t i = 0; i < config_.hidden; ++i) out[i] = RoundToDType(out[i], dtype);
  return absl::OkStatus();
}

absl::StatusOr<NamedTensor> ArtifactSource::Bias(const LinearSlot& slot) const {
  const std::string name = slot.name + ".bias";
  TensorView view;
  SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, Stored(slot));
  if (!stored.bias.empty()) {
    view = stored.bias;
  } else if (checkpoint_->HasTensor(name)) {
    SAGE_ASSIGN_OR_RETURN(view, checkpoint_->GetTensor(name));
  } else if (slot.bias) {
    return MakeError(absl::StatusCode::kNotFound, "TENSOR_NOT_FOUND", absl::StrCat(name, ": config.json asks for it"));
  } else {
    return NamedTensor{};
  }
  if (view.elements() != slot.N) {
    return MakeError(absl::StatusCode::kInvalidArgument, "SHAPE_MISMATCH",
                     absl::StrCat(name, ": must have ", slot.N, " values, got ", ShapeText(view.shape)));
  }
  std::vector<float> values(static_cast<size_t>(slot.N)), moved(static_cast<size_t>(slot.N));
  SAGE_RETURN_IF_ERROR(ToFloat(view, values.data()));
  if (rotation_ != nullptr) rotation_->RotateBias(slot, values.data());
  const std::vector<int64_t> order = RowOrder(slot);
  for (size_t n = 0; n < values.size(); ++n) moved[n] = values[order.empty() ? n : static_cast<size_t>(order[n])];
  const bool keep = view.dtype == DType::kF16 || view.dtype == DType::kBF16;
  return ConvertFloats(name, moved.data(), {slot.N}, keep ? view.dtype : DType::kF32);
}

absl::StatusOr<NamedTensor> ArtifactSource::PlainTensor(const std::string& name, DType fallback,
                                                        ThreadPool& threads) const {
  absl::StatusOr<TensorView> view = checkpoint_->GetTensor(name);
  if (view.ok() && IsPlainFloat(view->dtype)) return NamedTensor{name, *view, nullptr};
  constexpr std::string_view kSuffix = ".weight";
  const std::string module = name.substr(0, name.size() - kSuffix.size());
  if (!checkpoint_->HasLinear(module)) {
    return view.ok()
               ? MakeError(absl::StatusCode::kInvalidArgument, "BAD_DTYPE",
                           absl::StrCat(name, ": must be F32, F16 or BF16, got ", std::string(DTypeName(view->dtype))))
               : view.status();
  }
  SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, checkpoint_->GetLinear(module));
  SAGE_ASSIGN_OR_RETURN(Tensor values, Tensor::Allocate(DType::kF32, {stored.N, stored.K}));
  SAGE_RETURN_IF_ERROR(ParallelDequantize(stored, 0, stored.N, threads, values.as<float>()));
  return ConvertFloats(name, values.as<float>(), {stored.N, stored.K}, fallback);
}

absl::StatusOr<std::vector<NamedTensor>> ArtifactSource::PlainTensorsAs(int64_t shard, DType fallback,
                                                                        ThreadPool& threads) const {
  std::vector<NamedTensor> out;
  for (const TensorSlot& slot : tensors_) {
    const int64_t layer = LayerOfName(slot.name);
    if (layer != shard && !(layer < 0 && shard == config_.L)) continue;
    const bool rotates = rotation_ != nullptr && (layer < 0 || ModelRotation::FoldsNorm(slot.name));
    SAGE_ASSIGN_OR_RETURN(NamedTensor tensor, rotates ? RotatedPlain(slot.name, fallback, threads)
                                                      : PlainTensor(slot.name, fallback, threads));
    if (tensor.view.shape != slot.shape) {
      return MakeError(absl::StatusCode::kInvalidArgument, "SHAPE_MISMATCH",
                       absl::StrCat(slot.name, ": must be ", ShapeText(slot.shape), " by config.json, got ",
                                    ShapeText(tensor.view.shape)));
    }
    out.push_back(std::move(tensor));
  }
  return out;
}

absl::StatusOr<std::vector<NamedTensor>> ArtifactSource::PlainTensors(int64_t shard, ThreadPool& threads) const {
  return PlainTensorsAs(shard, float_dtype_, threads);
}

absl::StatusOr<std::vector<NamedTensor>> ArtifactSource::PlainValues(int64_t shard, ThreadPool& threads) const {
  SAGE_ASSIGN_OR_RETURN(std::vector<NamedTensor> tensors, PlainTensorsAs(shard, DType::kF32, threads));
  for (NamedTensor& tensor : tensors) {
    std::vector<float> values(static_cast<size_t>(tensor.view.elements()));
    SAGE_RETURN_IF_ERROR(ToFloat(tensor.view, values.data()));
    SAGE_ASSIGN_OR_RETURN(tensor, ConvertFloats(tensor.name, values.data(), Shape(tensor.view.shape), DType::kF32));
  }
  return tensors;
}

}  // namespace sage
