// Control groups of both versions, systemd's datagrams, the engines file.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "sage/quant/v1/engine.pb.h"
#include "server/host_limits.h"
#include "server/preload.h"
#include "server/systemd.h"

namespace sage::server {
namespace {

class HostLimitsTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::remove_all(root_); }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  const std::string root_ = testing::TempDir() + "/host_limits_test_" + std::to_string(getpid());
};

TEST_F(HostLimitsTest, Version2TakesTheStrictestUpwards) {
  Write("/proc/self/cgroup", "0::/system.slice/sagequantd.service\n");
  Write("/sys/fs/cgroup/system.slice/sagequantd.service/cpu.max", "max 100000\n");
  Write("/sys/fs/cgroup/system.slice/sagequantd.service/memory.max", "3000000000\n");
  Write("/sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n");
  Write("/sys/fs/cgroup/system.slice/memory.max", "2000000000\n");
  const HostLimits got = ReadHostLimits(root_);
  EXPECT_DOUBLE_EQ(got.quota_cpus, 1.5);
  EXPECT_EQ(got.group_bytes, 2000000000);
  EXPECT_EQ(got.threads, std::min(2, got.affinity_cpus));
  EXPECT_EQ(got.group, "cgroup2 /system.slice/sagequantd.service");
  EXPECT_EQ(got.memory_bytes(), std::min<int64_t>(2000000000, got.machine_bytes));
}

TEST_F(HostLimitsTest, AContainerSeesItsGroupAsTheRoot) {
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/cpu.max", "20000 100000\n");
  Write("/sys/fs/cgroup/memory.max", "max\n");
  const HostLimits got = ReadHostLimits(root_);
  EXPECT_DOUBLE_EQ(got.quota_cpus, 0.2);
  EXPECT_EQ(got.threads, 1) << "never none";
  EXPECT_EQ(got.group_bytes, 0);
  EXPECT_EQ(got.memory_bytes(), got.machine_bytes);
}

TEST_F(HostLimitsTest, Version1) {
  Write("/proc/self/cgroup", "7:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n1:name=systemd:/docker/a\n");
  Write("/sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us", "100000\n");
  Write("/sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us", "100000\n");
  Write("/sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes", "1073741824\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  const HostLimits got = ReadHostLimits(root_);
  EXPECT_DOUBLE_EQ(got.quota_cpus, 1);
  EXPECT_EQ(got.threads, 1);
  EXPECT_EQ(got.group_bytes, 1073741824);
}

TEST_F(HostLimitsTest, GarbageAndNothingAreNoLimits) {
  EXPECT_EQ(ReadHostLimits(root_).group, "none");
  Write("/proc/self/cgroup", "x\n::\n0::/a/b/c\n");
  Write("/sys/fs/cgroup/a/b/c/cpu.max", "-1 0 x\n");
  Write("/sys/fs/cgroup/a/b/c/memory.max", "lots\n");
  const HostLimits got = ReadHostLimits(root_);
  EXPECT_EQ(got.quota_cpus, 0);
  EXPECT_EQ(got.group_bytes, 0);
  EXPECT_EQ(got.threads, got.affinity_cpus);
  EXPECT_GE(got.threads, 1);
}

class NotifySocket {
 public:
  explicit NotifySocket(const std::string& name) : fd_(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, name.data(), name.size());
    if (name[0] == '@') address.sun_path[0] = '\0';
    bound_ = bind(fd_, reinterpret_cast<sockaddr*>(&address),
                  static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size())) == 0;
  }
  ~NotifySocket() { close(fd_); }
  std::string Next() {
    char buffer[1000];
    const ssize_t got = recv(fd_, buffer, sizeof(buffer), 0);
    return got < 0 ? "" : std::string(buffer, static_cast<size_t>(got));
  }
  bool bound() const { return bound_; }

 private:
  int fd_;
  bool bound_;
};

TEST(Systemd, SpeaksToPathsAndAbstractNames) {
  const std::string path = testing::TempDir() + "/notify_test_" + std::to_string(getpid());
  for (const std::string& name : {path, "@sage-notify-test-" + std::to_string(getpid())}) {
    std::filesystem::remove(path);
    NotifySocket listener(name);
    ASSERT_TRUE(listener.bound()) << name;
    SystemdNotifier notifier(name, "3000000", std::to_string(getpid()));
    notifier.Ready("here");
    EXPECT_EQ(listener.Next(), "READY=1\nSTATUS=here");
    const absl::Time now = absl::FromUnixSeconds(1000);
    notifier.Beat(now);
    notifier.Beat(now + absl::Milliseconds(500));  // too early for another
    notifier.Beat(now + absl::Seconds(1));
    notifier.Stopping();
    EXPECT_EQ(listener.Next(), "WATCHDOG=1");
    EXPECT_EQ(listener.Next(), "WATCHDOG=1");
    EXPECT_THAT(listener.Next(), testing::HasSubstr("STOPPING=1"));
    EXPECT_EQ(listener.Next(), "");
  }
}

TEST(Systemd, NobodyListensOrAnotherProcessIsMeant) {
  EXPECT_FALSE(SystemdNotifier("", "", "").Send("READY=1"));
  EXPECT_FALSE(SystemdNotifier("relative", "", "").Send("READY=1"));
  EXPECT_FALSE(SystemdNotifier("/" + std::string(500, 'x'), "", "").Send("READY=1"));
  EXPECT_FALSE(SystemdNotifier("/nowhere/at/all", "", "").Send("READY=1"));
  EXPECT_EQ(SystemdNotifier("/x", "1000000", "1").watchdog(), absl::ZeroDuration());
  EXPECT_EQ(SystemdNotifier("/x", "-5", "").watchdog(), absl::ZeroDuration());
}

TEST(Preload, ReadsTheFieldsOfARequest) {
  const auto got =
      ParseEngines(R"([{"model": "a/b", "engine_id": "x", "kv_quant": "fp8", "max_seqs": 4}, {"model": "c"}])");
  ASSERT_TRUE(got.ok()) << got.status();
  ASSERT_EQ(got->size(), 2u);
  EXPECT_EQ((*got)[0].kv_quant(), "fp8");
  EXPECT_EQ((*got)[0].max_seqs(), 4);
  for (const char* bad :
       {"", "{}", "[1]", "[{}]", R"([{"model": "a", "typo": 1}])", R"([{"model": 7, "max_seqs": "x"}])"}) {
    EXPECT_FALSE(ParseEngines(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace sage::server
