#include "digest.hpp"

#include <openssl/evp.h>

#include <array>
#include <memory>
#include <vector>

#include "holocron/errors.hpp"

namespace holocron::detail {

namespace {

class Sha256 {
 public:
    Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
        require(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
    }

    void add(const char* data, std::size_t length) { require(EVP_DigestUpdate(context_.get(), data, length) == 1); }

    [[nodiscard]] std::string digits() {
        constexpr std::string_view kDigits = "0123456789abcdef";
        std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
        unsigned int length = 0;
        require(EVP_DigestFinal_ex(context_.get(), digest.data(), &length) == 1);
        std::string text;
        for (unsigned int i = 0; i < length; ++i) {
            text += kDigits[digest[i] >> 4U];
            text += kDigits[digest[i] & 0xFU];
        }
        return text;
    }

 private:
    static void require(bool worked) {
        if (!worked) {
            throw BundleError("OpenSSL cannot compute SHA-256 here, so nothing can be checked before it is opened");
        }
    }

    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string sha256_of(std::string_view bytes) {
    Sha256 hash;
    hash.add(bytes.data(), bytes.size());
    return hash.digits();
}

std::string sha256_of(const File& file) {
    Sha256 hash;
    std::vector<char> piece(std::size_t{1} << 20U);
    for (;;) {
        const std::size_t got = file.read_some(piece.data(), piece.size());
        hash.add(piece.data(), got);
        if (got < piece.size()) {
            return hash.digits();
        }
    }
}

}  // namespace holocron::detail
