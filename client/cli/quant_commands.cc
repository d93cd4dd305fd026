// sage quant calibrate | convert | kernel | capabilities.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <random>
#include <utility>
#include <vector>

#include "client/cli/command.h"
#include "client/cli/export_folder.h"
#include "client/cli/generation_flags.h"
#include "client/cli/operations.h"
#include "client/cli/progress.h"
#include "sage/quant/v1/quantization.grpc.pb.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;
using Json = nlohmann::ordered_json;

std::string Text(const Json& object, const char* key) { return object.value(key, std::string()); }

struct CalibrateInput {
  v1::CalibrateRequest request;
  std::string dataset, group_size;
  bool detach = false;
};

std::optional<Failure> ShowCalibration(const Context& context, const Json& result) {
  if (context.options.json) {
    PrintJson(result);
    return std::nullopt;
  }
  std::vector<std::pair<double, std::string>> layers;  // the worst first
  for (const Json& layer : result.value("layers", Json::array())) {
    layers.emplace_back(layer.value("error", 0.0), Text(layer, "name"));
  }
  std::sort(layers.rbegin(), layers.rend());
  for (size_t i = 0; i < layers.size() && i < 3; ++i) {
    std::printf("%s%-44s relative error %.5f\n", i == 0 ? "worst layers  " : "              ", layers[i].second.c_str(),
                layers[i].first);
  }
  std::printf(
      "artifact      %s\npath          %s\nquantization  %s\nweights       %s, %.2f bits a weight\ntime          %s\n",
      Text(result, "artifact").c_str(), Text(result, "path").c_str(), Text(result, "quantization").c_str(),
      FormatBytes(result.value("weight_bytes", 0.0)).c_str(), result.value("bits_per_weight", 0.0),
      FormatSeconds(result.value("seconds", 0.0)).c_str());
  for (const Json& note : result.value("notes", Json::array())) {
    if (note.is_string()) std::printf("note          %s\n", note.get<std::string>().c_str());
  }
  return std::nullopt;
}

std::optional<Failure> Calibrate(Context& context, CalibrateInput& input) {
  v1::CalibrateRequest& request = input.request;
  if (input.group_size == "auto") {
    request.mutable_config()->set_group_size_auto(true);
  } else if (!input.group_size.empty()) {
    int32_t size = 0;
    if (!CLI::detail::lexical_cast(input.group_size, size)) {
      return Failure{.exit_code = kUsage,
                     .code = "INVALID_ARGUMENT",
                     .reason = "BAD_FLAG",
                     .message = "--group-size: must be a number or auto, got '" + input.group_size + "'"};
    }
    request.mutable_config()->set_group_size(size);
  }
  if (auto failure = ReadDataset(input.dataset, request.mutable_dataset(), request.mutable_dataset_content()))
    return failure;
  auto stub = v1::QuantizationService::NewStub(context.session->channel());
  v1::Operation operation;
  {
    Session::Call call(*context.session);
    const grpc::Status status = stub->Calibrate(call.get(), request, &operation);
    if (!status.ok()) return context.session->ToFailure(status);
  }
  return FinishOperation(context, "calibrate", input.detach, operation,
                         [&](const Json& result) { return ShowCalibration(context, result); });
}

