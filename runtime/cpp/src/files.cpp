#include "files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace holocron::detail {

namespace {

constexpr std::size_t kPiece = std::size_t{1} << 20U;

std::string reason(int error) { return std::generic_category().message(error); }

}  // namespace

FileError::FileError(int error) : std::runtime_error(reason(error)), missing_(error == ENOENT) {}

File::File(const std::filesystem::path& path) : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (descriptor_ < 0) {
        throw FileError(errno);
    }
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) {
        const int error = errno;
        ::close(descriptor_);
        throw FileError(error);
    }
    regular_ = S_ISREG(status.st_mode);
    size_ = status.st_size > 0 ? static_cast<std::uint64_t>(status.st_size) : 0;
}

File::~File() { ::close(descriptor_); }

std::size_t File::read_some(char* buffer, std::size_t length) const {
    std::size_t done = 0;
    while (done < length) {
        const ssize_t got = ::read(descriptor_, buffer + done, length - done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            throw FileError(errno);
        }
        if (got == 0) {
            break;
        }
        done += static_cast<std::size_t>(got);
    }
    return done;
}

std::string File::read(std::uint64_t limit) const {
    std::string text;
    text.reserve(static_cast<std::size_t>(std::min(size_, limit)) + 1);
    while (text.size() <= limit) {
        const std::size_t before = text.size();
        const std::size_t expected = size_ > before ? static_cast<std::size_t>(size_ - before) + 1 : kPiece;
        const auto room = static_cast<std::size_t>(std::min<std::uint64_t>(expected, limit + 1 - before));
        text.resize(before + room);
        const std::size_t got = read_some(text.data() + before, room);
        text.resize(before + got);
        if (got < room) {
            return text;
        }
    }
    throw FileError(EFBIG);
}

void File::seek(std::uint64_t position) const {
    if (::lseek(descriptor_, static_cast<off_t>(position), SEEK_SET) < 0) {
        throw FileError(errno);
    }
}

std::filesystem::path plain_path(const std::filesystem::path& path) {
    std::filesystem::path result;
    for (const auto& part : path) {
        if (!part.empty() && part != ".") {
            result /= part;
        }
    }
    return result.empty() ? std::filesystem::path(".") : result;
}

}  // namespace holocron::detail
