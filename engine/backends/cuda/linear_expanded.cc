// Packed layers for throughput: many tokens are multiplied by cuBLASLt in bf16, panel by panel of rows expanded into
// the device's workspace; fewer run as packed layers do.
//
// Expanding costs the bytes of the codes and 2 N K written and read again, mostly in the second level cache: little
// beside a product of 1024 tokens, where the library's kernels are about twice as fast as tiles of mma.sync. Weights
// and activations are rounded to bf16, so a row's bits differ from those it has in a smaller batch.
#include <bit>
#include <map>
#include <mutex>

#include "engine/backends/cuda/activation_forms.h"
#include "engine/backends/cuda/packed_linear.h"
#include "engine/base/status.h"

namespace sage::cuda {
namespace {

constexpr int64_t kLeastTokens = 1024;
constexpr int64_t kStep = 8;  // inputs and outputs that the library reads at a time

class ExpandedLinear final : public PackedLinear {
 public:
  using PackedLinear::PackedLinear;

  void Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const override {
    // Half of the workspace holds the panel, half is the library's.
    const size_t half = device_.workspace().bytes() / 2 / 256 * 256;
    const int64_t row_bytes = plan_.K * 2, panel_blocks = static_cast<int64_t>(half) / (row_bytes * kRowBlock);
    if (x.M < kLeastTokens || ordered_ || plan_.K % kStep != 0 || plan_.N % kStep != 0 || panel_blocks < 1) {
      return PackedLinear::Forward(ctx, x, out, out_stride);
    }
    const __nv_bfloat16* const input = Bf16Form(ctx, x, device_);
    if (input == nullptr) return;
    auto* const panel = device_.workspace().as<uint8_t>() + half;
    for (int64_t block = 0; block < plan_.row_blocks; block += panel_blocks) {
      const int64_t blocks = std::min<int64_t>(panel_blocks, plan_.row_blocks - block), first = block * kRowBlock;
      const int64_t rows = std::min(blocks * kRowBlock, plan_.N - first);
      device_.Note(LaunchExpand(plan_.code, plan_.fold, layer_, static_cast<int>(block), static_cast<int>(blocks),
                                static_cast<int>(plan_.K), reinterpret_cast<uint16_t*>(panel), device_.stream()),
                   kernel_.c_str());
      const float* const bias = bias_.empty() ? nullptr : bias_.as<float>() + first;
      Multiply(input, x.M, panel, rows, bias, half, out + first, out_stride);
    }
  }

 private:
  // out[m, n] = input[m, :] . panel[n, :] + bias[n].
  void Multiply(const void* input, int64_t M, const void* panel, int64_t rows, const float* bias, size_t scratch,
                float* out, int64_t out_stride) const {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t a, b, c;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cublasStatus_t status = cublasLtMatmulDescInit(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const auto next = [&](cublasStatus_t result) {
      if (status == CUBLAS_STATUS_SUCCESS) status = result;
    };
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
      next(cublasLtMatmulDescSetAttribute(&product, attribute, &value, sizeof(value)));
    };
    const auto sizes = [](int64_t n) { return static_cast<uint64_t>(n); };
    set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    if (bias != nullptr) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    }
    next(cublasLtMatrixLayoutInit(&a, CUDA_R_16BF, sizes(plan_.K), sizes(rows), plan_.K));
    next(cublasLtMatrixLayoutInit(&b, CUDA_R_16BF, sizes(plan_.K), sizes(M), plan_.K));
    next(cublasLtMatrixLayoutInit(&c, CUDA_R_32F, sizes(rows), sizes(M), out_stride));
    cublasLtMatmulAlgo_t algo;
    if (status == CUBLAS_STATUS_SUCCESS) next(Choose(product, a, b, c, M, rows, scratch, &algo));
    const float one = 1.0f, none = 0.0f;
    if (status == CUBLAS_STATUS_SUCCESS) {
      next(cublasLtMatmul(device_.blas(), &product, &one, panel, &a, input, &b, &none, out, &c, out, &c, &algo,
                          device_.workspace().as<void>(), scratch, device_.stream()));
    }
    device_.Note(status, kernel_.c_str());
  }

