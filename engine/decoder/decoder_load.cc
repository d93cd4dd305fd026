// Loads a decoder: checks every tensor against the architecture's list, quantizes where asked, binds kernels.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/file.h"
#include "engine/base/glob.h"
#include "engine/base/status.h"
#include "engine/decoder/bound_decoder.h"
#include "engine/decoder/cut_backend.h"

namespace sage {
namespace {

// Gives the pages of a repacked weight back to the page cache, so that a weight is not in memory twice. Only for views
// that point into a file's map (see StoredLinear): clean pages come back from the file when somebody reads them again.
void ReleaseMapped(const StoredLinear& stored) {
  if (!stored.owned.empty()) return;
  for (const auto& [name, view] : stored.tensors) ReleaseMappedPages(view.data, view.bytes);
}

// Kernels read plain floats where they are and repack everything else.
bool ReadsInPlace(const StoredLinear& stored) {
  const auto weight = stored.tensors.find("weight");
  return weight != stored.tensors.end() && IsFloat(weight->second.dtype);
}

}  // namespace

class DecoderLoader {
 public:
  DecoderLoader(std::shared_ptr<Checkpoint> checkpoint, const DecoderLoadSpec& spec, const Backend& backend,
                ThreadPool& threads)
      : checkpoint_(std::move(checkpoint)), spec_(spec), backend_(backend), cut_(backend), threads_(threads) {}

  absl::StatusOr<std::unique_ptr<Decoder>> Load(const CancelToken& cancel, const ProgressFn& progress) {
    SAGE_ASSIGN_OR_RETURN(DecoderConfig config,
                          ParseModelConfig(checkpoint_->config(), checkpoint_->generation_config()));
    whole_ = config;
    if (spec_.communicator != nullptr) {
      SAGE_ASSIGN_OR_RETURN(shard_, ShardDecoder(whole_, spec_.communicator->rank(), spec_.communicator->size()));
      config.H = static_cast<int>(shard_.heads);
      config.KH = static_cast<int>(shard_.kv_heads);
      config.ffn = shard_.ffn;
    }
    out_ = std::make_unique<BoundDecoder>(std::move(config), backend_);
    if (shard_.size > 1) out_->communicator_ = spec_.communicator;
    out_->checkpoint_ = checkpoint_;
    SAGE_RETURN_IF_ERROR(CheckAskedStrategies());
    SAGE_RETURN_IF_ERROR(ChooseGroupSize());
    SAGE_RETURN_IF_ERROR(LoadEmbedding());
    const DecoderConfig& c = out_->config_;
    const std::vector<LinearSlot> slots = ListLinears(whole_);
    out_->layers_.resize(static_cast<size_t>(c.L));
    for (int64_t l = 0; l < c.L; ++l) {
      SAGE_RETURN_IF_ERROR(cancel.Check());
      SAGE_RETURN_IF_ERROR(LoadLayer(l, slots));
      if (progress) progress({"load", l + 1, c.L, "layers"});
    }
    SAGE_RETURN_IF_ERROR(LoadVector("model.norm.weight", c.hidden, &out_->final_norm_));
    SAGE_RETURN_IF_ERROR(LoadHead());
    out_->quantization_ = absl::StrJoin(used_, "+");
    SAGE_RETURN_IF_ERROR(backend_.memory().Download(nullptr, nullptr, 0));  // whatever went wrong while uploading
    return std::unique_ptr<Decoder>(std::move(out_));
  }

 private:
  const std::string& AskedStrategy(const LinearSlot& slot) const {
    if (slot.layer < 0) return spec_.head_strategy;
    const auto by_name = std::find_if(spec_.modules.rbegin(), spec_.modules.rend(),
                                      [&](const auto& module) { return GlobMatch(module.first, slot.name); });
    if (by_name != spec_.modules.rend()) return by_name->second;
    const bool attention =
        slot.kind == "q_proj" || slot.kind == "k_proj" || slot.kind == "v_proj" || slot.kind == "o_proj";
    const std::string& own = attention ? spec_.attn_strategy : spec_.mlp_strategy;
    return own.empty() ? spec_.strategy : own;
  }

