// Reads weights, biases and plain tensors of any checkpoint in Hugging Face order, as artifacts need them.
#include "engine/runtime/artifact_source.h"

#include <cstring>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
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

absl::Status ParallelDequantize(const StoredLinear& stored, ThreadPool& threads, float* out) {
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
  const int64_t rows = 32;
  const int64_t tasks = (stored.N + rows - 1) / rows;
  std::vector<absl::Status> results(static_cast<size_t>(tasks));
  threads.Run(tasks, [&](int64_t task, int) {
    const int64_t begin = task * rows;
    const int64_t end = std::min(stored.N, begin + rows);
    results[static_cast<size_t>(task)] = def->dequantize_rows(stored, begin, end, out + begin * stored.K);
  });
  for (const absl::Status& status : results) SAGE_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

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
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out->as<float>(), values, static_cast<size_t>(count) * sizeof(float));
      break;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) out->as<uint16_t>()[i] = FloatToF16(values[i]);
      break;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) out->as<uint16_t>()[i] = FloatToBF16(values[i]);
      break;
    default:
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
  SAGE_ASSIGN_OR_RETURN(StoredLinear stored, checkpoint_->GetLinear(slot.name));
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
  const absl::Status status = ParallelDequantize(stored, threads, values.as<float>());
  if (!status.ok()) return Annotate(status, slot.name);
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
      !RowOrder(slot).empty()) {
    return TensorView{};
  }
  return it->second;
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
  const std::vector<int64_t> order = RowOrder(slot);
  for (size_t n = 0; n < values.size(); ++n) moved[n] = values[order.empty() ? n : static_cast<size_t>(order[n])];
  const bool keep = view.dtype == DType::kF16 || view.dtype == DType::kBF16;
  return ConvertFloats(name, moved.data(), {slot.N}, keep ? view.dtype : DType::kF32);
}

absl::StatusOr<NamedTensor> ArtifactSource::PlainTensor(const std::string& name, DType fallback,
                                                        ThreadPool& threads) const {
  absl::StatusOr<TensorView> view = checkpoint_->GetTensor(name);
  if (view.ok() && IsFloat(view->dtype) && view->dtype != DType::kF64) return NamedTensor{name, *view, nullptr};
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
  SAGE_RETURN_IF_ERROR(ParallelDequantize(stored, threads, values.as<float>()));
  return ConvertFloats(name, values.as<float>(), {stored.N, stored.K}, fallback);
}

absl::StatusOr<std::vector<NamedTensor>> ArtifactSource::PlainTensorsAs(int64_t shard, DType fallback,
                                                                        ThreadPool& threads) const {
  std::vector<NamedTensor> out;
  for (const TensorSlot& slot : tensors_) {
    const int64_t layer = LayerOfName(slot.name);
    if (layer != shard && !(layer < 0 && shard == config_.L)) continue;
    SAGE_ASSIGN_OR_RETURN(NamedTensor tensor, PlainTensor(slot.name, fallback, threads));
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
