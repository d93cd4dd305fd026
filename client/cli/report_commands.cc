// sage quant report.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "client/cli/command.h"
#include "client/cli/operations.h"
#include "client/cli/progress.h"
#include "client/cli/report_html.h"
#include "client/cli/requirements.h"
#include "sage/quant/v1/report.grpc.pb.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;
using Json = nlohmann::ordered_json;

constexpr size_t kMaxTaskBytes = size_t{48} << 20;

struct ReportInput {
  v1::EvaluateRequest request;
  std::string dataset, tasks, html, require;
  bool detach = false;
};

std::optional<Failure> ParseTasks(const std::string& text, v1::EvaluateRequest* request) {
  for (size_t from = 0; from < text.size();) {
    const size_t to = std::min(text.find(',', from), text.size());
    const std::string part = text.substr(from, to - from);
    const size_t at = part.find('=');
    if (at == part.npos || at == 0 || at + 1 == part.size()) {
      return Failure{.exit_code = kUsage,
                     .code = "INVALID_ARGUMENT",
                     .reason = "BAD_FLAG",
                     .message = "--tasks: must be NAME=DIR,NAME=DIR, got '" + part + "'"};
    }
    (*request->mutable_tasks())[part.substr(0, at)] = part.substr(at + 1);
    from = to + 1;
  }
  return std::nullopt;
}

// A folder of this machine travels with the request; any other name is a folder of the server.
std::optional<Failure> ReadTaskFolders(v1::EvaluateRequest* request) {
  namespace fs = std::filesystem;
  for (const auto& [name, folder] : request->tasks()) {
    std::error_code error;
    if (!fs::is_directory(folder, error)) continue;
    auto& files = *(*request->mutable_task_content())[name].mutable_files();
    size_t left = kMaxTaskBytes;
    for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
      const std::string ending = it->path().extension().string();
      if (!it->is_regular_file(error) || (ending != ".jsonl" && ending != ".csv")) continue;
      std::string& bytes = files[fs::relative(it->path(), folder, error).generic_string()];
      if (auto failure = ReadLocalFile(it->path().string(), left, &bytes)) return failure;
      left -= bytes.size();
    }
  }
  return std::nullopt;
}

std::string Compact(const Json& value) {
  if (value.is_number_float()) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", value.get<double>());
    return text;
  }
  return value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// A number at a dotted path of the report, 0 where it is not there.
double NumberAt(const Json& report, const char* pointer) {
  const Json::json_pointer path(pointer);
  return report.contains(path) && report[path].is_number() ? report[path].get<double>() : 0.0;
}
std::string TextAt(const Json& report, const char* pointer) {
  const Json::json_pointer path(pointer);
  return report.contains(path) ? Compact(report[path]) : "";
}

void PrintTasks(const Json& report) {
  const Json tasks = report.value("tasks", Json::object());
  for (const auto& [name, task] : tasks.items()) {
    const std::string base = "/tasks/" + name;
    for (const char* kind : {"accuracy", "accuracy_norm"}) {
      if (!task.contains(kind)) continue;
      const std::string at = base + "/" + kind;
      std::printf("%-16s %s %.2f %%, reference %.2f %%, delta %+.2f points (95 %% interval %+.2f to %+.2f), %s items\n",
                  name.c_str(), kind, 100 * NumberAt(report, (at + "/quantized").c_str()),
                  100 * NumberAt(report, (at + "/reference").c_str()), 100 * NumberAt(report, (at + "/delta").c_str()),
                  100 * NumberAt(report, (at + "/interval/0").c_str()),
                  100 * NumberAt(report, (at + "/interval/1").c_str()),
                  TextAt(report, (base + "/items").c_str()).c_str());
    }
  }
}

void PrintSpeed(const Json& report, const char* label, const std::string& key) {
  const std::string base = "/speed/" + key + "_tokens_per_second";
  if (!report.contains(Json::json_pointer(base))) return;
  std::printf("%-16s %.1f tokens/s, reference %.1f (%.2fx)\n", label, NumberAt(report, (base + "/quantized").c_str()),
              NumberAt(report, (base + "/reference").c_str()), NumberAt(report, (base + "/ratio").c_str()));
}

void PrintPerplexity(const Json& report) {
  std::printf("%-16s %.4f, reference %.4f, ratio %.5f", "perplexity", NumberAt(report, "/perplexity/quantized"),
              NumberAt(report, "/perplexity/reference"), NumberAt(report, "/perplexity/ratio"));
  const Json::json_pointer interval("/perplexity/interval");
  if (report.contains(interval) && report[interval].is_array() && report[interval].size() == 2) {
    std::printf(" (95 %% interval %.5f to %.5f)", report[interval][0].get<double>(), report[interval][1].get<double>());
  }
  std::printf("\n");
}

