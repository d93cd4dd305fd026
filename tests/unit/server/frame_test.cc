// Where requests end, whatever pieces they come in, and what is refused because two readers could disagree.
#include "server/http/frame.h"

#include "gtest/gtest.h"

namespace sage::server {
namespace {

using State = FrameReader::State;

// Fed byte by byte; the state after each but the last byte must be unfinished.
FrameReader Feed(const std::string& text) {
  FrameReader frame;
  for (size_t i = 1; i <= text.size(); ++i) {
    const State state = frame.Look(std::string_view(text).substr(0, i));
    if (state == State::kComplete || state == State::kBad) {
      EXPECT_EQ(i, text.size()) << text;
      break;
    }
  }
  return frame;
}

int CodeOf(const std::string& text) {
  FrameReader frame;
  return frame.Look(text) == State::kBad ? frame.http_code() : 0;
}

TEST(Frame, EndsWithTheEmptyLineOrTheBody) {
  const std::string plain = "GET /health/live?x=1 HTTP/1.1\r\nHost: h\r\n\r\n";
  FrameReader frame = Feed(plain);
  EXPECT_EQ(frame.Look(plain), State::kComplete);
  EXPECT_EQ(frame.size(), plain.size());
  EXPECT_EQ(frame.method(), "GET");
  EXPECT_EQ(frame.path(), "/health/live");
  const std::string body = "POST / HTTP/1.1\r\ncontent-length: 5\r\nExpect: 100-continue\r\n\r\nhello";
  frame = Feed(body);
  EXPECT_EQ(frame.Look(body), State::kComplete);
  EXPECT_EQ(frame.size(), body.size());
  EXPECT_TRUE(frame.expects_continue());
}

// cpp-httplib answers such a form with a bare 413; whoever forgot the header is told which.
TEST(Frame, ALargeFormIsRefusedByName) {
  const std::string form = "POST / HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded; charset=utf-8\r\n";
  EXPECT_EQ(CodeOf(form + "Content-Length: 8193\r\n\r\n"), 413);
  EXPECT_EQ(CodeOf(form + "Content-Length: 8192\r\n\r\n"), 0);
  EXPECT_EQ(CodeOf("POST / HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 8193\r\n\r\n"), 0);
  FrameReader frame;
  frame.Look("POST / HTTP/1.1\r\nContent-Length: 9000\r\ncontent-type: application/x-www-form-urlencoded\r\n\r\n");
  EXPECT_NE(frame.error().message().find("application/json"), frame.error().message().npos) << frame.error();
}

TEST(Frame, WhatFollowsIsNotPartOfIt) {
  const std::string first = "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", both = first + "GET / HTTP/1.1\r\n\r\n";
  FrameReader frame;
  EXPECT_EQ(frame.Look(both), State::kComplete);
  EXPECT_EQ(frame.size(), first.size());
}

TEST(Frame, Chunks) {
  const std::string text =
      "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0A;ext=1\r\n0123456789\r\n0\r\nA: b\r\n\r\n";
  FrameReader frame = Feed(text);
  EXPECT_EQ(frame.Look(text), State::kComplete);
  EXPECT_EQ(frame.size(), text.size());
  const std::string head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const char* bad : {"x\r\n", "-1\r\n", "\r\n", "5\r\nhelloXX", "123456789\r\n"}) {
    EXPECT_EQ(CodeOf(head + bad), 400) << bad;
  }
  EXPECT_EQ(CodeOf(head + "fffffff\r\n"), 413);
  EXPECT_EQ(CodeOf(head + std::string(300, '1')), 400);
  // A size line of the longest kind (256 bytes) is as good in pieces as whole; one byte more is not.
  const std::string longest = head + "0;" + std::string(254, 'x') + "\r\n\r\n";
  EXPECT_EQ(Feed(longest).Look(longest), State::kComplete);
  EXPECT_EQ(CodeOf(head + "0;" + std::string(255, 'x') + "\r\n\r\n"), 400);
}

TEST(Frame, RefusesWhatTwoReadersCouldUnderstandDifferently) {
  const std::string begin = "POST / HTTP/1.1\r\n";
  for (const char* fields :
       {"Content-Length: 1\r\nContent-Length: 1\r\n", "Content-Length: 1, 1\r\n", "Content-Length: +1\r\n",
        "Content-Length:\r\n", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length : 1\r\n", "A: b\r\n folded: c\r\n", "no colon\r\n", ": x\r\n", "A: b\nB: c\r\n"}) {
    EXPECT_EQ(CodeOf(begin + fields + "\r\n"), 400) << fields;
  }
  EXPECT_EQ(CodeOf(begin + std::string("A: \0\r\n", 6) + "\r\n"), 400);
  for (const char* line :
       {"GET\r\n\r\n", "GET /\r\n\r\n", "GET / HTTP/2.0\r\n\r\n", " / HTTP/1.1\r\n\r\n", "\r\n\r\n"}) {
    EXPECT_EQ(CodeOf(line), 400) << line;
  }
  EXPECT_EQ(CodeOf(begin + "Expect: tea\r\n\r\n"), 417);
  EXPECT_EQ(CodeOf(begin + "Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\n"), 415)
      << "a few bytes may unpack to many";
  EXPECT_EQ(CodeOf(begin + "Content-Length: 67108865\r\n\r\n"), 413);
  EXPECT_EQ(CodeOf(begin + "Content-Length: 99999999999999999999\r\n\r\n"), 400);
  EXPECT_EQ(CodeOf("GET /" + std::string(FrameReader::kMostHeader, 'x')), 431);
}

}  // namespace
}  // namespace sage::server
