// 8-bit layers through cuBLASLt: int8 by int8 with whole sums, e4m3 by e4m3 with f32 sums. For many tokens; the packed
// kernels serve few.
//
// Column-major, the product is out^T [N, M] = weight [K, N]^T . x [K, M]. int8 sums go to `out` as integers and one
// pass of ours makes them f32 there. For e4m3 the library multiplies both scales itself where the device can (asked of
// the heuristic when the layer is bound), else the same pass does. Algorithms are chosen for rows up to a power of two
// and kept. Integer sums are exact, so int8 rows do not depend on the batch; e4m3 rows may, by the library's choice.
#include <array>
#include <bit>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "engine/backends/cuda/host/linear_plan.h"
#include "engine/backends/cuda/kernels/linear_prepare.h"
#include "engine/backends/cuda/linear_record.h"
#include "engine/base/status.h"

namespace sage::cuda {
namespace {

constexpr int64_t kStep = 16;  // the library wants dimensions in steps of 16

// One product of `rows` tokens; descriptors live on the stack of the call.
struct Product {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t weight, input, output;

  cublasStatus_t Start(bool integers, int64_t rows, int64_t N, int64_t K, int64_t out_stride,
                       const float* channel_scale, const float* token_scale) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cudaDataType_t in = integers ? CUDA_R_8I : CUDA_R_8F_E4M3, to = integers ? CUDA_R_32I : CUDA_R_32F;
    cublasStatus_t status = cublasLtMatmulDescInit(&operation, integers ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F, to);
    const auto next = [&](cublasStatus_t result) {
      if (status == CUBLAS_STATUS_SUCCESS) status = result;
    };
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
      next(cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof(value)));
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    if (token_scale != nullptr) {
      const cublasLtMatmulMatrixScale_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
      set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode);
      set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, channel_scale);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, token_scale);
    }
    const auto sizes = [](int64_t x) { return static_cast<uint64_t>(x); };
    next(cublasLtMatrixLayoutInit(&weight, in, sizes(K), sizes(N), K));
    next(cublasLtMatrixLayoutInit(&input, in, sizes(K), sizes(rows), K));
    next(cublasLtMatrixLayoutInit(&output, to, sizes(N), sizes(rows), out_stride));
    return status;
  }

  bool Takes(CudaDevice& device, size_t scratch, const cublasLtMatmulAlgo_t& algo) {
    cublasLtMatmulHeuristicResult_t result = {};
    return cublasLtMatmulAlgoCheck(device.blas(), &operation, &weight, &input, &output, &output, &algo, &result) ==
               CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= scratch;
  }

  bool Ask(CudaDevice& device, size_t scratch, cublasLtMatmulAlgo_t* algo) {
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    const bool ok = cublasLtMatmulPreferenceInit(&preference) == CUBLAS_STATUS_SUCCESS &&
                    cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                         &scratch, sizeof(scratch)) == CUBLAS_STATUS_SUCCESS &&
                    cublasLtMatmulAlgoGetHeuristic(device.blas(), &operation, &weight, &input, &output, &output,
                                                   &preference, 1, &result, &found) == CUBLAS_STATUS_SUCCESS &&
                    found == 1 && result.state == CUBLAS_STATUS_SUCCESS;
    if (ok) *algo = result.algo;
    return ok;
  }
};

class BytesLinear final : public BoundLinear {
 public:
  BytesLinear(std::string kernel, CudaDevice& device) : kernel_(std::move(kernel)), device_(device) {}

  absl::Status Place(const LinearWeight& weight);
  void Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const override;
  int64_t N() const override { return N_; }
  int64_t K() const override { return K_; }
  size_t weight_bytes() const override { return codes_.bytes() + scales_.bytes(); }
  std::string kernel() const override { return kernel_; }

 private:
  struct Rows {
    const uint8_t* codes = nullptr;
    const float* token_scale = nullptr;
  };
  Rows Prepare(StepContext& ctx, const StepValue& x) const;
  bool Multiply(const Rows& rows, int64_t M, bool fused, float* out, int64_t out_stride) const;
  void Finish(const Rows& rows, int64_t M, const float* sums, int64_t sums_stride, float* out,
              int64_t out_stride) const;
  Rows From(const Rows& rows, int64_t first) const { return {rows.codes + first * K_, rows.token_scale + first}; }

  const std::string kernel_;
  CudaDevice& device_;
  int64_t N_ = 0, K_ = 0;
  size_t scratch_ = 0;  // of the device's workspace for the library; behind it the sums of a short last step
  bool integers_ = true;
  bool fused_ = false;  // the library multiplies the scales
  PrepareArgs prepare_;
  std::string form_name_;
  DeviceBuffer codes_, scales_, bias_;
  mutable std::mutex mutex_;
  struct Choice {
    bool asked = false, found = false;
    cublasLtMatmulAlgo_t algo = {};
  };
  mutable std::array<Choice, 130> choices_;  // by the power of two that holds the rows, and by whether scales are fused
};