void AddCalibrateConfig(CLI::App& command, CalibrateInput& input) {
  v1::QuantConfig& config = *input.request.mutable_config();
  const auto text = [&](const char* flag, const char* help, std::function<void(const std::string&)> set) {
    command.add_option_function<std::string>(flag, std::move(set), help);
  };
  text("--method",
       "minmax, rtn, percentile, mse, kl, smoothquant, awq, gptq, awq+gptq, awq+smoothquant, autoround or qat (minmax)",
       [&config](const std::string& v) { config.set_method(v); });
  text("--weight-dtype", "int4, int8, int3, int2, fp8, nf4, composite as w4a16, or a strategy (int4)",
       [&config](const std::string& v) { config.set_weight_dtype(v); });
  text("--weight-granularity", "Scales of fp8 weights: channel, tensor or block of 128 x 128 (channel)",
       [&config](const std::string& v) { config.set_weight_granularity(v); });
  text("--fp8-format", "Codes of fp8 weights: e4m3 or e5m2 (e4m3)",
       [&config](const std::string& v) { config.set_fp8_format(v); });
  command.add_flag_function(
      "--double-quant", [&config](int64_t) { config.set_double_quant(true); },
      "Quantize the scales of nf4 and fp4 too");
  text("--activation-dtype", "bf16, int8, or composite as w8a8",
       [&config](const std::string& v) { config.set_activation_dtype(v); });
  text("--activation-scheme", "Of 8-bit activations: dynamic, or static with a dataset (dynamic)",
       [&config](const std::string& v) { config.set_activation_scheme(v); });
  command.add_flag_function(
      "--activation-asymmetric", [&config](int64_t) { config.set_activation_asymmetric(true); },
      "A zero point beside the scale of 8-bit integer activations");
  text("--kv-quant", "KV strategy to write into the artifact (bf16)",
       [&config](const std::string& v) { config.set_kv_dtype(v); });
  text("--kv-scales", "static, dynamic or auto: static when a dataset is given (auto)",
       [&config](const std::string& v) { config.set_kv_scales(v); });
  const auto patterns = [&](const char* flag, const char* help, std::function<void(const std::string&)> add) {
    command
        .add_option_function<std::vector<std::string>>(
            flag,
            [add](const std::vector<std::string>& values) {
              for (const std::string& value : values) add(value);
            },
            help)
        ->take_all()
        ->allow_extra_args(false)
        ->delimiter(',');
  };
  patterns("--kv-include", "Layers that take the KV strategy: globs as layers.3 or model.layers.*.self_attn (all)",
           [&config](const std::string& v) { config.add_kv_include(v); });
  patterns("--kv-exclude", "Layers that keep a 16-bit KV cache, the same globs",
           [&config](const std::string& v) { config.add_kv_exclude(v); });
  command.add_flag_function(
      "--kv-asymmetric", [&config](int64_t) { config.set_kv_asymmetric(true); },
      "Zero points for static int8_per_channel");
  command.add_option_function<int64_t>(
      "--kv-sink-tokens", [&config](int64_t v) { config.set_kv_sink_tokens(v); },
      "First positions that keep 16 bits and are left out of the statistics");
  text("--scale-precision", "f32, f16 or bf16", [&config](const std::string& v) { config.set_scale_precision(v); });
  command.add_option("--group-size", input.group_size,
                     "Inputs that share a scale: divides K; -1 = per channel; auto = largest of 16..256");
  command.add_flag_function(
      "--asymmetric", [&config](int64_t) { config.set_asymmetric(true); }, "Zero points");
  command.add_flag_function(
      "--act-order", [&config](int64_t) { config.set_act_order(true); }, "GPTQ by activation size");
  command.add_flag_function(
      "--gptq-asymmetric-correction", [&config](int64_t) { config.set_gptq_asymmetric_correction(true); },
      "GPTQ with GPTAQ's correction in place of least-squares weights");
  command.add_flag_function(
      "--gptq-f64", [&config](int64_t) { config.set_gptq_f64(true); }, "GPTQ's factor and updates in f64");
  command.add_flag_function(
      "--rotate", [&config](int64_t) { config.set_rotate(true); },
      "Turn hidden states and values by random Hadamard matrices (--seed), folded into the weights");
  command.add_option_function<double>(
      "--clip-ratio", [&config](double v) { config.set_clip_ratio(v); },
      "[0, 1): ranges begin at (1 - ratio) of the weights' extremes (0 = off)");
  command
      .add_option_function<std::vector<std::string>>(
          "--exclude",
          [&config](const std::vector<std::string>& v) {
            for (const auto& s : v) config.add_exclude(s);
          },
          "Leave modules of this glob pattern alone (repeatable)")
      ->take_all()
      ->allow_extra_args(false);
  command
      .add_option_function<std::vector<std::string>>(
          "--override",
          [&config](const std::vector<std::string>& v) {
            for (const auto& s : v) config.add_overrides(s);
          },
          "PATTERN=key:value,... with bits, group_size, symmetric, exclude for the modules that match (repeatable)")
      ->take_all()
      ->allow_extra_args(false);
  command
      .add_option_function<uint64_t>(
          "--max-memory", [&config](uint64_t v) { config.set_max_memory_bytes(static_cast<int64_t>(v)); },
          "Memory that calibration may take: activations beyond it go to disk, more is refused (8G, 512M; 0 = no cap)")
      ->transform(CLI::AsSizeValue(false));
  command.add_option_function<int>(
      "--tensor-parallel", [&config](int v) { config.set_tensor_parallel(v); },
      "Check that the artifact can be cut into this many shards");
}

