// Takes layers apart into codes, scales and zeros and writes them by msModelSlim's formulas (seed-systems.md C2, C3).
#include "engine/runtime/ascend_export.h"

#include <cmath>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/output_format.h"
#include "engine/tensor/float_convert.h"

namespace sage {
namespace {

absl::Status Refuse(const LinearSlot& slot, const std::string& what) {
  return MakeError(absl::StatusCode::kUnimplemented, "UNSUPPORTED_OUTPUT_FORMAT",
                   absl::StrCat(slot.name, ": ascend_v1 has no type for ", what));
}

absl::StatusOr<NamedTensor> Made(const std::string& name, DType dtype, const Shape& shape, const void* bytes) {
  SAGE_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(dtype, shape));
  auto owner = std::make_shared<Tensor>(std::move(tensor));
  std::memcpy(owner->as<uint8_t>(), bytes, owner->view().bytes);
  return NamedTensor{name, owner->view(), owner};
}

// One layer while it is written.
class Layer {
 public:
  Layer(const ArtifactSource& source, const LinearSlot& slot, Json& description)
      : source_(source), slot_(slot), description_(description) {}

  absl::Status Take(ThreadPool& threads);
  absl::Status AddWeight();
  absl::Status AddScales();
  absl::Status AddStatic(bool wide);
  absl::Status AddScaleBias();
  absl::Status AddDense(ThreadPool& threads);
  bool dense() const { return type_ == "FLOAT"; }
  bool is_static() const { return type_ == "W8A8"; }
  std::vector<NamedTensor> Finish() { return std::move(out_); }

 private:
  absl::Status Add(const char* name, DType dtype, const Shape& shape, const void* bytes) {
    SAGE_ASSIGN_OR_RETURN(NamedTensor tensor, Made(absl::StrCat(slot_.name, ".", name), dtype, shape, bytes));
    description_[tensor.name] = type_;
    out_.push_back(std::move(tensor));
    return absl::OkStatus();
  }
  float Zero(size_t at) const { return plan_.zero.empty() ? 0.0f : plan_.zero[at]; }

  const ArtifactSource& source_;
  const LinearSlot& slot_;
  Json& description_;
  StoredLinear stored_;
  LayerPlan plan_;
  std::string type_ = "FLOAT";
  int64_t G_ = 1;
  std::vector<NamedTensor> out_;
};

absl::Status Layer::Take(ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(stored_, source_.Stored(slot_));
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored_.spec.strategy));
  if (!def->quantizes && stored_.tensors.count("weight") > 0) return absl::OkStatus();
  const std::string what(def->name);
  if (!def->integer_grid) return Refuse(slot_, what);
  const bool eight = def->weight_bits == 8, small = def->activation_bits == 8;
  if (!eight && !(def->weight_bits == 4 && small)) return Refuse(slot_, what);
  const bool fixed = stored_.tensors.count("input_scale") > 0;
  type_ = !eight ? "W4A8_DYNAMIC" : !small ? "W8A16" : fixed ? "W8A8" : "W8A8_DYNAMIC";
  SAGE_ASSIGN_OR_RETURN(plan_, PlanOfStored(stored_, threads));
  G_ = static_cast<int64_t>(plan_.scale.size()) / slot_.N;
  if (!plan_.g_idx.empty()) return Refuse(slot_, "groups out of order (act-order)");
  if (small && G_ != 1) return Refuse(slot_, absl::StrCat(what, " in groups; it takes one scale a row"));
  if (fixed && !plan_.zero.empty()) return Refuse(slot_, "asymmetric weights with static activations");
  if (!eight && (fixed || slot_.N % 2 != 0 || slot_.K % 16 != 0)) {
    return Refuse(slot_, "4-bit weights with static activations, an odd number of rows or inputs not in 16 parts");
  }
  return absl::OkStatus();
}

