// Reads a GGUF header with a bounded cursor: no count, length or offset is used before it is checked against the bytes
// that are left.
#include "engine/tensor/gguf_file.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

// Bounds on what a header may make us allocate; real files stay far below (vocabularies have < 10^6 entries).
constexpr uint64_t kMaxPairs = 1u << 16;
constexpr uint64_t kMaxTensors = 1u << 17;
constexpr uint64_t kMaxElements = 1u << 23;  // of all arrays of a file together
constexpr uint64_t kMaxNameBytes = 65535;
constexpr uint64_t kMaxDimension = uint64_t{1} << 40;
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kMaxAlignment = 1u << 20;
constexpr int kMaxArrayDepth = 4;

using enum GgufValue::Type;

struct BlockSize {
  uint64_t values = 0;  // 0 = a type this engine does not read
  uint64_t bytes = 0;
};

BlockSize BlockSizeOf(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return {1, 4};
    case GgmlType::kF16:
    case GgmlType::kBF16:
      return {1, 2};
    case GgmlType::kQ4_0:
    case GgmlType::kIQ4_NL:
      return {32, 18};
    case GgmlType::kQ4_1:
      return {32, 20};
    case GgmlType::kQ5_0:
      return {32, 22};
    case GgmlType::kQ5_1:
      return {32, 24};
    case GgmlType::kQ8_0:
      return {32, 34};
    case GgmlType::kQ2_K:
      return {256, 84};
    case GgmlType::kQ3_K:
      return {256, 110};
    case GgmlType::kQ4_K:
      return {256, 144};
    case GgmlType::kQ5_K:
      return {256, 176};
    case GgmlType::kQ6_K:
      return {256, 210};
    case GgmlType::kIQ4_XS:
      return {256, 136};
  }
  return {};
}

}  // namespace

class GgufParser {
 public:
  GgufParser(const uint8_t* data, size_t size, const std::string& name) : data_(data), size_(size), name_(name) {}

  absl::StatusOr<std::shared_ptr<GgufFile>> Parse() {
    out_.reset(new GgufFile());
    out_->metadata_ = Json::object();
    uint64_t tensors = 0, pairs = 0;
    SAGE_RETURN_IF_ERROR(ReadHeader(&tensors, &pairs));
    for (uint64_t i = 0; i < pairs; ++i) SAGE_RETURN_IF_ERROR(ReadPair());
    SAGE_RETURN_IF_ERROR(ReadAlignment());
    for (uint64_t i = 0; i < tensors; ++i) SAGE_RETURN_IF_ERROR(ReadTensorInfo());
    SAGE_RETURN_IF_ERROR(PlaceTensors());
    return std::move(out_);
  }

 private:
  struct Info {
    GgufTensor tensor;
    uint64_t offset = 0;
  };

  template <typename... Parts>
  absl::Status Bad(const Parts&... parts) const {
    return MakeError(absl::StatusCode::kInvalidArgument, "GGUF_INVALID", absl::StrCat(name_, ": ", parts...));
  }
  size_t left() const { return size_ - at_; }
  // Names come from the file: shortened, they still say which one is meant.
  static std::string Short(std::string_view name) { return std::string(name.substr(0, 120)); }

  template <typename T>
  absl::Status Read(const char* what, T* out) {
    if (left() < sizeof(T)) return Bad(what, " at byte ", at_, " passes the end of the file (", size_, " bytes)");
    std::memcpy(out, data_ + at_, sizeof(T));
    at_ += sizeof(T);
    return absl::OkStatus();
  }

  // Counts and lengths: u32 in version 1, u64 later.
  absl::Status ReadCount(const char* what, uint64_t* out) {
    if (out_->version_ >= 2) return Read(what, out);
    uint32_t narrow = 0;
    SAGE_RETURN_IF_ERROR(Read(what, &narrow));
    *out = narrow;
    return absl::OkStatus();
  }

  absl::Status ReadText(const char* what, uint64_t most, std::string* out) {
    uint64_t bytes = 0;
    SAGE_RETURN_IF_ERROR(ReadCount(what, &bytes));
    if (bytes > left())
      return Bad(what, " of ", bytes, " bytes passes the end of the file, ", left(), " bytes are left");
    if (bytes > most) return Bad(what, " must be at most ", most, " bytes, got ", bytes);
    out->assign(reinterpret_cast<const char*>(data_) + at_, static_cast<size_t>(bytes));
    at_ += static_cast<size_t>(bytes);
    return absl::OkStatus();
  }

