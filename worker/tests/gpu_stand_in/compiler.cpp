// A stand-in for NVRTC: compiles a program for the CPU, with gpu.h before it, and hands on the path of a shared library.
//
// Caches libraries in the folder `programs` next to this one, by their source.

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

namespace {

struct Program {
    std::string source, code, log;
};

enum { SUCCESS = 0, COMPILATION = 6 };

std::string folder() {
    Dl_info info;
    dladdr((void *)folder, &info);
    std::string file = info.dli_fname;
    return file.substr(0, file.rfind('/'));
}

std::string content(const std::string &path) {
    std::ifstream file(path);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
}

// Runs the compiler; its messages go into `log`.
bool compile(const std::string &arguments, const std::string &work, std::string &log) {
    const char *compiler = getenv("CXX");
    std::string command = std::string(compiler ? compiler : "g++") + " " + arguments + " >" + work + ".log 2>&1";
    bool compiled = system(command.c_str()) == 0;
    log = content(work + ".log");
    unlink((work + ".log").c_str());
    return compiled;
}

// Takes the marks out of a preprocessed program and returns functions that launch its kernels.
std::string launches(std::string &text) {
    const std::string mark = "STAND_IN_KERNEL", bound_mark = "STAND_IN_BOUND";
    std::string functions;
    auto skip = [&](size_t &at) {
        while (isspace((unsigned char)text[at])) at++;
    };
    for (size_t at = 0; (at = text.find(mark, at)) != std::string::npos;) {
        text.replace(at, mark.size(), mark.size(), ' ');
        skip(at);
        if (text.compare(at, 4, "void") != 0) return "#error \"a kernel returns something\"\n";
        at += 4;
        skip(at);
        std::string bound = "0";
        if (text.compare(at, bound_mark.size(), bound_mark) == 0) {
            size_t end = text.find('(', at);
            for (int open = 1; open > 0;) {
                char character = text[++end];
                open += (character == '(') - (character == ')');
            }
            bound = text.substr(at + bound_mark.size(), end + 1 - at - bound_mark.size());
            text.replace(at, end + 1 - at, end + 1 - at, ' ');
            skip(at);
        }
        size_t end = at;
        while (isalnum((unsigned char)text[end]) || text[end] == '_') end++;
        std::string name = text.substr(at, end - at);
        functions += "extern \"C\" std::function<void()> *launch_" + name +
                     "(const stand_in::Launch &launch, void **parameters) { return stand_in::queued(" + name + ", \"" +
                     name + "\", " + bound + ", launch, parameters); }\n";
    }
    return functions;
}

void build(Program &program) {
    std::string here = folder(), programs = here + "/programs";
    mkdir(programs.c_str(), 0777);
    std::string flags = "-x c++ -std=c++17 -O2 -march=native -ffp-contract=off -fno-strict-aliasing -fPIC -w ";
    // What would stop a GPU stops the CPU: vectors that are not aligned, indices outside of arrays.
    flags += "-fsanitize=alignment,bounds -fsanitize-undefined-trap-on-error -fno-semantic-interposition ";
    std::string source = "#include \"gpu.h\"\n#line 1 \"program\"\n" + program.source;
    std::string cpu = content("/proc/cpuinfo");
    size_t features = cpu.find("flags"), end = cpu.find('\n', features == std::string::npos ? 0 : features);
    cpu = features == std::string::npos ? "" : cpu.substr(features, end - features);
    unsigned long long hash = 0xcbf29ce484222325;
    for (unsigned char byte : source + flags + cpu + content(here + "/gpu.h") + content(here + "/launch.h")) {
        hash = (hash ^ byte) * 0x100000001b3;
    }
    std::stringstream name;
    name << programs << "/" << std::hex << hash << ".so";
    program.code = name.str();
    if (access(program.code.c_str(), R_OK) == 0) return;
    // Other processes may compile the same program.
    std::string work = program.code + "." + std::to_string(getpid());
    std::ofstream(work + ".cu") << source;
    if (!compile(flags + "-E -I" + here + " -o " + work + ".ii " + work + ".cu", work, program.log)) program.code.clear();
    if (!program.code.empty()) {
        std::string text = content(work + ".ii"), functions = launches(text);
        std::ofstream(work + ".ii") << text << "\n" << functions;
        flags.replace(0, 6, "-x c++-cpp-output");
        if (!compile(flags + "-shared -Wl,-Bsymbolic -o " + work + " " + work + ".ii", work, program.log) ||
            rename(work.c_str(), program.code.c_str()) != 0) {
            program.code.clear();
        }
    }
    unlink((work + ".cu").c_str());
    unlink((work + ".ii").c_str());
}

}  // namespace

extern "C" {

int nvrtcVersion(int *major, int *minor) {
    *major = 13;
    *minor = 0;
    return SUCCESS;
}

int nvrtcCreateProgram(Program **program, const char *source, const char *, int, const char *const *, const char *const *) {
    *program = new Program{source, "", ""};
    return SUCCESS;
}

int nvrtcCompileProgram(Program *program, int, const char *const *) {
    build(*program);
    return program->code.empty() ? COMPILATION : SUCCESS;
}

int nvrtcGetProgramLogSize(Program *program, size_t *size) {
    *size = program->log.size() + 1;
    return SUCCESS;
}

int nvrtcGetProgramLog(Program *program, char *log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}

int nvrtcGetCUBINSize(Program *program, size_t *size) {
    *size = program->code.size() + 1;
    return SUCCESS;
}

int nvrtcGetCUBIN(Program *program, char *code) {
    memcpy(code, program->code.c_str(), program->code.size() + 1);
    return SUCCESS;
}

int nvrtcDestroyProgram(Program **program) {
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

const char *nvrtcGetErrorString(int error) { return error == SUCCESS ? "no error" : "the program does not compile"; }
}
