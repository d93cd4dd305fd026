// Layers of plain floats through cuBLASLt: bf16 and f16 on tensor cores with f32 sums, f32 as it is.
//
// Column-major, the product is out^T [N, M] = weight [K, N]^T . x [K, M]. An algorithm is asked for once for each
// number of rows and kept, so that a layer computes a row of such a batch the same way every time.
#include <map>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "engine/backends/cuda/activation_forms.h"
#include "engine/backends/cuda/linear_record.h"
#include "engine/base/status.h"

namespace sage::cuda {
namespace {

struct DenseType {
  DType dtype;
  cudaDataType_t cuda;
  int64_t bytes;
};
constexpr DenseType kF32{DType::kF32, CUDA_R_32F, 4};
constexpr DenseType kF16{DType::kF16, CUDA_R_16F, 2};
constexpr DenseType kBf16{DType::kBF16, CUDA_R_16BF, 2};

// Descriptors of one shape of a product.
class Product {
 public:
  ~Product() {
    if (preference_ != nullptr) cublasLtMatmulPreferenceDestroy(preference_);
    for (cublasLtMatrixLayout_t layout : {weight_, input_, output_}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
    if (product_ != nullptr) cublasLtMatmulDescDestroy(product_);
  }

  cublasStatus_t Start(const DenseType& type, int64_t M, int64_t N, int64_t K, int64_t x_stride, int64_t out_stride,
                       const float* bias, CudaDevice& device) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cublasStatus_t status = cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const auto next = [&](cublasStatus_t result) {
      if (status == CUBLAS_STATUS_SUCCESS) status = result;
    };
    next(cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
    if (bias != nullptr) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      next(cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue)));
      next(cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias)));
    }
    const auto sizes = [](int64_t x) { return static_cast<uint64_t>(x); };
    next(cublasLtMatrixLayoutCreate(&weight_, type.cuda, sizes(K), sizes(N), K));
    next(cublasLtMatrixLayoutCreate(&input_, type.cuda, sizes(K), sizes(M), x_stride));
    next(cublasLtMatrixLayoutCreate(&output_, CUDA_R_32F, sizes(N), sizes(M), out_stride));
    next(cublasLtMatmulPreferenceCreate(&preference_));
    const size_t workspace = device.workspace().bytes();
    next(cublasLtMatmulPreferenceSetAttribute(preference_, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                              sizeof(workspace)));
    int found = 0;
    if (status == CUBLAS_STATUS_SUCCESS) {
      next(cublasLtMatmulAlgoGetHeuristic(device.blas(), product_, weight_, input_, output_, output_, preference_, 1,
                                          &chosen_, &found));
    }
    return status == CUBLAS_STATUS_SUCCESS && found == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : status;
  }

  cublasStatus_t Run(const void* weight, const void* x, float* out, CudaDevice& device) const {
    const float one = 1.0f, none = 0.0f;
    return cublasLtMatmul(device.blas(), product_, &one, weight, weight_, x, input_, &none, out, output_, out, output_,
                          &chosen_.algo, device.workspace().as<void>(), device.workspace().bytes(), device.stream());
  }

 private:
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t weight_ = nullptr, input_ = nullptr, output_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  cublasLtMatmulHeuristicResult_t chosen_ = {};
};

class DenseLinear final : public BoundLinear {
 public:
  DenseLinear(const DenseType& type, std::string_view kernel, CudaDevice& device)
      : type_(type), kernel_(kernel), device_(device) {}