  absl::Status ReadHeader(uint64_t* tensors, uint64_t* pairs) {
    char magic[4];
    SAGE_RETURN_IF_ERROR(Read("magic", &magic));
    if (std::memcmp(magic, "GGUF", 4) != 0) return Bad("must begin with 'GGUF'");
    uint32_t version = 0;
    SAGE_RETURN_IF_ERROR(Read("version", &version));
    if (version < 1 || version > 3) {
      const bool swapped = version >= (1u << 24) && (version & 0xffffffu) == 0;
      return Bad("version must be 1, 2 or 3, got ", version, swapped ? " (a big-endian file?)" : "");
    }
    out_->version_ = version;
    SAGE_RETURN_IF_ERROR(ReadCount("tensor count", tensors));
    SAGE_RETURN_IF_ERROR(ReadCount("key count", pairs));
    if (*tensors > kMaxTensors) return Bad("tensor count must be at most ", kMaxTensors, ", got ", *tensors);
    if (*pairs > kMaxPairs) return Bad("key count must be at most ", kMaxPairs, ", got ", *pairs);
    return absl::OkStatus();
  }

  absl::Status ReadPair() {
    std::string key;
    SAGE_RETURN_IF_ERROR(ReadText("key", kMaxNameBytes, &key));
    if (key.empty()) return Bad("keys must not be empty");
    if (out_->metadata_.contains(key)) return Bad("key '", Short(key), "' is there twice");
    uint32_t type = 0;
    SAGE_RETURN_IF_ERROR(Read("value type", &type));
    Json value;
    const absl::Status status = ReadValue(type, 0, &value);
    if (!status.ok()) return Annotate(status, absl::StrCat("key '", Short(key), "'"));
    out_->metadata_[key] = std::move(value);
    return absl::OkStatus();
  }

  template <typename T>
  absl::Status ReadNumber(Json* out) {
    T value{};
    SAGE_RETURN_IF_ERROR(Read("value", &value));
    if constexpr (std::is_same_v<T, float>) {
      *out = static_cast<double>(value);
    } else {
      *out = value;
    }
    return absl::OkStatus();
  }

  absl::Status ReadBool(Json* out) {
    uint8_t value = 0;
    SAGE_RETURN_IF_ERROR(Read("value", &value));
    if (value > 1) return Bad("booleans must be 0 or 1, got ", static_cast<int>(value));
    *out = value == 1;
    return absl::OkStatus();
  }

  absl::Status ReadValue(uint32_t type, int depth, Json* out) {
    switch (type) {
      case kU8:
        return ReadNumber<uint8_t>(out);
      case kI8:
        return ReadNumber<int8_t>(out);
      case kU16:
        return ReadNumber<uint16_t>(out);
      case kI16:
        return ReadNumber<int16_t>(out);
      case kU32:
        return ReadNumber<uint32_t>(out);
      case kI32:
        return ReadNumber<int32_t>(out);
      case kF32:
        return ReadNumber<float>(out);
      case kBool:
        return ReadBool(out);
      case kU64:
        return ReadNumber<uint64_t>(out);
      case kI64:
        return ReadNumber<int64_t>(out);
      case kF64:
        return ReadNumber<double>(out);
      case kString: {
        std::string text;
        SAGE_RETURN_IF_ERROR(ReadText("string", size_, &text));
        *out = std::move(text);
        return absl::OkStatus();
      }
      case kArray:
        return ReadArray(depth, out);
    }
    return Bad("value type must be 0 to 12, got ", type);
  }

  // Bytes that a value takes at least: an array cannot have more elements than the rest of the file could hold.
  uint64_t LeastBytes(uint32_t type) const {
    const uint64_t count_bytes = out_->version_ >= 2 ? 8 : 4;
    switch (type) {
      case kU8:
      case kI8:
      case kBool:
        return 1;
      case kU16:
      case kI16:
        return 2;
      case kU32:
      case kI32:
      case kF32:
        return 4;
      case kString:
        return count_bytes;
      case kArray:
        return 4 + count_bytes;
      default:
        return 8;
    }
  }

  absl::Status ReadArray(int depth, Json* out) {
    if (depth >= kMaxArrayDepth) return Bad("arrays must be nested at most ", kMaxArrayDepth, " deep");
    uint32_t type = 0;
    uint64_t count = 0;
    SAGE_RETURN_IF_ERROR(Read("element type", &type));
    SAGE_RETURN_IF_ERROR(ReadCount("array length", &count));
    if (type > kF64) return Bad("value type must be 0 to 12, got ", type);
    if (count > left() / LeastBytes(type)) {
      return Bad("array of ", count, " elements passes the end of the file, ", left(), " bytes are left");
    }
    elements_ += count;
    if (elements_ > kMaxElements) return Bad("arrays must have at most ", kMaxElements, " elements in all");
    *out = Json::array();
    auto& array = out->get_ref<Json::array_t&>();
    array.reserve(static_cast<size_t>(count));
    for (uint64_t i = 0; i < count; ++i) {
      array.emplace_back();
      SAGE_RETURN_IF_ERROR(ReadValue(type, depth + 1, &array.back()));
    }
    return absl::OkStatus();
  }

  absl::Status ReadAlignment() {
    const auto it = out_->metadata_.find("general.alignment");
    if (it == out_->metadata_.end()) return absl::OkStatus();
    alignment_ = it->is_number_unsigned() ? it->get<uint64_t>() : 0;
    if (alignment_ == 0 || alignment_ > kMaxAlignment || (alignment_ & (alignment_ - 1)) != 0) {
      return Bad("general.alignment must be a power of two in [1, ", kMaxAlignment, "], got ",
                 DumpJson(*it).substr(0, 40));
    }
    return absl::OkStatus();
  }

