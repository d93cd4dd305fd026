// Ranks of one process: everybody shows its data, each adds a share of it up in order, everybody takes the whole.
#include "engine/api/communicator.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

struct Meeting {
  explicit Meeting(int ranks) : data(static_cast<size_t>(ranks)), counts(static_cast<size_t>(ranks)) {}

  // Returns when all ranks are here.
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex);
    const int64_t mine = round;
    if (++arrived == static_cast<int>(data.size())) {
      arrived = 0;
      ++round;
      all.notify_all();
    } else {
      all.wait(lock, [&] { return round != mine; });
    }
  }

  std::mutex mutex;
  std::condition_variable all;
  int arrived = 0;
  int64_t round = 0;
  std::vector<const float*> data;
  std::vector<int64_t> counts;
  std::vector<float> sum;
};

class SharedMemory final : public Communicator {
 public:
  SharedMemory(std::shared_ptr<Meeting> meeting, int rank) : meeting_(std::move(meeting)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(meeting_->data.size()); }

  absl::Status Sum(float* data, int64_t count) override {
    Meeting& m = *meeting_;
    m.data[static_cast<size_t>(rank_)] = data;
    m.counts[static_cast<size_t>(rank_)] = count;
    if (rank_ == 0) m.sum.resize(static_cast<size_t>(count));
    m.Wait();
    const bool agree = std::all_of(m.counts.begin(), m.counts.end(), [&](int64_t c) { return c == m.counts[0]; });
    if (agree) {
      const int64_t begin = count * rank_ / size(), end = count * (rank_ + 1) / size();
      for (int64_t i = begin; i < end; ++i) {
        float sum = m.data[0][i];
        for (size_t r = 1; r < m.data.size(); ++r) sum += m.data[r][i];
        m.sum[static_cast<size_t>(i)] = sum;
      }
    }
    m.Wait();
    if (agree) std::copy_n(m.sum.begin(), count, data);
    // Nobody begins the next sum before all have taken this one.
    m.Wait();
    if (agree) return absl::OkStatus();
    return MakeError(absl::StatusCode::kInternal, "RANKS_DISAGREE",
                     absl::StrCat("tensor parallel: every rank must sum as many values, rank ", rank_, " has ", count));
  }

 private:
  std::shared_ptr<Meeting> meeting_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> SharedMemoryCommunicators(int size) {
  const auto meeting = std::make_shared<Meeting>(size);
  std::vector<std::unique_ptr<Communicator>> out;
  for (int rank = 0; rank < size; ++rank) out.push_back(std::make_unique<SharedMemory>(meeting, rank));
  return out;
}

}  // namespace sage