  static absl::Status CheckAsked(const std::string& strategy) {
    if (strategy.empty()) return absl::OkStatus();
    SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(strategy));
    if (def->quantize != nullptr) return absl::OkStatus();
    return MakeError(
        absl::StatusCode::kInvalidArgument, "STRATEGY_CANNOT_QUANTIZE",
        absl::StrCat(strategy, ": only serves weights stored that way, it cannot quantize a model on load"));
  }

  absl::Status CheckAskedStrategies() const {
    for (const std::string* name : {&spec_.strategy, &spec_.attn_strategy, &spec_.mlp_strategy, &spec_.head_strategy}) {
      SAGE_RETURN_IF_ERROR(CheckAsked(*name));
    }
    const std::vector<LinearSlot> slots = ListLinears(whole_);
    for (const auto& module : spec_.modules) {
      const std::string& pattern = module.first;
      SAGE_RETURN_IF_ERROR(CheckAsked(module.second));
      const auto matches = [&](const LinearSlot& slot) { return slot.layer >= 0 && GlobMatch(pattern, slot.name); };
      if (std::any_of(slots.begin(), slots.end(), matches)) continue;
      return MakeError(absl::StatusCode::kInvalidArgument, "PATTERN_MATCHES_NOTHING",
                       absl::StrCat("layer_quantization: must name a linear module of the layers such as ",
                                    slots.front().name, ", got '", pattern, "'"));
    }
    return absl::OkStatus();
  }

  // One group size for all layers that are quantized on load: what was asked, else the largest of 128, 64, 32 that
  // divides every K.
  absl::Status ChooseGroupSize() {
    linear_ = spec_.linear;
    if (linear_.group_size != 0) return absl::OkStatus();
    std::set<int64_t> widths;
    for (const LinearSlot& slot : ListLinears(whole_)) {
      if (slot.layer >= 0) widths.insert(slot.K);
    }
    for (const int g : {128, 64, 32}) {
      if (std::all_of(widths.begin(), widths.end(), [g](int64_t K) { return K % g == 0; })) {
        linear_.group_size = g;
        return absl::OkStatus();
      }
    }
    linear_.group_size = -1;  // where no size in 16..256 divides them all: one scale a row
    for (int g = 256; g >= 16 && linear_.group_size == -1; --g) {
      if (std::all_of(widths.begin(), widths.end(), [g](int64_t K) { return K % g == 0; })) linear_.group_size = g;
    }
    return absl::OkStatus();
  }

  // What is wrong with stored tensors is said with the place they come from.
  absl::Status InCheckpoint(const absl::Status& status) const {
    const std::string path = checkpoint_->path();
    return absl::StrContains(status.message(), path) ? status : Annotate(status, path);
  }
  absl::Status Bad(const char* reason, const std::string& message) const {
    return InCheckpoint(MakeError(absl::StatusCode::kInvalidArgument, reason, message));
  }

  absl::Status LoadVector(const std::string& name, int64_t size, DeviceBuffer* out) {
    SAGE_ASSIGN_OR_RETURN(const TensorView view, checkpoint_->GetTensor(name));
    if (view.shape != Shape{size}) {
      return Bad("TENSOR_SHAPE_MISMATCH",
                 absl::StrCat(name, ": shape must be [", size, "], got ", ShapeText(view.shape)));
    }
    std::vector<float> values(static_cast<size_t>(size));
    const absl::Status status = ToFloat(view, values.data());
    if (!status.ok()) return InCheckpoint(Annotate(status, name));
    for (const float value : values) {
      if (std::isfinite(value)) continue;
      return Bad("NON_FINITE_TENSOR", absl::StrCat(name, ": values must be finite, got ", value));
    }
    const size_t bytes = values.size() * sizeof(float);
    SAGE_ASSIGN_OR_RETURN(*out, backend_.memory().Allocate(bytes));
    backend_.memory().Upload(out->as<void>(), values.data(), bytes);
    out_->weight_bytes_ += bytes;
    return absl::OkStatus();
  }

