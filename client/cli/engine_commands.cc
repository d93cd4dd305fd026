// sage llm engine start | list | get | stop.
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "client/cli/command.h"
#include "client/cli/operations.h"
#include "client/cli/progress.h"
#include "sage/quant/v1/engine.grpc.pb.h"
#include "sage/quant/v1/operation.grpc.pb.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;
using Json = nlohmann::ordered_json;

std::string StateName(v1::EngineState state) {
  constexpr std::string_view kPrefix = "ENGINE_STATE_";
  const std::string name = v1::EngineState_Name(state);
  return name.rfind(kPrefix, 0) == 0 ? name.substr(kPrefix.size()) : name;
}

Json KvPlanJson(const v1::KVQuantPlan& plan) {
  return {{"dtype", plan.dtype()},
          {"scales", plan.scales()},
          {"layers_16bit", std::vector<int64_t>(plan.layers_16bit().begin(), plan.layers_16bit().end())},
          {"sink_tokens", plan.sink_tokens()}};
}

Json EngineJson(const v1::Engine& e) {
  Json out = {{"engine_id", e.engine_id()},
              {"state", StateName(e.state())},
              {"model", e.model()},
              {"quantization", e.quantization()},
              {"kv_quant", e.kv_quant()},
              {"kv_plan", KvPlanJson(e.kv_plan())},
              {"backend", e.backend()},
              {"weight_bytes", e.weight_bytes()},
              {"kv_bytes", e.kv_bytes()},
              {"load_ms", e.load_ms()},
              {"architecture", e.architecture()},
              {"capability", e.capability()},
              {"max_model_len", e.max_model_len()},
              {"max_seqs", e.max_seqs()},
              {"vocab_size", e.vocab_size()},
              {"model_path", e.model_path()},
              {"notes", Json::array()}};
  for (const std::string& note : e.notes()) out["notes"].push_back(note);
  if (e.has_error()) out["error"] = FailureJson(StatusFailure(e.error()));
  if (e.has_load()) {
    const v1::EngineLoad& l = e.load();
    out["load"] = {{"running", l.running()},
                   {"waiting", l.waiting()},
                   {"waiting_tokens", l.waiting_tokens()},
                   {"kv_pages_used", l.kv_pages_used()},
                   {"kv_pages_total", l.kv_pages_total()},
                   {"generated_tokens_total", l.generated_tokens_total()},
                   {"prompt_tokens_total", l.prompt_tokens_total()},
                   {"kv_page_tokens", l.kv_page_tokens()},
                   {"steps_total", l.steps_total()},
                   {"activation_hits_total", l.activation_hits_total()},
                   {"activation_misses_total", l.activation_misses_total()},
                   {"last_step_age_seconds", l.last_step_age_seconds()}};
  }
  if (e.bindings_size() > 0) {
    out["kernel_bindings"] = Json::array();
    for (const v1::KernelBinding& b : e.bindings()) {
      out["kernel_bindings"].push_back({{"layer", b.layer()},
                                        {"strategy", b.strategy()},
                                        {"kernel", b.kernel()},
                                        {"weight_bytes", b.weight_bytes()}});
    }
  }
  return out;
}

void PrintEngine(const v1::Engine& e) {
  std::printf("%-24s %-9s %-32s %-12s kv %-5s %-5s weights %-9s kv %-9s load %.0f ms\n", e.engine_id().c_str(),
              StateName(e.state()).c_str(), e.model().c_str(), e.quantization().c_str(), e.kv_quant().c_str(),
              e.backend().c_str(), FormatBytes(static_cast<double>(e.weight_bytes())).c_str(),
              FormatBytes(static_cast<double>(e.kv_bytes())).c_str(), e.load_ms());
  for (const std::string& note : e.notes()) std::printf("  note: %s\n", note.c_str());
  if (e.has_error()) std::printf("  error: %s\n", e.error().message().c_str());
}

void Show(const Context& context, const v1::Engine& engine) {
  if (context.options.json) {
    PrintJson(EngineJson(engine));
  } else {
    PrintEngine(engine);
  }
}

std::optional<Failure> GetEngine(Context& context, const std::string& id, v1::Engine* engine) {
  auto stub = v1::EngineService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::GetEngineRequest request;
  request.set_engine_id(id);
  const grpc::Status status = stub->GetEngine(call.get(), request, engine);
  if (!status.ok()) return context.session->ToFailure(status);
  return std::nullopt;
}

