// Starting an engine, one named step after another; every refusal names the thing, the rule and the value.
#include "engine/runtime/start_engine.h"

#include <algorithm>
#include <cctype>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact_origin.h"
#include "engine/runtime/engine_metrics.h"
#include "engine/runtime/engine_parts.h"
#include "engine/runtime/kv_plan.h"
#include "engine/runtime/memory_limit.h"

namespace sage {
namespace {

constexpr int kPageTokens = 16;
constexpr int64_t kDefaultKvTokens = 16384;
constexpr int64_t kMaxSeqs = 4096, kMaxStepTokens = 65536, kMaxKvBytes = int64_t{1} << 46;

absl::Status InvalidEngine(std::string_view reason, const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat("engine: ", message));
}

absl::Status CheckSpec(const EngineSpec& spec) {
  if (!spec.draft_mode.empty() && spec.draft_mode != "none" && spec.draft_mode != "ngram") {
    return MakeError(absl::StatusCode::kUnimplemented, "DRAFT_MODE_UNSUPPORTED",
                     absl::StrCat("engine: draft_mode must be none or ngram, got '", spec.draft_mode, "'"));
  }
  const auto check = [](const char* field, int64_t value, int64_t low, int64_t high) -> absl::Status {
    if (value >= low && value <= high) return absl::OkStatus();
    return InvalidEngine("OUT_OF_RANGE", absl::StrCat(field, " must be in [", low, ", ", high, "], got ", value));
  };
  SAGE_RETURN_IF_ERROR(check("max_seqs", spec.max_seqs, 1, kMaxSeqs));
  SAGE_RETURN_IF_ERROR(check("max_step_tokens", spec.max_step_tokens, 1, kMaxStepTokens));
  SAGE_RETURN_IF_ERROR(check("max_model_len", spec.max_model_len, 0, int64_t{1} << 24));
  SAGE_RETURN_IF_ERROR(check("kv_bytes", spec.kv_bytes, 0, kMaxKvBytes));
  SAGE_RETURN_IF_ERROR(check("max_queue_requests", spec.max_queue_requests, 0, int64_t{1} << 24));
  SAGE_RETURN_IF_ERROR(check("max_queue_tokens", spec.max_queue_tokens, 1, int64_t{1} << 40));
  return check("threads", spec.threads, 0, 1024);
}

// "auto" is cuda where this build has it and the machine offers it, else cpu; the answer names which.
absl::StatusOr<std::unique_ptr<Backend>> ChooseBackend(const std::string& name, std::vector<std::string>* notes) {
  if (!name.empty() && name != "auto") return OpenBackend(name);
  for (const BackendDef* def : Backends()) {
    if (def->name != "cuda") continue;
    absl::StatusOr<std::unique_ptr<Backend>> cuda = def->open();
    if (cuda.ok()) return cuda;
    notes->push_back(
        absl::StrCat("backend auto: cuda is not usable here (", std::string(cuda.status().message()), ")"));
  }
  return OpenBackend("cpu");
}

std::string MakeEngineId(const EngineSpec& spec) {
  if (!spec.engine_id.empty()) return spec.engine_id;
  std::string name = spec.model_name.empty() ? spec.model : spec.model_name;
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  name = name.substr(name.find_last_of('/') + 1);
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '_' && c != '.') c = '-';
  }
  return name.empty() ? "engine" : name.substr(0, 63);
}

absl::StatusOr<double> QuantizedBytes(const std::string& strategy, int64_t N, int64_t K) {
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(strategy));
  const double bits = def->weight_bits + (def->quantizes ? 64.0 / 32.0 : 0.0);  // scale and offset of 32 inputs
  return static_cast<double>(N) * static_cast<double>(K) * bits / 8.0;
}

// What a layer takes that is served as it is stored, or as codes of the strategy's width where those are wider.
absl::StatusOr<double> StoredBytes(const StoredLinear& stored) {
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
  const double least = def->quantizes ? 0 : static_cast<double>(stored.N * stored.K) * def->weight_bits / 8.0;
  return std::max(least, static_cast<double>(stored.weight_bytes()));
}

