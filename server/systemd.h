// Tells systemd (or any supervisor that sets NOTIFY_SOCKET) how the daemon is: ready, alive, stopping.
#pragma once

#include <string>

#include "absl/time/time.h"

namespace sage::server {

class SystemdNotifier {
 public:
  // `socket` is NOTIFY_SOCKET ("" = nobody listens), `watchdog_usec` WATCHDOG_USEC, `watchdog_pid` WATCHDOG_PID.
  SystemdNotifier(std::string socket, const std::string& watchdog_usec, const std::string& watchdog_pid);
  static SystemdNotifier FromEnvironment();

  // One datagram of "KEY=VALUE" lines; false when it could not be sent.
  bool Send(const std::string& state) const;
  void Ready(const std::string& status) const { Send("READY=1\nSTATUS=" + status); }
  void Stopping() const { Send("STOPPING=1\nSTATUS=draining"); }
  // To be called about once a second: sends WATCHDOG=1 three times in the interval, while the caller is healthy.
  void Beat(absl::Time now);
  absl::Duration watchdog() const { return watchdog_; }

 private:
  std::string socket_;
  absl::Duration watchdog_ = absl::ZeroDuration();  // zero = off
  absl::Time last_beat_ = absl::InfinitePast();
};

}  // namespace sage::server
