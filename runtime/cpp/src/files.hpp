/// \file
/// Files that are opened for reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace holocron::detail {

/// The operating system refused something; `what` is its reason.
class FileError : public std::runtime_error {
 public:
    explicit FileError(int error);
    /// Whether there is no such file.
    [[nodiscard]] bool is_missing() const noexcept { return missing_; }

 private:
    bool missing_;
};

/// An open file. What it says of its size is of the very file that is read, whatever is renamed in the meantime.
class File {
 public:
    /// Open for reading; links are followed, and a pipe is not waited for. \throws FileError
    explicit File(const std::filesystem::path& path);
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File();

    [[nodiscard]] bool is_regular() const noexcept { return regular_; }
    /// Bytes, as they were when it was opened.
    [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

    /// Fill a buffer from the current position on. \return bytes that were read, fewer at the end. \throws FileError
    std::size_t read_some(char* buffer, std::size_t length) const;

    /// All from the current position on. \throws FileError, also if there are more bytes than the limit
    [[nodiscard]] std::string read(std::uint64_t limit) const;

    /// Go to a position. \throws FileError
    void seek(std::uint64_t position) const;

 private:
    int descriptor_;
    bool regular_ = false;
    std::uint64_t size_ = 0;
};

/// The same path as it is named in errors: without what changes nothing, as in `./a//b/.`.
[[nodiscard]] std::filesystem::path plain_path(const std::filesystem::path& path);

}  // namespace holocron::detail