void AddCalibrate(CLI::App& quant, Context& context) {
  auto input = std::make_shared<CalibrateInput>();
  v1::CalibrateRequest& request = input->request;
  auto* command = quant.add_subcommand("calibrate", "Quantize a model into an artifact");
  const auto text = [command](const char* flag, const char* help, std::function<void(const std::string&)> set) {
    return command->add_option_function<std::string>(flag, std::move(set), help);
  };
  const auto number = [command](const char* flag, const char* help, std::function<void(int64_t)> set) {
    command->add_option_function<int64_t>(flag, std::move(set), help);
  };
  text("--model", "Path under a model root, ORG/NAME or an artifact", [&request](const std::string& v) {
    request.set_model(v);
  })->required();
  command->add_option("--dataset", input->dataset, "Text or JSONL; a local file is sent, else a path of the server");
  text("--dataset-field", "JSONL field (text)", [&request](const std::string& v) { request.set_dataset_field(v); });
  text("--format", "Checkpoint format (compressed_tensors)",
       [&request](const std::string& v) { request.set_format(v); });
  text("--output", "Name of the artifact", [&request](const std::string& v) { request.set_output(v); });
  text("--request-id", "Idempotency key", [&request](const std::string& v) { request.set_request_id(v); });
  number("--samples", "Samples of the dataset (128)", [&request](int64_t v) { request.set_samples(v); });
  number("--sequence-length", "Tokens a sample (512)", [&request](int64_t v) { request.set_sequence_length(v); });
  AddSeed(*command, "Which samples (0)", [&request](uint64_t v) { request.set_seed(v); });
  command->add_flag("--detach", input->detach, "Print the operation and do not wait");
  AddCalibrateConfig(*command, *input);
  command->callback([input, &context] { context.Run([&] { return Calibrate(context, *input); }); });
}

std::optional<Failure> StartConvert(Context& context, const v1::ConvertRequest& request, v1::Operation* operation) {
  auto stub = v1::QuantizationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  const grpc::Status status = stub->Convert(call.get(), request, operation);
  if (!status.ok()) return context.session->ToFailure(status);
  return std::nullopt;
}

// The artifact that is made on the way to a folder of this machine: called as the folder is, because a GGUF is named
// after it, or by a new name where that is taken or none the daemon takes.
std::optional<Failure> StartConvertForExport(Context& context, v1::ConvertRequest* request, v1::Operation* operation) {
  const std::string leaf = std::filesystem::path(request->output()).filename().string();
  char suffix[20];
  std::snprintf(suffix, sizeof suffix, "export-%08x", std::random_device{}());
  request->set_output(leaf);
  auto failure = StartConvert(context, *request, operation);
  if (!failure || (failure->reason != "ARTIFACT_EXISTS" && failure->reason != "PATH_OUTSIDE_ROOTS")) return failure;
  request->set_output(suffix);
  return StartConvert(context, *request, operation);
}

std::optional<Failure> ShowConversion(const Context& context, const Json& result) {
  if (context.options.json) {
    PrintJson(result);
    return std::nullopt;
  }
  std::printf("path     %s\ntensors  %lld\n%s (largest difference %g)\n", Text(result, "path").c_str(),
              static_cast<long long>(result.value("tensors", int64_t{0})),
              result.value("lossless", false) ? "lossless" : "not lossless", result.value("max_abs_difference", 0.0));
  for (const Json& note : result.value("notes", Json::array())) {
    if (note.is_string()) std::printf("note     %s\n", note.get<std::string>().c_str());
  }
  return std::nullopt;
}

// --output is an artifact's name, or a folder: one the daemon may write (below its data folder) is written by it, any
// other is made by the daemon as an artifact, brought here and deleted there.
std::optional<Failure> Convert(Context& context, v1::ConvertRequest request, bool detach) {
  request.set_output(WithoutTrailingSlash(request.output()));
  v1::Operation operation;
  std::string folder;
  if (NamesFolder(request.output())) {
    folder = std::filesystem::absolute(request.output()).string();
    request.set_output(folder);
  }
  auto failure = StartConvert(context, request, &operation);
  if (!folder.empty() && failure && failure->reason == "PATH_OUTSIDE_ROOTS" && failure->metadata.contains("name") &&
      failure->metadata["name"] == folder) {
    if (detach) {
      return Failure{.exit_code = kUsage,
                     .code = "INVALID_ARGUMENT",
                     .reason = "BAD_FLAG",
                     .message = "--detach: needs an artifact's name for --output; " + folder +
                                " is on this machine, and somebody must wait to bring it here"};
    }
    if (auto taken = CheckNewFolder(folder)) return taken;
    failure = StartConvertForExport(context, &request, &operation);
  } else {
    folder.clear();
  }
  if (failure) return failure;
  return FinishOperation(context, "convert", detach, operation, [&](Json result) -> std::optional<Failure> {
    if (!folder.empty()) {
      const std::string artifact = request.output();
      auto lost = ExportArtifactTo(context, artifact, folder);
      auto left = DeleteArtifact(context, artifact);
      if (lost) return lost;
      if (left) return left;
      result["path"] = folder;
    }
    return ShowConversion(context, result);
  });
}

