// The front of the HTTP port alone: slow, idle and too many clients, with workers that block as long as a test wants.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/http/front.h"
#include "server/telemetry/metrics.h"

namespace sage::server {
namespace {

class Client {
 public:
  explicit Client(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<in_port_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const timeval patience = {20, 0};  // a failure, not a hang
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  ~Client() { close(fd_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void Send(const std::string& text) { (void)send(fd_, text.data(), text.size(), MSG_NOSIGNAL); }
  // One answer of the tests' form, or what came until the connection ended.
  std::string Read() {
    std::string out;
    char byte;
    while (!absl::EndsWith(out, ".") && recv(fd_, &byte, 1, 0) == 1) out += byte;
    return out;
  }
  bool Ended() {
    char byte;
    return recv(fd_, &byte, 1, 0) <= 0;
  }

 private:
  const int fd_;
};

class FrontTest : public testing::Test {
 protected:
  void Begin(HttpFront::Options options) {
    options.host = "127.0.0.1";
    auto front = HttpFront::Listen(options, metrics_);
    ASSERT_TRUE(front.ok()) << front.status();
    front_ = *std::move(front);
    front_->Start(
        [this](Connection& connection, bool last) {
          std::unique_lock lock(mutex_);
          if (connection.frame.path() == "/block") {
            ++blocked_;
            changed_.notify_all();
            changed_.wait(lock, [this] { return open_; });
          }
          return connection.Send(absl::StrCat(connection.frame.path(), last ? " last." : "."), absl::Seconds(5)) &&
                 !last;
        },
        [](const Connection&, const absl::Status& status, int code) {
          return absl::StrCat(code, " ", std::string(status.message()), ".");
        });
  }
  void TearDown() override {
    Open();
    front_ = nullptr;
  }
  void Open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void WaitBlocked(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return blocked_ == count; });
  }
  bool Has(const std::string& line) { return absl::StrContains(metrics_.Text(), line + "\n"); }

  PrometheusMetrics metrics_;
  std::unique_ptr<HttpFront> front_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int blocked_ = 0;
  bool open_ = false;
};

std::string Get(const std::string& path) { return absl::StrCat("GET ", path, " HTTP/1.1\r\n\r\n"); }

TEST_F(FrontTest, KeptConnectionsHoldNoThread) {
  Begin({.threads = 2, .most_connections = 100});
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 6; ++i) clients.push_back(std::make_unique<Client>(front_->port()));
  for (int round = 0; round < 3; ++round) {
    for (const auto& client : clients) {
      client->Send(Get("/x"));
      EXPECT_EQ(client->Read(), "/x.");
    }
  }
  EXPECT_TRUE(Has("sage_http_connections 6"));
}

TEST_F(FrontTest, RequestsThatFollowAtOnceAreAnsweredInOrder) {
  Begin({.threads = 2, .most_connections = 100});
  Client client(front_->port());
  client.Send(Get("/a") + "POST /b HTTP/1.1\r\nContent-Length: 1\r\n\r\nx" + Get("/c"));
  EXPECT_EQ(client.Read(), "/a.");
  EXPECT_EQ(client.Read(), "/b.");
  EXPECT_EQ(client.Read(), "/c.");
}

TEST_F(FrontTest, ProbesAreAnsweredWhileEveryThreadIsBusyAndTheRestIsRefused) {
  Begin({.threads = 2, .most_connections = 100});
  std::vector<std::unique_ptr<Client>> clients;
  const auto ask = [&](const std::string& path) {
    clients.push_back(std::make_unique<Client>(front_->port()));
    clients.back()->Send(Get(path));
  };
  for (int i = 0; i < 2; ++i) ask("/block");
  WaitBlocked(2);
  for (int i = 0; i < 8; ++i) ask("/x");  // as many as may wait
  for (const char* path : {"/health", "/health/live", "/metrics"}) {
    Client probe(front_->port());
    probe.Send(Get(path));
    EXPECT_EQ(probe.Read(), absl::StrCat(path, "."));
  }
  // The front takes requests in the order in which they come only per connection: try until one is beyond.
  std::string answer;
  for (int i = 0; i < 50 && answer.empty(); ++i) {
    Client beyond(front_->port());
    beyond.Send(Get("/x"));
    answer = beyond.Read();
  }
  EXPECT_TRUE(absl::StartsWith(answer, "429 ")) << answer;
  Open();
  for (const auto& client : clients) EXPECT_NE(client->Read(), "");
}

TEST_F(FrontTest, SlowSendersEndWhateverTheySend) {
  Begin({.threads = 2, .most_connections = 100, .header_time = absl::Milliseconds(400), .body_time = absl::Seconds(1)});
  Client header(front_->port()), body(front_->port());
  body.Send("POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n");
  const absl::Time end = absl::Now() + absl::Seconds(3);
  for (const char c : Get("/" + std::string(100, 'x'))) {  // a byte now and then: no pause is long
    header.Send(std::string(1, c));
    body.Send("x");
    if (absl::Now() > end) break;
    absl::SleepFor(absl::Milliseconds(50));
  }
  EXPECT_TRUE(absl::StartsWith(header.Read(), "408 "));
  EXPECT_TRUE(header.Ended());
  EXPECT_TRUE(absl::StartsWith(body.Read(), "408 "));
  EXPECT_TRUE(body.Ended());
}

TEST_F(FrontTest, WhoWaitsLongestGivesWay) {
  Begin({.threads = 2, .most_connections = 4});
  std::vector<std::unique_ptr<Client>> clients;
  clients.push_back(std::make_unique<Client>(front_->port()));
  clients[0]->Send(Get("/block"));
  WaitBlocked(1);
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<Client>(front_->port()));
    clients.back()->Send("GET /x");
  }
  Client probe(front_->port());
  probe.Send(Get("/health/live"));
  EXPECT_EQ(probe.Read(), "/health/live last.") << "a full port keeps no connection";
  EXPECT_TRUE(Has("sage_rejections_total{reason=\"TOO_MANY_CONNECTIONS\"} 1"));
  EXPECT_TRUE(clients[1]->Ended()) << "the oldest of those without a whole request";
  Open();
  EXPECT_NE(clients[0]->Read(), "") << "one that is being answered is not taken away";
}

TEST_F(FrontTest, BadRequestsAreToldWhy) {
  Begin({.threads = 2, .most_connections = 100});
  Client client(front_->port());
  client.Send("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n" + std::string(1 << 20, 'x'));
  EXPECT_TRUE(absl::StartsWith(client.Read(), "400 "));
  EXPECT_TRUE(client.Ended());
  Client waits(front_->port());
  waits.Send("POST /y HTTP/1.1\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(waits.Read(), "HTTP/1.") << "told to go on before the body is there";
  waits.Send("z");
  EXPECT_EQ(waits.Read(), "1 100 Continue\r\n\r\n/y.");
}

}  // namespace
}  // namespace sage::server
