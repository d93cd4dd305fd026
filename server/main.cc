// sagequantd: reads the configuration, starts the engines it names, serves gRPC and HTTP until SIGTERM or SIGINT,
// drains and exits 0.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <thread>

#include "absl/time/clock.h"
#include "engine/base/file.h"
#include "server/config.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/grpc_server.h"
#include "server/health_probe.h"
#include "server/http/http_server.h"
#include "server/preload.h"
#include "server/systemd.h"
#include "server/telemetry/log.h"

namespace {

using namespace sage::server;  // NOLINT: this file is the program

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "sagequantd: %s: %s\n", ReasonOf(status).c_str(), std::string(status.message()).c_str());
  return 1;
}

// Starts the engines of --engines-file beside the loop that answers signals.
class Preload {
 public:
  explicit Preload(Daemon& daemon)
      : thread_([this, &daemon] {
          status_ = StartEngines(daemon, daemon.config().engines_file, cancel_);
          done_ = true;
        }) {}
  ~Preload() {
    cancel_.Cancel();
    thread_.join();
  }
  bool done() const { return done_; }
  const absl::Status& status() const { return status_; }  // once done

 private:
  sage::CancelToken cancel_;
  absl::Status status_;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

// The signal that ends the wait (SIGTERM or SIGINT, blocked in every thread), 0 when the engines are there.
int WaitForEngines(const sigset_t& signals, const Preload& preload, const SystemdNotifier& systemd) {
  const timespec tick = {0, 20000000};
  for (int ticks = 0; !preload.done(); ++ticks) {
    if (ticks % 250 == 0) systemd.Send("EXTEND_TIMEOUT_USEC=60000000\nSTATUS=starting engines");
    const int signal = sigtimedwait(&signals, nullptr, &tick);
    if (signal > 0) return signal;
  }
  return 0;
}

// Waits for a signal and meanwhile looks at the watchdog and at files that change. Health follows the watchdog, and a
// supervisor hears from us only while it is well.
int WaitForSignal(const sigset_t& signals, Daemon& daemon, GrpcServer& grpc, SystemdNotifier& systemd) {
  const timespec second = {1, 0};
  bool serving = true;
  while (true) {
    const bool healthy = daemon.CheckWatchdog();
    if (healthy != serving) grpc.SetServing(healthy);
    serving = healthy;
    if (healthy) systemd.Beat(absl::Now());
    daemon.Upkeep();
    const int signal = sigtimedwait(&signals, nullptr, &second);
    if (signal > 0) return signal;
  }
}

absl::Status WritePortFile(const std::string& path, const GrpcServer& grpc, const HttpServer& http) {
  if (path.empty()) return absl::OkStatus();
  const sage::Json ports = {{"grpc", grpc.address()}, {"http", http.address()}, {"pid", getpid()}};
  return sage::WriteFileAtomic(path, ports.dump() + "\n");
}

void Drain(Daemon& daemon, GrpcServer& grpc, HttpServer& http, const SystemdNotifier& systemd, int signal) {
  const DaemonConfig& config = daemon.config();
  Log(LogLevel::kInfo, "draining", {{"signal", signal}});
  systemd.Stopping();
  grpc.SetServing(false);
  http.SetServing(false);
  if (config.drain_delay_seconds > 0) absl::SleepFor(absl::Seconds(config.drain_delay_seconds));
  daemon.BeginDrain();
  const absl::Time deadline = absl::Now() + absl::Seconds(config.drain_timeout_seconds);
  // Engines first: their running requests end (or are cancelled at the deadline), so every stream gets its last update.
  daemon.StopWork(deadline);
  grpc.Shutdown(std::max(deadline, absl::Now()) + absl::Seconds(2));
  http.Stop();
  Log(LogLevel::kInfo, "stopped", {});
}

int Serve(const DaemonConfig& config, const sigset_t& signals) {
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Create(config, sage::Runtime::Create);
  if (!daemon.ok()) {
    Fail(daemon.status());
    return ReasonOf(daemon.status()) == "DATA_DIR_IN_USE" ? 2 : 1;  // a mistake of the command line, as a bad flag is
  }
  absl::StatusOr<std::unique_ptr<GrpcServer>> grpc = GrpcServer::Start(**daemon);
  if (!grpc.ok()) return Fail(grpc.status());
  absl::StatusOr<std::unique_ptr<HttpServer>> http = HttpServer::Start(**daemon);
  if (!http.ok()) return Fail(http.status());
  SystemdNotifier systemd = SystemdNotifier::FromEnvironment();
  int signal = 0;
  {
    const Preload preload(**daemon);
    signal = WaitForEngines(signals, preload, systemd);
    if (signal == 0 && !preload.status().ok()) return Fail(preload.status());
  }
  if (signal == 0) {
    (*daemon)->Upkeep();
    (*daemon)->SetReady();
    (*grpc)->SetServing(true);
    const absl::Status written = WritePortFile(config.port_file, **grpc, **http);
    if (!written.ok()) return Fail(written);
    Log(LogLevel::kInfo, "serving",
        {{"grpc", (*grpc)->address()},
         {"http", (*http)->address()},
         {"data_dir", (*daemon)->paths().data_dir()},
         {"threads", (*daemon)->runtime().threads()},
         {"version", SAGE_VERSION}});
    systemd.Ready("gRPC " + (*grpc)->address() + ", HTTP " + (*http)->address());
    signal = WaitForSignal(signals, **daemon, **grpc, systemd);
  }
  Drain(**daemon, **grpc, **http, systemd, signal);
  // A file that outlives us would name a process that may be another's by then.
  if (!config.port_file.empty()) unlink(config.port_file.c_str());
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
  if (line->config.health) {
    const absl::Status live = ProbeHealth(line->config);
    return live.ok() ? 0 : Fail(live);
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
  for (const std::string& warning : ConfigWarnings(line->config)) {
    Log(LogLevel::kError, "open_to_everyone", {{"message", warning}});
  }
  signal(SIGPIPE, SIG_IGN);
  sigset_t signals;  // blocked before any thread starts, so that only WaitForSignal sees them
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return Serve(line->config, signals);
}
