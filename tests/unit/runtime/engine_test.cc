// The engine over a fake decoder: batching, sampling streams, stopping, cancelling, bounds, draining, scoring.
#include <cmath>
#include <thread>

#include "engine/base/status.h"
#include "engine/runtime/sampler.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/fake_decoder.h"

namespace sage::engine_test {
namespace {

std::string Reason(const absl::Status& status) { return GetErrorReason(status).reason; }
TEST(Engine, GreedyEqualsTheReferenceThroughChunks) {
  for (const int64_t step_tokens : {3, 16, 64}) {
    FakeEngineSpec fake;
    fake.max_seqs = 2;
    fake.max_step_tokens = step_tokens;
    FakeEngine e = StartFake(fake);
    Collector c;
    ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(40, 1), 30), c.sink()).ok());
    const GenerationEvent& last = c.Wait();
    EXPECT_TRUE(last.status.ok());
    EXPECT_EQ(c.choices[0].ids, GreedyReference(Prompt(40, 1), 30, 64, false));
    EXPECT_EQ(c.choices[0].finish_reason, "length");
    EXPECT_EQ(last.usage.prompt_tokens, 40);
    EXPECT_EQ(last.usage.completion_tokens, 30);
    EXPECT_GE(last.timings.first_token_ms, last.timings.queue_ms);
    EXPECT_LE(e.decoder->max_rows, step_tokens);
    ExpectNoPages(*e.engine);
  }
}

TEST(Engine, ManyRequestsShareStepsAndPreemptionChangesNothing) {
  FakeEngineSpec fake;
  fake.pages = 40;  // 160 positions for 12 sequences of up to 60
  fake.max_model_len = 100;
  FakeEngine e = StartFake(fake);
  std::vector<std::unique_ptr<Collector>> cs;
  for (int i = 0; i < 12; ++i) {
    cs.push_back(std::make_unique<Collector>());
    ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(5 + i, i), 44), cs.back()->sink()).ok());
  }
  for (int i = 0; i < 12; ++i) {
    EXPECT_TRUE(cs[static_cast<size_t>(i)]->Wait().status.ok());
    EXPECT_EQ(cs[static_cast<size_t>(i)]->choices[0].ids, GreedyReference(Prompt(5 + i, i), 44, 64, false)) << i;
  }
  EXPECT_GT(e.decoder->max_batch, 1);
  ExpectNoPages(*e.engine);
}

TEST(Engine, SeedDecidesTheTextWhateverElseRuns) {
  GenerateSpec spec = Greedy(Prompt(9, 3), 40);
  spec.sampling.temperature = 0.9;
  spec.sampling.top_p = 0.9;
  spec.sampling.seed = 77;
  spec.n = 3;
  std::vector<std::vector<int32_t>> alone;
  {
    FakeEngine e = StartFake();
    Collector c;
    ASSERT_TRUE(e.engine->Submit(spec, c.sink()).ok());
    c.Wait();
    for (int i = 0; i < 3; ++i) alone.push_back(c.choices[i].ids);
    EXPECT_EQ(c.seed, 77u);
  }
  EXPECT_NE(alone[0], alone[1]);
  EXPECT_NE(alone[1], alone[2]);
  FakeEngineSpec fake;
  fake.pages = 36;
  fake.max_model_len = 100;
  fake.max_step_tokens = 8;
  FakeEngine e = StartFake(fake);
  std::vector<std::unique_ptr<Collector>> others;
  for (int i = 0; i < 5; ++i) {
    others.push_back(std::make_unique<Collector>());
    ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(11, i), 50), others.back()->sink()).ok());
  }
  Collector c;
  ASSERT_TRUE(e.engine->Submit(spec, c.sink()).ok());
  c.Wait();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(c.choices[i].ids, alone[static_cast<size_t>(i)]) << i;
  for (auto& other : others) other->Wait();
  ExpectNoPages(*e.engine);
}

