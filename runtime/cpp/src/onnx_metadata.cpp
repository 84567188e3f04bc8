#include "onnx_metadata.hpp"

#include <algorithm>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <utility>

#include "files.hpp"
#include "holocron/errors.hpp"
#include "unicode.hpp"

namespace holocron::detail {

namespace {

constexpr std::uint64_t kIrVersion = 1;
constexpr std::uint64_t kGraph = 7;
constexpr std::uint64_t kMetadataProps = 14;
constexpr std::uint64_t kMaxEntryBytes = 16ULL << 20U;

enum WireType : std::uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct NotProtobuf : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Bytes of a file, read in pieces as far as they are needed.
class FileBytes {
 public:
    explicit FileBytes(const File& file) : file_(file) {}

    [[nodiscard]] std::uint64_t size() const noexcept { return file_.size(); }

    /// The byte at a position below the size; -1 if the file has become shorter.
    int byte(std::uint64_t position) {
        if (position < start_ || position >= start_ + piece_.size()) {
            piece_ = bytes(position, std::min<std::uint64_t>(kPiece, size() - position));
            start_ = position;
        }
        return piece_.empty() ? -1 : static_cast<unsigned char>(piece_[static_cast<std::size_t>(position - start_)]);
    }

    [[nodiscard]] std::string bytes(std::uint64_t position, std::uint64_t length) const {
        std::string result(static_cast<std::size_t>(length), '\0');
        file_.seek(position);
        result.resize(file_.read_some(result.data(), result.size()));
        return result;
    }

 private:
    static constexpr std::uint64_t kPiece = 4096;
    const File& file_;
    std::string piece_;
    std::uint64_t start_ = 0;
};

/// Bytes in memory, with the same interface.
class MemoryBytes {
 public:
    explicit MemoryBytes(std::string data) : data_(std::move(data)) {}

    [[nodiscard]] std::uint64_t size() const noexcept { return data_.size(); }
    [[nodiscard]] int byte(std::uint64_t position) const {
        return static_cast<unsigned char>(data_[static_cast<std::size_t>(position)]);
    }
    [[nodiscard]] std::string bytes(std::uint64_t position, std::uint64_t length) const {
        return data_.substr(static_cast<std::size_t>(position), static_cast<std::size_t>(length));
    }

 private:
    std::string data_;
};

/// Walks over the fields of one message.
template <typename Bytes>
class Reader {
 public:
    explicit Reader(Bytes bytes) : bytes_(std::move(bytes)) {}

    [[nodiscard]] bool at_end() const noexcept { return position_ >= bytes_.size(); }

    /// Number of the next field and its wire type.
    std::pair<std::uint64_t, std::uint64_t> key() {
        const std::uint64_t value = varint();
        if (value >> 3U == 0) {
            throw NotProtobuf("there is a field with the number 0 before byte " + std::to_string(position_));
        }
        return {value >> 3U, value & 7U};
    }

    std::string bytes() {
        const std::uint64_t length = checked_length();
        if (length > kMaxEntryBytes) {
            throw NotProtobuf("its metadata has an entry of " + std::to_string(length) + " bytes");
        }
        std::string result = bytes_.bytes(position_, length);
        if (result.size() != length) {
            throw NotProtobuf("it ends inside a field");
        }
        position_ += length;
        return result;
    }

    void skip(std::uint64_t wire) {
        if (wire == kVarint) {
            static_cast<void>(varint());
            return;
        }
        if (wire != kFixed64 && wire != kBytes && wire != kFixed32) {
            throw NotProtobuf("there is a field of the unknown type " + std::to_string(wire) + " before byte " +
                              std::to_string(position_));
        }
        const std::uint64_t length = wire == kFixed64 ? 8 : wire == kFixed32 ? 4 : checked_length();
        if (length > bytes_.size() - position_) {
            throw NotProtobuf("it ends inside a field");
        }
        position_ += length;
    }

 private:
    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift < 70; shift += 7) {
            const int byte = at_end() ? -1 : bytes_.byte(position_);
            if (byte < 0) {
                throw NotProtobuf("it ends inside a field");
            }
            ++position_;
            value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
            if (byte < (shift < 63 ? 0x80 : 2)) {  // the tenth byte has one bit
                return value;
            }
        }
        throw NotProtobuf("there is a number of more than 64 bits before byte " + std::to_string(position_));
    }

    std::uint64_t checked_length() {
        const std::uint64_t length = varint();
        if (length > bytes_.size() - position_) {
            throw NotProtobuf("it ends inside a field");
        }
        return length;
    }

    Bytes bytes_;
    std::uint64_t position_ = 0;
};

std::pair<std::string, std::string> entry(std::string data) {
    Reader<MemoryBytes> reader{MemoryBytes(std::move(data))};
    std::string key;
    std::string value;
    while (!reader.at_end()) {
        const auto [field, wire] = reader.key();
        if (field == 1 && wire == kBytes) {
            key = reader.bytes();
        } else if (field == 2 && wire == kBytes) {
            value = reader.bytes();
        } else {
            reader.skip(wire);
        }
    }
    if (!is_utf8(key) || !is_utf8(value)) {
        throw NotProtobuf("its metadata is not UTF-8 text");
    }
    return {std::move(key), std::move(value)};
}

}  // namespace

std::map<std::string, std::string> read_onnx_metadata(const std::filesystem::path& path) {
    try {
        const File file(path);
        Reader<FileBytes> reader{FileBytes(file)};
        std::map<std::string, std::string> metadata;
        std::set<std::uint64_t> seen;
        while (!reader.at_end()) {
            const auto [field, wire] = reader.key();
            seen.insert(field);
            if (field == kMetadataProps && wire == kBytes) {
                auto [key, value] = entry(reader.bytes());
                metadata.insert_or_assign(std::move(key), std::move(value));
            } else {
                reader.skip(wire);
            }
        }
        if (seen.count(kIrVersion) == 0 || seen.count(kGraph) == 0) {
            throw NotProtobuf("it has no graph");
        }
        return metadata;
    } catch (const FileError& e) {
        throw BundleError("cannot read " + path.string() + ": " + e.what());
    } catch (const NotProtobuf& e) {
        throw BundleError(path.string() + " is not an ONNX file, or was cut off: " + e.what());
    }
}

}  // namespace holocron::detail