void PrintReport(const Json& report) {
  std::printf("%-16s %s\n", "artifact", TextAt(report, "/artifact").c_str());
  std::printf(
      "%-16s %s (kv %s), reference %s (kv %s)\n", "quantization",
      TextAt(report, "/memory/quantized/quantization").c_str(), TextAt(report, "/memory/quantized/kv_quant").c_str(),
      TextAt(report, "/memory/reference/quantization").c_str(), TextAt(report, "/memory/reference/kv_quant").c_str());
  PrintPerplexity(report);
  std::printf("%-16s mean %.6f, median %.6f, p99 %.6f, p99.9 %.6f, max %.6f nats\n", "KL divergence",
              NumberAt(report, "/kl/mean"), NumberAt(report, "/kl/median"), NumberAt(report, "/kl/p99"),
              NumberAt(report, "/kl/p999"), NumberAt(report, "/kl/max"));
  std::printf("%-16s %.2f %%\n", "top-1 agreement", 100 * NumberAt(report, "/top1_agreement"));
  std::printf("%-16s %s, reference %s (%.2fx); KV %s a token, reference %s\n", "weights",
              FormatBytes(NumberAt(report, "/memory/quantized/weight_bytes")).c_str(),
              FormatBytes(NumberAt(report, "/memory/reference/weight_bytes")).c_str(),
              NumberAt(report, "/memory/weight_ratio"),
              FormatBytes(NumberAt(report, "/memory/quantized/kv_bytes_per_token")).c_str(),
              FormatBytes(NumberAt(report, "/memory/reference/kv_bytes_per_token")).c_str());
  PrintSpeed(report, "decode", "decode");
  PrintSpeed(report, "prefill", "prefill");
  PrintTasks(report);
  std::printf("%-16s %s windows of %s tokens, %s positions scored; dataset sha256 %.12s, tokenizer sha256 %.12s\n",
              "protocol", TextAt(report, "/protocol/windows").c_str(), TextAt(report, "/protocol/window").c_str(),
              TextAt(report, "/protocol/scored_positions").c_str(), TextAt(report, "/protocol/dataset_sha256").c_str(),
              TextAt(report, "/protocol/tokenizer_sha256").c_str());
}

std::optional<Failure> WriteHtml(const std::string& path, const Json& report) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << ReportHtml(report);
  out.close();
  if (out) return std::nullopt;
  return Failure{.code = "INTERNAL", .reason = "FILE_NOT_WRITTEN", .message = "--html: cannot write " + path};
}

std::optional<Failure> FinishReport(Context& context, const ReportInput& input,
                                    const std::vector<Requirement>& requirements, Json report) {
  if (!requirements.empty()) {
    Json checked;
    if (auto failure = CheckRequirements(requirements, report, &checked)) return failure;
    report["requirements"] = std::move(checked);
  }
  if (!input.html.empty()) {
    if (auto failure = WriteHtml(input.html, report)) return failure;
  }
  if (context.options.json) {
    PrintJson(report);
  } else {
    PrintReport(report);
  }
  for (const Json& r : report.value("requirements", Json::array())) {
    if (r.value("met", false)) continue;
    context.exit_code = kGateNotMet;
    std::fprintf(stderr, "requirement not met: %s (is %s)\n", r.value("require", "").c_str(),
                 Compact(r["value"]).c_str());
  }
  return std::nullopt;
}

std::optional<Failure> Report(Context& context, ReportInput& input, const std::vector<Requirement>& requirements) {
  v1::EvaluateRequest& request = input.request;
  if (auto failure = ReadDataset(input.dataset, request.mutable_dataset(), request.mutable_dataset_content()))
    return failure;
  if (auto failure = ReadTaskFolders(&request)) return failure;
  auto stub = v1::ReportService::NewStub(context.session->channel());
  v1::Operation operation;
  {
    Session::Call call(*context.session);
    const grpc::Status status = stub->Evaluate(call.get(), request, &operation);
    if (!status.ok()) return context.session->ToFailure(status);
  }
  return FinishOperation(context, "report", input.detach, operation,
                         [&](Json report) { return FinishReport(context, input, requirements, std::move(report)); });
}

// What can be refused without a server is refused before one is asked.
void Run(Context& context, ReportInput& input) {
  std::vector<Requirement> requirements;
  std::optional<Failure> failure = ParseTasks(input.tasks, &input.request);
  if (!failure && !input.require.empty()) failure = ParseRequirements(input.require, &requirements);
  if (failure) {
    context.exit_code = PrintFailure(context.options, *failure);
    return;
  }
  context.Run([&] { return Report(context, input, requirements); });
}

}  // namespace

void AddReportCommands(CLI::App& quant, Context& context) {
  auto input = std::make_shared<ReportInput>();
  v1::EvaluateRequest& request = input->request;
  auto* command = quant.add_subcommand("report", "What quantization cost: perplexity, KL, tasks, memory, speed");
  const auto text = [command](const char* flag, const char* help, std::function<void(const std::string&)> set) {
    return command->add_option_function<std::string>(flag, std::move(set), help);
  };
  text("--artifact", "Artifact or quantized model", [&request](const std::string& v) {
    request.set_artifact(v);
  })->required();
  text("--reference", "Unquantized model (the artifact's source)",
       [&request](const std::string& v) { request.set_reference(v); });
  text("--kv-quant", "KV strategy of the quantized side (bf16)",
       [&request](const std::string& v) { request.set_kv_quant(v); });
  text("--request-id", "Idempotency key", [&request](const std::string& v) { request.set_request_id(v); });
  command->add_option("--dataset", input->dataset, "Text or JSONL; a local file is sent, else a path of the server");
  command->add_option_function<int64_t>(
      "--windows", [&request](int64_t v) { request.set_windows(v); }, "Most windows (all)");
  command->add_option_function<int64_t>(
      "--window", [&request](int64_t v) { request.set_window(v); }, "Positions a window (2048)");
  command->add_option("--tasks", input->tasks,
                      "NAME=DIR,NAME=DIR: ARC, HellaSwag, MMLU, LAMBADA or rows of their shape");
  command->add_option_function<int64_t>(
      "--task-items", [&request](int64_t v) { request.set_task_items(v); }, "Items of each task (200; -1 = all)");
  command->add_flag_function(
      "--no-speed", [&request](int64_t) { request.set_no_speed(true); }, "Leave the speed measurement out");
  command->add_option("--html", input->html, "Write the report as one HTML file");
  command->add_option("--require", input->require, "PATH<NUMBER,...: exit code 4 when the report does not meet them");
  command->add_flag("--detach", input->detach, "Print the operation and do not wait");
  command->callback([input, &context] { Run(context, *input); });
}

}  // namespace sage::cli