// Follows the load's operation with a progress bar. Ctrl-C and --timeout cancel the load.
std::optional<Failure> FollowLoad(Context& context, const v1::Engine& engine) {
  v1::Operation operation;
  operation.set_id(engine.operation());
  operation.set_kind("start_engine");
  auto failure = WaitForOperation(context, "loading " + engine.engine_id(), &operation);
  if (failure && failure->code == "DEADLINE_EXCEEDED") {
    auto stub = v1::OperationService::NewStub(context.session->channel());
    grpc::ClientContext late;
    context.session->Authorize(&late);
    v1::CancelOperationRequest request;
    request.set_id(operation.id());
    (void)stub->CancelOperation(&late, request, &operation);
  }
  return failure;
}

// Answers when the engine serves.
std::optional<Failure> Start(Context& context, v1::StartEngineRequest request) {
  auto stub = v1::EngineService::NewStub(context.session->channel());
  v1::Engine engine;
  {
    Session::Call call(*context.session);
    request.set_no_wait(true);
    const grpc::Status status = stub->StartEngine(call.get(), request, &engine);
    if (!status.ok()) return context.session->ToFailure(status);
  }
  if (engine.state() == v1::ENGINE_STATE_STARTING && !engine.operation().empty()) {
    if (auto failure = FollowLoad(context, engine)) return failure;
  }
  const std::string id = engine.engine_id();
  if (auto failure = GetEngine(context, id, &engine)) return failure;
  // Without an operation (all of the daemon's workers were busy) the engine itself says how far it is.
  while (engine.state() == v1::ENGINE_STATE_STARTING) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    if (auto failure = GetEngine(context, id, &engine)) return failure;
  }
  if (engine.state() == v1::ENGINE_STATE_FAILED) {  // before there was anything to watch
    Failure failure = StatusFailure(engine.error());
    failure.metadata["operation"] = engine.operation();
    return failure;
  }
  Show(context, engine);
  return std::nullopt;
}

// PATTERN=STRATEGY, as often as wanted.
void AddLayerQuantization(CLI::App& command, v1::StartEngineRequest* request) {
  const auto add = [request](const std::vector<std::string>& values) {
    for (const std::string& value : values) {
      const size_t equals = value.find('=');
      if (equals == 0 || equals == std::string::npos || equals + 1 == value.size()) {
        throw CLI::ValidationError("--layer-quantization", "must be PATTERN=STRATEGY, got '" + value + "'");
      }
      auto* const layer = request->add_layer_quantization();
      layer->set_pattern(value.substr(0, equals));
      layer->set_quantization(value.substr(equals + 1));
    }
  };
  command
      .add_option_function<std::vector<std::string>>("--layer-quantization", add,
                                                     "PATTERN=STRATEGY for the modules that match, as *.down_proj=int8 "
                                                     "(repeatable; none = as stored; last counts)")
      ->take_all()
      ->allow_extra_args(false);
}

void AddStart(CLI::App& engine, Context& context) {
  auto* command = engine.add_subcommand("start", "Load a model and start serving it");
  auto request = std::make_shared<v1::StartEngineRequest>();
  const auto text = [command](const char* flag, const char* help, std::function<void(const std::string&)> set) {
    command->add_option_function<std::string>(flag, std::move(set), help);
  };
  command
      ->add_option_function<std::string>(
          "model", [request](const std::string& v) { request->set_model(v); },
          "Path under a model root, ORG/NAME, an artifact or a GGUF file")
      ->required();
  text("--engine-id", "Name of the engine", [request](const std::string& v) { request->set_engine_id(v); });
  text("--engine-kind", "llm", [request](const std::string& v) { request->set_engine_kind(v); });
  text("--quantization", "Strategy, int4, int8, fp8, nf4, none, or an artifact",
       [request](const std::string& v) { request->set_quantization(v); });
  text("--kv-quant", "KV strategy: auto, f32, bf16, fp8, int8 or a strategy's name",
       [request](const std::string& v) { request->set_kv_quant(v); });
  const auto patterns = [command](const char* flag, const char* help, std::function<void(const std::string&)> add) {
    command
        ->add_option_function<std::vector<std::string>>(
            flag,
            [add](const std::vector<std::string>& values) {
              for (const std::string& value : values) add(value);
            },
            help)
        ->take_all()
        ->allow_extra_args(false)
        ->delimiter(',');
  };
  patterns("--kv-include", "Layers that take an 8-bit KV strategy: globs as layers.3 or model.layers.*.self_attn (all)",
           [request](const std::string& v) { request->add_kv_include(v); });
  patterns("--kv-exclude", "Layers that keep a 16-bit KV cache, the same globs",
           [request](const std::string& v) { request->add_kv_exclude(v); });
  command->add_option_function<int64_t>(
      "--kv-sink-tokens", [request](int64_t v) { request->set_kv_sink_tokens(v); },
      "First positions of each sequence that keep 16 bits");
  text("--attn-quantization", "Strategy of q, k, v, o",
       [request](const std::string& v) { request->set_attn_quantization(v); });
  text("--mlp-quantization", "Strategy of gate, up, down",
       [request](const std::string& v) { request->set_mlp_quantization(v); });
  AddLayerQuantization(*command, request.get());
  text("--head-quantization", "Strategy of lm_head, which stays as stored otherwise",
       [request](const std::string& v) { request->set_head_quantization(v); });
  text("--backend", "cpu, cuda or auto", [request](const std::string& v) { request->set_backend(v); });
  text("--draft-mode", "none, or ngram: guess from repetitions; the text stays the same",
       [request](const std::string& v) { request->set_draft_mode(v); });
  command->add_flag_callback(
      "--no-prefix-cache", [request] { request->set_no_prefix_cache(true); },
      "Keep no KV pages for later requests that begin alike");
  text("--request-id", "Idempotency key", [request](const std::string& v) { request->set_request_id(v); });
  command->add_option_function<int32_t>(
      "--max-seqs", [request](int32_t v) { request->set_max_seqs(v); }, "Sequences in one step");
  command->add_option_function<int64_t>(
      "--max-queue-requests", [request](int64_t v) { request->set_max_queue_requests(v); },
      "Requests that may wait before more are refused (as many as --max-seqs, at least 32)");
  command->add_option_function<int64_t>(
      "--max-queue-tokens", [request](int64_t v) { request->set_max_queue_tokens(v); },
      "Prompt tokens that may wait before more are refused (1048576)");
  command->add_option_function<int64_t>(
      "--max-model-len", [request](int64_t v) { request->set_max_model_len(v); }, "Longest context");
  command
      ->add_option_function<uint64_t>(
          "--kv-memory", [request](uint64_t v) { request->set_kv_memory_bytes(static_cast<int64_t>(v)); },
          "KV cache, bytes (suffixes kb, mb, gb)")
      ->transform(CLI::AsSizeValue(false));
  command->callback([request, &context] { context.Run([&] { return Start(context, *request); }); });
}

