// Reads a GGUF header with every size checked against what is left of the file before it is used.
#include "engine/tensor/gguf_file.h"

#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr uint64_t kMaxTensors = 1 << 20;
constexpr uint64_t kMaxPairs = 1 << 20;
constexpr uint64_t kMaxNameBytes = 64 << 10;
constexpr uint64_t kMaxArrayItems = 1 << 24;
constexpr int kMaxArrayDepth = 4;

// Values of one block and bytes of one block of every readable type; 0 bytes = not readable.
struct TypeSize {
  int block, bytes;
};
TypeSize SizeOf(GgmlType type) {
  switch (type) {
    case GgmlType::kF32: return {1, 4};
    case GgmlType::kF16: return {1, 2};
    case GgmlType::kBF16: return {1, 2};
    case GgmlType::kQ4_0: return {32, 18};
    case GgmlType::kQ4_1: return {32, 20};
    case GgmlType::kQ5_0: return {32, 22};
    case GgmlType::kQ5_1: return {32, 24};
    case GgmlType::kQ8_0: return {32, 34};
    case GgmlType::kQ2_K: return {256, 84};
    case GgmlType::kQ3_K: return {256, 110};
    case GgmlType::kQ4_K: return {256, 144};
    case GgmlType::kQ5_K: return {256, 176};
    case GgmlType::kQ6_K: return {256, 210};
    case GgmlType::kIQ4_NL: return {32, 18};
    case GgmlType::kIQ4_XS: return {256, 136};
  }
  return {1, 0};
}

}  // namespace

class GgufParser {
 public:
  GgufParser(const uint8_t* data, size_t size, const std::string& name) : data_(data), size_(size), name_(name) {}

  absl::StatusOr<std::shared_ptr<GgufFile>> Parse() {
    out_.reset(new GgufFile());
    uint32_t magic = 0;
    SAGE_RETURN_IF_ERROR(Read(&magic, "magic"));
    if (std::memcmp(&magic, "GGUF", 4) != 0) return Bad("magic must be 'GGUF'");
    SAGE_RETURN_IF_ERROR(Read(&out_->version_, "version"));
    if (out_->version_ < 1 || out_->version_ > 3) return Bad("version must be 1, 2 or 3, got ", out_->version_);
    uint64_t tensors = 0, pairs = 0;
    SAGE_RETURN_IF_ERROR(ReadSize(&tensors, "tensor count"));
    SAGE_RETURN_IF_ERROR(ReadSize(&pairs, "pair count"));
    if (tensors > kMaxTensors) return Bad("tensor count must be at most ", kMaxTensors, ", got ", tensors);
    if (pairs > kMaxPairs) return Bad("pair count must be at most ", kMaxPairs, ", got ", pairs);
    out_->metadata_ = Json::object();
    for (uint64_t i = 0; i < pairs; ++i) SAGE_RETURN_IF_ERROR(ReadPair());
    for (uint64_t i = 0; i < tensors; ++i) SAGE_RETURN_IF_ERROR(ReadTensor());
    SAGE_RETURN_IF_ERROR(PlaceTensors());
    return std::move(out_);
  }

 private:
  template <typename... Parts>
  absl::Status Bad(const Parts&... parts) const {
    return MakeError(absl::StatusCode::kInvalidArgument, "GGUF_INVALID", absl::StrCat(name_, ": ", parts...));
  }
  template <typename T>
  absl::Status Read(T* value, const char* field) {
    if (size_ - at_ < sizeof(T)) return Bad("ends within ", field, " at byte ", at_);
    std::memcpy(value, data_ + at_, sizeof(T));
    at_ += sizeof(T);
    return absl::OkStatus();
  }
  // Counts and lengths are 32 bits in version 1.
  absl::Status ReadSize(uint64_t* value, const char* field) {
    if (out_->version_ > 1) return Read(value, field);
    uint32_t small = 0;
    SAGE_RETURN_IF_ERROR(Read(&small, field));
    *value = small;
    return absl::OkStatus();
  }
  absl::Status ReadText(std::string* text, uint64_t most, const char* field) {
    uint64_t length = 0;
    SAGE_RETURN_IF_ERROR(ReadSize(&length, field));
    if (length > most || length > size_ - at_) return Bad(field, " of ", length, " bytes at byte ", at_, " is too long");
    text->assign(reinterpret_cast<const char*>(data_) + at_, static_cast<size_t>(length));
    at_ += static_cast<size_t>(length);
    return absl::OkStatus();
  }

  template <typename T>
  absl::Status ReadNumber(Json* out) {
    T value{};
    SAGE_RETURN_IF_ERROR(Read(&value, "value"));
    *out = value;
    return absl::OkStatus();
  }

  absl::Status ReadValue(uint32_t type, int depth, Json* out) {
    switch (type) {
      case 0: return ReadNumber<uint8_t>(out);
      case 1: return ReadNumber<int8_t>(out);
      case 2: return ReadNumber<uint16_t>(out);
      case 3: return ReadNumber<int16_t>(out);
      case 4: return ReadNumber<uint32_t>(out);
      case 5: return ReadNumber<int32_t>(out);
      case 6: return ReadNumber<float>(out);
      case 7: {
        uint8_t flag = 0;
        SAGE_RETURN_IF_ERROR(Read(&flag, "boolean"));
        *out = flag != 0;
        return absl::OkStatus();
      }
      case 8: {
        std::string text;
        SAGE_RETURN_IF_ERROR(ReadText(&text, size_, "string"));
        *out = std::move(text);
        return absl::OkStatus();
      }
      case 9: return ReadArray(depth, out);
      case 10: return ReadNumber<uint64_t>(out);
      case 11: return ReadNumber<int64_t>(out);
      case 12: return ReadNumber<double>(out);
      default: return Bad("value type must be in [0, 12], got ", type);
    }
  }