TEST(Engine, EndsAtEndIdsStopIdsAndTheContext) {
  const std::vector<int32_t> path = GreedyReference(Prompt(6, 2), 60, 64, false);
  FakeEngineSpec fake;
  fake.max_model_len = 40;
  FakeEngine e = StartFake(fake);
  {
    GenerateSpec spec = Greedy(Prompt(6, 2), 60);
    spec.stop_ids = {path[4]};
    Collector c;
    ASSERT_TRUE(e.engine->Submit(spec, c.sink()).ok());
    c.Wait();
    const auto end = std::find(path.begin(), path.end(), path[4]) + 1;
    EXPECT_EQ(c.choices[0].ids, std::vector<int32_t>(path.begin(), end));
    EXPECT_EQ(c.choices[0].finish_reason, "stop");
    EXPECT_EQ(c.choices[0].stop_match, std::to_string(path[4]));
  }
  {
    Collector c;
    ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(6, 2), 60), c.sink()).ok());
    c.Wait();
    EXPECT_EQ(c.choices[0].ids.size(), 34u);  // 6 + 34 = 40
    EXPECT_EQ(c.choices[0].finish_reason, "length");
  }
  GenerateSpec spec = Greedy(Prompt(6, 2), 10);
  spec.sampling.logit_bias[0] = 100;  // the end id
  spec.ignore_eos = false;
  Collector c;
  ASSERT_TRUE(e.engine->Submit(spec, c.sink()).ok());
  c.Wait();
  EXPECT_EQ(c.choices[0].ids, std::vector<int32_t>{0});
  EXPECT_EQ(c.choices[0].finish_reason, "stop");
}

TEST(Engine, StopStringsAcrossTokens) {
  FakeEngineSpec fake;
  fake.tokenizer = true;
  FakeEngine e = StartFake(fake);
  GenerateSpec spec = Greedy(Prompt(6, 5), 40);
  spec.sampling.logit_bias = {{0, -100}, {27, -100}, {28, -100}};
  Collector plain;
  ASSERT_TRUE(e.engine->Submit(spec, plain.sink()).ok());
  plain.Wait();
  const std::string text = plain.choices[0].text;
  ASSERT_EQ(text.size(), 40u);
  spec.stop = {"never there", text.substr(10, 3)};
  Collector c;
  ASSERT_TRUE(e.engine->Submit(spec, c.sink()).ok());
  c.Wait();
  EXPECT_EQ(c.choices[0].text, text.substr(0, text.find(spec.stop[1])));
  EXPECT_EQ(c.choices[0].finish_reason, "stop");
  EXPECT_EQ(c.choices[0].stop_match, spec.stop[1]);
  // A stop string that never completes is given back at the end.
  spec.stop = {text.substr(37) + "!"};
  Collector held;
  ASSERT_TRUE(e.engine->Submit(spec, held.sink()).ok());
  held.Wait();
  EXPECT_EQ(held.choices[0].text, text);
  EXPECT_EQ(held.choices[0].finish_reason, "length");
}

TEST(Engine, LogprobsAreOfTheModelsOwnDistribution) {
  FakeEngineSpec fake;
  fake.tokenizer = true;
  FakeEngine e = StartFake(fake);
  GenerateSpec spec = Greedy(Prompt(4, 8), 3);
  spec.logprobs = 5;
  spec.sampling.logit_bias[9] = 100;
  Collector c;
  ASSERT_TRUE(e.engine->Submit(spec, c.sink()).ok());
  c.Wait();
  std::vector<int32_t> ids = Prompt(4, 8);
  for (const TokenRecord& record : c.choices[0].records) {
    const std::vector<float> logits = FakeDecoder::Reference(ids, 64);
    double sum = 0;
    for (const float x : logits) sum += std::exp(static_cast<double>(x));
    EXPECT_EQ(record.id, 9);
    EXPECT_NEAR(record.logprob, logits[9] - std::log(sum), 1e-5);
    ASSERT_EQ(record.top.size(), 5u);
    EXPECT_NEAR(record.top[0].logprob, *std::max_element(logits.begin(), logits.end()) - std::log(sum), 1e-5);
    for (size_t i = 1; i < 5; ++i) EXPECT_GE(record.top[i - 1].logprob, record.top[i].logprob);
    ids.push_back(9);
  }
}

