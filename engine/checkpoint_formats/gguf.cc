// GGUF files as checkpoints: metadata becomes a Hugging Face config, tensors keep their own blocks.
//
// Every tensor is a view of the map. Types other than F32, F16, BF16, Q4_0, Q4_1 and Q8_0 are taken apart losslessly
// into 8-bit codes with a scale (and offset) for each 16 or 32 values when they are bound ("int8_affine").
// Llama-architecture files keep q and k rows in the order of interleaved rotary pairs; the config says so and nothing
// is moved. Source: ggml docs/gguf.md, llama.cpp constants.py.
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/api/checkpoint_format.h"
#include "engine/api/gguf_names.h"
#include "engine/base/status.h"
#include "engine/quant/ggml_blocks.h"
#include "engine/tensor/gguf_file.h"

namespace sage::checkpoint_formats {
namespace {

const char* NativeStrategy(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return "f32";
    case GgmlType::kF16:
      return "f16";
    case GgmlType::kBF16:
      return "bf16";
    case GgmlType::kQ4_0:
      return "gguf_q4_0";
    case GgmlType::kQ4_1:
      return "gguf_q4_1";
    case GgmlType::kQ8_0:
      return "gguf_q8_0";
    default:
      return nullptr;
  }
}

DType DenseDType(GgmlType type) {
  return type == GgmlType::kF32 ? DType::kF32 : type == GgmlType::kF16 ? DType::kF16 : DType::kBF16;
}
bool IsDense(GgmlType type) { return type == GgmlType::kF32 || type == GgmlType::kF16 || type == GgmlType::kBF16; }

class GgufCheckpoint final : public Checkpoint {
 public:
  static absl::StatusOr<std::shared_ptr<Checkpoint>> Open(const std::string& path) {
    auto out = std::make_shared<GgufCheckpoint>();
    out->path_ = path;
    SAGE_ASSIGN_OR_RETURN(out->file_, GgufFile::Open(path));
    for (const auto& [name, tensor] : out->file_->tensors()) {
      const std::string hf = HfNameOfGguf(name);
      if (!hf.empty()) out->tensors_[hf] = &tensor;
    }
    SAGE_RETURN_IF_ERROR(out->MakeConfig());
    return std::shared_ptr<Checkpoint>(std::move(out));
  }

  const Json& config() const override { return config_; }
  const Json& generation_config() const override { return generation_config_; }
  std::string_view format() const override { return "gguf"; }
  std::string path() const override { return path_; }
  std::vector<std::string> linear_names() const override {
    std::vector<std::string> out;
    for (const auto& [name, tensor] : tensors_) {
      if (tensor->shape.size() == 2 && absl::EndsWith(name, ".weight") && name != "model.embed_tokens.weight") {
        out.push_back(name.substr(0, name.size() - 7));
      }
    }
    return out;
  }
  std::vector<std::string> tensor_names() const override {
    std::vector<std::string> out;
    for (const auto& [name, tensor] : tensors_) out.push_back(name);
    return out;
  }
  bool HasTensor(std::string_view name) const override { return tensors_.find(name) != tensors_.end(); }
  bool HasLinear(std::string_view module) const override {
    return HasTensor(absl::StrCat(std::string(module), ".weight"));
  }

  absl::StatusOr<TensorView> GetTensor(std::string_view name) const override {
    SAGE_ASSIGN_OR_RETURN(const GgufTensor* tensor, Find(name));
    if (!IsDense(tensor->type)) {
      return MakeError(
          absl::StatusCode::kInvalidArgument, "DTYPE_NOT_FLOAT",
          absl::StrCat(path_, ": tensor '", tensor->name, "' is quantized; it is readable as a linear layer only"));
    }
    return TensorView{DenseDType(tensor->type), tensor->shape, tensor->data, tensor->bytes};
  }