// Bytes the weights will take: as stored, or at the bits of the strategy that is applied on load.
absl::StatusOr<int64_t> PredictWeights(const Checkpoint& checkpoint, const DecoderConfig& config,
                                       const DecoderLoadSpec& load) {
  double total = 0;
  for (const LinearSlot& slot : ListLinears(config)) {
    if (!checkpoint.HasLinear(slot.name)) continue;  // loading names what is missing
    const bool mlp = slot.kind == "gate_proj" || slot.kind == "up_proj" || slot.kind == "down_proj";
    std::string strategy = slot.layer < 0 ? load.head_strategy : mlp ? load.mlp_strategy : load.attn_strategy;
    if (strategy.empty() && slot.layer >= 0) strategy = load.strategy;
    SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, checkpoint.GetLinear(slot.name));
    if (strategy.empty() || strategy == stored.spec.strategy) {
      SAGE_ASSIGN_OR_RETURN(const double bytes, StoredBytes(stored));
      total += bytes;
      continue;
    }
    SAGE_ASSIGN_OR_RETURN(const double bytes, QuantizedBytes(strategy, slot.N, slot.K));
    total += bytes;
  }
  if (config.tied_embeddings && !load.head_strategy.empty()) {
    SAGE_ASSIGN_OR_RETURN(const double bytes, QuantizedBytes(load.head_strategy, config.V, config.hidden));
    total += bytes;
  }
  if (checkpoint.HasLinear("model.embed_tokens")) {
    SAGE_ASSIGN_OR_RETURN(const StoredLinear table, checkpoint.GetLinear("model.embed_tokens"));
    SAGE_ASSIGN_OR_RETURN(const double bytes, StoredBytes(table));  // a tied head repacks it
    total += bytes;
  }
  return static_cast<int64_t>(total);
}

// On the host the KV memory stays promised: the system sees it only as it is filled.
absl::Status CheckMemory(int64_t weights, int64_t kv, int64_t workspace, const DeviceMemory& memory,
                         std::unique_ptr<MemoryPromise>* promise) {
  const int64_t needed = weights + kv + workspace;
  int64_t available = -1;
  if (memory.is_host()) {
    *promise = MemoryPromise::Take(needed, kv, &available);
    if (*promise != nullptr) return absl::OkStatus();
  } else {
    available = memory.AvailableBytes();
    if (available < 0 || needed <= available) return absl::OkStatus();
  }
  return MakeError(absl::StatusCode::kResourceExhausted, "INSUFFICIENT_MEMORY",
                   absl::StrCat("engine: weights ", weights, " + kv ", kv, " + workspace ", workspace, " = ", needed,
                                " bytes must fit the available memory, got ", available),
                   {{"weight_bytes", absl::StrCat(weights)},
                    {"kv_bytes", absl::StrCat(kv)},
                    {"workspace_bytes", absl::StrCat(workspace)},
                    {"available_bytes", absl::StrCat(available)}});
}

// Activations of a step of M rows, logits of 64 rows, and the f32 copy of the largest layer while it is quantized.
int64_t PredictWorkspace(const DecoderConfig& c, int64_t M, bool quantizes) {
  const int64_t row = 3 * c.hidden + (c.H + 2 * c.KH) * int64_t{c.D} + int64_t{c.H} * c.D + 3 * c.ffn;
  const int64_t largest = std::max(c.hidden * c.ffn, c.hidden * c.H * int64_t{c.D});
  return 4 * (M * row + 64 * c.V + (quantizes ? 2 * largest : 0));
}

absl::StatusOr<std::optional<TokenizerFiles>> FindTokenizer(const std::string& loaded, const std::string& model) {
  for (const std::string& path : {loaded, model}) {
    absl::StatusOr<TokenizerFiles> files = LoadTokenizer(path);
    if (files.ok()) return std::optional<TokenizerFiles>(std::move(*files));
    if (!absl::IsNotFound(files.status())) return files.status();
    if (loaded == model) break;
  }
  return std::optional<TokenizerFiles>();
}

// State shared by the steps below.
struct Start {
  const EngineSpec& spec;
  std::string path;  // what is loaded: the model, or the artifact that `quantization` names
  KvChoice kv_choice;
  std::shared_ptr<Checkpoint> checkpoint;
  DecoderConfig config;
  DecoderLoadSpec load;
  KvSizing kv;
  EngineParts parts;
};

// Whether a layer is quantized while the model is read.
bool QuantizesLayers(const DecoderLoadSpec& load) {
  return !load.strategy.empty() || !load.attn_strategy.empty() || !load.mlp_strategy.empty() ||
         std::any_of(load.modules.begin(), load.modules.end(),
                     [](const auto& module) { return !module.second.empty(); });
}

