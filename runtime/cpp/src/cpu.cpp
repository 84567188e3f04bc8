#include "cpu.hpp"

#include <algorithm>
#include <array>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "holocron/errors.hpp"

#ifdef __linux__
#include <sched.h>
#endif

namespace holocron::detail {

namespace {

std::string read_flags() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("flags", 0) == 0 || line.rfind("Features", 0) == 0) {
            return line.substr(std::min(line.find(':') + 1, line.size()));
        }
    }
    return {};
}

#ifdef __linux__
std::string first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

/// Processors' worth of time that the container gets; 0 where there is no limit.
int quota() {
    std::istringstream text(first_line("/sys/fs/cgroup/cpu.max"));
    long long share = 0;
    long long period = 0;
    if (!(text >> share >> period) || period <= 0) {
        return 0;
    }
    return static_cast<int>(std::clamp<long long>(share / period, 1, 1024));
}

int allowed_cores() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
        return 0;
    }
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (CPU_ISSET(cpu, &allowed)) {
            const std::string number = std::to_string(cpu);
            const auto siblings = first_line("/sys/devices/system/cpu/cpu" + number + "/topology/thread_siblings_list");
            cores.insert(siblings.empty() ? number : siblings);
        }
    }
    return static_cast<int>(cores.size());
}
#endif

}  // namespace

bool flags_have_int8_dot_product(std::string_view flags) {
    constexpr std::array<std::string_view, 4> wanted{"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"};
    std::istringstream words{std::string(flags)};
    for (std::string word; words >> word;) {
        if (std::find(wanted.begin(), wanted.end(), word) != wanted.end()) {
            return true;
        }
    }
    return false;
}

bool has_int8_dot_product() {
    static const bool has = flags_have_int8_dot_product(read_flags());
    return has;
}

int default_threads() {
#ifdef __linux__
    const int cores = allowed_cores();
    if (cores > 0) {
        const int share = quota();
        return std::max(1, share > 0 ? std::min(cores, share) : cores);
    }
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int check_threads(int threads, const std::string& name) {
    if (threads == 0) {
        return default_threads();
    }
    if (threads < 1 || threads > 1024) {
        throw ArgumentError(name + " is " + std::to_string(threads) + ", expected 1 to 1024");
    }
    return threads;
}

}  // namespace holocron::detail