  absl::Status ReadArray(int depth, Json* out) {
    if (depth >= kMaxArrayDepth) return Bad("arrays must nest at most ", kMaxArrayDepth, " deep");
    uint32_t type = 0;
    uint64_t count = 0;
    SAGE_RETURN_IF_ERROR(Read(&type, "array type"));
    SAGE_RETURN_IF_ERROR(ReadSize(&count, "array length"));
    // Every item takes at least one byte, so a count beyond what is left cannot be true.
    if (count > kMaxArrayItems || count > size_ - at_) return Bad("array of ", count, " items at byte ", at_, " is too long");
    Json::array_t items;
    for (uint64_t i = 0; i < count; ++i) {
      Json item;
      SAGE_RETURN_IF_ERROR(ReadValue(type, depth + 1, &item));
      items.push_back(std::move(item));
    }
    *out = std::move(items);
    return absl::OkStatus();
  }

  absl::Status ReadPair() {
    std::string key;
    SAGE_RETURN_IF_ERROR(ReadText(&key, kMaxNameBytes, "key"));
    uint32_t type = 0;
    SAGE_RETURN_IF_ERROR(Read(&type, "value type"));
    Json value;
    SAGE_RETURN_IF_ERROR(ReadValue(type, 0, &value));
    if (out_->metadata_.contains(key)) return Bad("key '", key.substr(0, 120), "' is there twice");
    out_->metadata_[key] = std::move(value);
    return absl::OkStatus();
  }

  absl::Status ReadTensor() {
    GgufTensor tensor;
    SAGE_RETURN_IF_ERROR(ReadText(&tensor.name, kMaxNameBytes, "tensor name"));
    uint32_t dimensions = 0;
    SAGE_RETURN_IF_ERROR(Read(&dimensions, "dimension count"));
    if (dimensions > 4) return Bad("tensor '", tensor.name, "' must have at most 4 dimensions, got ", dimensions);
    int64_t elements = 1;
    for (uint32_t i = 0; i < dimensions; ++i) {
      uint64_t d = 0;
      SAGE_RETURN_IF_ERROR(ReadSize(&d, "dimension"));
      if (d == 0 || d > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
          __builtin_mul_overflow(elements, static_cast<int64_t>(d), &elements) || elements > (int64_t{1} << 48)) {
        return Bad("tensor '", tensor.name, "': dimensions must be positive and multiply to at most 2^48");
      }
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(d));
    }
    uint32_t type = 0;
    uint64_t offset = 0;
    SAGE_RETURN_IF_ERROR(Read(&type, "tensor type"));
    SAGE_RETURN_IF_ERROR(Read(&offset, "tensor offset"));
    tensor.type = static_cast<GgmlType>(type);
    const TypeSize size = SizeOf(tensor.type);
    const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
    if (size.bytes > 0 && row % size.block != 0) {
      return Bad("tensor '", tensor.name, "': rows of type ", type, " must be multiples of ", size.block, ", got ", row);
    }
    tensor.bytes = static_cast<size_t>(elements / size.block) * static_cast<size_t>(size.bytes);
    const std::string name = tensor.name;
    offsets_.push_back({name, offset});
    if (!out_->tensors_.emplace(name, std::move(tensor)).second) return Bad("tensor '", name.substr(0, 120), "' is there twice");
    return absl::OkStatus();
  }

  absl::Status PlaceTensors() {
    uint64_t alignment = 32;
    const auto it = out_->metadata_.find("general.alignment");
    if (it != out_->metadata_.end()) {
      if (!it->is_number_unsigned()) return Bad("general.alignment must be an unsigned integer");
      alignment = it->get<uint64_t>();
      if (alignment == 0 || alignment > (1 << 20) || (alignment & (alignment - 1)) != 0) {
        return Bad("general.alignment must be a power of two up to 2^20, got ", alignment);
      }
    }
    if (offsets_.empty()) return absl::OkStatus();
    const uint64_t begin = (at_ + alignment - 1) / alignment * alignment;
    if (begin > size_) return Bad("ends before its data");
    for (const auto& [name, offset] : offsets_) {
      GgufTensor& tensor = out_->tensors_.at(name);
      if (offset % alignment != 0) return Bad("tensor '", name, "': offset must be a multiple of ", alignment, ", got ", offset);
      if (offset > size_ - begin || tensor.bytes > size_ - begin - offset) {
        return Bad("tensor '", name, "': ", tensor.bytes, " bytes at offset ", offset, " pass the end of the file");
      }
      tensor.data = data_ + begin + offset;
    }
    return absl::OkStatus();
  }

  const uint8_t* data_;
  size_t size_;
  std::string name_;
  size_t at_ = 0;
  std::vector<std::pair<std::string, uint64_t>> offsets_;
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
