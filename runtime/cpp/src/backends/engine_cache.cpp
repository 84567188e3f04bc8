#include "backends/engine_cache.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <utility>

#include "digest.hpp"
#include "files.hpp"

namespace holocron::detail {

namespace {

constexpr std::string_view kMagic = "holocron-cache-1\n";
constexpr std::uint64_t kLargest = std::uint64_t{1} << 30;
constexpr std::size_t kDigestBytes = 32;
constexpr mode_t kMode = 0644;

/// SHA-256 as 32 bytes.
std::string digest_of(std::string_view bytes) {
    constexpr int kHexadecimal = 16;
    const std::string digits = sha256_of(bytes);
    std::string digest;
    for (std::size_t i = 0; i < digits.size(); i += 2) {
        digest.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, kHexadecimal)));
    }
    return digest;
}

/// A file beside its destination, which it becomes or never was.
class NewFile {
 public:
    explicit NewFile(const std::filesystem::path& destination)
        : name_((destination.parent_path() / ("." + destination.filename().string() + ".XXXXXX")).string()),
          descriptor_(::mkstemp(name_.data())) {}
    NewFile(const NewFile&) = delete;
    NewFile& operator=(const NewFile&) = delete;
    ~NewFile() {
        if (descriptor_ >= 0) {
            ::close(descriptor_);
        }
        if (exists_) {
            ::unlink(name_.c_str());
        }
    }

    bool write(std::string_view bytes) const {
        while (!bytes.empty()) {
            const auto count = ::write(descriptor_, bytes.data(), bytes.size());
            if (count <= 0) {
                return false;
            }
            bytes.remove_prefix(static_cast<std::size_t>(count));
        }
        return true;
    }

    void become(const std::filesystem::path& destination) {
        if (::fsync(descriptor_) == 0 && ::fchmod(descriptor_, kMode) == 0) {
            exists_ = ::rename(name_.c_str(), destination.c_str()) != 0;
        }
    }

    [[nodiscard]] bool is_open() const { return descriptor_ >= 0; }

 private:
    std::string name_;
    int descriptor_;
    bool exists_ = descriptor_ >= 0;
};

}  // namespace

PairedFile::PairedFile(std::filesystem::path path, std::string_view owner)
    : path_(std::move(path)), head_(path_.empty() ? std::string() : std::string(kMagic) + digest_of(owner)) {}

std::optional<std::string> PairedFile::read() {
    if (path_.empty()) {
        return std::nullopt;
    }
    std::string data;
    try {
        const File file(path_);
        if (!file.is_regular()) {
            return std::nullopt;
        }
        data = file.read(kLargest);
    } catch (const FileError&) {
        return std::nullopt;
    }
    const std::size_t start = head_.size() + kDigestBytes;
    if (data.size() < start || data.compare(0, head_.size(), head_) != 0) {
        return std::nullopt;
    }
    std::string content = data.substr(start);
    if (data.compare(head_.size(), kDigestBytes, digest_of(content)) != 0) {
        return std::nullopt;
    }
    known_ = content;
    return content;
}

void PairedFile::write(std::string_view content) {
    if (path_.empty() || known_ == content) {
        return;
    }
    NewFile file(path_);
    if (file.is_open() && file.write(head_) && file.write(digest_of(content)) && file.write(content)) {
        file.become(path_);
        known_ = content;
    }
}

}  // namespace holocron::detail
