// Stop strings across pieces: what is sent never depends on how the text was cut.
#include "engine/runtime/stop_matcher.h"

#include "gtest/gtest.h"

namespace sage::stop_matcher_test {
namespace {

struct Outcome {
  std::string text, match;
  bool operator==(const Outcome&) const = default;
};

Outcome Cut(const std::vector<std::string>& stops, const std::string& text, size_t piece) {
  StopMatcher matcher(stops);
  Outcome out;
  for (size_t i = 0; i < text.size(); i += piece) {
    const StopMatcher::Result r = matcher.Append(text.substr(i, piece));
    out.text += r.text;
    if (!r.match.empty()) {
      out.match = r.match;
      return out;
    }
  }
  out.text += matcher.Flush();
  return out;
}

TEST(StopMatcher, SameResultForEveryCut) {
  struct Case {
    std::vector<std::string> stops;
    std::string text;
    Outcome want;
  };
  const std::vector<Case> cases = {
      {{}, "hello", {"hello", ""}},
      {{"###"}, "abc## d### e", {"abc## d", "###"}},
      {{"aab"}, "aaaab!", {"aa", "aab"}},
      {{"cd", "abcdef"}, "xabcdefy", {"xab", "cd"}},      // the one that completes first
      {{"d", "bcd"}, "abcd", {"a", "bcd"}},               // complete together: the longest
      {{"\n\nUser:"}, "one\n\nUse", {"one\n\nUse", ""}},  // held back, then flushed
      {{"é"}, "caf\xc3\xa8\xc3\xa9!", {"caf\xc3\xa8", "é"}},
  };
  for (const Case& c : cases) {
    for (size_t piece = 1; piece <= c.text.size(); ++piece) {
      const Outcome got = Cut(c.stops, c.text, piece);
      EXPECT_EQ(got.text, c.want.text) << c.text << " piece " << piece;
      EXPECT_EQ(got.match, c.want.match) << c.text << " piece " << piece;
    }
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher({"STOP"});
  EXPECT_EQ(matcher.Append("go ST").text, "go ");
  EXPECT_EQ(matcher.Append("A").text, "STA");
  EXPECT_EQ(matcher.Append("ST").text, "");
  const auto last = matcher.Append("OP more");
  EXPECT_EQ(last.text, "");
  EXPECT_EQ(last.match, "STOP");
}

}  // namespace
}  // namespace sage::stop_matcher_test