  // The algorithm for panels of `rows` and tokens up to a power of two, asked once; one of its own where that does not
  // fit.
  cublasStatus_t Choose(cublasLtMatmulDescOpaque_t& product, cublasLtMatrixLayoutOpaque_t& a,
                        cublasLtMatrixLayoutOpaque_t& b, cublasLtMatrixLayoutOpaque_t& c, int64_t M, int64_t rows,
                        size_t scratch, cublasLtMatmulAlgo_t* algo) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto key = std::make_pair(rows, std::bit_width(static_cast<uint64_t>(M - 1)));
    cublasLtMatmulHeuristicResult_t result = {};
    const auto known = choices_.find(key);
    if (known != choices_.end() &&
        cublasLtMatmulAlgoCheck(device_.blas(), &product, &a, &b, &c, &c, &known->second, &result) ==
            CUBLAS_STATUS_SUCCESS &&
        result.workspaceSize <= scratch) {
      *algo = known->second;
      return CUBLAS_STATUS_SUCCESS;
    }
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasStatus_t status = cublasLtMatmulPreferenceInit(&preference);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    status = cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &scratch,
                                                  sizeof(scratch));
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    int found = 0;
    status = cublasLtMatmulAlgoGetHeuristic(device_.blas(), &product, &a, &b, &c, &c, &preference, 1, &result, &found);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (found == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    choices_[key] = *algo = result.algo;
    return CUBLAS_STATUS_SUCCESS;
  }

  mutable std::mutex mutex_;
  mutable std::map<std::pair<int64_t, int>, cublasLtMatmulAlgo_t> choices_;
};

std::string Refuse(const LinearKernelQuery& query, const DeviceTraits&) {
  if (query.priority != Priority::kThroughput) return "is for priority throughput";
  return RefusePacked(query, false);
}

template <const char* kName>
constexpr LinearRecord Record(std::string_view strategy) {
  return {.name = kName,
          .strategy = strategy,
          .throughput_rank = 30,
          .refuse = Refuse,
          .bind = BindPlaced<ExpandedLinear, kName>};
}

constexpr char kAwqW4a16[] = "linear_awq_w4a16_expanded_sm80";
constexpr char kBnbInt8W8a16[] = "linear_bnb_int8_w8a16_expanded_sm80";
constexpr char kFp4W4a16[] = "linear_fp4_w4a16_expanded_sm80";
constexpr char kFp8W8a16[] = "linear_fp8_w8a16_expanded_sm80";
constexpr char kGgufQ40[] = "linear_gguf_q4_0_expanded_sm80";
constexpr char kGgufQ41[] = "linear_gguf_q4_1_expanded_sm80";
constexpr char kGgufQ80[] = "linear_gguf_q8_0_expanded_sm80";
constexpr char kGptqW2a16[] = "linear_gptq_w2a16_expanded_sm80";
constexpr char kGptqW3a16[] = "linear_gptq_w3a16_expanded_sm80";
constexpr char kGptqW4a16[] = "linear_gptq_w4a16_expanded_sm80";
constexpr char kGptqW8a16[] = "linear_gptq_w8a16_expanded_sm80";
constexpr char kInt4W4a16[] = "linear_int4_w4a16_expanded_sm80";
constexpr char kInt8Affine[] = "linear_int8_affine_expanded_sm80";
constexpr char kInt8W8a16[] = "linear_int8_w8a16_expanded_sm80";
constexpr char kMxfp4W4a16[] = "linear_mxfp4_w4a16_expanded_sm80";
constexpr char kNf4W4a16[] = "linear_nf4_w4a16_expanded_sm80";
constexpr char kNvfp4W4a16[] = "linear_nvfp4_w4a16_expanded_sm80";

constexpr LinearRecord kRecords[] = {
    Record<kAwqW4a16>("awq_w4a16"),     Record<kBnbInt8W8a16>("bnb_int8_w8a16"), Record<kFp4W4a16>("fp4_w4a16"),
    Record<kFp8W8a16>("fp8_w8a16"),     Record<kGgufQ40>("gguf_q4_0"),           Record<kGgufQ41>("gguf_q4_1"),
    Record<kGgufQ80>("gguf_q8_0"),      Record<kGptqW2a16>("gptq_w2a16"),        Record<kGptqW3a16>("gptq_w3a16"),
    Record<kGptqW4a16>("gptq_w4a16"),   Record<kGptqW8a16>("gptq_w8a16"),        Record<kInt4W4a16>("int4_w4a16"),
    Record<kInt8Affine>("int8_affine"), Record<kInt8W8a16>("int8_w8a16"),        Record<kMxfp4W4a16>("mxfp4_w4a16"),
    Record<kNf4W4a16>("nf4_w4a16"),     Record<kNvfp4W4a16>("nvfp4_w4a16"),
};

}  // namespace

extern const CudaLinearFamily kLinearExpanded;
const CudaLinearFamily kLinearExpanded = {kRecords};

}  // namespace sage::cuda