// Where neither the request nor the checkpoint says: an unquantized model keeps an exact f32 cache, a quantized one
// takes bf16.
absl::StatusOr<std::string> DefaultKv(const Start& start) {
  if (QuantizesLayers(start.load)) return ResolveKvStrategy("");
  const std::string first = "model.layers.0.self_attn.q_proj";
  if (!start.checkpoint->HasLinear(first)) return ResolveKvStrategy("");  // loading names what is missing
  SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, start.checkpoint->GetLinear(first));
  const std::string& strategy = stored.spec.strategy;
  return ResolveKvStrategy(strategy == "f32" || strategy == "f16" || strategy == "bf16" ? "f32" : "");
}

absl::Status OpenModel(Start& start) {
  const EngineSpec& spec = start.spec;
  std::string word = spec.quantization;
  start.path = spec.model;
  const bool is_path = word.find('/') != std::string::npos && (IsDirectory(word) || FileExists(word));
  if (is_path) start.path = std::exchange(word, std::string());
  SAGE_ASSIGN_OR_RETURN(start.load, ResolveLoadSpec(word, spec.attn_quantization, spec.mlp_quantization));
  SAGE_ASSIGN_OR_RETURN(start.load.head_strategy, ResolveLinearStrategy(spec.head_quantization));
  for (const auto& [pattern, name] : spec.layer_quantization) {
    absl::StatusOr<std::string> strategy = ResolveLinearStrategy(name);
    if (!strategy.ok()) return Annotate(strategy.status(), absl::StrCat("layer_quantization '", pattern, "'"));
    start.load.modules.emplace_back(pattern, *std::move(strategy));
  }
  SAGE_RETURN_IF_ERROR(ResolveKvStrategy(spec.kv_quantization).status());
  SAGE_ASSIGN_OR_RETURN(start.parts.backend, ChooseBackend(spec.backend, &start.parts.info.notes));
  SAGE_ASSIGN_OR_RETURN(start.checkpoint, OpenCheckpoint(start.path));
  SAGE_ASSIGN_OR_RETURN(start.config,
                        ParseModelConfig(start.checkpoint->config(), start.checkpoint->generation_config()));
  if (start.path != spec.model) SAGE_RETURN_IF_ERROR(CheckArtifactOf(start.path, start.config, spec.model));
  KvAsked kv{spec.kv_quantization, {}, spec.kv_include, spec.kv_exclude, spec.kv_sink_tokens};
  SAGE_ASSIGN_OR_RETURN(kv.fallback, DefaultKv(start));
  SAGE_ASSIGN_OR_RETURN(start.kv_choice, ChooseKvPlan(*start.checkpoint, start.config, kv, kPageTokens));
  if (is_path && start.path != spec.model) {
    start.parts.info.notes.push_back(absl::StrCat("quantization: weights come from the artifact ", start.path));
  }
  return absl::OkStatus();
}

absl::Status PlanMemory(Start& start) {
  const KvLayout layout{start.config.KH, start.config.D, kPageTokens, start.config.H};
  const KvPlan& plan = start.kv_choice.plan;
  SAGE_ASSIGN_OR_RETURN(const int64_t page_bytes, KvPlanPageBytes(plan, layout));
  SAGE_ASSIGN_OR_RETURN(start.kv,
                        SizeKv(start.spec, ContextLimit(start.config), page_bytes, kPageTokens, plan.sink_pages));
  SAGE_ASSIGN_OR_RETURN(const int64_t weights, PredictWeights(*start.checkpoint, start.config, start.load));
  const int64_t rows = std::max(start.spec.max_step_tokens, start.spec.max_seqs);
  const bool quantizes = QuantizesLayers(start.load) || !start.load.head_strategy.empty();
  return CheckMemory(weights, start.kv.pages * page_bytes, PredictWorkspace(start.config, rows, quantizes),
                     start.parts.backend->memory(), &start.parts.promise);
}