void AddList(CLI::App& engine, Context& context) {
  engine.add_subcommand("list", "All engines")->callback([&context] {
    context.Run([&]() -> std::optional<Failure> {
      auto stub = v1::EngineService::NewStub(context.session->channel());
      Json all = Json::array();
      v1::ListEnginesRequest request;
      do {
        Session::Call call(*context.session);
        v1::ListEnginesResponse answer;
        const grpc::Status status = stub->ListEngines(call.get(), request, &answer);
        if (!status.ok()) return context.session->ToFailure(status);
        for (const v1::Engine& e : answer.engines()) {
          if (context.options.json) {
            all.push_back(EngineJson(e));
          } else {
            PrintEngine(e);
          }
        }
        request.set_page_token(answer.next_page_token());
      } while (!request.page_token().empty());
      if (context.options.json) PrintJson(all);
      return std::nullopt;
    });
  });
}

void AddGetAndStop(CLI::App& engine, Context& context) {
  auto id = std::make_shared<std::string>();
  auto* get = engine.add_subcommand("get", "One engine with its kernels and load");
  get->add_option("id", *id, "Engine id")->required();
  get->callback([id, &context] {
    context.Run([&]() -> std::optional<Failure> {
      v1::Engine answer;
      if (auto failure = GetEngine(context, *id, &answer)) return failure;
      Show(context, answer);
      return std::nullopt;
    });
  });
  auto drain = std::make_shared<double>(-1);
  auto* stop = engine.add_subcommand("stop", "Drain and stop an engine");
  stop->add_option("id", *id, "Engine id")->required();
  stop->add_option("--drain-timeout", *drain, "Seconds that running requests may take");
  stop->callback([id, drain, &context] {
    context.Run([&]() -> std::optional<Failure> {
      auto stub = v1::EngineService::NewStub(context.session->channel());
      Session::Call call(*context.session);
      v1::StopEngineRequest request;
      request.set_engine_id(*id);
      if (*drain >= 0) {
        request.mutable_drain_timeout()->set_seconds(static_cast<int64_t>(*drain));
        request.mutable_drain_timeout()->set_nanos(static_cast<int32_t>((*drain - static_cast<int64_t>(*drain)) * 1e9));
      }
      v1::Engine answer;
      const grpc::Status status = stub->StopEngine(call.get(), request, &answer);
      if (!status.ok()) return context.session->ToFailure(status);
      Show(context, answer);
      return std::nullopt;
    });
  });
}

}  // namespace

void AddEngineCommands(CLI::App& llm, Context& context) {
  auto* engine = llm.add_subcommand("engine", "Engines: loaded models that serve");
  engine->require_subcommand(1);
  AddStart(*engine, context);
  AddList(*engine, context);
  AddGetAndStop(*engine, context);
  AddProfileCommand(*engine, context);
}

}  // namespace sage::cli