  absl::Status Place(const LinearWeight& weight) {
    N_ = weight.N;
    K_ = weight.K;
    const TensorView& values = weight.dense.values;
    if (values.dtype != type_.dtype || values.bytes != static_cast<size_t>(N_ * K_ * type_.bytes)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "TENSOR_SHAPE_MISMATCH",
                       absl::StrCat(std::string(kernel_), ": needs ", N_, " x ", K_, " values of ", type_.bytes,
                                    " bytes, got ", values.bytes, " bytes"));
    }
    weight_ = device_.FindShared(values.data, values.bytes);
    if (weight_.empty()) {
      SAGE_ASSIGN_OR_RETURN(weight_, device_.Place(values.data, values.bytes));
    }
    if (weight.bias.empty()) return absl::OkStatus();
    SAGE_ASSIGN_OR_RETURN(bias_, device_.Place(weight.bias.data(), weight.bias.size() * sizeof(float)));
    return absl::OkStatus();
  }

  void Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const override {
    const void* input = x.data;
    int64_t stride = x.stride;
    if (type_.cuda != CUDA_R_32F) {
      input = type_.cuda == CUDA_R_16F ? static_cast<const void*>(F16Form(ctx, x, device_)) : Bf16Form(ctx, x, device_);
      stride = x.K;
    }
    const Product* const product = input == nullptr ? nullptr : Find(x.M, stride, out_stride);
    if (product != nullptr) device_.Note(product->Run(weight_.as<void>(), input, out, device_), kernel_.data());
  }
  int64_t N() const override { return N_; }
  int64_t K() const override { return K_; }
  size_t weight_bytes() const override { return weight_.bytes(); }
  std::string kernel() const override { return std::string(kernel_); }

 private:
  const Product* Find(int64_t M, int64_t stride, int64_t out_stride) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<Product>& product = products_[{M, stride, out_stride}];
    if (product != nullptr) return product.get();
    auto made = std::make_unique<Product>();
    const cublasStatus_t status = made->Start(type_, M, N_, K_, stride, out_stride, bias_.as<float>(), device_);
    device_.Note(status, kernel_.data());
    if (status == CUBLAS_STATUS_SUCCESS) product = std::move(made);
    return product.get();
  }

  const DenseType type_;
  std::string_view kernel_;
  CudaDevice& device_;
  int64_t N_ = 0, K_ = 0;
  DeviceBuffer weight_, bias_;
  struct Key {
    int64_t M, stride, out_stride;
    auto operator<=>(const Key&) const = default;
  };
  mutable std::mutex mutex_;
  mutable std::map<Key, std::unique_ptr<Product>> products_;
};

template <const DenseType& kType, const char* kName>
absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const LinearKernelQuery& query, const LinearWeight& weight,
                                                  CudaDevice& device) {
  auto layer = std::make_unique<DenseLinear>(kType, kName, device);
  SAGE_RETURN_IF_ERROR(layer->Place(weight));
  return std::unique_ptr<BoundLinear>(std::move(layer));
}

// cuBLASLt reads rows in steps of 16 bytes.
template <const DenseType& kType>
std::string Refuse(const LinearKernelQuery& query, const DeviceTraits&) {
  const int64_t step = 16 / kType.bytes;
  if (kType.cuda == CUDA_R_32F || query.K % step == 0) return "";
  return absl::StrCat("needs K to be a multiple of ", step, ", got K=", query.K, "; f32 takes any");
}

constexpr char kF32Name[] = "linear_f32_cublaslt";
constexpr char kF16Name[] = "linear_f16_cublaslt";
constexpr char kBf16Name[] = "linear_bf16_cublaslt";
constexpr LinearRecord kRecords[] = {
    {.name = kBf16Name, .strategy = "bf16", .refuse = Refuse<kBf16>, .bind = Bind<kBf16, kBf16Name>},
    {.name = kF16Name, .strategy = "f16", .refuse = Refuse<kF16>, .bind = Bind<kF16, kF16Name>},
    {.name = kF32Name, .strategy = "f32", .refuse = Refuse<kF32>, .bind = Bind<kF32, kF32Name>},
};

}  // namespace

extern const CudaLinearFamily kLinearDense;
const CudaLinearFamily kLinearDense = {.records = kRecords};

}  // namespace sage::cuda
