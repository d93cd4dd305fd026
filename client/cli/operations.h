// Long work as the command line sees it: the JSON of an operation, and waiting for one with progress and Ctrl-C.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "client/cli/command.h"
#include "sage/quant/v1/operation.pb.h"

namespace sage::cli {

// id kind state progress{done total unit stage eta_seconds} error result, and times.
nlohmann::ordered_json OperationJson(const ::sage::quant::v1::Operation& operation);
// One line for people.
void PrintOperation(const ::sage::quant::v1::Operation& operation);

// One line of a list, cut to `columns` characters (0 = not cut).
std::string OperationLine(const ::sage::quant::v1::Operation& operation, int columns);
// `text` without what does not fit; "…" stands for it. Counts UTF-8 characters.
std::string CutToColumns(const std::string& text, int columns);

// Follows `operation` until it has ended, progress on stderr. Ctrl-C cancels it on the server (exit code 130). A
// failed or cancelled operation's own error is the failure; on success `operation` holds the result.
std::optional<Failure> WaitForOperation(Context& context, const std::string& title,
                                        ::sage::quant::v1::Operation* operation);
// Waits unless `detach` (then prints the record), then hands over the result's JSON object.
std::optional<Failure> FinishOperation(
    Context& context, const std::string& title, bool detach, ::sage::quant::v1::Operation operation,
    const std::function<std::optional<Failure>(nlohmann::ordered_json result)>& show);

// Reads the file named by --dataset into `content` and keeps its name, when it is a local file; a name that is none is
// the server's to resolve and passes as it is.
std::optional<Failure> ReadDataset(const std::string& flag, std::string* dataset, std::string* content);

}  // namespace sage::cli
