// The façade the server uses: load models, start engines, generate and score on them, calibrate, convert, report.
//
// Plain structs in, plain structs out; no wire types. Everything here may be called from any thread. Long calls take a
// CancelToken (checked at least once a layer or window) and a ProgressFn, and block: the server runs them on its own
// workers.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/api/backend.h"
#include "engine/base/cancel.h"
#include "engine/base/json.h"
#include "engine/base/metrics.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"

namespace sage {

// ---- Generation ----

// Defaults are "off" (see Hugging Face generation: repetition penalty, then temperature, top-k, top-p, min-p).
struct SamplingSpec {
  double temperature = 1.0;         // 0 = greedy
  int32_t top_k = 0;                // 0 = off
  double top_p = 1.0;               // (0, 1]; 0 = greedy
  double min_p = 0.0;               // [0, 1]
  double repetition_penalty = 1.0;  // > 0; over prompt and output ids
  double presence_penalty = 0.0;    // [-2, 2]; over output ids
  double frequency_penalty = 0.0;   // [-2, 2]; over output ids
  std::optional<uint64_t> seed;     // none: a random one, told in the result
  std::map<int32_t, float> logit_bias;
};

struct GenerateSpec {
  std::vector<int32_t> prompt_ids;  // at least one
  SamplingSpec sampling;
  int64_t max_tokens = 256;       // >= 1; the context limit cuts it with finish reason "length"
  std::vector<std::string> stop;  // cut before the stop string, which is not returned
  std::vector<int32_t> stop_ids;  // end ids beside the model's own
  bool ignore_eos = false;
  int logprobs = -1;         // -1 off, else top N alternatives (0..20) beside the chosen id
  int n = 1;                 // choices; choice i of seed s uses its own stream
  bool skip_special = true;  // leave special tokens out of `text`
  // The answer is a text of its own (a chat message), not the continuation of the prompt's: a tokenizer that strips
  // the space at the beginning of a text strips it here.
  bool begins_text = false;
  absl::Time deadline = absl::InfiniteFuture();
  std::string request_id;  // for logs only
};

struct TokenLogprob {
  int32_t id = 0;
  std::string token;  // text of the id, invalid UTF-8 replaced
  double logprob = 0;
};
struct TokenRecord {
  int32_t id = 0;
  double logprob = 0;             // of the model's distribution (before penalties and filters), 0 unless asked
  std::vector<TokenLogprob> top;  // largest first
};

struct GenerationUsage {
  int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
};
struct GenerationTimings {
  double queue_ms = 0, prefill_ms = 0, decode_ms = 0, first_token_ms = 0;
};

// One event of a request. Text is always whole UTF-8 characters; it may lag behind `tokens` while a stop string may be
// forming.
struct GenerationEvent {
  int choice = 0;
  std::string text;                 // delta
  std::vector<TokenRecord> tokens;  // delta
  std::string finish_reason;        // empty, or stop | length | cancelled | error (last event of the choice)
  std::string stop_match;           // the stop string or id that ended it
  uint64_t seed = 0;
  bool last = false;  // last event of the request: usage, timings and status are set
  GenerationUsage usage;
  GenerationTimings timings;
  absl::Status status;  // OK; CANCELLED, DEADLINE_EXCEEDED or what failed
};

// Called from the engine's step thread, in order, never concurrently for one request. Must not block. After the event
// with `last` it is not called again.
using GenerationSink = std::function<void(const GenerationEvent&)>;

class GenerationHandle {
 public:
  virtual ~GenerationHandle() = default;
  virtual void Cancel() = 0;  // takes effect within one step; the sink still gets its last event
};

// Whether text stands before what is generated: prompt ids that decoding leaves out are none. False without a
// tokenizer.
bool ContinuesText(const GenerateSpec& spec, const TokenizerFiles* files);

struct ScoreSpec {
  std::vector<int32_t> ids;
  int64_t window = 2048;    // positions a window, no overlap; a tail shorter than 2 ids is dropped
  int64_t max_windows = 0;  // 0 = all
  int top = 0;              // alternatives a position (0..100); > 0 asks for `positions`
};
struct ScorePosition {
  int32_t id = 0;  // id i + 1
  double logprob = 0;
  int64_t rank = 0;  // 0 = most likely
  std::vector<TokenLogprob> top;
};
struct ScoreResult {
  double nll = 0;  // sum of -log p over scored positions
  double ppl = 0;  // exp(nll / scored)
  int64_t scored = 0;
  int64_t windows = 0;
  int64_t window = 0;                    // positions of one: what was asked, at most the engine's context
  std::vector<ScorePosition> positions;  // of each window all but its first id
};

// ---- Engines ----

struct EngineSpec {
  std::string engine_id;     // empty: made from the model's name
  std::string model;         // resolved path of a folder or GGUF
  std::string model_name;    // as the user wrote it
  std::string quantization;  // "" = as stored; strategy, short word, or path of an artifact
  std::string attn_quantization, mlp_quantization;
  // Pattern of module names (glob) and strategy, short word or none, over the words above; the last that matches
  // counts.
  std::vector<std::pair<std::string, std::string>> layer_quantization;
  std::string head_quantization;  // "", none = lm_head as stored, whatever `quantization` says
  std::string kv_quantization;    // "", auto = the checkpoint's own, else f32 for unquantized models and bf16 otherwise
  std::vector<std::string> kv_include, kv_exclude;  // layers in and out of an 8-bit KV strategy; empty = as stored
  int64_t kv_sink_tokens = 0;    // first positions of each sequence in 16 bits, whole pages; 0 = as stored
  std::string backend = "auto";  // cpu | cuda | auto
  int64_t max_seqs = 64;         // sequences in one step
  int64_t max_model_len = 0;     // 0 = the model's own, lowered to what the KV memory holds
  int64_t kv_bytes = 0;          // 0 = enough for a default number of tokens
  int64_t max_queue_requests = 0;  // that may wait; 0 = max_seqs, at least 32
  int64_t max_queue_tokens = 1 << 20;
  int64_t max_step_tokens = 512;  // prefill chunk and decode rows together
  bool prefix_cache = true;       // full pages of finished sequences serve later ones that begin alike
  std::string draft_mode;         // "", "none", or "ngram": speculate by what followed the same ids before
  int threads = 0;                // 0 = the runtime's
};

struct LinearBinding {  // KernelBinding on the wire
  std::string layer, strategy, kernel;
  size_t weight_bytes = 0;
};

struct EngineInfo {
  std::string engine_id, model, model_path, state;  // STARTING RUNNING STOPPING STOPPED FAILED
  std::string quantization, kv_quant, backend, capability, architecture;
  bool kv_calibrated = false;  // KV scales come from the checkpoint
  std::vector<int64_t> kv_layers_16bit;
  int64_t kv_sink_tokens = 0;
  int64_t weight_bytes = 0, kv_bytes = 0, max_model_len = 0, max_seqs = 0, vocab_size = 0;
  double load_ms = 0;
  absl::Time started_at;
  std::vector<LinearBinding> bindings;
  std::vector<std::string> notes;  // repacking, cut limits, ...
  absl::Status error;              // when FAILED
};

struct EngineStats {
  int64_t running = 0, waiting = 0, waiting_tokens = 0;
  int64_t kv_pages_used = 0, kv_pages_total = 0, kv_page_tokens = 0;
  int64_t prompt_tokens_total = 0, generated_tokens_total = 0;
  int64_t steps_total = 0, activation_hits_total = 0, activation_misses_total = 0;
  double last_step_age_seconds = 0;  // 0 while idle: age of the last finished step when there is work
};

// Asks for the time of every operator: one prompt is computed, then `batch` sequences that share it decode together.
struct ProfileSpec {
  int64_t prompt = 128;  // ids, made up; rounded up to whole KV pages
  int64_t batch = 1;     // sequences that decode, 1..64
  int64_t steps = 32;    // decode steps, 1..1024
};
struct ProfiledOperator {
  std::string name;  // q_proj, attention, norm, ...
  int64_t calls = 0;
  double seconds = 0;
  int64_t bytes = 0;  // weights, and keys and values, that the calls had to read
};
struct ProfiledPhase {
  int64_t steps = 0, tokens = 0;
  double seconds = 0;  // wall time of the steps, operators and all
  std::vector<ProfiledOperator> operators;
};
struct EngineProfile {
  ProfiledPhase prefill, decode;
  double read_bytes_per_second = 0;  // of memory by all threads, measured between the phases
  int threads = 0;
};

class InferenceEngine {
 public:
  virtual ~InferenceEngine() = default;
  virtual EngineInfo info() const = 0;
  virtual EngineStats stats() const = 0;
  virtual const TokenizerFiles* tokenizer() const = 0;  // null for a model without tokenizer files
  // RESOURCE_EXHAUSTED (QUEUE_FULL) when the queue is full by requests or tokens, INVALID_ARGUMENT for a bad spec
  // (PROMPT_TOO_LONG, ID_OUT_OF_RANGE, ...), UNAVAILABLE (ENGINE_DRAINING) while stopping.
  virtual absl::StatusOr<std::shared_ptr<GenerationHandle>> Submit(GenerateSpec spec, GenerationSink sink) = 0;
  virtual absl::StatusOr<ScoreResult> Score(const ScoreSpec& spec, const CancelToken& cancel,
                                            const ProgressFn& progress) = 0;
  // Runs beside other requests, one step at a time; their rows are not counted. INVALID_ARGUMENT (OUT_OF_RANGE,
  // CONTEXT_TOO_LONG).
  virtual absl::StatusOr<EngineProfile> Profile(const ProfileSpec& spec, const CancelToken& cancel) = 0;
  // Takes no new requests; waits for the running ones until `deadline`, then cancels them. Idempotent.
  virtual void Stop(absl::Time deadline) = 0;
};

// ---- Calibration, conversion, report ----

struct CalibrationSpec {
  std::string model;  // resolved path
  std::string model_name;
  std::string dataset;        // path; may be empty for methods that need no activations
  std::string dataset_name;   // what messages and the record call it; "" = the file's name
  std::string dataset_field;  // "" = text
  std::string method = "minmax";
  std::string weight_dtype = "int4", activation_dtype;
  int group_size =
      0;  // 0 = the strategy's default (largest of 128, 64, 32 that divides all K, else an error); -1 per channel
  bool group_size_auto = false;
  bool asymmetric = false, act_order = false;
  bool rotate = false;  // hidden states and values turned by random Hadamard matrices, folded into the weights
  double clip_ratio = 0;
  std::string scale_precision;  // "" = the model's dtype
  std::string kv_quantization;
  int64_t samples = 128, sequence_length = 512;
  uint64_t seed = 0;
  std::vector<std::string> exclude;  // glob patterns over module names
  // 8-bit activations: "" and dynamic = a scale for each token, static = one for a layer's input, from the dataset; its
  // range is cut by the method (percentile, mse, kl). Integers may have a zero point beside either.
  std::string activation_scheme;
  bool activation_asymmetric = false;
  // KV cache: layers in and out, scales (auto = static where a dataset is given, static, dynamic), zero points for
  // channel scales, sink tokens that keep 16 bits and are left out of the statistics.
  std::vector<std::string> kv_include, kv_exclude;
  std::string kv_scales;
  bool kv_asymmetric = false;
  int64_t kv_sink_tokens = 0;
  int64_t max_memory = 0;          // bytes that the calibration may take beside the mapped model; 0 = no cap
  int tensor_parallel = 1;         // shards that every layer must be cut into without splitting a group
  std::string weight_granularity;  // scales of fp8 weights: "" and channel = one a row, tensor, block = 128 x 128
  std::string fp8_format;          // codes of fp8 weights: "" and e4m3, e5m2
  bool double_quant = false;       // nf4, fp4: the scales are quantized too
  bool gptq_asymmetric_correction = false;  // gptq: GPTAQ's correction in place of the least-squares weights
  bool gptq_f64 = false;                    // methods that solve by GPTQ: its factor and updates in f64
  // "PATTERN=key:value,...", later ones win: bits, group_size, symmetric or exclude of the modules that match.
  std::vector<std::string> overrides;
  std::string format;    // "" = compressed_tensors
  std::string output;    // artifact folder (resolved)
  std::string work_dir;  // where the unfinished artifact lives; resumed when its spec matches
};
struct LayerResult {
  std::string name, scheme;
  double error = 0;    // ||W - dequantized|| / ||W||
  std::string sha256;  // of the stored tensors' bytes
  int64_t bytes = 0;
};
struct CalibrationResult {
  std::string artifact, path, quantization, format;
  int64_t weight_bytes = 0, source_bytes = 0;
  double bits_per_weight = 0, seconds = 0;
  bool resumed = false;
  // Said before the start: memory at the peak, time, and activations that were kept in a file.
  int64_t estimated_bytes = 0, spilled_bytes = 0;
  double estimated_seconds = 0;
  std::vector<LayerResult> layers;
  std::vector<std::string> notes;  // what to know before trusting it: few tokens, ...
};

struct ConvertSpec {
  std::string artifact, format, output;
  // Of a GGUF: linear modules that take another ggml type than the format's, by its name; "" = they keep their floats.
  std::map<std::string, std::string> types = {};
};
struct ConvertResult {
  bool lossless = false;
  int64_t tensors = 0;
  double max_abs_difference = 0;
  std::string path;
};

struct ReportSpec {
  std::string artifact;   // folder or GGUF
  std::string reference;  // "" = the source named in the artifact's sage_quant.json
  std::string dataset;    // text or JSONL
  int64_t windows = 0, window = 2048;
  std::string dataset_name;                  // as the report shows it; "" = the file's name
  std::map<std::string, std::string> tasks;  // name -> folder
  int64_t task_items = 200;                  // of each task, evenly spread; 0 = all
  bool measure_speed = true;
  std::string kv_quantization;
};

// The engine's own services, one per process.
struct RuntimeOptions {
  int threads = 0;                // 0 = hardware threads
  MetricSink* metrics = nullptr;  // null = discard; outlives the runtime
};

class Runtime {
 public:
  static std::unique_ptr<Runtime> Create(const RuntimeOptions& options);
  virtual ~Runtime() = default;
  virtual int threads() const = 0;
  // Loads weights and starts the step thread. Predicted memory (weights + KV + workspace) is checked against what the
  // machine has first: RESOURCE_EXHAUSTED (INSUFFICIENT_MEMORY) with the figures.
  virtual absl::StatusOr<std::shared_ptr<InferenceEngine>> StartEngine(const EngineSpec& spec,
                                                                       const CancelToken& cancel,
                                                                       const ProgressFn& progress) = 0;
  virtual absl::StatusOr<CalibrationResult> Calibrate(const CalibrationSpec& spec, const CancelToken& cancel,
                                                      const ProgressFn& progress) = 0;
  virtual absl::StatusOr<ConvertResult> Convert(const ConvertSpec& spec, const CancelToken& cancel,
                                                const ProgressFn& progress) = 0;
  // The report as JSON: the fields of `sage quant report` (perplexity{quantized reference ratio interval}, kl{...},
  // top1_agreement, memory{}, speed{}, tasks{}, protocol{}).
  virtual absl::StatusOr<Json> Report(const ReportSpec& spec, const CancelToken& cancel,
                                      const ProgressFn& progress) = 0;
  // Reloads an artifact and compares every stored tensor with the sha256 of its sage_quant.json.
  virtual absl::StatusOr<int64_t> VerifyArtifact(const std::string& path, const CancelToken& cancel) = 0;
};

// A model or artifact on disk, for listings; cheap (reads config.json or the GGUF header only).
struct ModelSummary {
  std::string path, format, architecture, quantization;
  int64_t file_bytes = 0, parameters = 0, max_position = 0;
  bool has_tokenizer = false;
};
absl::StatusOr<ModelSummary> InspectModel(const std::string& path);

// Renders `context` ({"messages": [...], "tools": [...], ...}) with the model's chat template: adds bos_token,
// eos_token and add_generation_prompt. FAILED_PRECONDITION (NO_CHAT_TEMPLATE) when the model has none.
absl::StatusOr<std::string> RenderChat(const TokenizerFiles& files, OrderedJson context, bool add_generation_prompt);

}  // namespace sage
