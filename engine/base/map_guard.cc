// The handler may interrupt any thread at any instruction: it takes no lock and no memory, reads a list of atomics that
// only grows, and makes one system call.
#include "engine/base/map_guard.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr size_t kSlotsInChunk = 256, kHistory = 1024;

struct Slot {
  std::atomic<uintptr_t> begin{0}, end{0};  // begin 0 = free
  std::atomic<uint64_t> damage{0};          // number of the damage, 0 = whole
  std::string path;                         // not for the handler; under the registry's mutex
};

struct Chunk {
  std::array<Slot, kSlotsInChunk> slots;
  std::atomic<Chunk*> next{nullptr};
};

// Never destroyed: a handler may run while the process ends.
Chunk* const kFirst = new Chunk();
std::atomic<uint64_t> damages{0};
struct sigaction before;  // written before the handler is installed
uintptr_t page_bytes = 4096;

// What was damaged and is unmapped already, so that work which ended its maps still learns of it.
struct Damaged {
  std::string path;
  uint64_t damage;
};
struct Registry {
  std::mutex mutex;
  std::deque<Damaged> history;
};
Registry& TheRegistry() {
  static auto* registry = new Registry();
  return *registry;
}

template <typename Visit>
bool VisitSlots(Visit visit) {
  for (Chunk* chunk = kFirst; chunk != nullptr; chunk = chunk->next.load(std::memory_order_acquire)) {
    for (Slot& slot : chunk->slots) {
      if (visit(slot)) return true;
    }
  }
  return false;
}

// Zeros from the page of `address` to the end of the map: a file that shrank has nothing there either, so one fault is
// enough for the rest. The mark comes first: who reads the zeros without a fault must find it.
bool Mend(uintptr_t address) {
  return VisitSlots([&](Slot& slot) {
    const uintptr_t begin = slot.begin.load(std::memory_order_acquire);
    const uintptr_t end = slot.end.load(std::memory_order_relaxed);
    if (begin == 0 || address < begin || address >= end) return false;
    uint64_t whole = 0;
    if (slot.damage.load() == 0) slot.damage.compare_exchange_strong(whole, damages.fetch_add(1) + 1);
    const uintptr_t page = address / page_bytes * page_bytes;
    // The bare call: what libraries put around mmap is not meant for signal handlers.
    return syscall(SYS_mmap, page, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
                   0) != -1;
  });
}

void OnBusError(int signal, siginfo_t* info, void* context) {
  const int saved = errno;
  const bool mended = info->si_code > 0 && Mend(reinterpret_cast<uintptr_t>(info->si_addr));
  errno = saved;
  if (mended) return;
  if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction != nullptr) {
    return before.sa_sigaction(signal, info, context);
  }
  if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(signal);
  sigaction(signal, &before, nullptr);    // the instruction faults again, and the process ends as it would have
  if (info->si_code <= 0) raise(signal);  // sent by somebody: there is no instruction that faults again
}

void Install() {
  page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  struct sigaction action = {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, nullptr, &before);
  sigaction(SIGBUS, &action, nullptr);
}

// With the registry's mutex held.
Slot& FreeSlot() {
  Slot* found = nullptr;
  Chunk* last = kFirst;
  VisitSlots([&](Slot& slot) {
    found = slot.begin.load(std::memory_order_relaxed) == 0 ? &slot : nullptr;
    return found != nullptr;
  });
  if (found != nullptr) return *found;
  while (Chunk* next = last->next.load(std::memory_order_relaxed)) last = next;
  auto* chunk = new Chunk();
  last->next.store(chunk, std::memory_order_release);
  return chunk->slots[0];
}

bool IsIn(const std::string& path, const std::string& folder) {
  return path.compare(0, folder.size(), folder) == 0 &&
         (path.size() == folder.size() || path[folder.size()] == '/' || (!folder.empty() && folder.back() == '/'));
}

}  // namespace

void GuardMap(const void* data, size_t bytes, const std::string& path) {
  static std::once_flag installed;
  std::call_once(installed, Install);
  const auto begin = reinterpret_cast<uintptr_t>(data);
  std::lock_guard lock(TheRegistry().mutex);
  Slot& slot = FreeSlot();
  slot.path = path;
  slot.damage.store(0);
  slot.end.store((begin + bytes + page_bytes - 1) / page_bytes * page_bytes, std::memory_order_relaxed);
  slot.begin.store(begin, std::memory_order_release);
}

void UnguardMap(const void* data) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  Registry& registry = TheRegistry();
  std::lock_guard lock(registry.mutex);
  VisitSlots([&](Slot& slot) {
    if (slot.begin.load(std::memory_order_relaxed) != begin) return false;
    slot.begin.store(0, std::memory_order_release);
    if (const uint64_t damage = slot.damage.load(); damage != 0) registry.history.push_back({slot.path, damage});
    if (registry.history.size() > kHistory) registry.history.pop_front();
    return true;
  });
}

MapWatch::MapWatch(std::vector<std::string> paths) : paths_(std::move(paths)), since_(damages.load()) {
  std::erase(paths_, std::string());
}

absl::Status MapWatch::Check() const {
  if (damages.load() == since_) return absl::OkStatus();
  const auto mine = [&](const std::string& path, uint64_t damage) {
    return damage > since_ &&
           std::any_of(paths_.begin(), paths_.end(), [&](const std::string& folder) { return IsIn(path, folder); });
  };
  std::string changed;
  Registry& registry = TheRegistry();
  std::lock_guard lock(registry.mutex);
  for (const Damaged& past : registry.history) {
    if (mine(past.path, past.damage)) changed = past.path;
  }
  VisitSlots([&](Slot& slot) {
    const bool hit = slot.begin.load(std::memory_order_relaxed) != 0 && mine(slot.path, slot.damage.load());
    if (hit) changed = slot.path;
    return hit;
  });
  if (changed.empty()) return absl::OkStatus();
  return MakeError(absl::StatusCode::kDataLoss, "MODEL_FILE_CHANGED",
                   absl::StrCat(changed,
                                ": must stay as it is while it is in use, but it became shorter or cannot be "
                                "read any more; put the file back and start again"),
                   {{"file", changed}});
}

}  // namespace sage
