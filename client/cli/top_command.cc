// sage top: a live view of engines, rates, queues, KV use and operations.
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <ctime>
#include <memory>
#include <thread>

#include "client/cli/command.h"
#include "client/cli/operations.h"
#include "client/cli/progress.h"
#include "client/cli/top_frame.h"
#include "sage/quant/v1/engine.grpc.pb.h"
#include "sage/quant/v1/operation.grpc.pb.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;

constexpr int kOperations = 8;  // the newest

struct TopFlags {
  double interval_seconds = 1;
  bool once = false;
};

std::optional<Failure> Look(Context& context, TopLook* look) {
  auto engines = v1::EngineService::NewStub(context.session->channel());
  v1::ListEnginesRequest request;
  do {
    Session::Call call(*context.session);
    v1::ListEnginesResponse answer;
    const grpc::Status status = engines->ListEngines(call.get(), request, &answer);
    if (!status.ok()) return context.session->ToFailure(status);
    look->engines.insert(look->engines.end(), answer.engines().begin(), answer.engines().end());
    request.set_page_token(answer.next_page_token());
  } while (!request.page_token().empty());
  using Clock = std::chrono::steady_clock;
  look->seconds = std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
  auto operations = v1::OperationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::ListOperationsRequest newest;
  newest.set_page_size(kOperations);
  v1::ListOperationsResponse answer;
  const grpc::Status status = operations->ListOperations(call.get(), newest, &answer);
  if (!status.ok()) return context.session->ToFailure(status);
  look->operations.assign(answer.operations().begin(), answer.operations().end());
  return std::nullopt;
}

int TerminalRows() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 1 ? size.ws_row - 1 : 0;
}

std::string Title(const Context& context) {
  char time[16];
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  std::strftime(time, sizeof time, "%H:%M:%S", localtime_r(&now, &parts));
  return "sagequantd " + context.options.server + "  " + time;
}

// Two looks make one frame. Ctrl-C ends it.
std::optional<Failure> Top(Context& context, const TopFlags& flags) {
  const bool terminal = isatty(STDOUT_FILENO) == 1 && !context.options.json && !flags.once;
  TopLook before;
  if (auto failure = Look(context, &before)) return failure;
  while (true) {
    std::this_thread::sleep_for(std::chrono::duration<double>(flags.interval_seconds));
    TopLook now;
    if (auto failure = Look(context, &now)) return failure;
    const nlohmann::ordered_json top = TopJson(before, now);
    if (context.options.json) {
      PrintJson(top);
    } else {
      const int columns = TerminalColumns(stdout);
      const std::string frame = TopFrame(top, Title(context), columns, terminal ? TerminalRows() : 0);
      std::printf("%s%s", terminal ? "\033[H\033[2J" : "", frame.c_str());
      std::fflush(stdout);
    }
    if (flags.once) return std::nullopt;
    before = std::move(now);
  }
}

}  // namespace

void AddTopCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<TopFlags>();
  auto* command = app.add_subcommand("top", "Live view: engines, tokens/s, queues, KV use, operations");
  command->add_option("--interval", flags->interval_seconds, "Seconds between frames (1)")
      ->check(CLI::Range(0.1, 3600.0));
  command->add_flag("--once", flags->once, "Print one frame and end");
  command->callback([flags, &context] { context.Run([&] { return Top(context, *flags); }); });
}

}  // namespace sage::cli
