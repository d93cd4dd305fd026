// What one step of an engine hands to every operator: threads, the activation cache, counters. Always explicit, never
// global.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/api/device_memory.h"
#include "engine/base/thread_pool.h"

namespace sage {

// One activation of a step, in the memory of the backend. `id` names the value within the step (each producer takes the
// next id), so that projections reading one value share its quantized form. Never keyed by address: buffers are reused
// within a step.
struct StepValue {
  int64_t id = 0;
  const float* data = nullptr;  // [M, K] f32, row stride `stride`
  int64_t M = 0;
  int64_t K = 0;
  int64_t stride = 0;
};

// Quantized forms of this step's values. `Get` runs `fill` once for each (value id, form) and afterwards returns the
// same bytes.
class ActivationCache {
 public:
  // The forms' memory from here on, the host's at first. Forms elsewhere are dropped.
  void UseMemory(DeviceMemory& memory) {
    if (memory_ != &memory) entries_.clear();
    memory_ = &memory;
  }
  // `form` names the layout, e.g. "int16"; it is copied. `bytes` is the size of the form. Null when a
  // device has no memory for it; `fill` did not run then.
  template <typename Fill>
  uint8_t* Get(int64_t value_id, std::string_view form, size_t bytes, Fill&& fill) {
    for (Entry& entry : entries_) {
      if (entry.live && entry.value_id == value_id && entry.form == form) {
        ++hits_;
        return entry.buffer.template as<uint8_t>();
      }
    }
    ++misses_;
    Entry& entry = Claim(bytes);
    if (entry.buffer.empty()) return nullptr;
    entry.live = true;
    entry.value_id = value_id;
    entry.form = form;
    fill(entry.buffer.template as<uint8_t>());
    return entry.buffer.template as<uint8_t>();
  }
  // Forgets every value; memory is kept for the next step. Also called when a value id's buffer is overwritten.
  void Clear() {
    for (Entry& entry : entries_) entry.live = false;
  }
  int64_t hits() const { return hits_; }
  int64_t misses() const { return misses_; }

 private:
  struct Entry {
    bool live = false;
    int64_t value_id = 0;
    std::string form;
    DeviceBuffer buffer;
  };
  Entry& Claim(size_t bytes);
  DeviceMemory* memory_ = &HostMemory();
  std::vector<Entry> entries_;
  int64_t hits_ = 0;
  int64_t misses_ = 0;
};

// Called before each linear layer runs, with its input; calibration collects statistics here.
class LinearObserver {
 public:
  virtual ~LinearObserver() = default;
  virtual void Observe(std::string_view module, const StepValue& input) = 0;
};

// Time and bytes of each operator over the steps of a profile.
class StepProfile {
 public:
  struct Operator {
    std::string name;
    int64_t calls = 0, ns = 0;
    int64_t bytes = 0;  // weights and keys and values that had to be read
  };
  void Add(std::string_view name, int64_t ns, int64_t bytes) {
    for (Operator& op : operators_) {
      if (op.name != name) continue;
      ++op.calls;
      op.ns += ns;
      op.bytes += bytes;
      return;
    }
    operators_.push_back({std::string(name), 1, ns, bytes});
  }
  const std::vector<Operator>& operators() const { return operators_; }  // in the order of their first call

 private:
  std::vector<Operator> operators_;
};

// Products that do not depend on one another (q, k and v; gate and up), run as one job: the threads meet once for all
// of them. While a context has a group, operators that can leave their work there.
class ProductGroup {
 public:
  // `body` runs each of [0, tasks) once; what it refers to must live until Run.
  void Add(int64_t tasks, std::function<void(int64_t)> body) { parts_.push_back({tasks, std::move(body)}); }
  void Run(ThreadPool& threads) {
    int64_t tasks = 0;
    for (const Part& part : parts_) tasks += part.tasks;
    threads.Run(tasks, [&](int64_t task, int) {
      size_t i = 0;
      while (task >= parts_[i].tasks) task -= parts_[i++].tasks;
      parts_[i].body(task);
    });
    parts_.clear();
  }

 private:
  struct Part {
    int64_t tasks;
    std::function<void(int64_t)> body;
  };
  std::vector<Part> parts_;
};

struct StepContext {
  ThreadPool* threads = nullptr;
  DeviceMemory* memory = &HostMemory();  // of the backend whose operators run
  ActivationCache* activations = nullptr;
  LinearObserver* observer = nullptr;  // null while serving
  StepProfile* profile = nullptr;      // null but in a profile
  ProductGroup* group = nullptr;       // null but while a group is collected
  int64_t next_value_id = 1;
  int64_t NewValue() { return next_value_id++; }
};

// Runs `work` as the operator `name`; timed when the step is profiled.
template <typename Work>
void Timed(StepContext& ctx, std::string_view name, int64_t bytes, Work&& work) {
  if (ctx.profile == nullptr) return work();
  const auto begin = std::chrono::steady_clock::now();
  work();
  const auto elapsed = std::chrono::steady_clock::now() - begin;
  ctx.profile->Add(name, std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count(), bytes);
}

}  // namespace sage
