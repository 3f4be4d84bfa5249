// Reads of PTX what a driver checks before a launch: version, target, and each entry's parameters, limits and shared memory.
#include "stand_in.h"

#include <cstdlib>
#include <cstring>

namespace stand_in {
namespace {

bool is_name(char c) { return isalnum((unsigned char)c) || c == '_' || c == '$' || c == '%'; }

// Bytes of a PTX type such as `.u64`; 0 for something else.
size_t type_bytes(const std::string &type) {
    if (type.size() < 3 || !strchr("usbf", type[1])) return 0;
    int bits = atoi(type.c_str() + 2);
    return bits == 8 || bits == 16 || bits == 32 || bits == 64 ? size_t(bits) / 8 : 0;
}

std::vector<std::string> words(const std::string &text) {
    std::vector<std::string> found;
    std::string word;
    for (char c : text + " ")
        if (isspace((unsigned char)c) || c == ',') {
            if (!word.empty()) found.push_back(word);
            word.clear();
        } else {
            word += c;
        }
    return found;
}

// `.param .align 8 .b8 name[16]` or `.shared .align 16 .b8 name[128]`: name and bytes; no bytes where it is no such line.
size_t variable(const std::string &line, std::string &name) {
    size_t element = 0, elements = 1;
    for (const std::string &word : words(line)) {
        if (word[0] == '.') {
            if (size_t bytes = type_bytes(word)) element = bytes;
            continue;
        }
        if (!isalpha((unsigned char)word[0]) && word[0] != '_') continue; // an alignment
        size_t bracket = word.find('[');
        name = word.substr(0, bracket);
        if (bracket != std::string::npos) elements = strtoull(word.c_str() + bracket + 1, nullptr, 10);
        while (!name.empty() && !is_name(name.back())) name.pop_back();
    }
    return element * elements;
}

// Whether `name` stands in the text as a whole word.
bool mentions(const std::string &text, const std::string &name) {
    for (size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + 1)) {
        size_t end = at + name.size();
        if ((at == 0 || !is_name(text[at - 1])) && (end == text.size() || !is_name(text[end]))) return true;
    }
    return false;
}

// The first instruction that needs what the launch in front wrote, or ends the kernel: any access to memory other than
// parameters, shared memory and what no kernel writes (`ld.global.nc`; prefetches read nothing).
size_t first_use(const std::string &body) {
    for (size_t at = 0; at < body.size();) {
        size_t end = body.find('\n', at);
        if (end == std::string::npos) end = body.size();
        std::string line = body.substr(at, end - at);
        auto has = [&](const char *text) { return line.find(text) != std::string::npos; };
        bool local = has(".param") || has(".shared") || has(".local") || has("ld.global.nc");
        bool access = has("\tld.") || has("\tst.") || has("\tred.") || has("\tatom.") || has(" ld.") || has(" st.");
        if ((access && !local) || has("ret;") || has("exit;")) return at;
        at = end + 1;
    }
    return std::string::npos;
}

} // namespace

std::string parse(const std::string &text, Ptx &ptx) {
    size_t version = text.find("\n.version "), target = text.find("\n.target sm_");
    if (text.rfind(".version ", 0) == 0) version = 0;
    if (version == std::string::npos || target == std::string::npos) return "no .version or no .target sm_";
    int major = 0, minor = 0;
    const char *stated = text.c_str() + text.find(".version", version);
    if (sscanf(stated, ".version %d.%d", &major, &minor) != 2) return "a .version that is no number";
    ptx.version = 10 * major + minor;
    ptx.target = atoi(text.c_str() + target + strlen("\n.target sm_"));
    if (text.find(".address_size 64") == std::string::npos) return "no .address_size 64";

    // Shared arrays stand before the functions that use them.
    std::map<std::string, size_t> shared;
    for (size_t at = 0; at < text.size();) {
        size_t end = text.find('\n', at);
        if (end == std::string::npos) end = text.size();
        if (text.compare(at, 8, ".shared ") == 0) {
            std::string name;
            size_t bytes = variable(text.substr(at, end - at), name);
            if (bytes == 0) return "a shared array without a size: " + text.substr(at, end - at);
            shared[name] = bytes;
        }
        at = end + 1;
    }

    for (size_t at = text.find(".entry "); at != std::string::npos; at = text.find(".entry ", at + 1)) {
        Entry entry;
        size_t open = text.find('(', at), close = text.find(')', at), body = text.find('{', at);
        if (open == std::string::npos || close == std::string::npos || body == std::string::npos)
            return "an entry without parameters or body";
        entry.name = words(text.substr(at + 7, open - at - 7))[0];
        std::string list = text.substr(open + 1, close - open - 1);
        for (size_t from = list.find(".param"); from != std::string::npos;) {
            size_t next = list.find(".param", from + 1);
            std::string name;
            size_t bytes = variable(list.substr(from, next - from), name);
            if (bytes == 0) return "entry " + entry.name + ": a parameter of unknown size";
            entry.param_bytes.push_back(bytes);
            from = next;
        }
        std::string limits = text.substr(close, body - close);
        for (const char *limit : {".maxntid", ".reqntid"}) {
            size_t found = limits.find(limit);
            unsigned x = 0, y = 1, z = 1;
            if (found != std::string::npos &&
                sscanf(limits.c_str() + found + strlen(limit), " %u, %u, %u", &x, &y, &z) >= 1)
                entry.max_threads = x * y * z;
        }
        size_t end = body;
        for (int depth = 0; end < text.size(); end++) {
            if (text[end] == '{') depth++;
            if (text[end] == '}' && --depth == 0) break;
        }
        std::string code = text.substr(body, end - body);
        for (const auto &[name, bytes] : shared)
            if (mentions(code, name)) entry.static_shared_bytes += bytes;
        size_t wait = code.find("griddepcontrol.wait");
        entry.waits = wait != std::string::npos && wait < first_use(code);
        ptx.entries[entry.name] = entry;
    }
    return "";
}

} // namespace stand_in