TEST(Engine, RefusesBadSpecsWithAReason) {
  FakeEngine e = StartFake();
  const auto refused = [&](auto&& change) {
    GenerateSpec spec = Greedy({1, 2, 3}, 4);
    change(spec);
    const auto handle = e.engine->Submit(spec, [](const GenerationEvent&) { FAIL(); });
    EXPECT_FALSE(handle.ok());
    return Reason(handle.status());
  };
  EXPECT_EQ(refused([](GenerateSpec& s) { s.prompt_ids.clear(); }), "EMPTY_PROMPT");
  EXPECT_EQ(refused([](GenerateSpec& s) { s.prompt_ids.assign(256, 1); }), "PROMPT_TOO_LONG");
  EXPECT_EQ(refused([](GenerateSpec& s) { s.prompt_ids = {64}; }), "ID_OUT_OF_RANGE");
  EXPECT_EQ(refused([](GenerateSpec& s) { s.prompt_ids = {-1}; }), "ID_OUT_OF_RANGE");
  EXPECT_EQ(refused([](GenerateSpec& s) { s.max_tokens = 0; }), "INVALID_MAX_TOKENS");
  EXPECT_EQ(refused([](GenerateSpec& s) { s.n = 0; }), "INVALID_N");
  EXPECT_EQ(refused([](GenerateSpec& s) { s.logprobs = 21; }), "INVALID_LOGPROBS");
  EXPECT_EQ(refused([](GenerateSpec& s) { s.stop = {"x"}; }), "NO_TOKENIZER");
  EXPECT_EQ(refused([](GenerateSpec& s) { s.sampling.top_p = 2; }), "INVALID_SAMPLING");
}

TEST(Engine, CancelWhileWaitingPrefillingAndDecoding) {
  FakeEngineSpec fake;
  fake.max_seqs = 1;
  fake.max_step_tokens = 4;
  fake.delay = absl::Milliseconds(2);
  FakeEngine e = StartFake(fake);
  Collector decoding, prefilling, waiting;
  auto first = e.engine->Submit(Greedy(Prompt(4, 1), 200), decoding.sink());
  auto second = e.engine->Submit(Greedy(Prompt(200, 2), 5), prefilling.sink());
  auto third = e.engine->Submit(Greedy(Prompt(4, 3), 5), waiting.sink());
  decoding.WaitForEvents(3);
  (*third)->Cancel();
  EXPECT_TRUE(absl::IsCancelled(waiting.Wait().status));
  EXPECT_EQ(waiting.choices[0].finish_reason, "cancelled");
  (*first)->Cancel();
  EXPECT_TRUE(absl::IsCancelled(decoding.Wait().status));
  EXPECT_GE(decoding.choices[0].ids.size(), 3u);
  absl::SleepFor(absl::Milliseconds(10));
  const int64_t before = e.decoder->steps;
  (*second)->Cancel();
  EXPECT_TRUE(absl::IsCancelled(prefilling.Wait().status));
  EXPECT_LE(e.decoder->steps - before, 2);
  EXPECT_TRUE(prefilling.choices[0].ids.empty());
  ExpectNoPages(*e.engine);
  EXPECT_EQ(decoding.events_after_last + prefilling.events_after_last + waiting.events_after_last, 0);
}

TEST(Engine, DeadlinesHoldInTheQueueAndBetweenSteps) {
  FakeEngineSpec fake;
  fake.max_seqs = 1;
  fake.delay = absl::Milliseconds(2);
  FakeEngine e = StartFake(fake);
  Collector running, queued;
  GenerateSpec spec = Greedy(Prompt(4, 1), 240);
  spec.deadline = absl::Now() + absl::Milliseconds(120);
  ASSERT_TRUE(e.engine->Submit(spec, running.sink()).ok());
  spec.deadline = absl::Now() + absl::Milliseconds(30);
  ASSERT_TRUE(e.engine->Submit(spec, queued.sink()).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(queued.Wait().status));
  EXPECT_FALSE(running.finished());
  EXPECT_TRUE(queued.choices[0].ids.empty());
  EXPECT_TRUE(absl::IsDeadlineExceeded(running.Wait().status));
  EXPECT_FALSE(running.choices[0].ids.empty());
  EXPECT_EQ(running.choices[0].finish_reason, "cancelled");
  ExpectNoPages(*e.engine);
}

TEST(Engine, QueueIsBoundedByRequestsAndTokens) {
  FakeEngineSpec fake;
  fake.max_seqs = 1;
  fake.delay = absl::Milliseconds(5);
  fake.admission = {3, 100};
  FakeEngine e = StartFake(fake);
  Collector running;
  auto handle = e.engine->Submit(Greedy(Prompt(4, 1), 200), running.sink());
  running.WaitForEvents(1);
  std::vector<std::unique_ptr<Collector>> cs;
  const auto submit = [&](int length) {
    cs.push_back(std::make_unique<Collector>());
    return e.engine->Submit(Greedy(Prompt(length, 1), 1), cs.back()->sink()).status();
  };
  EXPECT_TRUE(submit(60).ok());
  EXPECT_EQ(Reason(submit(41)), "QUEUE_FULL");  // tokens
  EXPECT_TRUE(submit(10).ok());
  EXPECT_TRUE(submit(10).ok());
  const absl::Status full = submit(1);  // requests
  EXPECT_EQ(Reason(full), "QUEUE_FULL");
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_EQ(GetErrorReason(full).metadata["retry_after_ms"], "100");  // nobody has waited longer yet
  EXPECT_EQ(Reason(submit(101)), "PROMPT_EXCEEDS_QUEUE");
  EXPECT_EQ(e.engine->stats().waiting, 3);
  EXPECT_EQ(e.engine->stats().waiting_tokens, 80);
  (*handle)->Cancel();
  cs[0]->Wait();
  cs[2]->Wait();
  cs[3]->Wait();
  ExpectNoPages(*e.engine);
}