absl::Status Layer::AddDense(ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(const TensorView dense, source_.DenseWeight(slot_));
  NamedTensor tensor{slot_.name + ".weight", dense, nullptr};
  if (dense.empty()) {
    SAGE_ASSIGN_OR_RETURN(const Tensor weight, source_.Weight(slot_, threads));
    SAGE_ASSIGN_OR_RETURN(tensor,
                          ConvertFloats(tensor.name, weight.as<float>(), {slot_.N, slot_.K}, source_.float_dtype()));
  }
  description_[tensor.name] = type_;
  out_.push_back(std::move(tensor));
  return absl::OkStatus();
}

absl::Status Layer::AddWeight() {
  if (type_ != "W4A8_DYNAMIC") return Add("weight", DType::kI8, {slot_.N, slot_.K}, plan_.codes.data());
  std::vector<uint8_t> bytes(static_cast<size_t>(slot_.N / 2 * slot_.K));
  for (int64_t i = 0; i < slot_.N / 2 * slot_.K; ++i) {
    const size_t low = static_cast<size_t>(i / slot_.K * 2 * slot_.K + i % slot_.K);
    const int even = plan_.codes[low], odd = plan_.codes[low + static_cast<size_t>(slot_.K)];
    bytes[static_cast<size_t>(i)] = static_cast<uint8_t>((even & 15) | ((odd & 15) << 4));
  }
  return Add("weight", DType::kI8, {slot_.N / 2, slot_.K}, bytes.data());
}

absl::Status Layer::AddScales() {
  SAGE_RETURN_IF_ERROR(Add("weight_scale", DType::kF32, {slot_.N, G_}, plan_.scale.data()));
  std::vector<float> offsets(plan_.scale.size());
  for (size_t i = 0; i < offsets.size(); ++i) offsets[i] = Zero(i);
  return Add("weight_offset", DType::kF32, {slot_.N, G_}, offsets.data());
}

// y = (qa . qw + quant_bias) * deq_scale.
absl::Status Layer::AddStatic(bool wide) {
  float input = 0;
  SAGE_RETURN_IF_ERROR(ToFloat(stored_.tensors.at("input_scale"), &input));
  const auto zero = stored_.tensors.find("input_zero_point");
  const float offset = zero == stored_.tensors.end() ? 0.0f : static_cast<float>(*zero->second.as<int8_t>());
  SAGE_RETURN_IF_ERROR(Add("input_scale", DType::kF32, {1}, &input));
  SAGE_RETURN_IF_ERROR(Add("input_offset", DType::kF32, {1}, &offset));
  std::vector<float> bias(static_cast<size_t>(slot_.N), 0.0f), deq(bias.size());
  SAGE_ASSIGN_OR_RETURN(const NamedTensor stored_bias, source_.Bias(slot_));
  if (!stored_bias.view.empty()) SAGE_RETURN_IF_ERROR(ToFloat(stored_bias.view, bias.data()));
  std::vector<int32_t> whole(bias.size());
  std::vector<int64_t> bits(bias.size());
  for (size_t n = 0; n < bias.size(); ++n) {
    deq[n] = input * plan_.scale[n];
    int64_t sum = 0;
    for (int64_t k = 0; k < slot_.K; ++k) sum += plan_.codes[n * static_cast<size_t>(slot_.K) + static_cast<size_t>(k)];
    const double value = std::nearbyint(static_cast<double>(bias[n]) / deq[n] - static_cast<double>(sum) * offset);
    if (!(std::fabs(value) < 2147483648.0)) return Refuse(slot_, "a bias that does not fit 32 bits over its scale");
    whole[n] = static_cast<int32_t>(value);
    uint32_t word;
    std::memcpy(&word, &deq[n], 4);
    bits[n] = word;
  }
  SAGE_RETURN_IF_ERROR(Add("quant_bias", DType::kI32, {slot_.N}, whole.data()));
  return wide ? Add("deq_scale", DType::kI64, {slot_.N}, bits.data())
              : Add("deq_scale", DType::kF32, {slot_.N}, deq.data());
}

