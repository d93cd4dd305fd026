// sage llm engine profile: where the time of a step goes, operator by operator.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "client/cli/command.h"
#include "client/cli/options.h"
#include "sage/quant/v1/engine.grpc.pb.h"

namespace sage::cli {
namespace {

namespace v1 = sage::quant::v1;
using Json = nlohmann::ordered_json;

Json PhaseJson(const v1::ProfiledPhase& phase) {
  Json operators = Json::array();
  for (const v1::ProfiledOperator& op : phase.operators()) {
    operators.push_back({{"name", op.name()}, {"calls", op.calls()}, {"seconds", op.seconds()}, {"bytes", op.bytes()}});
  }
  return {{"steps", phase.steps()}, {"tokens", phase.tokens()}, {"seconds", phase.seconds()}, {"operators", operators}};
}

void PrintPhase(const char* title, const v1::ProfiledPhase& phase, double bandwidth) {
  if (phase.steps() == 0 || phase.seconds() <= 0) return;
  std::printf("%s: %lld tokens in %lld steps, %.3f ms a step, %.1f tokens/s\n", title,
              static_cast<long long>(phase.tokens()), static_cast<long long>(phase.steps()),
              phase.seconds() * 1e3 / static_cast<double>(phase.steps()),
              static_cast<double>(phase.tokens()) / phase.seconds());
  std::vector<v1::ProfiledOperator> sorted(phase.operators().begin(), phase.operators().end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.seconds() > b.seconds(); });
  double inside = 0, bytes = 0;
  std::printf("  %-12s %10s %7s %9s %10s\n", "operator", "ms a step", "share", "GB/s", "of memory");
  for (const v1::ProfiledOperator& op : sorted) {
    inside += op.seconds();
    bytes += static_cast<double>(op.bytes());
    const double ms = op.seconds() * 1e3 / static_cast<double>(phase.steps());
    std::printf("  %-12s %10.3f %6.1f%%", op.name().c_str(), ms, 100 * op.seconds() / phase.seconds());
    if (op.bytes() > 0 && op.seconds() > 0) {
      const double rate = static_cast<double>(op.bytes()) / op.seconds();
      std::printf(" %9.2f %9.0f%%", rate / 1e9, bandwidth > 0 ? 100 * rate / bandwidth : 0);
    }
    std::printf("\n");
  }
  std::printf("  %-12s %10.3f %6.1f%%\n", "between",
              (phase.seconds() - inside) * 1e3 / static_cast<double>(phase.steps()),
              100 * (phase.seconds() - inside) / phase.seconds());
  std::printf("  whole step   %.2f GB/s of what had to be read, %.0f%% of memory\n", bytes / phase.seconds() / 1e9,
              bandwidth > 0 ? 100 * bytes / phase.seconds() / bandwidth : 0);
}

std::optional<Failure> Profile(Context& context, const v1::ProfileEngineRequest& request) {
  auto stub = v1::EngineService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::EngineProfile answer;
  const grpc::Status status = stub->ProfileEngine(call.get(), request, &answer);
  if (!status.ok()) return context.session->ToFailure(status);
  if (context.options.json) {
    PrintJson({{"engine_id", answer.engine_id()},
               {"threads", answer.threads()},
               {"read_bytes_per_second", answer.read_bytes_per_second()},
               {"prefill", PhaseJson(answer.prefill())},
               {"decode", PhaseJson(answer.decode())}});
    return std::nullopt;
  }
  std::printf("%s on %d threads; memory reads at %.2f GB/s\n", answer.engine_id().c_str(), answer.threads(),
              answer.read_bytes_per_second() / 1e9);
  PrintPhase("prefill", answer.prefill(), answer.read_bytes_per_second());
  PrintPhase("decode", answer.decode(), answer.read_bytes_per_second());
  return std::nullopt;
}

}  // namespace

void AddProfileCommand(CLI::App& engine, Context& context) {
  auto request = std::make_shared<v1::ProfileEngineRequest>();
  auto* command = engine.add_subcommand("profile", "Where the time of a step goes, operator by operator");
  command
      ->add_option_function<std::string>(
          "id", [request](const std::string& v) { request->set_engine_id(v); }, "Engine id")
      ->required();
  command->add_option_function<int64_t>(
      "--prompt", [request](int64_t v) { request->set_prompt(v); }, "Tokens before the decode steps (128)");
  command->add_option_function<int64_t>(
      "--batch", [request](int64_t v) { request->set_batch(v); }, "Sequences that decode together (1)");
  command->add_option_function<int64_t>(
      "--steps", [request](int64_t v) { request->set_steps(v); }, "Decode steps (32)");
  command->callback([request, &context] { context.Run([&] { return Profile(context, *request); }); });
}

}  // namespace sage::cli
