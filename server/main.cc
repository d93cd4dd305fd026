// sagequantd: reads the configuration, serves gRPC and HTTP until SIGTERM or SIGINT, drains and exits 0.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <thread>

#include "absl/time/clock.h"
#include "engine/base/file.h"
#include "server/config.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/grpc_server.h"
#include "server/http/http_server.h"
#include "server/telemetry/log.h"

namespace {

using namespace sage::server;  // NOLINT: this file is the program

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "sagequantd: %s: %s\n", ReasonOf(status).c_str(), std::string(status.message()).c_str());
  return 1;
}

// Waits for SIGTERM or SIGINT (blocked in every thread) and looks at the watchdog meanwhile. Health follows it.
int WaitForSignal(const sigset_t& signals, Daemon& daemon, GrpcServer& grpc) {
  const timespec second = {1, 0};
  bool serving = true;
  while (true) {
    const int signal = sigtimedwait(&signals, nullptr, &second);
    if (signal > 0) return signal;
    const bool healthy = daemon.CheckWatchdog();
    if (healthy != serving) grpc.SetServing(healthy);
    serving = healthy;
  }
}

int Serve(const DaemonConfig& config, const sigset_t& signals) {
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Create(config, sage::Runtime::Create);
  if (!daemon.ok()) return Fail(daemon.status());
  absl::StatusOr<std::unique_ptr<GrpcServer>> grpc = GrpcServer::Start(**daemon);
  if (!grpc.ok()) return Fail(grpc.status());
  absl::StatusOr<std::unique_ptr<HttpServer>> http = HttpServer::Start(**daemon);
  if (!http.ok()) return Fail(http.status());
  (*daemon)->SetReady();
  (*grpc)->SetServing(true);
  if (!config.port_file.empty()) {
    const sage::Json ports = {{"grpc", (*grpc)->address()}, {"http", (*http)->address()}, {"pid", getpid()}};
    const absl::Status written = sage::WriteFileAtomic(config.port_file, ports.dump() + "\n");
    if (!written.ok()) return Fail(written);
  }
  Log(LogLevel::kInfo, "serving",
      {{"grpc", (*grpc)->address()},
       {"http", (*http)->address()},
       {"data_dir", (*daemon)->paths().data_dir()},
       {"threads", (*daemon)->runtime().threads()},
       {"version", SAGE_VERSION}});
  const int signal = WaitForSignal(signals, **daemon, **grpc);
  Log(LogLevel::kInfo, "draining", {{"signal", signal}});
  (*grpc)->SetServing(false);
  (*http)->SetServing(false);
  if (config.drain_delay_seconds > 0) absl::SleepFor(absl::Seconds(config.drain_delay_seconds));
  (*daemon)->BeginDrain();
  const absl::Time deadline = absl::Now() + absl::Seconds(config.drain_timeout_seconds);
  // Engines first: their running requests end (or are cancelled at the deadline), so every stream gets its last update.
  (*daemon)->StopWork(deadline);
  (*grpc)->Shutdown(std::max(deadline, absl::Now()) + absl::Seconds(2));
  (*http)->Stop();
  Log(LogLevel::kInfo, "stopped", {});
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  absl::StatusOr<ParsedCommandLine> line =
      ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc), ProcessEnvironment());
  if (!line.ok()) {
    Fail(line.status());
    return 2;
  }
  if (line->exit_now) {
    std::fputs(line->text.c_str(), line->exit_code == 0 ? stdout : stderr);
    return line->exit_code;
  }
  const absl::Status checked = CheckConfig(line->config);
  if (!checked.ok()) {
    Fail(checked);
    return 2;
  }
  if (line->config.check_config) {
    std::fputs(DescribeConfig(line->config).c_str(), stdout);
    return 0;
  }
  SetupLogs(line->config.log_format, line->config.log_level);
  signal(SIGPIPE, SIG_IGN);
  sigset_t signals;  // blocked before any thread starts, so that only WaitForSignal sees them
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return Serve(line->config, signals);
}