void AddConvert(CLI::App& quant, Context& context) {
  auto request = std::make_shared<v1::ConvertRequest>();
  auto detach = std::make_shared<bool>(false);
  auto* command = quant.add_subcommand("convert", "Write an artifact or checkpoint in another format");
  const auto text = [command](const char* flag, const char* help, std::function<void(const std::string&)> set) {
    command->add_option_function<std::string>(flag, std::move(set), help)->required();
  };
  text("--artifact", "Artifact, checkpoint folder or GGUF",
       [request](const std::string& v) { request->set_artifact(v); });
  text("--format", "Checkpoint format, gguf or gguf_<type>, or f32, f16 or bf16 for the dequantized folder",
       [request](const std::string& v) { request->set_format(v); });
  text("--output", "Artifact to write, or a folder of this machine (with a /)",
       [request](const std::string& v) { request->set_output(v); });
  command->add_option_function<std::string>(
      "--request-id", [request](const std::string& v) { request->set_request_id(v); }, "Idempotency key");
  command->add_flag("--detach", *detach, "Print the operation and do not wait");
  command->callback([request, detach, &context] { context.Run([&] { return Convert(context, *request, *detach); }); });
}

void PrintRefusals(const std::vector<std::pair<std::string, std::string>>& refused, FILE* out) {
  for (const auto& [kernel, reason] : refused) std::fprintf(out, "  not %s: %s\n", kernel.c_str(), reason.c_str());
}

std::optional<Failure> Kernel(Context& context, const v1::SelectKernelRequest& request) {
  auto stub = v1::QuantizationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::SelectKernelResponse answer;
  const grpc::Status status = stub->SelectKernel(call.get(), request, &answer);
  std::vector<std::pair<std::string, std::string>> refused;
  if (!status.ok()) {
    const Failure failure = context.session->ToFailure(status);
    for (const auto& [key, value] : failure.metadata.items()) {
      if (value.is_string()) refused.emplace_back(key, value.get<std::string>());
    }
    if (!context.options.json && failure.reason == "NO_KERNEL") PrintRefusals(refused, stderr);
    return failure;
  }
  for (const v1::KernelRefusal& r : answer.refused()) refused.emplace_back(r.kernel(), r.reason());
  if (!context.options.json) {
    std::printf("%s  (%s on %s, %s)\n", answer.kernel().c_str(), answer.strategy().c_str(), answer.backend().c_str(),
                answer.capability().c_str());
    PrintRefusals(refused, stdout);
    return std::nullopt;
  }
  Json out = {{"kernel", answer.kernel()},
              {"strategy", answer.strategy()},
              {"backend", answer.backend()},
              {"capability", answer.capability()},
              {"refused", Json::array()}};
  for (const auto& [kernel, reason] : refused) out["refused"].push_back(Json{{"kernel", kernel}, {"reason", reason}});
  PrintJson(out);
  return std::nullopt;
}

void AddKernel(CLI::App& quant, Context& context) {
  auto request = std::make_shared<v1::SelectKernelRequest>();
  auto* command = quant.add_subcommand("kernel", "Which kernel would run, and why not the others");
  const auto text = [command](const char* flag, const char* help, std::function<void(const std::string&)> set) {
    return command->add_option_function<std::string>(flag, std::move(set), help);
  };
  text("--weight-dtype", "int4, int8, fp8, nf4 or a strategy",
       [request](const std::string& v) { request->set_weight_dtype(v); });
  text("--activation-dtype", "bf16, int8 or composite",
       [request](const std::string& v) { request->set_activation_dtype(v); });
  text("--backend", "cpu, cuda or auto", [request](const std::string& v) { request->set_backend(v); });
  text("--kernel", "Only this one may answer", [request](const std::string& v) { request->set_kernel(v); });
  text("--priority", "latency, throughput or memory", [request](const std::string& v) {
    request->set_priority(v == "latency"      ? v1::PRIORITY_LATENCY
                          : v == "throughput" ? v1::PRIORITY_THROUGHPUT
                                              : v1::PRIORITY_MEMORY);
  })->check(CLI::IsMember({"latency", "throughput", "memory"}));
  command->add_option_function<int32_t>(
      "--group-size", [request](int32_t v) { request->set_group_size(v); }, "(128); -1 = per channel");
  command->add_option_function<int64_t>(
      "--outputs", [request](int64_t v) { request->set_outputs(v); }, "N (any)");
  command->add_option_function<int64_t>(
      "--inputs", [request](int64_t v) { request->set_inputs(v); }, "K (any)");
  command->add_flag_function(
      "--asymmetric", [request](int64_t) { request->set_asymmetric(true); }, "Zero points");
  command->callback([request, &context] { context.Run([&] { return Kernel(context, *request); }); });
}

}  // namespace

void AddQuantCommands(CLI::App& quant, Context& context) {
  AddCalibrate(quant, context);
  AddConvert(quant, context);
  AddKernel(quant, context);
  AddCapabilityCommand(quant, context);
}

}  // namespace sage::cli