absl::Status BytesLinear::Place(const LinearWeight& weight) {
  // The plan checks the weight and gives the bias without a static zero point.
  SAGE_ASSIGN_OR_RETURN(LinearPlan plan, PlanLinear(weight, kernel_));
  N_ = plan.N;
  K_ = plan.K;
  integers_ = plan.code == Code::kInt8A8;
  const FloatCodeWeight& floats = weight.floats;
  const bool one_scale_a_row = plan.groups == 1 && plan.fold == Fold::kScale && plan.order.empty();
  if ((!integers_ && plan.code != Code::kE4M3A8) || !one_scale_a_row || N_ % kStep != 0 || K_ % kStep != 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_SUPPORTED",
                     absl::StrCat(kernel_, ": needs 8-bit codes with one scale a row, and N and K in steps of 16, got ",
                                  plan.groups, " scales a row, N=", N_, ", K=", K_));
  }
  std::vector<float> scales(static_cast<size_t>(N_));
  for (int64_t n = 0; n < N_; ++n) {
    scales[static_cast<size_t>(n)] = integers_ ? weight.integer.scale[static_cast<size_t>(n)]
                                               : floats.scale[static_cast<size_t>(n / floats.block_rows)];
  }
  SAGE_ASSIGN_OR_RETURN(codes_, device_.Place(plan.source.data, plan.source_bytes));
  SAGE_ASSIGN_OR_RETURN(scales_, device_.Place(scales.data(), scales.size() * sizeof(float)));
  if (!plan.bias.empty()) {
    SAGE_ASSIGN_OR_RETURN(bias_, device_.Place(plan.bias.data(), plan.bias.size() * sizeof(float)));
  }
  prepare_.K = prepare_.places = static_cast<int>(K_);
  prepare_.k_blocks = plan.k_blocks;
  prepare_.row_bytes = K_;
  prepare_.static_scale = integers_ ? weight.integer.activations.scale
                          : floats.activations.kind == FloatActivations::Kind::kStatic ? floats.activations.scale
                                                                                       : 0.0f;
  prepare_.zero = integers_ ? weight.integer.activations.zero : 0;
  form_name_ =
      absl::StrCat("rows ", integers_, " ", std::bit_cast<uint32_t>(prepare_.static_scale), " ", prepare_.zero);
  const size_t tail = static_cast<size_t>(kStep * N_) * sizeof(float);
  if (device_.workspace().bytes() < 2 * tail) {
    return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_SUPPORTED",
                     absl::StrCat(kernel_, ": the device's workspace holds ", device_.workspace().bytes(),
                                  " bytes, N=", N_, " needs ", 2 * tail));
  }
  scratch_ = (device_.workspace().bytes() - tail) / 256 * 256;
  if (!integers_ && bias_.empty()) {
    Product product;
    cublasLtMatmulAlgo_t algo;
    fused_ = product.Start(false, 256, N_, K_, N_, scales_.as<float>(), scales_.as<float>()) == CUBLAS_STATUS_SUCCESS &&
             product.Ask(device_, scratch_, &algo);
  }
  return device_.TakeStatus();
}

BytesLinear::Rows BytesLinear::Prepare(StepContext& ctx, const StepValue& x) const {
  // Whole steps of rows, so that a short last step can be multiplied as a whole one.
  const int64_t padded = (x.M + kStep - 1) / kStep * kStep;
  const auto codes = static_cast<size_t>(padded * K_);
  uint8_t* const memory =
      ctx.activations->Get(x.id, form_name_, codes + static_cast<size_t>(padded) * sizeof(float), [&](uint8_t* to) {
        PrepareArgs args = prepare_;
        args.x = x.data;
        args.x_stride = x.stride;
        args.codes = to;
        args.token_scale = reinterpret_cast<float*>(to + codes);
        device_.Note(LaunchPrepare(integers_ ? RowForm::kInt8 : RowForm::kE4M3, RowSource::kPlain, args,
                                   static_cast<int>(x.M), device_.stream()),
                     kernel_.c_str());
      });
  if (memory == nullptr) {
    device_.Note(cudaErrorMemoryAllocation, "converted activations");
    return {};
  }
  return {memory, reinterpret_cast<const float*>(memory + codes)};
}