  absl::StatusOr<StoredLinear> GetLinear(std::string_view module) const override {
    const std::string name(module);
    SAGE_ASSIGN_OR_RETURN(const GgufTensor* tensor, Find(name + ".weight"));
    if (tensor->shape.size() != 2) {
      return MakeError(absl::StatusCode::kInvalidArgument, "TENSOR_SHAPE_MISMATCH",
                       absl::StrCat(path_, ": tensor '", tensor->name, "' must have two dimensions, got ",
                                    ShapeText(tensor->shape)));
    }
    StoredLinear out;
    out.N = tensor->shape[0];
    out.K = tensor->shape[1];
    if (HasTensor(name + ".bias")) {
      SAGE_ASSIGN_OR_RETURN(out.bias, GetTensor(name + ".bias"));
    }
    if (const char* strategy = NativeStrategy(tensor->type)) {
      out.spec.strategy = strategy;
      if (IsDense(tensor->type)) {
        out.tensors["weight"] = {DenseDType(tensor->type), tensor->shape, tensor->data, tensor->bytes};
      } else {
        out.spec.group_size = 32;
        out.spec.symmetric = tensor->type != GgmlType::kQ4_1;
        const int64_t row_bytes = static_cast<int64_t>(tensor->bytes) / out.N;
        out.tensors["blocks"] = {DType::kU8, {out.N, row_bytes}, tensor->data, tensor->bytes};
      }
      return out;
    }
    const GgmlTypeInfo* info = FindGgmlType(tensor->type);
    if (info == nullptr || info->group == 0) {
      return MakeError(absl::StatusCode::kUnimplemented, "GGML_TYPE_NOT_SUPPORTED",
                       absl::StrCat(path_, ": tensor '", tensor->name, "' has ggml type ",
                                    static_cast<uint32_t>(tensor->type), ", which is not readable"));
    }
    out.spec.strategy = "int8_affine";
    out.spec.group_size = info->group;
    out.spec.symmetric = !info->has_offset;
    out.tensors[absl::StrCat("blocks.", std::string(info->name))] = {
        DType::kU8, {out.N, GgmlRowBytes(tensor->type, out.K)}, tensor->data, tensor->bytes};
    return out;
  }

  std::vector<std::string> notes() const override {
    std::set<std::string> kinds;
    for (const auto& [name, tensor] : tensors_) {
      const GgmlTypeInfo* info = FindGgmlType(tensor->type);
      if (NativeStrategy(tensor->type) == nullptr && info != nullptr) {
        kinds.insert(absl::StrCat(std::string(info->name), ": repacked losslessly to 8-bit codes with one scale for ",
                                  info->group, " values"));
      }
    }
    return {kinds.begin(), kinds.end()};
  }

  absl::StatusOr<std::string> Fingerprint() const override {
    std::lock_guard<std::mutex> lock(fingerprint_mutex_);
    if (fingerprint_.empty()) {
      SAGE_ASSIGN_OR_RETURN(fingerprint_, Sha256File(path_));
    }
    return fingerprint_;
  }
  size_t file_bytes() const override { return file_->file() == nullptr ? 0 : file_->file()->size(); }

 private:
  absl::StatusOr<const GgufTensor*> Find(std::string_view name) const {
    const auto it = tensors_.find(name);
    if (it != tensors_.end()) return it->second;
    return MakeError(absl::StatusCode::kNotFound, "TENSOR_NOT_FOUND",
                     absl::StrCat(path_, ": has no tensor for '", std::string(name), "'"));
  }

  absl::Status MakeConfig();
  absl::Status MakeRope(const std::string& arch);
  // Metadata "<arch>.<key>" into config[hf] when it is there.
  void Copy(const std::string& arch, const char* key, const char* hf) {
    const auto it = file_->metadata().find(absl::StrCat(arch, ".", key));
    if (it != file_->metadata().end() && it->is_number()) config_[hf] = *it;
  }