// 8 times the sum of a row's weights, whole or in sixteen parts of the inputs: what a kernel that reads nibbles from 0
// up takes off again.
absl::Status Layer::AddScaleBias() {
  const int64_t parts = slot_.kind == "o_proj" || slot_.kind == "down_proj" ? 16 : 1, width = slot_.K / parts;
  std::vector<float> out(static_cast<size_t>(slot_.N * parts));
  for (int64_t i = 0; i < slot_.N * parts; ++i) {
    const int64_t n = i / parts;
    int64_t sum = 0;
    for (int64_t k = i % parts * width; k < (i % parts + 1) * width; ++k) {
      sum += plan_.codes[static_cast<size_t>(n * slot_.K + k)] - static_cast<int64_t>(Zero(static_cast<size_t>(n)));
    }
    out[static_cast<size_t>(i)] = 8.0f * static_cast<float>(sum) * plan_.scale[static_cast<size_t>(n)];
  }
  return Add("scale_bias", DType::kF32, {slot_.N, parts}, out.data());
}

}  // namespace

std::string AscendShardName(int64_t shard, int64_t count) {
  return absl::StrFormat("quant_model_weights-%05d-of-%05d.safetensors", shard + 1, count);
}

absl::StatusOr<std::vector<NamedTensor>> AscendLinear(const ArtifactSource& source, const LinearSlot& slot,
                                                      bool wide_scales, ThreadPool& threads, Json& description) {
  Layer layer(source, slot, description);
  SAGE_RETURN_IF_ERROR(layer.Take(threads));
  if (layer.dense()) {
    SAGE_RETURN_IF_ERROR(layer.AddDense(threads));
    return layer.Finish();
  }
  SAGE_RETURN_IF_ERROR(layer.AddWeight());
  if (layer.is_static()) {
    SAGE_RETURN_IF_ERROR(layer.AddStatic(wide_scales));
    return layer.Finish();
  }
  SAGE_RETURN_IF_ERROR(layer.AddScales());
  if (description[slot.name + ".weight"] == "W4A8_DYNAMIC") SAGE_RETURN_IF_ERROR(layer.AddScaleBias());
  return layer.Finish();
}

absl::StatusOr<std::vector<NamedTensor>> AscendKvScales(const ArtifactSource& source, int64_t layer,
                                                        Json& description) {
  std::vector<NamedTensor> out;
  for (const char* side : {"k_proj", "v_proj"}) {
    for (const char* kind : {"kv_cache_scale", "kv_cache_offset"}) {
      const std::string name = absl::StrCat("model.layers.", layer, ".self_attn.", side, ".", kind);
      if (!source.checkpoint().HasTensor(name)) continue;
      SAGE_ASSIGN_OR_RETURN(const TensorView view, source.checkpoint().GetTensor(name));
      description[name] = "C8";
      description["kv_cache_type"] = description["kv_quant_type"] = "C8";
      out.push_back({name, view, nullptr});
    }
  }
  return out;
}

absl::Status WriteAscendFiles(const std::string& folder, Json description, const std::vector<ShardRecord>& files) {
  Json map = Json::object();
  int64_t total = 0;
  std::map<std::string, int> types;
  for (const ShardRecord& file : files) {
    for (const TensorRecord& tensor : file.tensors) {
      map[tensor.name] = file.file;
      total += tensor.bytes;
      if (!description.contains(tensor.name)) description[tensor.name] = "FLOAT";
      const std::string type = description[tensor.name].get<std::string>();
      if (type != "FLOAT" && type != "C8") ++types[type];
    }
  }
  std::string most = "FLOAT";
  for (const auto& [type, count] : types) {
    if (most == "FLOAT" || count > types[most]) most = type;
  }
  description["version"] = "1.0.0";
  description["model_quant_type"] = most;
  description["group_size"] = 0;
  description["metadata"] = Json::object();
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}};
  SAGE_RETURN_IF_ERROR(
      WriteFileAtomic(folder + "/quant_model_weights.safetensors.index.json", DumpJson(index, 2) + "\n"));
  return WriteFileAtomic(absl::StrCat(folder, "/", kAscendDescription), DumpJson(description, 2) + "\n");
}

}  // namespace sage
