/// \file
/// A small file that makes the next start faster and that may be missing, stale or damaged at any time.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace holocron::detail {

/// A cache that belongs to one other file: damaged, or of another, it reads as if it were not there.
///
/// The Python runtime reads and writes the same file: `holocron-cache-1` and a line feed, the SHA-256 of the owner, the
/// SHA-256 of the content, the content.
class PairedFile {
 public:
    /// \param path of the cache; empty for one that is never there
    /// \param owner the bytes that it belongs to
    PairedFile(std::filesystem::path path, std::string_view owner);

    /// What was written last; nothing if there is nothing of use.
    [[nodiscard]] std::optional<std::string> read();

    /// Replace the file at once, if the content is new; a folder that cannot be written is no error.
    void write(std::string_view content);

 private:
    std::filesystem::path path_;
    std::string head_;
    std::optional<std::string> known_;
};

}  // namespace holocron::detail
