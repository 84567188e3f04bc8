#include <doctest/doctest.h>
#include <sys/stat.h>

#include "bundle.hpp"
#include "bundle_files.hpp"
#include "digest.hpp"

using namespace holocron;
using namespace holocron::detail;
namespace fs = std::filesystem;

namespace {

const Artefact kArtefact = [] {
    Artefact artefact;
    artefact.file = "model.onnx";
    artefact.precision = "fp32";
    artefact.size = 3;
    artefact.sha256 = sha256_of("abc");
    return artefact;
}();

std::string error_of(const fs::path& bundle, const Artefact& artefact) {
    std::string first;
    try {
        static_cast<void>(artefact_path(bundle, artefact));
    } catch (const BundleError& e) {
        first = e.what();
    }
    try {
        static_cast<void>(read_artefact(bundle, artefact));
    } catch (const BundleError& e) {
        CHECK(first == e.what());
        return first;
    }
    CHECK(first.empty());
    return first;
}

}  // namespace

TEST_CASE("SHA-256 of the examples of FIPS 180-4") {
    CHECK(sha256_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(sha256_of(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("SHA-256 of a file in pieces is that of its bytes") {
    const tests::TemporaryFolder folder;
    for (const std::size_t size : {std::size_t{0}, std::size_t{1} << 20U, (std::size_t{1} << 20U) + 1}) {
        const std::string bytes(size, 'x');
        tests::write_file(folder.path() / "f", bytes);
        CHECK(sha256_of(File(folder.path() / "f")) == sha256_of(bytes));
    }
}

TEST_CASE("an artefact is the file that the manifest describes, or is refused") {
    const tests::TemporaryFolder folder;
    const fs::path bundle = folder.path() / "bundle";
    const fs::path file = bundle / "model.onnx";
    fs::create_directory(bundle);
    const std::string path = file.string();

    CHECK(error_of(bundle, kArtefact).rfind("cannot read " + path + ", which the manifest names: ", 0) == 0);
    tests::write_file(file, "abc");
    CHECK(error_of(bundle, kArtefact).empty());
    CHECK(artefact_path(bundle, kArtefact) == fs::canonical(file));
    CHECK(read_artefact(bundle, kArtefact) == "abc");
    tests::write_file(file, "ab");
    CHECK(error_of(bundle, kArtefact) ==
          path +
              " has 2 bytes where the manifest says 3: it was cut off or changed; copy the bundle again or export it "
              "again");
    tests::write_file(file, "abd");
    CHECK(error_of(bundle, kArtefact) == path +
                                             " does not have the SHA-256 that the manifest says: it was changed; copy "
                                             "the bundle again or export it again");
}

TEST_CASE("links are followed only inside the bundle") {
    const tests::TemporaryFolder folder;
    const fs::path bundle = folder.path() / "bundle";
    fs::create_directory(bundle);
    tests::write_file(folder.path() / "outside", "abc");
    tests::write_file(bundle / "inside", "abc");
    fs::create_symlink(folder.path() / "outside", bundle / "model.onnx");
    CHECK(error_of(bundle, kArtefact) == "'model.onnx' leads out of the bundle " + bundle.string() + ": refused");
    fs::remove(bundle / "model.onnx");
    fs::create_symlink("inside", bundle / "model.onnx");
    CHECK(error_of(bundle, kArtefact).empty());
    fs::remove(bundle / "model.onnx");
    fs::create_symlink("model.onnx", bundle / "model.onnx");
    CHECK(error_of(bundle, kArtefact).find("which the manifest names: ") != std::string::npos);
    // A folder whose name begins as the bundle's does is not inside of it.
    fs::create_directory(folder.path() / "bundle2");
    tests::write_file(folder.path() / "bundle2" / "f", "abc");
    fs::remove(bundle / "model.onnx");
    fs::create_symlink("../bundle2/f", bundle / "model.onnx");
    CHECK(error_of(bundle, kArtefact).find("leads out of the bundle") != std::string::npos);
}

TEST_CASE("a folder or a pipe in a file's place is refused") {
    const tests::TemporaryFolder folder;
    const fs::path file = folder.path() / "model.onnx";
    fs::create_directory(file);
    CHECK(error_of(folder.path(), kArtefact) == file.string() + ", which the manifest names, is not a file");
    fs::remove(file);
    REQUIRE(::mkfifo(file.c_str(), 0600) == 0);
    CHECK(error_of(folder.path(), kArtefact) == file.string() + ", which the manifest names, is not a file");
}
