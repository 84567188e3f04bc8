#include <fstream>
#include <iterator>

#include "backends/engine_cache.hpp"
#include "bundle_files.hpp"
#include "support.hpp"

using namespace holocron;
using namespace holocron::tests;
using detail::PairedFile;

namespace {

std::string content_of(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("a cache is read by its owner and nobody else") {
    const TemporaryFolder folder;
    const auto path = folder.path() / "model.engine.cache";
    const std::string content("kernels\0\xFF", 9);
    PairedFile file(path, "the engine");
    CHECK_FALSE(file.read());
    file.write(content);
    CHECK(PairedFile(path, "the engine").read() == content);
    CHECK_FALSE(PairedFile(path, "another engine").read());
    CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("it is laid out as the documentation says") {
    const TemporaryFolder folder;
    const auto path = folder.path() / "cache";
    PairedFile(path, "abc").write("");
    const std::string written = content_of(path);
    // SHA-256 of "abc" and of nothing begin with ba7816bf and e3b0c442.
    CHECK(written.size() == 17 + 32 + 32);
    CHECK(written.substr(0, 17) == "holocron-cache-1\n");
    CHECK(written.substr(17, 4) == "\xBA\x78\x16\xBF");
    CHECK(written.substr(49, 4) == "\xE3\xB0\xC4\x42");
}

TEST_CASE("a damaged cache reads as if it were not there") {
    const TemporaryFolder folder;
    const auto path = folder.path() / "cache";
    PairedFile(path, "owner").write("content");
    const std::string whole = content_of(path);
    for (std::size_t size = 0; size < whole.size(); ++size) {
        write_file(path, whole.substr(0, size));
        CHECK_FALSE(PairedFile(path, "owner").read());
    }
    for (std::size_t i = 0; i < whole.size(); ++i) {
        std::string changed = whole;
        changed[i] = static_cast<char>(changed[i] ^ 1);
        write_file(path, changed);
        CHECK_FALSE(PairedFile(path, "owner").read());
    }
}

TEST_CASE("a place that cannot be written or read is no error") {
    const TemporaryFolder folder;
    PairedFile missing(folder.path() / "no" / "cache", "owner");
    CHECK_FALSE(missing.read());
    missing.write("content");
    CHECK_FALSE(missing.read());
    PairedFile(folder.path(), "owner").write("content");
    CHECK_FALSE(PairedFile(folder.path(), "owner").read());
    PairedFile nowhere({}, "owner");
    nowhere.write("content");
    CHECK_FALSE(nowhere.read());
    CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("content that was read is not written again") {
    const TemporaryFolder folder;
    const auto path = folder.path() / "cache";
    PairedFile(path, "owner").write("content");
    PairedFile file(path, "owner");
    CHECK(file.read() == "content");
    std::filesystem::remove(path);
    file.write("content");
    CHECK_FALSE(std::filesystem::exists(path));
    file.write("more");
    CHECK(PairedFile(path, "owner").read() == "more");
}