  absl::Status ReadTensorInfo() {
    Info info;
    GgufTensor& tensor = info.tensor;
    SAGE_RETURN_IF_ERROR(ReadText("tensor name", kMaxNameBytes, &tensor.name));
    if (tensor.name.empty()) return Bad("tensor names must not be empty");
    const std::string what = absl::StrCat("tensor '", Short(tensor.name), "'");
    uint32_t dimensions = 0;
    SAGE_RETURN_IF_ERROR(Read("dimension count", &dimensions));
    if (dimensions > kMaxDimensions) return Bad(what, " must have at most 4 dimensions, got ", dimensions);
    for (uint32_t i = 0; i < dimensions; ++i) {
      uint64_t size = 0;
      SAGE_RETURN_IF_ERROR(ReadCount("dimension", &size));
      if (size == 0 || size > kMaxDimension) return Bad(what, ": sizes must be in [1, 2^40], got ", size);
      tensor.shape.push_back(static_cast<int64_t>(size));
    }
    uint32_t type = 0;
    SAGE_RETURN_IF_ERROR(Read("tensor type", &type));
    SAGE_RETURN_IF_ERROR(Read("tensor offset", &info.offset));
    tensor.type = static_cast<GgmlType>(type);
    SAGE_RETURN_IF_ERROR(CountBytes(what, &tensor));
    std::reverse(tensor.shape.begin(), tensor.shape.end());
    infos_.push_back(std::move(info));
    return absl::OkStatus();
  }

  // shape[0] is still the row length here.
  absl::Status CountBytes(const std::string& what, GgufTensor* tensor) const {
    const BlockSize block = BlockSizeOf(tensor->type);
    if (block.values == 0) return absl::OkStatus();  // not readable: said when it is asked for
    const uint64_t row = tensor->shape.empty() ? 1 : static_cast<uint64_t>(tensor->shape[0]);
    if (row % block.values != 0) {
      return Bad(what, ": rows must be whole blocks of ", block.values, " values, got ", row);
    }
    uint64_t bytes = 0;
    bool overflow = __builtin_mul_overflow(row / block.values, block.bytes, &bytes);
    for (size_t i = 1; i < tensor->shape.size(); ++i) {
      overflow = overflow || __builtin_mul_overflow(bytes, static_cast<uint64_t>(tensor->shape[i]), &bytes);
    }
    if (overflow || bytes > size_) return Bad(what, " is larger than the file of ", size_, " bytes");
    tensor->bytes = static_cast<size_t>(bytes);
    return absl::OkStatus();
  }

  absl::Status PlaceTensors() {
    const size_t padding = (alignment_ - at_ % alignment_) % alignment_;
    if (infos_.empty()) return absl::OkStatus();
    if (padding > left()) return Bad("the data must begin at a multiple of ", alignment_, ", the file ends before it");
    const size_t begin = at_ + padding;
    std::sort(infos_.begin(), infos_.end(), [](const Info& a, const Info& b) {
      return std::tie(a.offset, a.tensor.bytes) < std::tie(b.offset, b.tensor.bytes);
    });
    uint64_t end = 0;
    for (Info& info : infos_) {
      GgufTensor& tensor = info.tensor;
      const std::string what = absl::StrCat("tensor '", Short(tensor.name), "'");
      if (info.offset % alignment_ != 0) {
        return Bad(what, ": offset must be a multiple of ", alignment_, ", got ", info.offset);
      }
      if (info.offset > size_ - begin || tensor.bytes > size_ - begin - info.offset) {
        return Bad(what, ": ", tensor.bytes, " bytes at offset ", info.offset, " pass the end of the data (",
                   size_ - begin, " bytes)");
      }
      if (info.offset < end) return Bad(what, " overlaps the one before it");
      end = info.offset + tensor.bytes;
      tensor.data = data_ + begin + info.offset;
      std::string key = tensor.name;
      if (!out_->tensors_.emplace(std::move(key), std::move(tensor)).second) return Bad(what, " is there twice");
    }
    return absl::OkStatus();
  }

  const uint8_t* data_;
  size_t size_;
  std::string name_;
  size_t at_ = 0;
  uint64_t elements_ = 0;
  uint64_t alignment_ = 32;
  std::vector<Info> infos_;
  std::shared_ptr<GgufFile> out_;
};

absl::StatusOr<std::shared_ptr<GgufFile>> GgufFile::Parse(const uint8_t* data, size_t size, const std::string& name) {
  return GgufParser(data, size, name).Parse();
}

absl::StatusOr<std::shared_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(std::shared_ptr<MappedFile> file, MappedFile::Open(path));
  SAGE_ASSIGN_OR_RETURN(std::shared_ptr<GgufFile> out, Parse(file->data(), file->size(), path));
  out->file_ = std::move(file);
  return out;
}

}  // namespace sage