absl::Status LoadParts(Start& start, int threads, const CancelToken& cancel, const ProgressFn& progress) {
  EngineParts& parts = start.parts;
  parts.threads = std::make_unique<ThreadPool>(start.spec.threads > 0 ? start.spec.threads : threads);
  SAGE_ASSIGN_OR_RETURN(parts.decoder,
                        Decoder::Load(start.checkpoint, start.load, *parts.backend, *parts.threads, cancel, progress));
  const KvLayout layout = parts.decoder->kv_layout(kPageTokens);
  SAGE_ASSIGN_OR_RETURN(parts.kv, KvArena::Allocate(start.kv_choice.plan, layout, start.kv.pages, *parts.backend));
  if (parts.promise != nullptr) {
    std::vector<absl::Span<const uint8_t>> arenas;
    for (int64_t l = 0; l < static_cast<int64_t>(start.kv_choice.plan.layers.size()); ++l) {
      arenas.emplace_back(parts.kv->layer(l), parts.kv->kernel(l).page_bytes() * parts.kv->pages());
    }
    parts.promise->LiesAt(std::move(arenas));
  }
  parts.make_arena = [plan = start.kv_choice.plan, layout, backend = parts.backend.get()](int64_t pages) {
    return KvArena::Allocate(plan, layout, KvPageEntries(pages, plan.sink_pages), *backend);
  };
  SAGE_ASSIGN_OR_RETURN(parts.tokenizer, FindTokenizer(start.path, start.spec.model));
  return cancel.Check();
}

void FillInfo(Start& start, absl::Time begun) {
  const EngineSpec& spec = start.spec;
  EngineParts& parts = start.parts;
  EngineInfo& info = parts.info;
  info.engine_id = MakeEngineId(spec);
  info.model = spec.model_name.empty() ? spec.model : spec.model_name;
  info.model_path = start.path;
  info.quantization = parts.decoder->quantization();
  info.kv_quant = start.kv_choice.plan.Name();
  info.kv_calibrated = start.kv_choice.calibrated;
  info.kv_layers_16bit = start.kv_choice.wide;
  info.kv_sink_tokens = int64_t{start.kv_choice.plan.sink_pages} * kPageTokens;
  info.backend = std::string(parts.backend->name());
  info.capability = parts.backend->capability();
  info.architecture = start.config.architecture;
  info.weight_bytes = static_cast<int64_t>(parts.decoder->weight_bytes());
  info.kv_bytes = static_cast<int64_t>(parts.kv->bytes());
  info.max_model_len = start.kv.max_model_len;
  info.max_seqs = spec.max_seqs;
  info.vocab_size = start.config.V;
  info.load_ms = absl::ToDoubleMilliseconds(absl::Now() - begun);
  info.started_at = absl::Now();
  for (const BoundLayerInfo& b : parts.decoder->bindings()) {
    info.bindings.push_back({b.layer, b.strategy, b.kernel, b.weight_bytes});
  }
  for (const std::string& note : start.checkpoint->notes()) info.notes.push_back(note);
  for (const std::string& note : start.kv_choice.notes) info.notes.push_back(note);
  if (!start.load.head_strategy.empty()) {
    info.notes.push_back(absl::StrCat("lm_head: in ", start.load.head_strategy, ", as head_quantization asks"));
  }
  if (start.kv.lowered) {
    info.notes.push_back(absl::StrCat("max_model_len: lowered from the model's ", ContextLimit(start.config), " to ",
                                      start.kv.max_model_len, ", what the KV memory of ", info.kv_bytes,
                                      " bytes holds"));
  }
  if (!parts.tokenizer.has_value()) info.notes.push_back("no tokenizer files: ids in and out only");
}

}  // namespace

int64_t ContextLimit(const DecoderConfig& config) {
  const RopeSpec& rope = config.rope;
  const double factor = std::clamp(rope.factor, 1.0, 1024.0);
  if (rope.kind == "dynamic" || rope.kind == "linear") {
    return static_cast<int64_t>(static_cast<double>(config.max_position) * factor);
  }
  if (rope.kind == "yarn" && rope.original_max_position > 0) {
    const double stretched = static_cast<double>(rope.original_max_position) * factor;
    return std::max(config.max_position, static_cast<int64_t>(std::min(stretched, 1e9)));
  }
  return config.max_position;
}

