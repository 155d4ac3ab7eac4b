// See files.hpp.
#include "pg/files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>

namespace envcrypt::pg {

namespace {

constexpr std::size_t kMaxFile = 64 * 1024;

struct Descriptor {
    int fd;
    ~Descriptor() {
        if (fd >= 0) close(fd);
    }
};

Error file_error(ErrorCode code, const std::string &path, const char *what, const char *hint) {
    return {code, "could not use file \"" + path + "\"", what, hint};
}

Error system_error(const std::string &path, int error) {
    // what somebody took away is a denial; what the machine is short of is an outage
    const bool denied =
        error == EACCES || error == EPERM || error == ENOENT || error == ENOTDIR || error == ELOOP;
    return {
        denied ? ErrorCode::denied : ErrorCode::unreachable, "could not read file \"" + path + "\"",
        std::string("The system says: ") + strerror(error) + ".",
        "The file must be readable by the operating system user that runs the database server."};
}

}  // namespace

Result<SecretBytes> read_file(const kms::FileRequest &file) {
    // O_NONBLOCK: opening a named pipe must not wait for a writer
    const Descriptor descriptor{open(file.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (descriptor.fd < 0) return system_error(file.path, errno);
    struct stat about;
    if (fstat(descriptor.fd, &about) != 0) return system_error(file.path, errno);
    if (!S_ISREG(about.st_mode))
        return file_error(ErrorCode::misconfigured, file.path, "It is not a regular file.", "");
    if (file.private_to_owner && ((about.st_mode & (S_IRWXG | S_IRWXO)) != 0 ||
                                  (about.st_uid != geteuid() && about.st_uid != 0)))
        return file_error(ErrorCode::denied, file.path, "Other users have access to it.",
                          "It must belong to the user that runs the database server, with mode "
                          "0600 or less.");

    SecretBytes contents(kMaxFile + 1);
    std::size_t length = 0;
    while (length <= kMaxFile) {
        const ssize_t got =
            read(descriptor.fd, contents.expose().data() + length, kMaxFile + 1 - length);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return system_error(file.path, errno);
        if (got == 0) break;
        length += static_cast<std::size_t>(got);
    }
    if (length > kMaxFile)
        return file_error(ErrorCode::misconfigured, file.path, "It is longer than 64 KiB.", "");
    contents.shrink(length);
    if (contents.expose_text().ends_with('\n')) contents.shrink(length - 1);
    if (contents.empty())
        return file_error(ErrorCode::misconfigured, file.path, "It is empty.", "");
    return contents.copy();
}

}  // namespace envcrypt::pg
