// sage operations list | get | watch | cancel.
#include <cstdio>

#include "client/cli/command.h"
#include "client/cli/operations.h"
#include "client/cli/progress.h"
#include "sage/quant/v1/operation.grpc.pb.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;
using Json = nlohmann::ordered_json;

void Show(const Context& context, const v1::Operation& operation) {
  if (context.options.json) {
    PrintJson(OperationJson(operation));
  } else {
    PrintOperation(operation);
  }
}

std::optional<Failure> List(Context& context, const std::string& kind) {
  auto stub = v1::OperationService::NewStub(context.session->channel());
  Json all = Json::array();
  const int columns = TerminalColumns(stdout);
  v1::ListOperationsRequest request;
  request.set_kind(kind);
  do {
    Session::Call call(*context.session);
    v1::ListOperationsResponse answer;
    const grpc::Status status = stub->ListOperations(call.get(), request, &answer);
    if (!status.ok()) return context.session->ToFailure(status);
    for (const v1::Operation& operation : answer.operations()) {
      if (context.options.json) {
        all.push_back(OperationJson(operation));
        continue;
      }
      std::printf("%s\n", OperationLine(operation, columns).c_str());
      if (operation.has_error()) {
        std::printf("%s\n", CutToColumns("  error: " + operation.error().message(), columns).c_str());
      }
    }
    request.set_page_token(answer.next_page_token());
  } while (!request.page_token().empty());
  if (context.options.json) PrintJson(all);
  return std::nullopt;
}

// Shows every change: one JSON object a line, or progress and the last state. Ctrl-C only stops watching.
std::optional<Failure> Watch(Context& context, const std::string& id) {
  auto stub = v1::OperationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::WatchOperationRequest request;
  request.set_id(id);
  auto reader = stub->WatchOperation(call.get(), request);
  v1::Operation operation;
  ProgressPrinter printer(id, context.options.json);
  while (reader->Read(&operation)) {
    if (context.options.json) PrintJson(OperationJson(operation));
    const v1::OperationProgress& p = operation.progress();
    printer.Update(p.stage(), p.done(), p.total(), p.unit(), operation.has_progress() ? p.eta_seconds() : -1);
  }
  printer.Finish();
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return context.session->ToFailure(status);
  if (!context.options.json) PrintOperation(operation);
  if (operation.state() == v1::OPERATION_STATE_FAILED) context.exit_code = kFailed;
  if (operation.state() == v1::OPERATION_STATE_CANCELLED) context.exit_code = kCancelled;
  return std::nullopt;
}

std::optional<Failure> Get(Context& context, const std::string& id) {
  auto stub = v1::OperationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::GetOperationRequest request;
  request.set_id(id);
  v1::Operation answer;
  const grpc::Status status = stub->GetOperation(call.get(), request, &answer);
  if (!status.ok()) return context.session->ToFailure(status);
  Show(context, answer);
  return std::nullopt;
}

std::optional<Failure> Cancel(Context& context, const std::string& id) {
  auto stub = v1::OperationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::CancelOperationRequest request;
  request.set_id(id);
  v1::Operation answer;
  const grpc::Status status = stub->CancelOperation(call.get(), request, &answer);
  if (!status.ok()) return context.session->ToFailure(status);
  Show(context, answer);
  return std::nullopt;
}

}  // namespace

void AddOperationCommands(CLI::App& operations, Context& context) {
  auto kind = std::make_shared<std::string>();
  auto* list = operations.add_subcommand("list", "All operations, newest first");
  list->add_option("--kind", *kind, "calibrate, convert, evaluate or start_engine");
  list->callback([kind, &context] { context.Run([&] { return List(context, *kind); }); });

  using Body = std::optional<Failure> (*)(Context&, const std::string&);
  const auto add = [&](const char* name, const char* help, Body body) {
    auto id = std::make_shared<std::string>();
    auto* command = operations.add_subcommand(name, help);
    command->add_option("id", *id, "Operation id")->required();
    command->callback([id, body, &context] { context.Run([&] { return body(context, *id); }); });
  };
  add("get", "One operation", Get);
  add("watch", "Follow an operation until it has ended", Watch);
  add("cancel", "Ask an operation to stop", Cancel);
}

}  // namespace sage::cli