absl::StatusOr<KvSizing> SizeKv(const EngineSpec& spec, int64_t context_limit, int64_t page_bytes, int page_tokens,
                                int sink_pages) {
  if (spec.max_model_len > context_limit) {
    return InvalidEngine("CONTEXT_TOO_LONG", absl::StrCat("max_model_len must be at most the model's ", context_limit,
                                                          " positions, got ", spec.max_model_len));
  }
  if (spec.max_model_len == 1) return InvalidEngine("OUT_OF_RANGE", "max_model_len must be at least 2, got 1");
  KvSizing out;
  const int64_t wanted = spec.max_model_len > 0 ? spec.max_model_len : context_limit;
  if (spec.kv_bytes > 0) {
    out.pages = std::min(spec.kv_bytes / std::max<int64_t>(1, page_bytes), int64_t{INT32_MAX});
  } else {
    const int64_t most = std::max(kDefaultKvTokens, spec.max_model_len);
    const int64_t tokens = wanted >= most / spec.max_seqs ? most : wanted * spec.max_seqs;
    out.pages = (tokens + page_tokens - 1) / page_tokens;
    out.pages += sink_pages * std::min(spec.max_seqs, out.pages);
  }
  const int64_t held = std::max<int64_t>(0, out.pages - sink_pages) * page_tokens;
  if (held < 2 || spec.max_model_len > held) {
    const int64_t pages = (std::max<int64_t>(2, spec.max_model_len) + page_tokens - 1) / page_tokens;
    const int64_t needed = (pages + sink_pages) * page_bytes;
    return InvalidEngine(
        "KV_MEMORY_TOO_SMALL",
        absl::StrCat("kv memory must hold ",
                     spec.max_model_len > 0 ? absl::StrCat("max_model_len of ", spec.max_model_len, " positions")
                                            : std::string("at least one page of positions"),
                     " (", needed, " bytes), got ", spec.kv_bytes, " bytes"));
  }
  out.max_model_len = std::min(wanted, held);
  out.lowered = out.max_model_len < wanted;
  return out;
}

absl::StatusOr<DecoderLoadSpec> ResolveLoadSpec(const std::string& quantization, const std::string& attn,
                                                const std::string& mlp) {
  DecoderLoadSpec out;
  SAGE_ASSIGN_OR_RETURN(const std::string all, ResolveLinearStrategy(quantization));
  SAGE_ASSIGN_OR_RETURN(out.attn_strategy, ResolveLinearStrategy(attn));
  SAGE_ASSIGN_OR_RETURN(out.mlp_strategy, ResolveLinearStrategy(mlp));
  if (attn != "none" && mlp != "none") {
    out.strategy = all;
    return out;
  }
  // "none" for one part keeps it as stored: the word for all moves to the other part.
  if (attn != "none" && attn.empty()) out.attn_strategy = all;
  if (mlp != "none" && mlp.empty()) out.mlp_strategy = all;
  return out;
}

absl::StatusOr<std::shared_ptr<InferenceEngine>> StartLlmEngine(const EngineSpec& spec, int threads,
                                                                MetricSink* metrics, const CancelToken& cancel,
                                                                const ProgressFn& progress) {
  const absl::Time begun = absl::Now();
  SAGE_RETURN_IF_ERROR(CheckSpec(spec));
  Start start{spec, {}, {}, nullptr, {}, {}, {}, {}};
  start.parts.files = MapWatch({spec.model, spec.quantization});
  SAGE_RETURN_IF_ERROR(OpenModel(start));
  SAGE_RETURN_IF_ERROR(PlanMemory(start));
  const absl::Status loaded = LoadParts(start, threads, cancel, progress);
  SAGE_RETURN_IF_ERROR(start.parts.files.Check());  // zeros in place of weights may be what loading complained of
  SAGE_RETURN_IF_ERROR(loaded);
  FillInfo(start, begun);
  EngineParts& parts = start.parts;
  parts.kv_pages = start.kv.pages;
  parts.kv_page_tokens = kPageTokens;
  parts.prefix_cache = spec.prefix_cache;
  parts.kv_sink_pages = start.kv_choice.plan.sink_pages;
  parts.scheduler = {spec.max_seqs, std::max(spec.max_step_tokens, spec.max_seqs),
                     std::max<int64_t>(16, spec.max_step_tokens / 4)};
  parts.scheduler.drafts = spec.draft_mode == "ngram";
  // As many as run: who waits last waits for about one answer, however much more is asked.
  const int64_t waiting = spec.max_queue_requests > 0 ? spec.max_queue_requests : std::max<int64_t>(32, spec.max_seqs);
  parts.admission = {waiting, spec.max_queue_tokens};
  parts.max_model_len = start.kv.max_model_len;
  parts.metrics = metrics != nullptr ? metrics : &NullMetricSink();
  EngineMetrics(*parts.metrics, parts.info.engine_id).Loaded(parts.info.load_ms * 1e-3);
  return MakeEngine(std::move(parts));
}

}  // namespace sage