  absl::StatusOr<StoredLinear> GetChecked(const std::string& module, int64_t N, int64_t K) {
    SAGE_ASSIGN_OR_RETURN(StoredLinear stored, checkpoint_->GetLinear(module));
    if (stored.N != N || stored.K != K) {
      return Bad("TENSOR_SHAPE_MISMATCH",
                 absl::StrCat(module, ": weight must be [", N, ", ", K, "], got [", stored.N, ", ", stored.K, "]"));
    }
    if (!stored.bias.empty() && stored.bias.shape != Shape{N}) {
      return Bad("TENSOR_SHAPE_MISMATCH",
                 absl::StrCat(module, ": bias must be [", N, "], got ", ShapeText(stored.bias.shape)));
    }
    return stored;
  }

  absl::Status LoadEmbedding() {
    const DecoderConfig& c = out_->config_;
    SAGE_ASSIGN_OR_RETURN(out_->embedding_, GetChecked("model.embed_tokens", c.V, c.hidden));
    SAGE_ASSIGN_OR_RETURN(out_->embedding_strategy_, FindLinearStrategy(out_->embedding_.spec.strategy));
    out_->weight_bytes_ += out_->embedding_.weight_bytes();
    const auto weight = out_->embedding_.tensors.find("weight");
    if (weight == out_->embedding_.tensors.end() || !IsFloat(weight->second.dtype)) return absl::OkStatus();
    LinearWeight table;
    table.N = c.V;
    table.K = c.hidden;
    table.dense.values = weight->second;
    table.keep_alive = checkpoint_;
    SAGE_ASSIGN_OR_RETURN(out_->embedding_rows_, backend_.BindRows(table));
    return absl::OkStatus();
  }