TEST(Engine, WhoIsRefusedHearsHowLongOthersWaited) {
  FakeEngineSpec fake;
  fake.max_seqs = 1;
  fake.delay = absl::Milliseconds(5);
  fake.admission = {1, 100};
  FakeEngine e = StartFake(fake);
  Collector first, second, third, fourth;
  ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(4, 1), 60), first.sink()).ok());
  first.WaitForEvents(1);
  ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(4, 1), 60), second.sink()).ok());
  second.WaitForEvents(1);  // has waited for all of the first: 60 steps of 5 ms
  ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(4, 1), 1), third.sink()).ok());
  auto full = GetErrorReason(e.engine->Submit(Greedy(Prompt(4, 1), 1), fourth.sink()).status());
  EXPECT_EQ(full.reason, "QUEUE_FULL");
  EXPECT_GT(std::stoi(full.metadata["retry_after_ms"]), 100);
  second.Wait();
  third.Wait();
}

TEST(Engine, NonFiniteLogitsFailOnlyTheirRequest) {
  FakeEngineSpec fake;
  fake.prepare = [](FakeDecoder& d) { d.poison = 5; };
  FakeEngine e = StartFake(fake);
  int failed = 0, fine = 0;
  std::vector<std::unique_ptr<Collector>> cs;
  for (int i = 0; i < 16; ++i) {
    cs.push_back(std::make_unique<Collector>());
    ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(4, i), 20), cs.back()->sink()).ok());
  }
  for (auto& c : cs) {
    const absl::Status status = c->Wait().status;
    if (status.ok()) {
      ++fine;
    } else {
      ++failed;
      EXPECT_EQ(Reason(status), "NON_FINITE_LOGITS");
      EXPECT_EQ(c->choices[0].finish_reason, "error");
    }
  }
  EXPECT_GT(failed, 0);
  EXPECT_GT(fine, 0);
  ExpectNoPages(*e.engine);
}

TEST(Engine, AFailedForwardEndsItsRequests) {
  FakeEngineSpec fake;
  fake.prepare = [](FakeDecoder& d) { d.forward_status = absl::InternalError("broken"); };
  FakeEngine e = StartFake(fake);
  Collector c;
  ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(4, 1), 20), c.sink()).ok());
  EXPECT_TRUE(absl::IsInternal(c.Wait().status));
  ExpectNoPages(*e.engine);
}

TEST(Engine, DrainFinishesWhatRunsAndRefusesTheRest) {
  FakeEngineSpec fake;
  fake.delay = absl::Milliseconds(2);
  FakeEngine e = StartFake(fake);
  Collector c;
  ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(4, 1), 30), c.sink()).ok());
  c.WaitForEvents(1);
  std::thread stopper([&] { e.engine->Stop(absl::InfiniteFuture()); });
  while (e.engine->info().state == "RUNNING") std::this_thread::yield();
  absl::SleepFor(absl::Milliseconds(5));
  Collector late;
  const auto refused = e.engine->Submit(Greedy(Prompt(4, 1), 3), late.sink());
  EXPECT_EQ(Reason(refused.status()), "ENGINE_DRAINING");
  stopper.join();
  EXPECT_TRUE(c.Wait().status.ok());
  EXPECT_EQ(c.choices[0].ids.size(), 30u);
  EXPECT_EQ(e.engine->info().state, "STOPPED");
  EXPECT_EQ(e.engine->stats().kv_pages_used, 0);
  e.engine->Stop(absl::InfinitePast());
  EXPECT_FALSE(e.engine->Score({{1, 2, 3}, 2, 0, 0}, CancelToken(), nullptr).ok());
}