  std::string path_;
  std::shared_ptr<GgufFile> file_;
  std::map<std::string, const GgufTensor*, std::less<>> tensors_;
  Json config_ = Json::object(), generation_config_ = Json::object();
  mutable std::mutex fingerprint_mutex_;
  mutable std::string fingerprint_;
};

absl::Status GgufCheckpoint::MakeConfig() {
  const Json& meta = file_->metadata();
  SAGE_ASSIGN_OR_RETURN(const std::string arch, JsonString(meta, "general.architecture", ""));
  config_["model_type"] = arch;
  for (const auto& [name, type] : {std::pair("llama", "LlamaForCausalLM"), std::pair("mistral", "MistralForCausalLM"),
                                   std::pair("qwen2", "Qwen2ForCausalLM"), std::pair("qwen3", "Qwen3ForCausalLM")}) {
    if (arch == name) config_["architectures"] = {type};
  }
  Copy(arch, "block_count", "num_hidden_layers");
  Copy(arch, "context_length", "max_position_embeddings");
  Copy(arch, "embedding_length", "hidden_size");
  Copy(arch, "feed_forward_length", "intermediate_size");
  Copy(arch, "attention.head_count", "num_attention_heads");
  Copy(arch, "attention.head_count_kv", "num_key_value_heads");
  Copy(arch, "attention.layer_norm_rms_epsilon", "rms_norm_eps");
  Copy(arch, "attention.key_length", "head_dim");
  Copy(arch, "attention.sliding_window", "sliding_window");
  if (config_.contains("sliding_window")) config_["use_sliding_window"] = true;
  // A GGUF that says nothing means none; the defaults of Hugging Face's classes are not meant.
  for (const char* key : {"num_key_value_heads", "sliding_window"}) {
    if (!config_.contains(key)) config_[key] = nullptr;
  }
  const auto embedding = tensors_.find("model.embed_tokens.weight");
  if (embedding != tensors_.end() && !embedding->second->shape.empty())
    config_["vocab_size"] = embedding->second->shape[0];
  config_["tie_word_embeddings"] = tensors_.find("lm_head.weight") == tensors_.end();
  const auto has_bias = [&](const char* module) {
    return tensors_.find(absl::StrCat("model.layers.0.", module, ".bias")) != tensors_.end();
  };
  config_["attention_bias"] = has_bias("self_attn.q_proj") && has_bias("self_attn.o_proj");
  config_["mlp_bias"] = has_bias("mlp.gate_proj");
  for (const char* which : {"bos", "eos"}) {
    const auto it = meta.find(absl::StrCat("tokenizer.ggml.", which, "_token_id"));
    if (it != meta.end() && it->is_number_integer()) {
      config_[absl::StrCat(which, "_token_id")] = *it;
      generation_config_[absl::StrCat(which, "_token_id")] = *it;
    }
  }
  const auto eot = meta.find("tokenizer.ggml.eot_token_id");
  if (eot != meta.end() && eot->is_number_integer() && generation_config_.contains("eos_token_id")) {
    generation_config_["eos_token_id"] = Json::array({generation_config_["eos_token_id"], *eot});
  }
  config_["sage_rope_interleaved"] = arch == "llama";
  return MakeRope(arch);
}

absl::Status GgufCheckpoint::MakeRope(const std::string& arch) {
  const Json& meta = file_->metadata();
  Copy(arch, "rope.freq_base", "rope_theta");
  SAGE_ASSIGN_OR_RETURN(std::string kind, JsonString(meta, absl::StrCat(arch, ".rope.scaling.type").c_str(), "none"));
  SAGE_ASSIGN_OR_RETURN(const double factor, JsonDouble(meta, absl::StrCat(arch, ".rope.scaling.factor").c_str(), 1.0));
  SAGE_ASSIGN_OR_RETURN(const double old_linear,
                        JsonDouble(meta, absl::StrCat(arch, ".rope.scale_linear").c_str(), 1.0));
  if (kind == "none" && old_linear != 1.0) {
    config_["rope_scaling"] = {{"rope_type", "linear"}, {"factor", old_linear}};
  } else if (kind != "none" && factor != 1.0) {
    config_["rope_scaling"] = {{"rope_type", kind}, {"factor", factor}};
    const auto original = meta.find(absl::StrCat(arch, ".rope.scaling.original_context_length"));
    if (original != meta.end() && original->is_number())
      config_["rope_scaling"]["original_max_position_embeddings"] = *original;
  }
  const auto factors = file_->tensors().find("rope_freqs.weight");
  if (factors != file_->tensors().end() && factors->second.type == GgmlType::kF32) {
    Json list = Json::array();
    for (size_t i = 0; i < factors->second.bytes / 4 && i < 4096; ++i) {
      float value = 1;
      std::memcpy(&value, factors->second.data + 4 * i, 4);  // general.alignment may be 1
      list.push_back(value);
    }
    config_["sage_rope_freq_factors"] = std::move(list);
  }
  return absl::OkStatus();
}

// A .gguf file, or a folder with one .gguf and no config.json.
std::string FindFile(const std::string& path) {
  if (FileExists(path)) return absl::EndsWith(path, ".gguf") ? path : "";
  if (!IsDirectory(path) || FileExists(path + "/config.json")) return "";
  std::vector<std::string> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    if (entry.path().extension() == ".gguf") found.push_back(entry.path().string());
  }
  return found.size() == 1 ? found[0] : "";
}

bool RecognizeGguf(const std::string& path) { return !FindFile(path).empty(); }
absl::StatusOr<std::shared_ptr<Checkpoint>> OpenGguf(const std::string& path) {
  return GgufCheckpoint::Open(FindFile(path));
}

}  // namespace

extern const CheckpointFormatDef kGguf;
const CheckpointFormatDef kGguf = {
    .name = "gguf",
    .summary =
        "GGUF v1 to v3: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K..Q6_K, IQ4_NL, IQ4_XS; convert writes "
        "gguf (every tensor exactly), gguf_f32, gguf_f16, gguf_bf16, gguf_q4_0, gguf_q4_1, gguf_q8_0, "
        "gguf_q4_k, gguf_q6_k, gguf_q4_k_m",
    .rank = 20,
    .recognize = RecognizeGguf,
    .open = OpenGguf};

}  // namespace sage::checkpoint_formats