  // Rounds the stored weight to the asked strategy; the stored form stays as it is when that already matches.
  absl::StatusOr<StoredLinear> Requantize(StoredLinear stored, const std::string& strategy) {
    SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(strategy));
    LinearSpec spec = linear_;
    spec.strategy = strategy;
    absl::Status status = def->check(spec, stored.N, stored.K);
    if (!status.ok() && spec_.linear.group_size == 0) {
      spec.group_size = -1;  // nobody asked for a size: the strategy's own
      status = def->check(spec, stored.N, stored.K);
    }
    SAGE_RETURN_IF_ERROR(status);
    const auto weight = stored.tensors.find("weight");
    absl::StatusOr<StoredLinear> out;
    if (weight != stored.tensors.end() && IsFloat(weight->second.dtype)) {
      out = def->quantize(weight->second, spec, LayerPlan{}, threads_);
    } else {
      SAGE_ASSIGN_OR_RETURN(const Tensor full, Dequantize(stored));
      out = def->quantize(full.view(), spec, LayerPlan{}, threads_);
    }
    if (out.ok()) {
      out->bias = stored.bias;
      ReleaseMapped(stored);
    }
    return out;
  }

  absl::Status BindSlot(const LinearSlot& slot, BoundProjection* out) {
    SAGE_ASSIGN_OR_RETURN(StoredLinear stored, GetChecked(slot.name, slot.N, slot.K));
    if (slot.bias && stored.bias.empty()) {
      return Bad("TENSOR_NOT_FOUND",
                 absl::StrCat(slot.name, ": the config says it has a bias, the checkpoint has none"));
    }
    const std::string& asked = AskedStrategy(slot);
    if (!asked.empty() && asked != stored.spec.strategy) {
      absl::StatusOr<StoredLinear> made = Requantize(std::move(stored), asked);
      if (!made.ok()) return Annotate(made.status(), slot.name);
      stored = *std::move(made);
    }
    out->strategy = stored.spec.strategy;
    if (slot.layer >= 0) used_.insert(out->strategy);
    cut_.set_cut(shard_.size > 1 ? CutOf(whole_, shard_, slot.kind) : LinearCut());
    return BindStored(slot.name, std::move(stored), out);
  }

  absl::Status BindStored(const std::string& module, StoredLinear stored, BoundProjection* out) {
    struct Source {
      std::shared_ptr<Checkpoint> checkpoint;
      std::vector<std::shared_ptr<Tensor>> owned;
    };
    out->module = module;
    SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
    auto keep = std::make_shared<Source>(Source{checkpoint_, stored.owned});
    auto bound = def->bind(stored, keep, cut_, spec_.priority, threads_);
    if (!bound.ok()) return InCheckpoint(Annotate(bound.status(), module));
    out->linear = std::move(*bound);
    if (!backend_.memory().is_host() || !ReadsInPlace(stored)) ReleaseMapped(stored);
    out_->weight_bytes_ += out->linear->weight_bytes();
    return absl::OkStatus();
  }

  absl::Status LoadLayer(int64_t l, const std::vector<LinearSlot>& slots) {
    const DecoderConfig& c = out_->config_;
    BoundLayer& layer = out_->layers_[static_cast<size_t>(l)];
    const std::string prefix = absl::StrCat("model.layers.", l, ".");
    SAGE_RETURN_IF_ERROR(LoadVector(prefix + "input_layernorm.weight", c.hidden, &layer.input_norm));
    SAGE_RETURN_IF_ERROR(LoadVector(prefix + "post_attention_layernorm.weight", c.hidden, &layer.post_attention_norm));
    if (c.qk_norm) {
      SAGE_RETURN_IF_ERROR(LoadVector(prefix + "self_attn.q_norm.weight", c.D, &layer.q_norm));
      SAGE_RETURN_IF_ERROR(LoadVector(prefix + "self_attn.k_norm.weight", c.D, &layer.k_norm));
    }
    BoundProjection* const places[] = {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down};
    for (size_t i = 0; i < 7; ++i) {
      SAGE_RETURN_IF_ERROR(BindSlot(slots[static_cast<size_t>(l) * 7 + i], places[i]));
    }
    return absl::OkStatus();
  }

  absl::Status LoadHead() {
    const DecoderConfig& c = out_->config_;
    if (!c.tied_embeddings) return BindSlot(ListLinears(whole_).back(), &out_->head_);
    cut_.set_cut({});
    const std::string& asked = spec_.head_strategy;
    if (!asked.empty() && asked != out_->embedding_.spec.strategy) {
      SAGE_ASSIGN_OR_RETURN(StoredLinear head, Requantize(out_->embedding_, asked));
      out_->head_.strategy = asked;
      return BindStored("lm_head", std::move(head), &out_->head_);
    }
    out_->head_.strategy = out_->embedding_.spec.strategy;
    SAGE_RETURN_IF_ERROR(BindStored("lm_head", out_->embedding_, &out_->head_));
    // A head that reads the table in place is not a second copy, nor is one that was repacked from a map: of the map
    // only the rows that are looked up stay in memory.
    if (ReadsInPlace(out_->embedding_)) {
      out_->weight_bytes_ -= std::min(out_->weight_bytes_, out_->head_.linear->weight_bytes());
    } else if (out_->embedding_.owned.empty()) {
      out_->weight_bytes_ -= std::min(out_->weight_bytes_, out_->embedding_.weight_bytes());
    }
    return absl::OkStatus();
  }

  std::shared_ptr<Checkpoint> checkpoint_;
  DecoderLoadSpec spec_;
  const Backend& backend_;
  CutBackend cut_;
  ThreadPool& threads_;
  DecoderConfig whole_;  // of all ranks
  DecoderShard shard_;
  LinearSpec linear_;
  std::unique_ptr<BoundDecoder> out_;
  std::set<std::string> used_;
};

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Load(std::shared_ptr<Checkpoint> checkpoint,
                                                       const DecoderLoadSpec& spec, const Backend& backend,
                                                       ThreadPool& threads, const CancelToken& cancel,
                                                       const ProgressFn& progress) {
  return DecoderLoader(std::move(checkpoint), spec, backend, threads).Load(cancel, progress);
}

}  // namespace sage