TEST(Engine, DrainDeadlineCancelsAndAnEarlierOneWins) {
  FakeEngineSpec fake;
  fake.delay = absl::Milliseconds(5);
  FakeEngine e = StartFake(fake);
  Collector c;
  ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(4, 1), 240), c.sink()).ok());
  c.WaitForEvents(1);
  std::thread patient([&] { e.engine->Stop(absl::InfiniteFuture()); });
  absl::SleepFor(absl::Milliseconds(10));
  e.engine->Stop(absl::Now() + absl::Milliseconds(20));
  patient.join();
  EXPECT_TRUE(absl::IsCancelled(c.Wait().status));
  EXPECT_EQ(e.engine->info().state, "STOPPED");
}

TEST(Engine, StepAgeShowsAStuckStep) {
  FakeEngineSpec fake;
  std::atomic<bool> hold{true};
  fake.prepare = [&](FakeDecoder& d) {
    d.before_forward = [&] {
      while (hold) std::this_thread::yield();
    };
  };
  FakeEngine e = StartFake(fake);
  EXPECT_EQ(e.engine->stats().last_step_age_seconds, 0);
  Collector c;
  ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(4, 1), 2), c.sink()).ok());
  absl::SleepFor(absl::Milliseconds(60));
  EXPECT_GT(e.engine->stats().last_step_age_seconds, 0.03);  // answered while the step is stuck
  hold = false;
  c.Wait();
}

TEST(Engine, SixtyFourClientsAThirdCancelled) {
  FakeEngineSpec fake;
  fake.pages = 60;
  fake.max_seqs = 16;
  fake.max_model_len = 120;
  FakeEngine e = StartFake(fake);
  constexpr int kClients = 64;
  std::vector<std::unique_ptr<Collector>> cs;
  for (int i = 0; i < kClients; ++i) cs.push_back(std::make_unique<Collector>());
  std::vector<std::thread> clients;
  for (int t = 0; t < 4; ++t) {
    clients.emplace_back([&, t] {
      for (int i = t; i < kClients; i += 4) {
        auto handle = e.engine->Submit(Greedy(Prompt(3 + i % 20, i), 20 + i % 15), cs[static_cast<size_t>(i)]->sink());
        ASSERT_TRUE(handle.ok());
        if (i % 3 != 0) continue;
        if (i % 2 == 0) cs[static_cast<size_t>(i)]->WaitForEvents(1);
        (*handle)->Cancel();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  for (int i = 0; i < kClients; ++i) {
    Collector& c = *cs[static_cast<size_t>(i)];
    const absl::Status status = c.Wait().status;
    const std::vector<int32_t> want = GreedyReference(Prompt(3 + i % 20, i), 20 + i % 15, 64, false);
    const std::vector<int32_t>& got = c.choices[0].ids;
    if (i % 3 != 0) {
      EXPECT_TRUE(status.ok());
      EXPECT_EQ(got, want) << i;
    } else {
      ASSERT_LE(got.size(), want.size());
      EXPECT_TRUE(std::equal(got.begin(), got.end(), want.begin())) << i;
    }
    EXPECT_EQ(c.events_after_last, 0);
  }
  ExpectNoPages(*e.engine);
}

TEST(Engine, MetricsCountWhatHappened) {
  RecordingSink sink;
  FakeEngineSpec fake;
  fake.metrics = &sink;
  fake.delay = absl::Milliseconds(1);  // so that the cancellation comes before the 200th token
  {
    FakeEngine e = StartFake(fake);
    Collector a, b, c;
    ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(10, 1), 7), a.sink()).ok());
    ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(5, 1), 3), b.sink()).ok());
    auto handle = e.engine->Submit(Greedy(Prompt(5, 2), 200), c.sink());
    c.WaitForEvents(1);
    (*handle)->Cancel();
    a.Wait();
    b.Wait();
    const int64_t cut = c.Wait().usage.completion_tokens;
    ExpectNoPages(*e.engine);
    e.engine->Stop(absl::InfiniteFuture());
    EXPECT_EQ(sink.Get("sage_generated_tokens_total"), static_cast<double>(10 + cut));
    EXPECT_EQ(sink.Get("sage_inter_token_latency_seconds"), static_cast<double>(7 + cut));
    EXPECT_EQ(sink.Get("sage_step_seconds"), static_cast<double>(e.engine->stats().steps_total));
  }
  EXPECT_EQ(sink.Get("sage_requests_total,length"), 2);
  EXPECT_EQ(sink.Get("sage_requests_total,cancelled"), 1);
  EXPECT_EQ(sink.Get("sage_prompt_tokens_total"), 20);
  for (const char* name : {"sage_queue_seconds", "sage_time_to_first_token_seconds", "sage_request_seconds"}) {
    EXPECT_EQ(sink.Get(name), 3) << name;
  }
  EXPECT_EQ(sink.Get("sage_kv_pages_used"), 0);
  EXPECT_EQ(sink.Get("sage_kv_pages_total"), 256);
}