// out = the product, without scales unless `fused`. False when the library does not take this number of rows.
bool BytesLinear::Multiply(const Rows& rows, int64_t M, bool fused, float* out, int64_t out_stride) const {
  const float* const token_scale = fused ? rows.token_scale : nullptr;
  Product product;
  if (product.Start(integers_, M, N_, K_, out_stride, scales_.as<float>(), token_scale) != CUBLAS_STATUS_SUCCESS) {
    return false;
  }
  cublasLtMatmulAlgo_t algo;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int power = std::bit_width(static_cast<uint64_t>(M - 1));
    Choice& choice = choices_[static_cast<size_t>(power * 2 + (fused ? 1 : 0))];
    if (!choice.asked) {
      Product largest;
      choice.asked = true;
      choice.found = largest.Start(integers_, int64_t{1} << power, N_, K_, out_stride, scales_.as<float>(),
                                   token_scale) == CUBLAS_STATUS_SUCCESS &&
                     largest.Ask(device_, scratch_, &choice.algo);
    }
    if (choice.found && product.Takes(device_, scratch_, choice.algo)) {
      algo = choice.algo;
    } else if (!product.Ask(device_, scratch_, &algo)) {
      return false;
    }
  }
  const int32_t one_i = 1, none_i = 0;
  const float one = 1.0f, none = 0.0f;
  const void* const alpha = integers_ ? static_cast<const void*>(&one_i) : &one;
  const void* const beta = integers_ ? static_cast<const void*>(&none_i) : &none;
  device_.Note(cublasLtMatmul(device_.blas(), &product.operation, alpha, codes_.as<void>(), &product.weight, rows.codes,
                              &product.input, beta, out, &product.output, out, &product.output, &algo,
                              device_.workspace().as<void>(), scratch_, device_.stream()),
               kernel_.c_str());
  return true;
}

void BytesLinear::Finish(const Rows& rows, int64_t M, const float* sums, int64_t sums_stride, float* out,
                         int64_t out_stride) const {
  const FinishArgs args{sums,       sums_stride, rows.token_scale, scales_.as<float>(), bias_.as<float>(), out,
                        out_stride, N_,          integers_};
  device_.Note(LaunchFinish(args, M, device_.stream()), kernel_.c_str());
}

void BytesLinear::Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const {
  const Rows rows = x.M < 1 ? Rows{} : Prepare(ctx, x);
  if (rows.codes == nullptr) return;
  if (Multiply(rows, x.M, fused_, out, out_stride)) {
    if (!fused_) Finish(rows, x.M, out, out_stride, out, out_stride);
    return;
  }
  const int64_t whole = x.M / kStep * kStep;
  bool done = true;
  if (whole > 0) {
    done = Multiply(rows, whole, fused_, out, out_stride);
    if (done && !fused_) Finish(rows, whole, out, out_stride, out, out_stride);
  }
  if (done && whole < x.M) {
    auto* const sums = reinterpret_cast<float*>(device_.workspace().as<uint8_t>() + scratch_);
    const Rows tail = From(rows, whole);
    done = Multiply(tail, kStep, false, sums, N_);
    if (done) Finish(tail, x.M - whole, sums, N_, out + whole * out_stride, out_stride);
  }
  if (!done) device_.Note(CUBLAS_STATUS_NOT_SUPPORTED, kernel_.c_str());
}

std::string Refuse(const LinearKernelQuery& query, const DeviceTraits&) {
  if (query.N % kStep != 0 || query.K % kStep != 0) {
    return absl::StrCat("needs N and K to be multiples of 16, got N=", query.N, ", K=", query.K);
  }
  if (query.group_size != -1 && (query.K == 0 || query.group_size < query.K)) {
    return absl::StrCat("needs one scale a row, got group_size=", query.group_size);
  }
  return query.symmetric ? "" : "needs symmetric weights";
}

template <const char* kName>
absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const LinearKernelQuery&, const LinearWeight& weight,
                                                  CudaDevice& device) {
  auto layer = std::make_unique<BytesLinear>(kName, device);
  SAGE_RETURN_IF_ERROR(layer->Place(weight));
  return std::unique_ptr<BoundLinear>(std::move(layer));
}

constexpr char kInt8Name[] = "linear_int8_w8a8_cublaslt_sm80", kFp8Name[] = "linear_fp8_w8a8_cublaslt_sm89";

constexpr LinearRecord kRecords[] = {
    {.name = kInt8Name,
     .strategy = "int8_w8a8",
     .min_capability = 80,
     .latency_rank = 10,
     .throughput_rank = 30,
     .memory_rank = 10,
     .refuse = Refuse,
     .bind = Bind<kInt8Name>},
    {.name = kFp8Name,
     .strategy = "fp8_w8a8",
     .min_capability = 89,
     .latency_rank = 10,
     .throughput_rank = 30,
     .memory_rank = 10,
     .refuse = Refuse,
     .bind = Bind<kFp8Name>},
};

}  // namespace

extern const CudaLinearFamily kLinearBytes;
const CudaLinearFamily kLinearBytes = {kRecords};

}  // namespace sage::cuda
