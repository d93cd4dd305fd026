// Five functions of libnccl.so.2 by name; their types are those of NCCL 2's stable interface.
#include "engine/backends/cuda/nccl_communicator.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage::cuda {
namespace {

struct Id {
  char bytes[128];
};
using Comm = void*;
constexpr int kFloat32 = 7, kSum = 0, kSuccess = 0;

struct Library {
  int (*get_unique_id)(Id*) = nullptr;
  int (*comm_init_rank)(Comm*, int, Id, int) = nullptr;
  int (*all_reduce)(const void*, void*, size_t, int, int, Comm, cudaStream_t) = nullptr;
  int (*comm_destroy)(Comm) = nullptr;
  const char* (*error_string)(int) = nullptr;
  std::string missing;

  Library() {
    void* const handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* const reason = dlerror();
      missing = absl::StrCat("needs libnccl.so.2, got ", reason == nullptr ? "nothing" : reason);
      return;
    }
    const auto find = [&](const char* name, auto* to) {
      *to = reinterpret_cast<std::remove_pointer_t<decltype(to)>>(dlsym(handle, name));
      if (*to == nullptr) missing = absl::StrCat("needs ", name, " in libnccl.so.2");
    };
    find("ncclGetUniqueId", &get_unique_id);
    find("ncclCommInitRank", &comm_init_rank);
    find("ncclAllReduce", &all_reduce);
    find("ncclCommDestroy", &comm_destroy);
    find("ncclGetErrorString", &error_string);
  }
};

absl::StatusOr<const Library*> Nccl() {
  static const Library* const library = new Library();
  if (library->missing.empty()) return library;
  return MakeError(absl::StatusCode::kUnavailable, "NCCL_UNAVAILABLE", absl::StrCat("nccl: ", library->missing));
}

absl::Status Failed(const Library& library, const char* what, int error) {
  return MakeError(absl::StatusCode::kInternal, "NCCL_ERROR",
                   absl::StrCat("nccl: ", what, ": ", library.error_string(error)));
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const Library& library, Comm comm, int rank, int size, CudaDevice& device)
      : library_(library), comm_(comm), rank_(rank), size_(size), device_(device) {}
  ~NcclCommunicator() override { library_.comm_destroy(comm_); }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  absl::Status Sum(float* data, int64_t count) override {
    const int error =
        library_.all_reduce(data, data, static_cast<size_t>(count), kFloat32, kSum, comm_, device_.stream());
    return error == kSuccess ? absl::OkStatus() : Failed(library_, "sum", error);
  }

 private:
  const Library& library_;
  Comm comm_;
  int rank_, size_;
  CudaDevice& device_;
};

}  // namespace

absl::StatusOr<NcclId> MakeNcclId() {
  SAGE_ASSIGN_OR_RETURN(const Library* const library, Nccl());
  Id id;
  const int error = library->get_unique_id(&id);
  if (error != kSuccess) return Failed(*library, "unique id", error);
  NcclId out;
  std::copy_n(id.bytes, out.size(), out.begin());
  return out;
}

absl::StatusOr<std::unique_ptr<Communicator>> OpenNccl(const NcclId& id, int rank, int size, CudaDevice& device) {
  SAGE_ASSIGN_OR_RETURN(const Library* const library, Nccl());
  Id own;
  std::copy(id.begin(), id.end(), own.bytes);
  Comm comm = nullptr;
  const int error = library->comm_init_rank(&comm, size, own, rank);
  if (error != kSuccess) return Failed(*library, "joining the group", error);
  return std::make_unique<NcclCommunicator>(*library, comm, rank, size, device);
}

}  // namespace sage::cuda