TEST(Engine, ScoreEqualsTheReferenceBesideGeneration) {
  FakeEngineSpec fake;
  fake.max_step_tokens = 8;
  fake.mixed_prompt_tokens = 3;
  FakeEngine e = StartFake(fake);
  Collector c;
  ASSERT_TRUE(e.engine->Submit(Greedy(Prompt(10, 1), 100), c.sink()).ok());
  ScoreSpec spec;
  spec.ids = Prompt(101, 4);  // windows of 20, and a tail of 1 that is dropped
  spec.window = 20;
  spec.top = 3;
  int64_t progressed = 0;
  const auto result = e.engine->Score(spec, CancelToken(), [&](const Progress& p) { progressed = p.done; });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->windows, 5);
  EXPECT_EQ(result->window, 20);
  EXPECT_EQ(result->scored, 5 * 19);
  ASSERT_EQ(result->positions.size(), 95u);
  double nll = 0;
  for (size_t w = 0; w < 5; ++w) {
    for (size_t i = 0; i < 19; ++i) {
      const auto begin = spec.ids.begin() + static_cast<int64_t>(w * 20);
      const auto logits = FakeDecoder::Reference({begin, begin + static_cast<int64_t>(i) + 1}, 64);
      double sum = 0;
      for (const float x : logits) sum += std::exp(static_cast<double>(x));
      const int32_t id = spec.ids[w * 20 + i + 1];
      const ScorePosition& p = result->positions[w * 19 + i];
      EXPECT_EQ(p.id, id);
      EXPECT_NEAR(p.logprob, logits[static_cast<size_t>(id)] - std::log(sum), 1e-5);
      int64_t rank = 0;
      for (const float x : logits) rank += x > logits[static_cast<size_t>(id)] ? 1 : 0;
      EXPECT_EQ(p.rank, rank);
      EXPECT_EQ(p.top.size(), 3u);
      nll -= p.logprob;
    }
  }
  EXPECT_NEAR(result->nll, nll, 1e-9);
  EXPECT_NEAR(result->ppl, std::exp(nll / 95), 1e-9);
  EXPECT_TRUE(c.Wait().status.ok());
  EXPECT_EQ(c.choices[0].ids, GreedyReference(Prompt(10, 1), 100, 64, false));
}

TEST(Engine, ScoreChecksItsSpecAndCancels) {
  FakeEngineSpec fake;
  fake.delay = absl::Milliseconds(5);
  FakeEngine e = StartFake(fake);
  const auto reason = [&](ScoreSpec spec) { return Reason(e.engine->Score(spec, CancelToken(), nullptr).status()); };
  EXPECT_EQ(reason({{1}, 20, 0, 0}), "TOO_FEW_IDS");
  EXPECT_EQ(reason({{1, 2}, 1, 0, 0}), "INVALID_WINDOW");
  EXPECT_EQ(reason({{1, 99}, 20, 0, 0}), "ID_OUT_OF_RANGE");
  // A window beyond the context is lowered to it.
  const auto lowered = e.engine->Score({std::vector<int32_t>(300, 1), 300, 0, 0}, CancelToken(), nullptr);
  ASSERT_TRUE(lowered.ok()) << lowered.status();
  EXPECT_GT(lowered->windows, 1);
  EXPECT_EQ(reason({{1, 2}, 20, 0, 101}), "INVALID_TOP");
  CancelToken cancel;
  std::thread canceller([&] {
    absl::SleepFor(absl::Milliseconds(40));
    cancel.Cancel();
  });
  const auto result = e.engine->Score({Prompt(20000, 1), 20, 0, 0}, cancel, nullptr);
  canceller.join();
  EXPECT_TRUE(absl::IsCancelled(result.status()));
  Collector c;
  ASSERT_TRUE(e.engine->Submit(Greedy({1}, 2), c.sink()).ok());
  EXPECT_TRUE(c.Wait().status.ok());
}

}  // namespace
}  // namespace sage::engine_test
